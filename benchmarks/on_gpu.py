"""Every figure that needs a GPU, in nine minutes, each part in a process of its own.

    bash benchmarks/on_gpu.sh                                   # sets the environment
    bash benchmarks/on_gpu.sh --data-dir data/mnist             # with MNIST's two parts
    bash benchmarks/on_gpu.sh --rehearse                        # tiny, on a CPU: 3 minutes
    bash benchmarks/on_gpu.sh --parts step-1B mnist --seconds 240

It writes a JSON file, named after the device, and pictures beside it. A part that fails or takes
too long is in the file as that, with its last line of error and with what it had measured; the
others run all the same. A part has its own share of the time, and what the parts before it have
left. It needs jax, optax, flax and tqdm, for the pictures and for MNIST matplotlib, for a
rehearsal scikit-learn, whose digits stand in for MNIST, and PyTorch for the rows of PyTorch;
nothing is downloaded. A rehearsal has too little memory on purpose: some rows do not fit.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

BEGAN = time.perf_counter()
ROOT = Path(__file__).parents[1]
MODULES = ("jax", "optax", "flax", "tqdm", "matplotlib", "torch")
ADAMS = ["amac, core='adam'"]  # beside Optax's AdamW and PyTorch's two
MUONS = ["amac", "muon", "optax.contrib.muon"]
OF_KERNELS = "optax.contrib.muon, kernels alone"


class Scale(NamedTuple):
    """How large everything is."""

    sizes: Mapping[str, int]  # parameters
    leaves: int
    rounds: int
    program_steps: Mapping[str, int]  # of one timed program
    transformers: Mapping[str, tuple[int, int]]  # layers, width
    room: Mapping[str, float]  # bytes, where it is not what the device has
    runs: int  # in one sweep
    sweep: str  # its optimizer
    dataset: str
    seeds: int  # of MNIST's run, as many as there is time for


FULL = Scale(
    sizes={"10M": 10**7, "100M": 10**8, "1B": 10**9},
    leaves=50,
    rounds=20,
    program_steps={"10M": 50, "100M": 20, "1B": 5},
    transformers={"10M": (12, 256), "100M": (14, 768)},
    room={},
    runs=64,
    sweep="amac",
    dataset="mnist",
    seeds=3,
)
TINY = Scale(
    sizes={"10M": 10_000, "100M": 20_000, "1B": 40_000},
    leaves=4,
    rounds=4,
    program_steps={"10M": 5, "100M": 5, "1B": 5},
    transformers={"10M": (1, 8)},
    room={"1B": 2.2e6},  # two groups, and one variant that fits in neither
    runs=2,
    sweep="adamw",  # compiles faster
    dataset="digits",
    seeds=1,
)


class Work(NamedTuple):
    """What a part is given."""

    scale: Scale
    until: float  # of `time.perf_counter`
    save: Callable[[dict[str, Any]], None]
    data_dir: Path | None


def machine(work: Work) -> None:
    import jax

    import amac_jax

    device = jax.devices()[0]
    libraries = {name: importlib.util.find_spec(name) is not None for name in MODULES}
    content: dict[str, Any] = {
        "platform": device.platform,
        "device": device.device_kind,
        "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        "versions": {
            "python": platform.python_version(),
            "amac_jax": amac_jax.__version__,
            **{name: version_of(name) for name, there in libraries.items() if there},
        },
        "missing": [name for name, there in libraries.items() if not there],
        "driver": driver(),
    }
    work.save(content)


def version_of(module: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(module)
    except PackageNotFoundError:
        return "?"


def driver() -> str | None:
    """What nvidia-smi says of the first card: its name, its driver and its clocks."""
    query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True
        ).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


class Configurations:
    """Measures one configuration after the other, and saves what there is."""

    def __init__(self, work: Work) -> None:
        self.work, self.results = work, list[dict[str, Any]]()

    def measure(self, params: Any, names: list[str], share: float = 1.0, **how: Any) -> None:
        """`share`: of the time that is left."""
        from benchmarks import step_time

        now = time.perf_counter()

        def save(result: dict[str, Any]) -> None:
            self.work.save({"results": [*self.results, result]})

        result = step_time.measure(
            params,
            names,
            rounds=self.work.scale.rounds,
            until=now + share * (self.work.until - now),
            save=save,
            **how,
        )
        self.results.append(result)
        self.work.save({"results": self.results})
        print(step_time.table(result), end="\n\n", flush=True)
        step_time.give_memory_back()


def step(size: str, work: Work) -> None:
    """A step at one size: Adam's kind first, beside PyTorch; then Muon's, which takes longer."""
    from benchmarks import step_time

    params = step_time.parameters(work.scale.sizes[size], work.scale.leaves)
    how = {"room": work.scale.room.get(size), "compile_share": 0.6}  # rounds take seconds at 1B
    found, program_steps = Configurations(work), work.scale.program_steps[size]
    names = [step_time.BASELINE, "adamw", *ADAMS]
    found.measure(params, names, share=0.5, program_steps=program_steps, **how)
    names = [step_time.BASELINE, *MUONS]
    found.measure(params, names, with_torch=False, program_steps=program_steps, **how)
    if size == "10M":  # where the start of a program takes longest beside the step
        found.measure(params, [step_time.BASELINE, *ADAMS], with_torch=False, **how)


def option(work: Work) -> None:
    """Options of AMaC on Adam, one by one, and parameters in bfloat16."""
    import jax.numpy as jnp

    from benchmarks import step_time

    scale, found = work.scale, Configurations(work)
    options = [name for name in step_time.OPTIONS if name != OF_KERNELS]
    params = step_time.parameters(scale.sizes["100M"], scale.leaves)
    names = [step_time.BASELINE, *ADAMS, *options]
    how = {"with_torch": False, "program_steps": scale.program_steps["100M"]}
    found.measure(params, names, share=0.75, **how)
    del params
    params = step_time.parameters(scale.sizes["100M"], scale.leaves, jnp.bfloat16)
    names = [step_time.BASELINE, *ADAMS, "amac"]
    found.measure(params, names, dtype="bfloat16", **how)


def transformers(work: Work) -> None:
    """The orthogonalizing core beside Optax's Muon, with a transformer's shapes."""
    from benchmarks import step_time

    found = Configurations(work)
    for number, (size, (layers, width)) in enumerate(work.scale.transformers.items()):
        found.measure(
            step_time.transformer(layers, width),
            [OF_KERNELS, "muon", "amac", step_time.BASELINE],
            job=f"transformer {size}",
            baseline=OF_KERNELS,
            with_torch=False,
            program_steps=work.scale.program_steps[size],
            share=1 / (len(work.scale.transformers) - number),
        )


def sweep(work: Work) -> None:
    from benchmarks import sweep_time

    images = sweep_time.images_of(work.scale.dataset, work.data_dir)
    found = sweep_time.measure(images, work.scale.runs, work.scale.sweep, epochs=1, rounds=3)
    work.save(found)
    print(sweep_time.text_of(found), flush=True)


def mnist(work: Work) -> None:
    """One epoch of the example's CNN, from the start of a process, a seed after the other."""
    from benchmarks import mnist_cnn

    rows: list[dict[str, Any]] = []
    for seed in range(work.scale.seeds):
        if rows and time.perf_counter() + 1.2 * rows[-1]["process_seconds"] > work.until:
            break
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "examples.mnist", f"--out={folder}"]
            command += ["--model=cnn", "--epochs=1", f"--seed={seed}"]
            command += [f"--dataset={work.scale.dataset}"]
            if work.data_dir and work.scale.dataset == "mnist":
                command += [f"--data-dir={work.data_dir}"]
            ended = subprocess.run(command, capture_output=True, text=True)
            metrics = Path(folder, "metrics.json")
            if not metrics.exists():  # else the figures are there, whatever became of the picture
                sys.exit(last_line(ended.stderr) or f"examples.mnist ended with {ended.returncode}")
            report = json.loads(metrics.read_text())
        row, timing = report["epochs"][-1], report["timing"]
        steps, seconds = mnist_cnn.first_at_target(report)
        rows.append(
            {
                "seed": seed,
                "process_seconds": time.perf_counter() - began,  # its picture too
                **timing,
                "epoch_seconds": row["seconds"],  # of training and testing
                "test_accuracy": row["test_accuracy"],
                "averaged_test_accuracy": row["averaged_test_accuracy"],
                "at_target": bool(steps),
                "steps": report["configuration"]["steps"],
                "seconds_to_target_from_start": steps and timing["first_step_seconds"] + seconds,
                "seconds_to_target_from_first_step": steps and seconds,
                "warning": last_line(ended.stderr) if ended.returncode else None,
            }
        )
        work.save({"dataset": report["dataset"], "target": mnist_cnn.TARGET, "runs": rows})
        print({name: rows[-1][name] for name in ("seed", "averaged_test_accuracy", *timing)})


