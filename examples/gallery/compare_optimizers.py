"""Compare every optimizer of the library on three tasks, each sweep one vmapped program.

    python -m examples.gallery.compare_optimizers   # everything: a minute on 2 CPU cores
    python -m examples.gallery.compare_optimizers --task digits --optimizers sgd adam amac

It prints a table a task and writes results.json and pictures to --out. On least squares newton is
there in one step and sgd far off after 300; on the spirals most come to 99 % and sgd to 96 %; on
the digits all come to 95 to 98 %.

Every optimizer runs with every seed at eight rates, each about three times the last. The best is
the one with the lowest mean loss on data that is neither trained on nor reported; for least
squares, which has an exact solution, all three are the same. A rate diverges if a run meets a loss
that is not finite or ends above twice its first, and is then never chosen. Rates are constant but
for amac, which has a schedule; all else is at its defaults but for newton on networks, see below.
"""

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import amac_jax
from examples.gallery.demonstrations import accumulation_demo, clipping_demo, schedules_figure
from examples.gallery.optimizer_tasks import TASKS, Problem, Task, network, train

# A rate for each in the middle of its grid, chosen after runs of these tasks so that nearly all of
# the best rates are inside it; 1 is Newton's own step.
FAMILIES = {
    "Gradient and momentum": {"sgd": 0.3, "momentum": 0.1, "nesterov": 0.1},
    "A rate for each weight": {"adagrad": 0.3, "rmsprop": 0.03, "adam": 0.1, "adamw": 0.1},
    "Variants of Adam": {
        "amsgrad": 0.03, "adamax": 0.1, "nadam": 0.1, "radam": 0.1, "adabelief": 0.1,
    },
    "Signs, matrices, curvature, techniques": {
        "lion": 0.01, "muon": 0.1, "sophia": 0.03, "newton": 1.0, "amac": 0.1,
    },
}  # fmt: skip
RATES = {name: rate for family in FAMILIES.values() for name, rate in family.items()}
GRID = 10.0 ** np.arange(-2, 2, 0.5)

# Compiling takes most of the time; at this level it takes less, and runs take no longer.
FAST_COMPILE = {"xla_backend_optimization_level": 1}


@partial(jax.jit, static_argnames=("task", "name"), compiler_options=FAST_COMPILE)
def sweep(task: Task, name: str, rates: jax.Array, problems: Problem):
    """The weights of every seed (first axis) at every rate (second), before and after each block.

    A block is the steps from one measurement to the next.
    """
    steps = problems.batches.shape[1]
    settings = {"amac": {"total_steps": steps}, "newton": task.newton}.get(name, {})

    def run(rate, problem):
        tx = getattr(amac_jax, name)(rate, key=problem.seed, **settings)

        def loss(params, indices):
            return task.loss(params, jax.tree.map(lambda array: array[indices], problem.train))

        def block(carry, indices):
            carry, _ = train(tx, loss, carry, indices)
            return carry, carry[0]

        blocks = problem.batches.reshape(-1, block_length(task, steps), problem.batches.shape[-1])
        _, history = jax.lax.scan(block, (problem.params, tx.init(problem.params)), blocks)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), problem.params, history)

    return jax.vmap(jax.vmap(run, in_axes=(0, None)), in_axes=(None, 0))(rates, problems)


def block_length(task: Task, steps: int) -> int:
    """`task.every`, or the largest of its divisors that leaves no rest."""
    return math.gcd(task.every, steps)


@partial(jax.jit, static_argnames="task")  # compiled once a task, not once an optimizer
def measure(task: Task, history: Any, problems: Problem):
    """The curve (seeds, rates, blocks + 1), loss to choose by (seeds, rates), and accuracy, %."""

    def of_run(history, problem):
        curve = jax.lax.map(lambda params: task.loss(params, problem.report), history)
        last = jax.tree.map(lambda leaf: leaf[-1], history)
        accuracy = jnp.nan
        if task.has_accuracy:
            x, y = problem.report
            accuracy = 100 * jnp.mean(jnp.argmax(network(last, x), axis=-1) == y)
        return curve, task.loss(last, problem.choose), accuracy

    return jax.vmap(jax.vmap(of_run, in_axes=(0, None)))(history, problems)


class Result(NamedTuple):
    row: dict[str, Any]  # of results.json
    curve: np.ndarray  # (seeds, blocks + 1) at the best rate; NaN if there is none
    by_rate: np.ndarray  # (rates,) mean final loss, NaN where diverged


