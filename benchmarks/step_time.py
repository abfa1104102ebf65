"""What a step costs: update and apply in one donated jit, beside another in the same rounds.

    python benchmarks/step_time.py                        # 10M parameters, 50 leaves: 2 minutes
    python benchmarks/step_time.py --sizes 100M --json benchmarks/results/step_time-cpu-100M.json
    python benchmarks/step_time.py --variants amac 'amac, everything' --rounds 50
    python benchmarks/step_time.py --baseline optax.contrib.muon --variants muon amac
    python benchmarks/step_time.py --jobs lstm deep-mlp --rounds 100 --variants muon adamw

Variants take turns, so that what slows the machine down slows all of them; a ratio is that of two
times of one round. Every sample is five steps, of which one synchronizes and averages.
"""

import argparse
import gc
import itertools
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import options
from steps import (
    BASELINE,
    STEPS,
    amac,
    bytes_per_parameter,
    count_of,
    every,
    lowered,
    optax_muon,
)
from tqdm import tqdm
from workloads import ALL

import amac_jax
from amac_jax.optimizers import MINIMAX, NEWTON_SCHULZ, amac_techniques

# The least traffic of float32 parameters, a parameter: gradient, moments and parameters; one step
# in five slow weights and average; velocity.
LEAST_BYTES = {"optax.adamw": 28.0, "amac, core='adam'": 31.2, "amac, everything": 39.2}


def adamw(**techniques: Any) -> optax.GradientTransformationExtraArgs:
    return amac_jax.adamw(1e-3, **techniques)


VARIANTS: dict[str, Callable[[], optax.GradientTransformation]] = {
    BASELINE: lambda: optax.adamw(1e-3),
    "amac": amac,
    "amac, core='adam'": lambda: amac(core="adam"),
    "amac, everything": every,
    "everything, noise=None": lambda: every(noise=None),
    "everything, sampler='gaussian'": lambda: every(sampler="gaussian"),
    "everything, sampler='threefry'": lambda: every(sampler="threefry"),
    "everything, no lookahead, no averaging": lambda: amac_jax.compose(
        optax.scale_by_adam(),
        1e-3,
        **amac_techniques(10**6, momentum=0.9, noise=0.01, sync_period=None, average_start=None),
        weight_decay=0.1,
    ),
    "everything, clip_norm=1": lambda: every(clip_norm=1.0),
    "everything, record_metrics=True": lambda: every(record_metrics=True),
    "everything, skip_nonfinite=True": lambda: every(skip_nonfinite=True),
    "everything, state_dtype='bfloat16'": lambda: every(state_dtype="bfloat16"),
    "optax.contrib.muon": optax_muon,
    "muon": lambda: amac_jax.muon(1e-3),
    "muon, three quintics": lambda: amac_jax.muon(1e-3, quintics=MINIMAX[3]),
    "muon, five of the first Muon": lambda: amac_jax.muon(1e-3, quintics=NEWTON_SCHULZ),
    "adamw": adamw,
    "adamw + clip_norm": lambda: adamw(clip_norm=1.0),
    "adamw + centralize": lambda: adamw(centralize=True),
    "adamw + noise": lambda: adamw(noise=0.01),
    "adamw + noise, gaussian": lambda: adamw(noise=0.01, sampler="gaussian"),
    "adamw + noise, threefry": lambda: adamw(noise=0.01, sampler="threefry"),
    "adamw + clip_value": lambda: adamw(clip_value=1.0),
    "adamw + momentum": lambda: adamw(momentum=0.9),
    "adamw + lookahead": lambda: adamw(sync_period=STEPS),
    "adamw + averaging": lambda: adamw(average_start=STEPS, average_period=STEPS),
    "adamw + record_metrics": lambda: adamw(record_metrics=True),
}