def pictures(content: Mapping[str, Any], stem: Path) -> list[str]:
    """Draws every part that has results; returns the names of the files."""
    from benchmarks import step_time

    device = f"{content['platform']}, {content['device']}"
    parts = content["parts"]
    sized = [parts.get(f"step-{size}", {}).get("results", []) for size in FULL.sizes]
    of_options = parts.get("options", {}).get("results", [])  # float32, bfloat16
    drawn = {
        "step": [results[0] for results in sized if results],
        "muon": [results[1] for results in sized if len(results) > 1],
        "options": of_options[:1],
        "bfloat16": of_options[1:],
        "transformers": parts.get("transformers", {}).get("results", []),
    }
    written = []
    for name, results in drawn.items():
        if results := [result for result in results if result["variants"]]:
            path = stem.with_name(f"{stem.name}-{name}.png")
            step_time.draw(results, device, path)
            written.append(path.name)
    return written


class Part(NamedTuple):
    seconds: int  # its share of the time; together 540
    run: Callable[[Work], None]
    needs_data: bool = False


PARTS = {
    "machine": Part(30, machine),
    "step-10M": Part(60, lambda work: step("10M", work)),
    "step-100M": Part(65, lambda work: step("100M", work)),
    "step-1B": Part(110, lambda work: step("1B", work)),
    "options": Part(100, option),
    "transformers": Part(75, transformers),
    "sweep": Part(50, sweep, needs_data=True),
    "mnist": Part(50, mnist, needs_data=True),
}


