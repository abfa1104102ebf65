"""Choose AMaC's learning rate and weight decay on 10,000 held-out MNIST images, in one vmap.

    python benchmarks/mnist_sweep.py      # 24 runs of 10 epochs: 2 to 3 minutes on 2 CPU cores

It prints the held-out accuracy of every pair, in percent: mean and standard error over the seeds.
"""

import argparse
import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from image_runs import accuracies

import amac_jax

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import image_data


def main() -> None:
    parser = argparse.ArgumentParser(
        description="AMaC on held-out MNIST images, every combination times every seed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--learning-rate", type=float, nargs="+", default=[3e-3, 4e-3, 5e-3])
    parser.add_argument("--weight-decay", type=float, nargs="+", default=[0.1, 0.2])
    parser.add_argument("--seeds", type=int, default=4, help="how many, from 100 on")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--data-dir", type=Path)
    args = parser.parse_args()
    try:
        images = image_data.hold_out(image_data.load_mnist(args.data_dir), 10_000)
    except image_data.DataError as error:
        sys.exit(f"mnist_sweep.py: error: {error}")
    data = jax.device_put(images[1:])
    seeds = range(100, 100 + args.seeds)
    grid = list(itertools.product(args.learning_rate, args.weight_decay, seeds))
    rates, decays, keys = (jnp.asarray(column) for column in zip(*grid, strict=True))

    @jax.jit
    def sweep(data, rates, decays, keys):
        def run(rate, decay, seed):
            def optimizer(steps):
                return amac_jax.amac(rate, steps, weight_decay=decay, key=seed)

            return accuracies(data, optimizer, seed, epochs=args.epochs)

        return jax.vmap(run)(rates, decays, keys)

    results = np.stack(sweep(data, rates, decays, keys)).reshape(2, -1, args.seeds)
    print("learning rate  weight decay   last weights    averaged weights")
    for (rate, decay, _), last, averaged in zip(grid[:: args.seeds], *results, strict=True):
        errors = [x.std(ddof=1) / np.sqrt(x.size) for x in (last, averaged)]
        print(
            f"{rate:13g}  {decay:12g}   {last.mean():.2f} ± {errors[0]:.2f}    "
            f"{averaged.mean():.2f} ± {errors[1]:.2f}"
        )


if __name__ == "__main__":
    main()
