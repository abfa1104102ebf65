"""Every optimizer on the landscapes that they are learned on: maps, curves and a table.

    python -m examples.gallery.landscapes          # all nine, in a minute on 2 CPU cores
    python -m examples.gallery.landscapes --landscapes rosenbrock  # one, in ten seconds
    python -m examples.gallery.landscapes --gif    # and the gallery as an animation

Each optimizer runs with 20 learning rates at once, from 1e-4 to 5.6, four to a decade. Shown is
the best: the one that is soonest within 1e-3 of the minimum for good, else the one that ends
lowest; on x cos(pi x), the saddle and tanh, where one long step leaves the map, the best up to
0.1. A saddle has no minimum: to be down at the edge of the map counts. On the Rosenbrock function
Newton's method is there in 3 steps, Adam in 280.
"""

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

import amac_jax
from amac_jax.tools.landscapes import LANDSCAPES, Trajectory, cosh, trajectory
from amac_jax.tools.plotting import plot_gallery, plot_paths

RATES = 10.0 ** (np.arange(-16, 4) / 4)
COMMON_RATE = 1e-3  # at which the adaptive optimizers are usually compared
# Where one long step is enough to leave the map, the question is who gets on with short ones.
HIGHEST_RATE = {"x_cos_pi_x": 0.1, "saddle": 0.1, "tanh": 0.1}
TOLERANCE = 1e-3
# Compiling takes longer than running; less of it at this level.
FAST_COMPILE = {"xla_backend_optimization_level": 0}

# A learning rate and a number of steps -> an optimizer.
OPTIMIZERS: dict[str, Callable[[Any, int], Any]] = {
    "sgd": lambda rate, steps: amac_jax.sgd(rate),
    "momentum": lambda rate, steps: amac_jax.momentum(rate),
    "nesterov": lambda rate, steps: amac_jax.nesterov(rate),
    "adagrad": lambda rate, steps: amac_jax.adagrad(rate),
    "rmsprop": lambda rate, steps: amac_jax.rmsprop(rate),
    "adam": lambda rate, steps: amac_jax.adam(rate),
    "adamw": lambda rate, steps: amac_jax.adamw(rate),
    "amsgrad": lambda rate, steps: amac_jax.amsgrad(rate),
    "adamax": lambda rate, steps: amac_jax.adamax(rate),
    "nadam": lambda rate, steps: amac_jax.nadam(rate),
    "radam": lambda rate, steps: amac_jax.radam(rate),
    "adabelief": lambda rate, steps: amac_jax.adabelief(rate),
    "lion": lambda rate, steps: amac_jax.lion(rate),
    "sophia": lambda rate, steps: amac_jax.sophia(rate),
    "newton": lambda rate, steps: amac_jax.newton(rate),
    "newton-saddle-free": lambda rate, steps: amac_jax.newton(rate, saddle_free=True),
    "amac": lambda rate, steps: amac_jax.amac(rate, steps, core="adam"),  # points, not kernels
}


class Result(NamedTuple):
    rate: float
    path: Trajectory  # at that rate
    settled: int | None  # the step from which on it stays within TOLERANCE of the minimum
    distance: float  # of the last value from the minimum
    distance_at_common_rate: float


def settled_at(distances: np.ndarray) -> int | None:
    """The step from which on all are within TOLERANCE."""
    outside = np.flatnonzero(~(distances <= TOLERANCE))  # NaN is outside
    if len(outside) == 0:
        return 0
    return int(outside[-1]) + 1 if outside[-1] + 1 < len(distances) else None


def distances_from_minimum(name: str, values: np.ndarray) -> np.ndarray:
    """Of the minimum on the map: what is far below it has left the map, as only a saddle's may."""
    above = values - LANDSCAPES[name].minimum
    return np.maximum(above, 0.0) if name == "saddle" else np.abs(above)


def run(name: str, optimizer: str, steps: int) -> Result:
    landscape = LANDSCAPES[name]
    start = jnp.asarray(landscape.start)

    def path_at(rate):
        return trajectory(OPTIMIZERS[optimizer](rate, steps), landscape.function, start, steps)

    paths = jax.device_get(
        jax.jit(jax.vmap(path_at), compiler_options=FAST_COMPILE)(jnp.asarray(RATES))
    )
    distances = distances_from_minimum(name, paths.values)
    settled = [settled_at(of_one) for of_one in distances]
    ends = np.nan_to_num(distances[:, -1], nan=np.inf)

    def quality(index):
        step = settled[index]
        return (steps + 1 if step is None else step, ends[index])

    allowed = [i for i, rate in enumerate(RATES) if rate <= 1.01 * HIGHEST_RATE.get(name, np.inf)]
    best = min(allowed, key=quality)
    common = int(np.argmin(np.abs(RATES - COMMON_RATE)))
    return Result(
        rate=float(RATES[best]),
        path=Trajectory(paths.points[best], paths.values[best]),
        settled=settled[best],
        distance=float(ends[best]),
        distance_at_common_rate=float(ends[common]),
    )


