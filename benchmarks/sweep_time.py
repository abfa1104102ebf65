"""What a run costs in a sweep: N MNIST trainings in one vmapped program, beside one alone.

    python -m benchmarks.sweep_time               # 64 runs of an epoch each: 2 minutes on 2 cores
    python -m benchmarks.sweep_time --runs 8 --optimizer adamw

The ratio is the time of the program of N runs over N times that of one run, taken in turns,
compilation apart; below 1 a sweep is cheaper than its runs.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import trange

import amac_jax
from amac_jax.tools import datasets
from benchmarks.image_runs import accuracies


def timed(program, *arguments) -> float:
    began = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - began


HELD_OUT = {"mnist": 10_000, "digits": 237}  # the last training images, which are tested on


def images_of(dataset: str, data_dir: Path | None) -> datasets.Images:
    data = datasets.load_digits_split()
    if dataset == "mnist":  # never other images in its place
        data = datasets.load_mnist(data_dir)
    return datasets.hold_out(data, HELD_OUT[dataset])


def measure(
    images: datasets.Images, count: int, optimizer_name: str, epochs: int, rounds: int
) -> dict[str, Any]:
    """Seconds of one run and of `count` in one program, in turns, and their ratios."""
    data = jax.device_put(images[1:])
    rates, decays = jnp.linspace(2e-3, 6e-3, count), jnp.full((count,), 0.1)
    seeds = jnp.arange(count)

    def run(data, rate, decay, seed):
        def optimizer(steps):
            if optimizer_name == "amac":
                return amac_jax.amac(rate, steps, core="adam", weight_decay=decay, key=seed)
            return amac_jax.adamw(rate, weight_decay=decay, average_start=steps)

        return accuracies(data, optimizer, seed, epochs=epochs)

    def many(data, *runs):
        return jax.vmap(run, in_axes=(None, 0, 0, 0))(data, *runs)

    one_of, all_of = (data, rates[0], decays[0], seeds[0]), (data, rates, decays, seeds)
    began = time.perf_counter()
    one = jax.jit(run).lower(*one_of).compile()
    compiled_one = time.perf_counter() - began
    together = jax.jit(many).lower(*all_of).compile()
    compiled_all = time.perf_counter() - began - compiled_one
    for program, arguments in ((one, one_of), (together, all_of)):
        timed(program, *arguments)  # the first call loads the program
    alone, sweeps = [], []
    for _ in trange(rounds, desc="rounds", disable=None):
        alone.append(timed(one, *one_of))
        sweeps.append(timed(together, *all_of))
        alone.append(timed(one, *one_of))
    single = [statistics.mean(pair) for pair in zip(alone[::2], alone[1::2], strict=True)]
    ratios = [sweep / (count * s) for sweep, s in zip(sweeps, single, strict=True)]
    return {
        "dataset": images.name, "runs": count, "optimizer": optimizer_name, "epochs": epochs,
        "alone_s": alone, "together_s": sweeps, "ratios": ratios,
        "ratio": statistics.median(ratios),
        "compile_alone_s": compiled_one, "compile_together_s": compiled_all,
    }  # fmt: skip


def text_of(found: dict[str, Any]) -> str:
    count, ratios = found["runs"], found["ratios"]
    alone, together = (statistics.median(found[name]) for name in ("alone_s", "together_s"))
    return (
        f"one run alone: {alone:.2f} s, compiled in {found['compile_alone_s']:.1f} s\n"
        f"{count} runs in one program: {together:.2f} s, {together / count:.3f} s a run, "
        f"compiled in {found['compile_together_s']:.1f} s\n"
        f"together / ({count} x alone): {found['ratio']:.2f} "
        f"({min(ratios):.2f} .. {max(ratios):.2f})"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Times of a sweep and of its runs one by one.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=64, help="in the one program")
    parser.add_argument("--optimizer", choices=("amac", "adamw"), default="amac")
    parser.add_argument("--epochs", type=int, default=1, help="of each run")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed")
    parser.add_argument("--dataset", choices=HELD_OUT, default="mnist", help="digits: 8x8 pixels")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args(argv)
    if min(args.runs, args.epochs, args.rounds) < 1:
        parser.error("--runs, --epochs and --rounds must be at least 1")
    try:
        images = images_of(args.dataset, args.data_dir)
    except datasets.DataError as error:
        sys.exit(f"sweep_time.py: error: {error}")
    found = measure(images, args.runs, args.optimizer, args.epochs, args.rounds)
    device = jax.devices()[0]
    print(f"{device.platform}, {device.device_kind}; jax {jax.__version__}; {args.epochs} epoch(s)")
    print(text_of(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