def compare(task: Task, name: str, problems: Problem) -> Result:
    began = time.perf_counter()
    rates = [float(f"{RATES[name] * factor:.2g}") for factor in GRID]
    history = sweep(task, name, np.asarray(rates, "f4"), problems)
    measured = jax.device_get(measure(task, history, problems))
    seconds = time.perf_counter() - began
    # float64: the mean of what is nearly infinite in float32 is finite.
    curves, choose, accuracy = (np.asarray(array, float) for array in measured)
    final = curves[..., -1]
    is_fine = np.isfinite(curves).all(-1) & np.isfinite(choose) & (final <= 2 * curves[..., 0])
    diverged = np.asarray(~is_fine.all(axis=0))  # (rates,)
    by_choice = np.where(diverged, np.inf, choose).mean(axis=0)
    best = int(np.argmin(by_choice))
    found = not diverged[best]
    curve = curves[:, best] if found else np.full_like(curves[:, best], np.nan)
    reached = curve <= task.target
    block = block_length(task, problems.batches.shape[1])
    steps_to_target = np.where(reached.any(-1), block * reached.argmax(-1), np.inf)  # (seeds,)
    row = {
        "optimizer": name,
        "rates": rates,
        "diverged": diverged.tolist(),
        "choice_loss": [number(value) for value in by_choice],
        "final_loss": [[number(value) for value in seeds] for seeds in final.T],
        "best_rate": rates[best] if found else None,
        "loss": spread(final[:, best]) if found else None,
        "accuracy": spread(accuracy[:, best]) if found and task.has_accuracy else None,
        "steps_to_target": number(np.median(steps_to_target)),
        "seconds": seconds,
    }
    return Result(row, curve, np.where(diverged, np.nan, final).mean(axis=0))


def number(value: Any) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if np.isfinite(value) else None


def spread(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "sd": float(values.std(ddof=1))}


def print_table(task: Task, rows: list[dict[str, Any]], steps: int, seeds: int) -> None:
    def shown(value: Any, form: str) -> str:
        if isinstance(value, dict):
            return f"{value['mean']:{form}} ± {value['sd']:{form}}"
        return "-" if value is None else f"{value:{form}}"

    columns = {  # heading: (key, format)
        "optimizer": ("optimizer", ""),
        "best rate": ("best_rate", "g"),
        "final loss": ("loss", ".2g"),
        "accuracy, %": ("accuracy", ".1f"),
        f"steps to {task.target:g}": ("steps_to_target", ".0f"),
        "diverged": ("diverged", "d"),
        "seconds": ("seconds", ".1f"),
    }
    if not task.has_accuracy:
        del columns["accuracy, %"]
    lines = [list(columns)]
    for row in rows:
        row = {**row, "diverged": sum(row["diverged"])}
        lines.append([shown(row[key], form) for key, form in columns.values()])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{task.title}; {steps} steps, mean ± standard deviation of {seeds} seeds")
    for name, *cells in lines:
        right = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        print("   ".join([f"{name:<{widths[0]}}", *right]), flush=True)


def draw_task(task: Task, results: list[Result], steps: int) -> Figure:
    """A column for each family of optimizers, the other families in grey behind it."""
    named = {result.row["optimizer"]: result for result in results}
    families = {title: [n for n in family if n in named] for title, family in FAMILIES.items()}
    families = {title: members for title, members in families.items() if members}
    figure = Figure(figsize=(max(3 * len(families), 6), 6.2), layout="constrained")
    axes = figure.subplots(2, len(families), sharex="row", sharey="row", squeeze=False)
    numbers = np.linspace(0, steps, results[0].curve.shape[1])
    for (title, members), above, below in zip(families.items(), *axes, strict=True):
        for row, curve, by_rate in results:
            above.plot(numbers, curve.mean(axis=0), color="0.88", linewidth=1)
            below.plot(row["rates"], by_rate, color="0.88", linewidth=1)
        for index, name in enumerate(members):
            row, curve, by_rate = named[name]
            # Dashes show what lies beneath: momentum and nesterov, adam and adamw coincide.
            style = {"color": f"C{index}", "linestyle": ("-", "--", "-.", ":", (0, (1, 2)))[index]}
            above.plot(numbers, curve.mean(axis=0), **style)
            band = {"color": f"C{index}", "alpha": 0.15, "linewidth": 0}
            above.fill_between(numbers, curve.min(axis=0), curve.max(axis=0), **band)
            rates, diverged = np.asarray(row["rates"]), np.asarray(row["diverged"])
            below.plot(rates, by_rate, **style, marker=".", label=name)
            best = rates == row["best_rate"]
            below.plot(rates[best], by_rate[best], "o", color=f"C{index}", markersize=8)
            height = np.full(diverged.sum(), 0.96 - 0.05 * index)  # in parts of the panel's
            at_top = below.get_xaxis_transform()
            below.plot(rates[diverged], height, "x", color=f"C{index}", transform=at_top)
        above.set(title=title, xlabel="step")
        below.set(xscale="log", xlabel="learning rate")
        below.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, frameon=False)
    curves = np.concatenate([np.append(result.curve, task.target) for result in results])
    by_rate = np.concatenate([np.append(result.by_rate, task.target) for result in results])
    for row, label, values, room in (
        (axes[0], "at the best rate", curves, 0.05),
        (axes[1], "at the end, by rate", by_rate, 0.35),  # for the crosses
    ):
        values = values[np.isfinite(values) & (values > 0)]
        low, high = values.min(), max(values.max(), 10 * values.min())
        row[0].set(ylabel=f"Loss {label}", yscale="log")
        row[0].set_ylim(low * (low / high) ** 0.05, high * (high / low) ** room)
    figure.suptitle(f"{task.title}. Mean and range of the seeds; ● best rate, × diverged")
    return figure


