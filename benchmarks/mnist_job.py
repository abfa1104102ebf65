"""The published job, an MLP on MNIST for 10 epochs in batches of 64, with many seeds in one vmap.

    python -m benchmarks.mnist_job            # amac and adamw, 10 seeds each, on the test images
    python -m benchmarks.mnist_job --sweep    # choose on 10,000 held-out training images instead

It prints accuracies in percent, mean and 95 % interval of the seeds. 20 runs took 26 minutes on one
CPU core beside other work. The sweep tries every combination of the factors of the automatic rate
and of the end ratios that it is given.
"""

import argparse
import itertools
import json
import platform
import sys
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import amac_jax
from amac_jax.tools import datasets
from benchmarks.image_runs import accuracies
from benchmarks.statistics_of_runs import interval
from examples.mnist.options import OPTIMIZERS

HELD_OUT = 10_000


def run_all(data, optimizer, columns: tuple[Any, ...], epochs: int) -> np.ndarray:
    """Accuracies of last and averaged weights, (2, runs); `optimizer` is (steps, *row of columns).

    The last column are the seeds.
    """

    @jax.jit
    def program(data, columns):
        def run(*row):
            return accuracies(data, lambda steps: optimizer(steps, *row), row[-1], epochs=epochs)

        return jax.vmap(run)(*columns)

    return np.stack(program(data, tuple(map(jnp.asarray, columns))))


def shown(values) -> str:
    middle, half = interval(values)
    return f"{middle:.3f} ± {half:.3f}"


def sweep(data, args: argparse.Namespace) -> None:
    grid = list(itertools.product(args.factor, args.end_ratio, range(100, 100 + args.seeds)))

    def optimizer(steps, factor, end_ratio, seed):
        usual = amac_jax.amac("auto", steps).resolved["learning_rate"]
        return amac_jax.amac(
            factor * usual, steps, epochs=args.epochs, end_ratio=end_ratio, key=seed
        )

    columns = tuple(zip(*grid, strict=True))
    results = run_all(data, optimizer, columns, args.epochs).reshape(2, -1, args.seeds)
    print("factor of rate  end ratio   last weights     averaged weights")
    for (factor, end_ratio, _), last, averaged in zip(grid[:: args.seeds], *results, strict=True):
        print(f"{factor:14g}  {end_ratio:9g}   {shown(last)}   {shown(averaged)}")


def compare(data, args: argparse.Namespace) -> dict[str, Any]:
    found = {}
    print("                   last weights     averaged weights")
    for name in ("amac", "adamw"):
        rate, build = OPTIMIZERS[name]

        def optimizer(steps, seed, name=name, rate=rate, build=build):
            averaging = {} if name == "amac" else {"average_start": jnp.inf}
            return build(rate, steps, args.epochs, key=seed, **averaging)

        last, averaged = run_all(data, optimizer, (range(args.seeds),), args.epochs)
        print(f"{name:6s} at {rate:5}    {shown(last)}   {shown(averaged)}")
        found[name] = {
            "learning_rate": rate,
            "last": last.tolist(),
            "averaged": averaged.tolist(),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description="The published MNIST job with many seeds; see the top of this file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--sweep", action="store_true", help="choose, on held-out images")
    parser.add_argument("--factor", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--end-ratio", type=float, nargs="+", default=[0.3, 0.6])
    parser.add_argument("--seeds", type=int, default=10, help="how many, >= 2")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--data-dir", type=Path, help="a folder with the four MNIST files")
    parser.add_argument("--json", type=Path, help="a file for every run's accuracies")
    args = parser.parse_args()
    try:
        images = datasets.load_mnist(args.data_dir)
        if args.sweep:
            images = datasets.hold_out(images, HELD_OUT)
    except datasets.DataError as error:
        sys.exit(f"mnist_job.py: error: {error}")
    data = jax.device_put(images[1:])
    if args.sweep:
        sweep(data, args)
        return
    found = compare(data, args)
    if args.json:
        libraries = (amac_jax, jax, flax, optax, np)
        versions = {lib.__name__: lib.__version__ for lib in libraries}
        about = {
            "epochs": args.epochs,
            "versions": {"python": platform.python_version(), **versions},
            "device": jax.devices()[0].device_kind,
        }
        args.json.write_text(json.dumps({**about, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
