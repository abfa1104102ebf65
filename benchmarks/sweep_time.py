"""What a run costs in a sweep: N MNIST trainings in one vmapped program, beside one alone.

    python benchmarks/sweep_time.py               # 64 runs of an epoch each: 2 minutes on 2 cores
    python benchmarks/sweep_time.py --runs 8 --optimizer adamw

The ratio is the time of the program of N runs over N times that of one run, taken in turns,
compilation apart; below 1 a sweep is cheaper than its runs.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from tqdm import trange

import amac_jax

sys.path.append(str(Path(__file__).parents[1] / "examples"))
sys.path.append(str(Path(__file__).parent))
import image_data
from image_runs import accuracies


def timed(program, *arguments) -> float:
    began = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - began


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Times of a sweep and of its runs one by one.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=64, help="in the one program")
    parser.add_argument("--optimizer", choices=("amac", "adamw"), default="amac")
    parser.add_argument("--epochs", type=int, default=1, help="of each run")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed")
    parser.add_argument("--data-dir", type=Path)
    args = parser.parse_args(argv)
    if min(args.runs, args.epochs, args.rounds) < 1:
        parser.error("--runs, --epochs and --rounds must be at least 1")
    try:
        images = image_data.hold_out(image_data.load_mnist(args.data_dir), 10_000)
    except image_data.DataError as error:
        sys.exit(f"sweep_time.py: error: {error}")
    data = jax.device_put(images[1:])
    rates, decays = jnp.linspace(2e-3, 6e-3, args.runs), jnp.full((args.runs,), 0.1)
    seeds = jnp.arange(args.runs)

    def run(data, rate, decay, seed):
        def optimizer(steps):
            if args.optimizer == "amac":
                return amac_jax.amac(rate, steps, core="adam", weight_decay=decay, key=seed)
            return amac_jax.adamw(rate, weight_decay=decay, average_start=steps)

        return accuracies(data, optimizer, seed, epochs=args.epochs)

    def many(data, *runs):
        return jax.vmap(run, in_axes=(None, 0, 0, 0))(data, *runs)

    one_of, all_of = (data, rates[0], decays[0], seeds[0]), (data, rates, decays, seeds)
    began = time.perf_counter()
    one = jax.jit(run).lower(*one_of).compile()
    compiled_one = time.perf_counter() - began
    together = jax.jit(many).lower(*all_of).compile()
    compiled_all = time.perf_counter() - began - compiled_one
    alone, sweeps = [], []
    for _ in trange(args.rounds, desc="rounds", disable=None):
        alone.append(timed(one, *one_of))
        sweeps.append(timed(together, *all_of))
        alone.append(timed(one, *one_of))
    single = [statistics.mean(pair) for pair in zip(alone[::2], alone[1::2], strict=True)]
    ratios = [sweep / (args.runs * s) for sweep, s in zip(sweeps, single, strict=True)]
    device = jax.devices()[0]
    one_s, all_s = statistics.median(alone), statistics.median(sweeps)
    print(f"{device.platform}, {device.device_kind}; jax {jax.__version__}; {args.epochs} epoch(s)")
    print(f"one run alone: {one_s:.2f} s, compiled in {compiled_one:.1f} s")
    print(
        f"{args.runs} runs in one program: {all_s:.2f} s, {all_s / args.runs:.3f} s a run, "
        f"compiled in {compiled_all:.1f} s"
    )
    print(
        f"together / ({args.runs} x alone): {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} .. {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