def arguments(argv: list[str] | None) -> argparse.Namespace:
    def at_least(lowest: int) -> Callable[[str], int]:
        def whole(text: str) -> int:
            if (value := int(text)) < lowest:
                raise argparse.ArgumentTypeError(f"must be at least {lowest}, got {text}")
            return value

        return whole

    parser = argparse.ArgumentParser(
        description="Compare every optimizer on small tasks; see the top of this file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    tasks = (*TASKS, "all")
    parser.add_argument("--task", choices=tasks, nargs="+", default=["all"], help="one or more")
    parser.add_argument(
        "--optimizers", choices=RATES, nargs="+", metavar="NAME", default=list(RATES),
        help="one or more of the default's",
    )  # fmt: skip
    parser.add_argument("--seeds", type=at_least(2), default=3, help="runs of each rate")
    parser.add_argument("--steps", type=at_least(1), default=300, help="of every run")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/compare"), help="folder for results.json and PNGs"
    )
    args = parser.parse_args(argv)
    args.task = [name for name in TASKS if name in args.task or "all" in args.task]
    args.optimizers = [name for name in RATES if name in args.optimizers]
    return args


def fail(error: Exception | str) -> NoReturn:
    sys.exit(f"compare_optimizers.py: error: {error}")


def main(argv: list[str] | None = None) -> None:
    began = time.perf_counter()
    args = arguments(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(error)
    device = jax.devices()[0]
    content: dict[str, Any] = {
        "configuration": {name: v for name, v in vars(args).items() if name != "out"},
        "versions": {
            "python": platform.python_version(),
            **{lib.__name__: lib.__version__ for lib in (amac_jax, jax, optax, np)},
        },
        "device": f"{device.platform}, {device.device_kind}",
        "tasks": {},
    }
    figures = {}
    for task_name in args.task:
        task = TASKS[task_name]
        made = [task.make(seed, args.steps) for seed in range(args.seeds)]
        problems = jax.tree.map(lambda *arrays: np.stack(arrays), *made)
        bar = tqdm(args.optimizers, desc=task_name, unit="optimizer", disable=None)
        results = [compare(task, name, problems) for name in bar]
        results.sort(key=lambda result: (result.row["loss"] or {"mean": math.inf})["mean"])
        rows = [result.row for result in results]
        print_table(task, rows, args.steps, args.seeds)
        content["tasks"][task_name] = {"title": task.title, "target": task.target, "rows": rows}
        figures[f"curves_{task_name}"] = draw_task(task, results, args.steps)

    clipping, figures["clipping"] = clipping_demo()
    last = {name: number(loss) for name, loss in clipping["last_loss"].items()}
    content["clipping"] = {**clipping, "last_loss": last}
    content["accumulation"], figures["accumulation"] = accumulation_demo()
    figures["schedules"] = schedules_figure()
    unclipped, clipped = content["clipping"]["last_loss"].values()
    print(
        f"\nA recurrent net's loss ends at {unclipped or math.nan:.2g} with sgd, and at "
        f"{clipped or math.nan:.2g} with sgd and clip_norm=1.0.\n"
        "Weights from 4 micro-batches differ from the large batch's by "
        f"{content['accumulation']['largest_difference']:.1g} at most."
    )
    content["seconds"] = time.perf_counter() - began
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
        (args.out / "results.json").write_text(text + "\n")
        for name, figure in figures.items():
            figure.savefig(args.out / f"{name}.png", dpi=110)
    except OSError as error:
        fail(error)
    print(f"{content['seconds']:.0f} s; results.json and {len(figures)} pictures are in {args.out}")


if __name__ == "__main__":
    main()
