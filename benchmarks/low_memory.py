"""AMaC with its state in bfloat16 against float32: test accuracy, the same seeds, in one vmap.

    python -m benchmarks.low_memory                    # MNIST and the digits, 10 seeds of each
    python -m benchmarks.low_memory --data digits      # 1 minute on 1 CPU core
    python -m benchmarks.low_memory --json low_memory.json

It prints the mean test accuracy of both, in percent, of last and averaged weights, and of the
paired differences the mean, its standard error and the p-value of Student's t-test.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from scipy import stats

import amac_jax
from amac_jax.tools import datasets
from benchmarks.image_runs import accuracies
from examples.mnist.models import MLP, as_input

EPOCHS = {"mnist": 10, "digits": 100}
KINDS = ("float32", "bfloat16")


def state_bytes(images, dtype: str) -> tuple[int, int]:
    """Of the optimizer's state, and the number of parameters."""
    params: Any = jax.eval_shape(MLP().init, jax.random.key(0), as_input(images[:1]))["params"]
    state = jax.eval_shape(amac_jax.amac(4e-3, 1000, core="adam", state_dtype=dtype).init, params)
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)]
    return sum(sizes), optax.tree.size(params)


def train(data, dtype: str, seeds: range, epochs: int) -> np.ndarray:
    """Accuracies of shape (2, seeds): of the last weights and of the averaged ones."""

    @jax.jit
    def runs(data, seeds):
        def run(seed):
            def optimizer(steps):
                return amac_jax.amac(4e-3, steps, core="adam", key=seed, state_dtype=dtype)

            return accuracies(data, optimizer, seed, epochs=epochs)

        return jax.vmap(run)(seeds)

    return np.asarray(runs(data, np.asarray(seeds)), np.float64)


def compare(data: datasets.Images, seeds: range, epochs: int) -> dict[str, Any]:
    arrays = jax.device_put(data[1:])
    of_kind = {dtype: train(arrays, dtype, seeds, epochs) for dtype in KINDS}
    sizes = {dtype: state_bytes(data.train_images, dtype) for dtype in KINDS}
    result: dict[str, Any] = {
        "epochs": epochs,
        "seeds": list(seeds),
        "state_bytes_per_parameter": {k: round(size / n, 3) for k, (size, n) in sizes.items()},
    }
    for row, weights in enumerate(("last", "averaged")):
        one, other = (of_kind[dtype][row] for dtype in KINDS)
        gap = other - one
        result[weights] = {
            **{dtype: [round(x, 4) for x in of_kind[dtype][row].tolist()] for dtype in KINDS},
            "difference": gap.mean(),
            "standard_error": gap.std(ddof=1) / np.sqrt(gap.size),
            "p_value": float(np.asarray(stats.ttest_rel(other, one).pvalue)) if gap.any() else 1.0,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description="AMaC with its state in bfloat16 against float32, the same seeds.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", choices=EPOCHS, nargs="+", default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0 on, at least 2")
    parser.add_argument("--epochs", type=int, help="None: 10 of MNIST, 100 of the digits")
    parser.add_argument("--data-dir", type=Path, help="of MNIST's four files")
    parser.add_argument("--json", type=Path, help="a file for every accuracy")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error(f"--seeds must be at least 2, got {args.seeds}")
    if args.epochs is not None and args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")
    results: dict[str, Any] = {}
    print("data    weights   float32  bfloat16  difference         p    state bytes a parameter")
    for name in args.data:
        try:
            data = datasets.load(name, args.data_dir)
        except datasets.DataError as error:
            sys.exit(f"low_memory.py: error: {error}")
        epochs = args.epochs or EPOCHS[data.name]
        results[data.name] = result = compare(data, range(args.seeds), epochs)
        sizes = " -> ".join(f"{x:.2f}" for x in result["state_bytes_per_parameter"].values())
        for weights in ("last", "averaged"):
            row = result[weights]
            means = "   ".join(f"{np.mean(row[dtype]):.3f}" for dtype in KINDS)
            print(
                f"{data.name:7s} {weights:8s}  {means}   {row['difference']:+.3f} ± "
                f"{row['standard_error']:.3f}  {row['p_value']:.3f}    {sizes}",
                flush=True,
            )
    if args.json:
        results["versions"] = {"jax": jax.__version__, "optax": optax.__version__}
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