def parameters(size: int, leaves: int, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Half of the leaves square kernels, half their biases, together about `size` elements."""
    side = max(round((size / (leaves / 2)) ** 0.5), 1)
    return {
        f"layer_{i}": {
            "kernel": jnp.full((side, side), 0.1, dtype),
            "bias": jnp.zeros((side,), dtype),
        }
        for i in range(leaves // 2)
    }


class Runner(NamedTuple):
    """Something that takes a sample, `STEPS` steps, and returns when they are done."""

    run: Callable[[], None]
    facts: dict[str, Any]


def jax_runner(
    tx: optax.GradientTransformation, params: Any, gradients: Any, models: int
) -> Runner:
    jax.clear_caches()
    began = time.perf_counter()
    program = lowered(tx, params, models).compile()
    compile_s = time.perf_counter() - began
    memory = program.memory_analysis()
    init = tx.init if models == 1 else jax.vmap(tx.init)
    carry = [jax.tree.map(jnp.copy, params), init(params)]

    def run() -> None:
        for _ in range(STEPS):
            carry[:] = program(*carry, gradients)
        jax.block_until_ready(carry)

    facts = {
        "compile_s": compile_s,
        "bytes_per_parameter": bytes_per_parameter(program, params),
        "state_bytes_per_parameter": sum(x.nbytes for x in jax.tree.leaves(carry[1]))
        / count_of(params),
        "temporary_bytes_per_parameter": memory.temp_size_in_bytes / count_of(params),
        "peak_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
    }
    return Runner(run, facts)


def copy_runner(params: Any) -> Runner:
    """Scales six trees of the parameters' shapes in place: no cache holds what AMaC's state is."""
    trees = [[jax.tree.map(jnp.copy, params) for _ in range(6)]]

    def scaled(trees: Any) -> Any:
        return jax.tree.map(lambda x: x * jnp.asarray(1.0001, x.dtype), trees)

    program = jax.jit(scaled, donate_argnums=0).lower(trees[0]).compile()

    def run() -> None:
        trees[0] = program(trees[0])
        jax.block_until_ready(trees[0])

    moved = 2 * sum(x.nbytes for x in jax.tree.leaves(trees[0]))
    return Runner(run, {"bytes": moved})


def torch_runners(params: Any) -> dict[str, Runner]:
    """PyTorch's own AdamW on the same GPU, its step alone; none without one."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}

    def runner(**how: bool) -> Runner:
        dtype = getattr(torch, jax.tree.leaves(params)[0].dtype.name)
        tensors = [
            torch.full(x.shape, 0.1, dtype=dtype, device="cuda", requires_grad=True)
            for x in jax.tree.leaves(params)
        ]
        for tensor in tensors:
            tensor.grad = torch.full_like(tensor, 0.01)
        optimizer = torch.optim.AdamW(tensors, lr=1e-3, **how)

        def run() -> None:
            for _ in range(STEPS):
                optimizer.step()
            torch.cuda.synchronize()

        return Runner(run, {"version": torch.__version__})

    return {
        "torch.optim.AdamW(fused=True)": runner(fused=True),
        "torch.optim.AdamW(foreach=True)": runner(foreach=True),
    }


def parameters_of_job(name: str, dtype: Any) -> Any:
    """The parameters of a job of `compare.py`."""
    params = jax.jit(ALL[name].make().init)(jax.random.key(0))
    return jax.tree.map(lambda x: x.astype(dtype), params)


def measure(
    params: Any, job: str, dtype: str, names: list[str], args: argparse.Namespace
) -> dict[str, Any]:
    """One configuration: every variant's times, round by round."""
    models, rounds, baseline = args.models, args.rounds, args.baseline
    leaves = len(jax.tree.leaves(params))
    if models > 1:
        params = jax.tree.map(lambda x: jnp.repeat(x[None], models, axis=0), params)
    key = jax.random.key(0)
    gradients = jax.tree.map(lambda x: 0.01 * jax.random.normal(key, x.shape, x.dtype), params)
    count = count_of(params)
    what = f"{count / 1e6:.3g}M parameters, {leaves} leaves, {dtype}, {models} models"
    runners = {"copy": copy_runner(params)}
    bar: dict[str, Any] = {"leave": False, "disable": None}  # on a terminal alone
    for name in tqdm(names, desc=f"{what}: compiling", **bar):
        runners[name] = jax_runner(VARIANTS[name](), params, gradients, models)
    runners |= torch_runners(params)
    times: dict[str, list[float]] = {name: [] for name in runners}
    for round_number in tqdm(range(rounds + 1), desc=f"{what}: rounds", **bar):
        for name, runner in runners.items():
            began = time.perf_counter()
            runner.run()
            if round_number:  # the first one warms up
                times[name].append(time.perf_counter() - began)
    copy_bandwidth = runners["copy"].facts["bytes"] / statistics.median(times["copy"])
    rows = {}
    for name in runners:
        if name == "copy":
            continue
        ratios = [a / b for a, b in zip(times[name], times[baseline], strict=True)]
        seconds = statistics.median(times[name]) / STEPS
        rows[name] = {
            "ms": 1e3 * seconds,
            "ratio": statistics.median(ratios),
            "ratio_low": statistics.quantiles(ratios, n=10, method="inclusive")[0],
            "ratio_high": statistics.quantiles(ratios, n=10, method="inclusive")[-1],
            **runners[name].facts,
        }
        if dtype == "float32" and name in LEAST_BYTES:
            rows[name]["copy_share"] = LEAST_BYTES[name] * count / seconds / copy_bandwidth
    return {
        "job": job,
        "parameters": count,
        "leaves": leaves,
        "dtype": dtype,
        "models": models,
        "baseline": baseline,
        "rounds": rounds,
        "copy_GB_per_s": copy_bandwidth / 1e9,
        "variants": rows,
    }


def table(result: dict[str, Any]) -> str:
    header = (
        f"{result['job'] and result['job'] + ': '}{result['parameters'] / 1e6:.4g}M parameters, "
        f"{result['leaves']} leaves, {result['dtype']}, {result['models']} model(s); "
        f"in-place copy {result['copy_GB_per_s']:.1f} GB/s\n"
        f"{'':34s}    ms   ratio  10 % .. 90 %  bytes  state  of copy  compile s"
    )
    lines = [header]
    for name, row in result["variants"].items():
        share = f"{100 * row['copy_share']:5.0f} %" if "copy_share" in row else " " * 7
        compiled = (
            f"{row['bytes_per_parameter']:6.1f} {row['state_bytes_per_parameter']:6.1f}  "
            f"{share}  {row['compile_s']:8.2f}"
            if "compile_s" in row
            else ""
        )
        lines.append(
            f"{name:34s} {row['ms']:6.2f}  {row['ratio']:6.2f}   "
            f"{row['ratio_low']:4.2f} .. {row['ratio_high']:4.2f}  {compiled}"
        )
    return "\n".join(lines)


COLUMNS = 4  # panels in a line of the picture


def draw(results: list[dict[str, Any]], device: str, path: Path) -> None:
    """A panel a configuration, a bar a variant."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tallest = max(len(result["variants"]) for result in results)
    columns = min(len(results), COLUMNS)
    lines = math.ceil(len(results) / columns)
    figure, panels = plt.subplots(
        lines,
        columns,
        figsize=(3.4 + 4.2 * columns, 0.4 + lines * (1.2 + 0.28 * tallest)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    note = ""
    for panel, result in itertools.zip_longest(panels.flat, results):
        if result is None:
            panel.set_axis_off()
            continue
        rows = result["variants"]
        ratios = [row["ratio"] for row in rows.values()]
        # Other work may stop a program for a few rounds: the edge is not at their times.
        edge = min(max(row["ratio_high"] for row in rows.values()), 1.8 * max(ratios))
        errors = [
            [row["ratio"] - row["ratio_low"] for row in rows.values()],
            [min(row["ratio_high"], edge) - row["ratio"] for row in rows.values()],
        ]
        colours = ["tab:red" if name.startswith("amac") else "tab:blue" for name in rows]
        panel.barh(list(rows), ratios, xerr=errors, color=colours, ecolor="black", capsize=2)
        for y, row in enumerate(rows.values()):
            past = f" → {row['ratio_high']:.1f}" if row["ratio_high"] > edge else ""
            at = min(row["ratio_high"], edge)
            panel.text(at, y, f"  {row['ratio']:.2f}{past}", va="center", fontsize=7)
        panel.set_xlim(0, 1.25 * edge)  # room for the numbers
        panel.axvline(1, color="black", linewidth=0.8)
        if result["dtype"] == "float32" and result["baseline"] == BASELINE:
            least = LEAST_BYTES["amac, core='adam'"] / LEAST_BYTES[BASELINE]
            panel.axvline(least, color="tab:red", linestyle=":", linewidth=1)
            note = "; dotted: ratio of the least bytes of amac, core='adam'"
        panel.set_xlabel(f"time of a step / {result['baseline']}'s")
        what = f"{result['parameters'] / 1e6:.3g}M parameters, {result['leaves']} leaves"
        title = f"{result['job'] or what}, {result['dtype']}"
        panel.set_title(title, fontsize=9)
    panels[0][0].invert_yaxis()
    figure.suptitle(f"{device}: median and 10 % .. 90 % of paired ratios{note}", fontsize=9)
    figure.savefig(path, dpi=110)


def size_of(text: str) -> int:
    units = {"K": 10**3, "M": 10**6, "B": 10**9}
    try:
        size = int(float(text.rstrip("KMB")) * units.get(text[-1:], 1))
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"must be a number such as 10M, got {text!r}")
    return size


def configurations(args: argparse.Namespace) -> list[tuple[str, Callable[[Any], Any]]]:
    """The name of a job, or "", and its parameters for a dtype."""
    if args.jobs:
        return [(name, partial(parameters_of_job, name)) for name in args.jobs]
    return [
        ("", partial(parameters, size // args.models, leaves))
        for leaves in args.leaves
        for size in args.sizes
    ]


def main(argv: list[str] | None = None) -> None:
    parser = options.parser("Times of optimizer steps beside optax.adamw's.")
    parser.add_argument("--sizes", type=size_of, nargs="+", default=[10**7], help="parameters")
    parser.add_argument(
        "--leaves",
        type=options.at_least(2),
        nargs="+",
        default=[50],
        help="half kernels, half biases",
    )
    parser.add_argument(
        "--jobs", nargs="+", choices=ALL, metavar="NAME",
        help="in their place, the parameters of jobs of compare.py: " + ", ".join(ALL),
    )  # fmt: skip
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument(
        "--models",
        type=options.at_least(1),
        default=1,
        help="divide the parameters among so many models, stepped by vmap",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(map(repr, VARIANTS))}; None: all",
    )
    parser.add_argument(
        "--baseline", default=BASELINE, metavar="NAME", help="the variant that others are beside"
    )
    parser.add_argument(
        "--rounds", type=options.at_least(2), default=20, help="how often each is timed"
    )
    parser.add_argument(
        "--json", type=Path, help="a .json file for the figures; a .png goes beside it"
    )
    args = parser.parse_args(argv)
    named = list(VARIANTS) if args.variants is None else args.variants
    names = [args.baseline, *named]
    if unknown := sorted(set(names) - set(VARIANTS)):
        parser.error(f"no variant {unknown[0]!r}; there are: {', '.join(map(repr, VARIANTS))}")
    if args.json and (args.json.suffix != ".json" or args.json.is_dir()):
        parser.error(f"--json must be a file whose name ends in .json, got '{args.json}'")
    device = jax.devices()[0]
    content: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/step_time.py", *(argv or sys.argv[1:])]),
        "device": f"{device.platform}, {device.device_kind}",
        "versions": {
            "python": platform.python_version(),
            **{library.__name__: library.__version__ for library in (amac_jax, jax, optax)},
        },
        "results": [],
    }
    names = list(dict.fromkeys(names))
    for dtype, (job, make) in itertools.product(args.dtypes, configurations(args)):
        found = measure(make(dtype), job, dtype, names, args)
        content["results"].append(found)
        print(table(found), end="\n\n", flush=True)
        gc.collect()
        if args.json:  # after every configuration, so that an interrupted run has some
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(content, indent=2) + "\n")
    if args.json:
        picture = args.json.with_suffix(".png")
        draw(content["results"], content["device"], picture)
        print(f"wrote {args.json} and {picture}")


if __name__ == "__main__":
    main()