ON_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
LEAST_SECONDS = 5.0  # with less a part does not start


class Job(NamedTuple):
    """A part as the driver sees it."""

    seconds: float
    command: Callable[[float], list[str]]  # from the seconds that it has
    not_run: str = ""  # why it does not run
    environment: Mapping[str, str] | None = None  # beside what is there


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def written_by(section: Path) -> dict[str, Any]:
    return json.loads(section.read_text()) if section.exists() else {}


def run_one(
    command: list[str], section: Path, limit: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A part in a process of its own, and how it ended, with what it wrote."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        # Its own group of processes, which ends with it.
        environment = {**os.environ, **(environment or {})}
        process = subprocess.Popen(command, stderr=errors, process_group=0, env=environment)
        try:
            code = process.wait(limit)
            status, why = "done", ""
        except subprocess.TimeoutExpired:
            code, status, why = 0, "stopped", f"it took more than {limit:.0f} s"
        finally:
            if process.returncode != 0:
                kill_group(process)
        errors.seek(0)
        text = errors.read()
    if code:
        status = "failed"
        why = last_line(text) or f"it ended with {code}"
        print("\n".join(text.splitlines()[-15:]), file=sys.stderr, flush=True)
    found = {"status": status, **({"why": why} if why else {})}
    return {**found, "seconds": round(time.perf_counter() - began, 1), **written_by(section)}


def kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def run_all(
    jobs: Mapping[str, Job], sections: Path, seconds: float, began: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part in turn; one has its share of the time and what those before it have left."""
    shares = {name: 0.0 if job.not_run else job.seconds for name, job in jobs.items()}
    scale = min(1.0, seconds / (sum(shares.values()) or 1))
    for number, (name, job) in enumerate(jobs.items()):
        if job.not_run:
            yield name, {"status": "not run", "why": job.not_run}
            continue
        left = seconds - (time.perf_counter() - began)
        limit = left - scale * sum(list(shares.values())[number + 1 :])
        if limit < LEAST_SECONDS:
            yield name, {"status": "not run", "why": f"{max(limit, 0):.0f} s were left for it"}
            continue
        print(f"--- {name}: at most {limit:.0f} s", flush=True)
        section = sections / f"{name}.json"
        yield name, run_one(job.command(limit), section, limit, job.environment)


def write(content: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.partial")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)


def slug(device: str) -> str:
    """A device's name as a file's.

    Example:
      >>> slug("NVIDIA H100 80GB HBM3")
      'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "unknown"


def failures(content: Mapping[str, Any]) -> list[str]:
    """Every part, and every variant of a part, that failed, was stopped or did not run."""
    found = []
    for name, part in content["parts"].items():
        if part["status"] != "done":
            found.append(f"{name} {part['status']}: {part['why']}")
        for result in part.get("results", []):
            for variant, row in result["untimed"].items():
                kind = "failed" if "failed" in row else "not_run"
                words = kind.replace("_", " ")
                found.append(f"{name}, {result['dtype']}, {variant} {words}: {row[kind]}")
    return found


def program_table(content: Mapping[str, Any]) -> str:
    """What the compiled programs move: bytes and copied bytes a parameter, kernels, copies."""
    lines = [f"{'':15s}{'':42s} bytes kernels copies copied  share of copy"]
    for part, result, name, row in programs_in(content):
        share = f"{100 * row['moved_share']:8.0f} %" if "moved_share" in row else ""
        where = f"{part}{' bf16' if result['dtype'] == 'bfloat16' else ''}"
        figures = (
            f"{row['moved_bytes_per_parameter']:6.1f} {row['kernels']:7.1f} {row['copies']:6d} "
            f"{row['copied_bytes_per_parameter']:6.2f}"
            if "kernels" in row
            else f" not read: {row['unread']}"
        )
        lines.append(f"{where:15s}{name:42s}{figures}{share}")
    return "\n".join(lines)


def programs_in(
    content: Mapping[str, Any],
) -> Iterable[tuple[str, dict[str, Any], str, dict[str, Any]]]:
    for part, section in content["parts"].items():
        for result in section.get("results", []):
            for name, row in (result["variants"] | result["untimed"]).items():
                if "compile_s" in row:
                    yield part, result, name, row


NEEDED = ("jax", "optax", "flax", "tqdm")
"""What no part does without."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="on_gpu.sh",
        description="Every figure that needs a GPU. See the top of on_gpu.py.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="the same parts on a CPU, at tiny sizes"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME",
        help=f"some of: {', '.join(PARTS)}",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=540.0, help="for all parts together")
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="a folder with the four MNIST files; without it AMAC_JAX_DATA, or those parts are out",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="a folder; without it benchmarks/results/gpu, of a rehearsal runs/on_gpu",
    )
    parser.add_argument("--part", choices=[*PARTS, "pictures"], help=argparse.SUPPRESS)
    parser.add_argument("--section", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not args.seconds > 0:
        parser.error(f"--seconds must be more than 0, got {args.seconds:g}")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        parser.error(
            f"needs {', '.join(missing)}; pip install -e '.[examples]' has all but jax's GPU"
        )
    return args


def run_part(args: argparse.Namespace) -> None:
    """In the part's own process."""
    if args.part == "pictures":
        written = pictures(json.loads(args.result.read_text()), args.result.with_suffix(""))
        write({"files": written}, args.section)
        return
    until = BEGAN + 0.9 * args.seconds  # the rest is for what does not look at the clock
    scale = TINY if args.rehearse else FULL

    def save(content: dict[str, Any]) -> None:
        write(content, args.section)

    PARTS[args.part].run(Work(scale, until, save, args.data_dir))


def jobs_of(args: argparse.Namespace) -> dict[str, Job]:
    def command(name: str, seconds: float) -> list[str]:
        options = ["--part", name, "--section", str(args.sections / f"{name}.json")]
        options += ["--rehearse"] if args.rehearse else []
        options += ["--data-dir", str(args.data_dir)] if args.data_dir else []
        return [sys.executable, "-m", "benchmarks.on_gpu", *options, "--seconds", f"{seconds:.1f}"]

    no_data = ""
    if not (args.rehearse or args.data_dir or os.environ.get("AMAC_JAX_DATA")):
        no_data = "there is not any MNIST: give --data-dir or set AMAC_JAX_DATA"
    return {
        name: Job(
            part.seconds,
            partial(command, name),
            no_data if part.needs_data else "",
            ON_CPU if args.rehearse else None,
        )
        for name, part in PARTS.items()
        if name in args.parts or name == "machine"
    }


def without_paths(arguments: Sequence[str]) -> list[str]:
    """The arguments, with FOLDER for every path of the machine.

    Example:
      >>> without_paths(["--seconds", "480", "--out", "/home/me/out"])
      ['--seconds', '480', '--out', 'FOLDER']
    """
    of_folders = ("--data-dir", "--out")
    before = ["", *arguments[:-1]]
    return [
        "FOLDER" if option in of_folders else given
        for option, given in zip(before, arguments, strict=True)
    ]


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    if args.part:
        run_part(args)
        return
    out = args.out or (ROOT / ("runs/on_gpu" if args.rehearse else "benchmarks/results/gpu"))
    content: dict[str, Any] = {
        "command": " ".join(["bash", "benchmarks/on_gpu.sh", *without_paths(argv or sys.argv[1:])]),
        "platform": "unknown",
        "device": "unknown",
        "parts": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        args.sections = Path(folder)
        path = out / f"{slug(content['device'])}.json"
        for name, found in run_all(jobs_of(args), args.sections, args.seconds, BEGAN):
            content["parts"][name] = found
            if name == "machine":
                content |= {key: found[key] for key in ("platform", "device") if key in found}
                if content["platform"] == "cpu" and not args.rehearse:
                    sys.exit("on_gpu.py: error: JAX does not find a GPU; --rehearse runs on a CPU")
            path = out / f"{slug(content['device'])}.json"
            write(content, path)  # after every part
            print(f"{name} {found['status']}: {found.get('why', '')} {found.get('seconds')} s\n")
        section = args.sections / "pictures.json"
        drawn = [sys.executable, "-m", "benchmarks.on_gpu", "--part=pictures", f"--result={path}"]
        content["pictures"] = run_one([*drawn, f"--section={section}"], section, 60, ON_CPU)
        write(content, path)
    print(program_table(content))
    print(
        f"\nwrote {path}, and beside it {', '.join(content['pictures'].get('files', ['nothing']))}"
    )
    for line in failures(content):
        print(line)
    bad = [part["status"] for part in content["parts"].values()]
    if "failed" in bad or "stopped" in bad or any(" failed: " in x for x in failures(content)):
        sys.exit("on_gpu.py: error: not everything ran; the lines above say what did not")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the part that runs ends too
    main()
