"""The examples as a user runs them: seconds and results of three seeds, beside the usual optimizer.

    python -m benchmarks.example_runs                      # what is not recorded yet
    python -m benchmarks.example_runs --only gan lstm      # these programs alone
    python -m benchmarks.example_runs --report             # only the table of examples/README.md

Each run is the command at the top of the example, in a process of its own with an empty compilation
cache. A record holds for the code of the example that it was measured with: one whose program has
changed since then, but for its docstrings, is measured anew, first with seed 0. If its figures are
then what they were, the records of the other seeds hold for the new code too.
"""

import argparse
import ast
import fcntl
import hashlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks import options, records

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "examples.json"
README = ROOT / "examples" / "README.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
FIGURE = re.compile(
    r"^(?P<label>[^:\n]+): (?P<value>[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|nan|inf))\b", re.M
)


class Program(NamedTuple):
    """An example, and what is measured of it."""

    shows: str
    results: str  # a pattern of the labels of the printed figures that the table has
    unit: str
    decimals: int
    variants: dict[str, list[str]]  # what the table calls it: its arguments; the default first
    seeds: int = 3  # 1: the program itself averages over seeds, or has none


def optimizers(*names: str) -> dict[str, list[str]]:
    """The variants of a program with `--optimizer`, whose default is the first of the names."""
    return {name: ["--optimizer", name] if i else [] for i, name in enumerate(names)}


WEIGHTS = "(test accuracy|error), (averaged|last) weights|error of the (averaged|last) weights"
PROGRAMS = {
    "quickstart.py": Program(
        "a chain of your own", "(averaged|last) weights", "", 4, {"": []}, seeds=1
    ),
    "nnx.py": Program("`amac` in Flax NNX", "(averaged|last) weights", "", 4, {"": []}, seeds=1),
    "mnist_linen.py": Program(
        "an MLP on MNIST in Flax Linen: `TrainState`, a scan an epoch, averaged weights",
        WEIGHTS, "%", 2, optimizers("amac", "adamw"),
    ),
    "cnn_nnx.py": Program(
        "a CNN on MNIST in Flax NNX: BatchNorm and dropout with averaged weights",
        WEIGHTS, "%", 2, optimizers("amac", "recipe", "radam", "adamw"),
    ),
    "transformer.py": Program(
        "a character transformer on a mesh of all devices, with gradient accumulation",
        "validation loss", "nats", 3, optimizers("amac", "recipe", "adamw"),
    ),
    "lstm.py": Program(
        "an LSTM whose gradients explode, with clipping and without",
        "validation loss.*", "nats", 3, {
            **optimizers("rnn", "adam"), "rnn, gain 1": ["--gain", "1"],
            "adam, gain 1": ["--optimizer", "adam", "--gain", "1"],
            "adam, gain 1, at 0.02": [
                "--optimizer", "adam", "--gain", "1", "--learning-rate", "0.02"
            ],
        },
    ),
    "gan.py": Program(
        "a GAN: two optimizers, samples, a classifier's scores",
        "Frechet distance|inception score", "", 2,
        {
            **optimizers("recipe", "adam"),
            "recipe, at 2e-4": ["--learning-rate", "2e-4"],
            "adam, at 2e-4": ["--optimizer", "adam", "--learning-rate", "2e-4"],
        },
    ),
    "ppo.py": Program(
        "PPO on CartPole, eight seeds in one jit", "mean return", "of 500", 1,
        optimizers("recipe", "adam"),
    ),
    "finetune.py": Program(
        "layer-wise rates, frozen layers without state, new digits beside old ones",
        "new (and old )?digits.*", "%", 2, {"": []}, seeds=1,
    ),
    "equinox_sweep.py": Program(
        "`sweep`, a search in one call, in Equinox", "test accuracy.*", "%", 2, {"": []}, seeds=1
    ),
    "switch_technique.py": Program(
        "a technique switched on in mid-run, without a retrace", WEIGHTS, "", 4, {"": []}
    ),
    "resume.py": Program(
        "an Orbax checkpoint of NNX, optimizer and dropout, that goes on to the bit",
        "identical", "of 28 arrays", 0, {"": []},
    ),
    "log_metrics.py": Program(
        "`metrics` in a CSV file and in TensorBoard", "metrics", "", 0, {"": []}, seeds=1
    ),
}  # fmt: skip


def figures_of(output: str) -> dict[str, float]:
    """The lines `label: value unit` of what a program prints.

    Example:
      >>> figures_of("ROMEO:\\nI\\ntest accuracy: 98.31 %\\nloss: 1.2e-3\\nfirst: come\\n")
      {'test accuracy': 98.31, 'loss': 0.0012}
    """
    return {match["label"]: float(match["value"]) for match in FIGURE.finditer(output)}


