"""How far the rate that `amac` gives itself may be off, and whether it follows the steps.

    python -m benchmarks.auto_rate                          # all that is not yet in --out
    python -m benchmarks.auto_rate --rates deep-mlp         # some jobs at half and twice the rate
    python -m benchmarks.auto_rate --lengths --rates digits # those, and no other lengths
    python -m benchmarks.auto_rate --report                 # tables of what is recorded

Rates: `amac("auto", ...)` of every job of `compare.py`, its peak rate halved and doubled and all
else as it is, beside the runs at the rate itself that `compare.py` has recorded in --comparison.

Lengths: some jobs at a quarter and four times their steps, on the same data. AdamW is tuned at
that length by the protocol of `compare.py`; `amac` is told the length and nothing else. The rule
for its rate was made on three other jobs: deep-mlp, lstm and images-2000.

The runs have the seeds of `compare.py` and are scored by the test data.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from amac_jax.tools import datasets
from benchmarks import options
from benchmarks.compare import add_protocol, cell, final_rows, programs
from benchmarks.comparison_report import table
from benchmarks.contenders import CONTENDERS
from benchmarks.records import RecordError, circumstances, recorded, write
from benchmarks.statistics_of_runs import holm, interval, welch
from benchmarks.workloads import POINTS, WORKLOADS, Workload

FACTORS = (0.5, 2.0)
LENGTHS = (0.25, 4.0)
JOBS_OF_LENGTHS = ("transformer", "batchnorm-cnn", "digits")
CLOSE = {1: 0.5, -1: 0.02}  # by sign of the workload: points of accuracy, nats or log10 gap
COMPARISON = Path(__file__).parent / "results" / "compare"


def untuned(workload: Workload, factors: list[float], bar: tqdm, args: argparse.Namespace):
    """For each factor of the automatic rate the rows of runs on test data."""
    contender, job = CONTENDERS["amac"], workload.make()
    usual = contender.default(workload.length)
    settings = [usual._replace(learning_rate=factor) for factor in factors]
    program = programs(workload, job, contender)
    return final_rows(workload, program, jax.device_put(job.splits), settings, bar, args)


def run_rates(name: str, path: Path, args: argparse.Namespace) -> None:
    usual = CONTENDERS["amac"].default(WORKLOADS[name].length)
    wanted = {**protocol(WORKLOADS[name], args), "default": usual._asdict()}
    if recorded(path).get("rates", {}).get("configuration") == wanted:
        return
    with tqdm(total=2 * args.seeds, desc=f"{name}, rates", unit="run", disable=None) as bar:
        half, twice = untuned(WORKLOADS[name], list(FACTORS), bar, args)
    rates = {"configuration": wanted, **circumstances(), "half": half, "twice": twice}
    write(path, {**recorded(path), "rates": rates})


def run_length(name: str, factor: float, path: Path, args: argparse.Namespace) -> None:
    workload = scaled(WORKLOADS[name], factor)
    wanted = {**protocol(workload, args), "trials": args.trials}
    key = f"{factor:g} times the steps"
    if recorded(path).get(key, {}).get("configuration") == wanted:
        return
    runs = args.trials + 3 * args.seeds
    with tqdm(total=runs, desc=f"{name}, {key}", unit="run", disable=None) as bar:
        adamw = cell(workload, "adamw", bar, args)
        (amac,) = untuned(workload, [1.0], bar, args)
    found = {"adamw": adamw["tuned"], "chosen": adamw["chosen"], "amac": amac}
    write(path, {**recorded(path), key: {"configuration": wanted, **circumstances(), **found}})


def scaled(workload: Workload, factor: float) -> Workload:
    """The same with other steps, in whole parts of its curve."""
    steps = max(round(factor * workload.steps / POINTS), 1) * POINTS
    return replace(workload, steps=steps)


def protocol(workload: Workload, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "title": workload.title,
        "steps": workload.steps,
        "metric": workload.metric,
        "seeds": args.seeds,
        "first_seed": args.first_seed,
    }


# Report


def rates_table(folder: Path, comparison: Path) -> str:
    rows, close = [], 0
    for name, workload in WORKLOADS.items():
        rates = recorded(folder / f"{name}.json").get("rates")
        usual = recorded(comparison / f"{name}.json").get("amac")
        if rates is None or usual is None:
            continue
        scores = [[row["test"] for row in runs] for runs in (rates["half"], usual["default"])]
        scores.append([row["test"] for row in rates["twice"]])
        means = [interval(values)[0] for values in scores]
        is_close = all(
            workload.sign * (means[1] - mean) <= CLOSE[workload.sign]
            for mean in (means[0], means[2])
        )
        close += is_close
        shown = [shown_interval(workload, values) for values in scores]
        rows.append([label(name, workload), *shown, "yes" if is_close else "no"])
    head = ["test score", "half the rate", "`amac`", "twice the rate", "no worse than 0.5 or 0.02"]
    return table(head, rows) + f"\nNo worse than 0.5 points or 0.02: {close} of {len(rows)}.\n"


def lengths_table(folder: Path) -> str:
    found = {
        (name, f"{factor:g} times the steps"): part
        for name in WORKLOADS
        for factor in LENGTHS
        if (part := recorded(folder / f"{name}.json").get(f"{factor:g} times the steps"))
    }
    rows, p_values = [], []
    for (name, _), part in found.items():
        workload = WORKLOADS[name]
        adamw, amac = ([row["test"] for row in part[key]] for key in ("adamw", "amac"))
        gain, half, p = welch(amac, adamw)
        p_values.append(p)
        steps, digits = part["configuration"]["steps"], digits_of(workload)
        rows.append(
            [
                label(name, workload), f"{steps:,}", shown_interval(workload, adamw),
                shown_interval(workload, amac),
                f"{workload.sign * gain:+.{digits}f} ± {half:.{digits}f}",
            ]
        )  # fmt: skip
    for row, p in zip(rows, holm(p_values) if rows else [], strict=True):
        row.append(f"{p:.2g}")
    head = ["test score", "steps", "`adamw`, tuned at this length", "`amac`, untuned", "gain", "p"]
    return table(head, rows)


def label(name: str, workload: Workload) -> str:
    return name if workload.sign > 0 else f"{name}, {workload.metric} ↓"


def digits_of(workload: Workload) -> int:
    return 2 if workload.metric == "accuracy" else 3


def shown_interval(workload: Workload, values: list[float]) -> str:
    middle, half = interval(values)
    return f"{middle:.{digits_of(workload)}f} ± {half:.{digits_of(workload)}f}"


def report(args: argparse.Namespace) -> None:
    text = (
        f"## Half and twice the automatic rate\n\n{rates_table(args.out, args.comparison)}\n"
        f"## Other lengths\n\n{lengths_table(args.out)}"
    )
    (args.out / "tables.md").write_text(text)
    print(text)
    print(f"tables.md is in {args.out}")


# Command line


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = options.parser("The automatic rate of AMaC: how far it may be off; other lengths.")
    parser.add_argument(
        "--rates", nargs="*", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME",
        help="some of: " + ", ".join(WORKLOADS),
    )  # fmt: skip
    parser.add_argument(
        "--lengths", nargs="*", choices=WORKLOADS, default=list(JOBS_OF_LENGTHS), metavar="NAME",
        help="the same for other lengths",
    )  # fmt: skip
    add_protocol(parser)
    options.add_records(parser, "runs/auto_rate")
    parser.add_argument(
        "--comparison", type=Path, default=COMPARISON, help="where `compare.py` has recorded"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if not args.report:
            for name in args.rates:
                run_rates(name, args.out / f"{name}.json", args)
            for name in args.lengths:
                for factor in LENGTHS:
                    run_length(name, factor, args.out / f"{name}.json", args)
        report(args)
    except (datasets.DataError, RecordError, OSError) as error:
        sys.exit(f"auto_rate.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on after the last finished part")


if __name__ == "__main__":
    main()