def table(name: str, results: dict[str, Result]) -> str:
    """In Markdown, which reads well on a terminal too."""
    landscape = LANDSCAPES[name]
    head = ["optimizer", "best rate", "value - minimum", f"steps to {TOLERANCE:g}",
            "global minimum", f"value - minimum at rate {COMMON_RATE:g}"]  # fmt: skip
    rows = [head]
    for optimizer, result in results.items():
        reached = result.settled is not None
        rows.append(
            [
                optimizer,
                f"{result.rate:.2g}",
                f"{result.distance:.2g}",
                str(result.settled) if reached else "-",
                "yes" if reached else "no",
                f"{result.distance_at_common_rate:.2g}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    title = f"{name}: {landscape.shows}; minimum {landscape.minimum:g}, from {landscape.start}"
    return "\n".join(["", title, "", *lines])


def newton_on_cosh() -> Figure:
    """How Newton's error shrinks: every step squares it, or better."""
    with jax.enable_x64(True):  # float32 has room for two such steps
        path = trajectory(amac_jax.newton(), cosh, 10.0, 9)
        errors = np.abs(np.asarray(path.points))
    errors = errors[errors > 1e-15]
    figure = Figure(figsize=(10, 4), layout="constrained")
    by_step, by_error = figure.subplots(1, 2)
    by_step.semilogy(errors, marker="o")
    by_step.set(xlabel="step", title="|x| on cosh(x / 2), from 10")
    by_error.loglog(errors[:-1], errors[1:], marker="o", label="Newton")
    below_one = np.array([errors[-2], 1.0])
    by_error.loglog(below_one, below_one**2, "k:", label="quadratic: e squared")
    by_error.loglog(below_one, below_one, color="0.7", linestyle="--", label="no progress")
    by_error.set(xlabel="|x| before the step", title="|x| after the step")
    by_error.legend()
    return figure


def animate(results: dict[str, dict[str, Result]], out: Path, frames: int = 60) -> None:
    """The gallery as a GIF, its paths growing, slowly at first."""
    from PIL import Image

    steps = max(len(r.path.values) for of_one in results.values() for r in of_one.values())
    lengths = np.unique(np.geomspace(2, steps, frames).astype(int))
    images = []
    for length in tqdm(lengths, desc="animation", unit="frame", disable=None):
        shown = {
            name: {
                optimizer: Trajectory(r.path.points[:length], r.path.values[:length])
                for optimizer, r in of_one.items()
            }
            for name, of_one in results.items()
        }
        figure = plot_gallery(
            {name: LANDSCAPES[name] for name in results}, shown, f"{length - 1} steps"
        )
        canvas = FigureCanvasAgg(figure)
        figure.set_dpi(60)
        canvas.draw()
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("P"))
    images[0].save(out, save_all=True, append_images=images[1:], duration=120, loop=0)


def whole(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Every optimizer on the landscapes that they are learned on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--landscapes", nargs="+", choices=LANDSCAPES, default=list(LANDSCAPES), metavar="NAME",
        help="which of: " + ", ".join(LANDSCAPES),
    )  # fmt: skip
    parser.add_argument(
        "--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), metavar="NAME",
        help="which of: " + ", ".join(OPTIMIZERS),
    )  # fmt: skip
    parser.add_argument("--steps", type=whole, default=1000, help="updates of each path")
    parser.add_argument("--gif", action="store_true", help="also write gallery.gif, a minute more")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/landscapes"), help="for the pictures"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"landscapes.py: error: {error}")
    results: dict[str, dict[str, Result]] = {name: {} for name in args.landscapes}
    jobs = [(name, optimizer) for name in args.landscapes for optimizer in args.optimizers]
    # Most of the time goes into compiling, which threads do side by side.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = pool.map(lambda job: run(job[0], job[1], args.steps), jobs)
        bar = tqdm(runs, desc="paths", total=len(jobs), disable=None)
        for (name, optimizer), result in zip(jobs, bar, strict=True):
            results[name][optimizer] = result
    paths = {
        name: {optimizer: result.path for optimizer, result in of_one.items()}
        for name, of_one in results.items()
    }
    for name, of_one in results.items():
        print(table(name, of_one))
        titled = {f"{o}, {r.rate:.2g}": r.path for o, r in of_one.items()}
        figure = plot_paths(LANDSCAPES[name], titled, f"{name}: {LANDSCAPES[name].shows}")
        figure.savefig(args.out / f"{name}.png", dpi=80)
    landscapes = {name: LANDSCAPES[name] for name in results}
    title = "Each optimizer at its best learning rate"
    plot_gallery(landscapes, paths, title).savefig(args.out / "gallery.png", dpi=90)
    newton_on_cosh().savefig(args.out / "newton_cosh.png", dpi=90)
    if args.gif:
        animate(results, args.out / "gallery.gif")
    print(f"\npictures are in {args.out}: gallery.png, newton_cosh.png, one of each landscape")


if __name__ == "__main__":
    main()