def digest_of(source: str) -> str:
    """A digest of a program's code, which its docstrings and its layout do not change.

    Example:
      >>> digest_of('"one"\\nx = 1') == digest_of('"two"\\nx  =  1  # a comment')
      True
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body[0] = ast.Pass()
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def run(name: str, variant: str, seed: int) -> dict[str, Any]:
    """Runs a program once.

    Raises: SystemExit with the program's own last line if it fails.
    """
    program = PROGRAMS[name]
    arguments = list(program.variants[variant])
    if program.seeds > 1:
        arguments += ["--seed", str(seed)]
    command = ["python", f"examples/{name}", *arguments]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *command[1:]], cwd=ROOT, env=environment, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - began
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        sys.exit(f"example_runs: error: {' '.join(command)}: {last}")
    figures = figures_of(done.stdout)
    if not results_of(figures, program):
        sys.exit(f"example_runs: error: {' '.join(command)}: no line is {program.results!r}")
    return {
        "program": name, "variant": variant, "seed": seed, "command": " ".join(command),
        "figures": figures, "seconds": round(seconds, 1), "cores": records.cores(),
        "digest": digest_of((ROOT / "examples" / name).read_text()), **records.circumstances(),
    }  # fmt: skip


def key_of(record: dict[str, Any]) -> tuple[str, str, int]:
    return record["program"], record["variant"], record["seed"]


def up_to_date(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records whose program is there and has the code that was measured."""
    digests = {name: digest_of((ROOT / "examples" / name).read_text()) for name in PROGRAMS}
    return [
        record
        for record in runs
        if record["digest"] == digests.get(record["program"])
        and record["variant"] in PROGRAMS[record["program"]].variants
    ]


def results_of(figures: dict[str, float], program: Program) -> list[str]:
    """The labels that the table has."""
    return [label for label in figures if re.fullmatch(program.results, label)]


def cell(runs: list[dict[str, Any]], program: Program) -> str:
    """Mean and range of each result."""
    if len(runs) < program.seeds:
        return "not measured"
    shown = []
    for label in results_of(runs[0]["figures"], program):
        values = [record["figures"][label] for record in runs]
        text = f"{label} {statistics.mean(values):.{program.decimals}f}"
        if len(values) > 1:
            low, high = min(values), max(values)
            text += f" ({low:.{program.decimals}f}–{high:.{program.decimals}f})"
        shown.append(f"{text} {program.unit}".rstrip())
    return "<br>".join(shown)


def seconds(runs: list[dict[str, Any]]) -> str:
    whole = [record["seconds"] for record in runs if record["cores"] != 1]
    if whole:
        return f"{statistics.median(whole):.0f} s"
    return f"{statistics.median(r['seconds'] for r in runs):.0f} s on one core" if runs else ""


def table(runs: list[dict[str, Any]]) -> str:
    """The table of `examples/README.md`: a row for each program and variant."""
    rows = ["| program | shows | with | time | result |", "|---|---|---|---|---|"]
    for name, program in PROGRAMS.items():
        for number, variant in enumerate(program.variants):
            of_it = [r for r in runs if key_of(r)[:2] == (name, variant)]
            first = [f"[`{name}`]({name})", program.shows] if number == 0 else ["", ""]
            cells = [*first, f"`{variant}`" if variant else "", seconds(of_it)]
            rows.append("| " + " | ".join([*cells, cell(of_it, program)]) + " |")
    return "\n".join(rows)


def with_record(runs: list[dict[str, Any]], record: dict[str, Any]) -> list[dict[str, Any]]:
    """The records with a new one, which takes the place of a former one.

    Where both have the same figures, the change of the code changes none, and the other seeds that
    were measured with the former code hold for the new one.
    """
    kept = [other for other in runs if key_of(other) != key_of(record)]
    for former in (other for other in runs if key_of(other) == key_of(record)):
        if former["figures"] == record["figures"]:
            kept = [
                other | {"digest": record["digest"]}
                if key_of(other)[:2] == key_of(record)[:2] and other["digest"] == former["digest"]
                else other
                for other in kept
            ]
    return [*kept, record]


def add(record: dict[str, Any]) -> None:
    """Writes a record to the file, where another process may have written since."""
    folder = os.open(RESULTS.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        runs = records.recorded(RESULTS).get("runs", [])
        records.write(RESULTS, {"runs": sorted(with_record(runs, record), key=key_of)})
    finally:
        os.close(folder)


def report(runs: list[dict[str, Any]]) -> None:
    """Writes the table into `examples/README.md`, between its two marks."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{table(up_to_date(runs))}\n{END}{rest.split(END)[1]}")
    print(f"{README.relative_to(ROOT)}: now has the table of {RESULTS.relative_to(ROOT)}")


def parsed() -> argparse.Namespace:
    parser = options.parser("The examples: seconds and results, beside the usual optimizer's.")
    names = [name.removesuffix(".py") for name in PROGRAMS]
    options.add_choice(parser, "--only", names)
    parser.add_argument("--report", action="store_true", help="run nothing; only the table")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    wanted = [
        (name, variant, seed)
        for name, program in PROGRAMS.items()
        if name.removesuffix(".py") in args.only and not args.report
        for variant in program.variants
        for seed in range(program.seeds)
    ]
    for key in (bar := tqdm(wanted, disable=None, unit="run")):
        bar.set_description(" ".join(map(str, key)))
        if key not in map(key_of, up_to_date(records.recorded(RESULTS).get("runs", []))):
            add(run(*key))
    report(records.recorded(RESULTS).get("runs", []))


if __name__ == "__main__":
    main()
