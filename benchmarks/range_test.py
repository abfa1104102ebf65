"""How far `lr_range_test`'s suggestion is from the rate that 24 trials of `compare.py` chose.

    python -m benchmarks.range_test     # all workloads, 2 minutes on 2 CPU cores

For every workload it tries 31 rates from 1e-5 to 1 with Adam, 100 steps each in one vmapped
program, beside the learning rate that tuned AdamW has in results/compare.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from amac_jax.tools import datasets, lr_range_test
from amac_jax.tools.plotting import plot_range_test
from benchmarks.compare import RESULTS
from benchmarks.comparison_report import table
from benchmarks.records import RecordError, recorded
from benchmarks.workloads import WORKLOADS


def main() -> None:
    parser = argparse.ArgumentParser(
        description="The learning-rate range test beside tuned rates; see the top of this file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--steps", type=int, default=100, help="of each run, >= 4")
    parser.add_argument(
        "--draw", choices=WORKLOADS, default="images-2000", help="in range_test.png"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/range_test"), help="folder for it")
    args = parser.parse_args()
    rows, ratios = [], []
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for name in tqdm(args.workloads, unit="workload", disable=None):
            job = WORKLOADS[name].make()
            keys = jax.random.split(jax.random.key(1), args.steps)
            batches = jax.jit(jax.vmap(job.batch, in_axes=(0, None)))(keys, job.splits.train)
            params = jax.jit(job.init)(jax.random.key(0))
            found = lr_range_test(job.loss, params, batches, steps=args.steps)
            tuned = recorded(RESULTS / f"{name}.json")["adamw"]["chosen"]["learning_rate"]
            ratios.append(found.suggestion / tuned)
            rows.append([name, f"{found.suggestion:.2g}", f"{tuned:.2g}"])
            if name == args.draw:
                title = f"{WORKLOADS[name].title}: {args.steps} steps at each of 31 rates"
                plot_range_test(found, title).savefig(args.out / "range_test.png", dpi=110)
    except (datasets.DataError, RecordError, OSError, ValueError) as error:
        sys.exit(f"range_test.py: error: {error}")
    print(table(["workload", "suggestion", "`adamw`, tuned"], rows))
    print(
        f"suggestion / tuned adamw's rate: geometric mean {np.exp(np.mean(np.log(ratios))):.2g}, "
        f"from {min(ratios):.2g} to {max(ratios):.2g}"
    )


if __name__ == "__main__":
    main()
