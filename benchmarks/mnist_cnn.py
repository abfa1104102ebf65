"""The convolutional network of `examples/mnist/` with several seeds, and how soon it reads 99 %.

    python -m benchmarks.mnist_cnn                              # 5 seeds of 15 augmented epochs
    python -m benchmarks.mnist_cnn --epochs 1 --no-augment      # the shortest run to 99 %?

Each seed is a run of the example, which keeps checkpoints: the same command goes on after an
interruption, and what is complete is not run again. It prints test accuracies in percent, mean and
95 % interval over the seeds, and the steps and seconds of the runs that have reached 99 %.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.statistics_of_runs import interval
from examples.mnist import options, trainer

TARGET = 99.0


def run(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The content of the metrics.json of one run of the example."""
    folder = args.out / f"{args.epochs}-{'augmented' if args.augment else 'plain'}-{seed}"
    command = ["--model=cnn", f"--epochs={args.epochs}", f"--seed={seed}", f"--out={folder}"]
    command += [f"--checkpoint-dir={folder / 'checkpoints'}", "--resume", "--keep=1"]
    command += ["--augment"] if args.augment else []
    command += [f"--data-dir={args.data_dir}"] if args.data_dir else []
    trainer.main(command)
    return json.loads((folder / "metrics.json").read_text())


def first_at_target(report: dict[str, Any]) -> tuple[int, float]:
    """Steps and seconds until an epoch ends with averaged weights at the target, or 0 and inf."""
    rows = report["epochs"]
    for i, row in enumerate(rows, 1):
        if row["averaged_test_accuracy"] >= TARGET:
            steps = i * report["configuration"]["steps"] // len(rows)
            return steps, sum(row["seconds"] for row in rows[:i])
    return 0, math.inf


def summary(reports: list[dict[str, Any]]) -> str:
    lines = []
    for name in ("test_accuracy", "averaged_test_accuracy"):
        values = [report["epochs"][-1][name] for report in reports]
        middle, half = interval(values)
        each = " ".join(f"{value:.2f}" for value in values)
        lines.append(f"{name.replace('_', ' '):23s} {middle:.3f} ± {half:.3f} %   ({each})")
    reached = [found for found in map(first_at_target, reports) if math.isfinite(found[1])]
    text = f"{len(reached)} of {len(reports)} runs reach {TARGET:g} %"
    if reached:
        steps, seconds = zip(*reached, strict=True)
        text += f", first after {min(steps)} to {max(steps)} steps"
        text += f" and {min(seconds):.0f} to {max(seconds):.0f} s of training and testing"
    return "\n".join([*lines, text])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="The CNN of examples/mnist, several seeds; see the top of this file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=options.whole, default=15, help="of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="at least two")
    parser.add_argument(
        "--augment", action=argparse.BooleanOptionalAction, default=True, help="as in the example"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="a folder with the four MNIST files; without it, as in the example",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/mnist_cnn"), help="folder for a folder a run"
    )
    parser.add_argument("--json", type=Path, help="a file for what all runs measured")
    args = parser.parse_args(argv)
    if len(args.seeds) < 2:
        parser.error("--seeds must be at least two")
    reports = [run(seed, args) for seed in args.seeds]
    print(summary(reports))
    if args.json:
        args.json.write_text(json.dumps(reports, indent=1) + "\n")


if __name__ == "__main__":
    main()
