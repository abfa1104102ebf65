"""Pictures of schedules, paths, range tests, sweeps, ablations (the extra `plot`: matplotlib)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import optax

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from amac_jax.tools._ablation import Ablation, Effect
    from amac_jax.tools._range_test import RangeTest
    from amac_jax.tools._space import Axis
    from amac_jax.tools._sweep import Sweep
    from amac_jax.tools.landscapes import Landscape, Trajectory

Schedule: TypeAlias = optax.Schedule | float
"""A function of the count or a number: what `plot_schedule` draws."""

# More lines in one panel are hard to tell apart.
LINES_IN_A_PANEL = 6
# More points in a line are closer together than pixels.
POINTS_IN_A_LINE = 5000
# Smaller differences from a minimum are rounding errors in float32.
SMALLEST = 1e-8


def plot_schedule(*schedules: Schedule, steps: int, labels: Sequence[str] | None = None) -> Figure:
    """The values of schedules at every step of a run.

    Up to six schedules share one panel; of more, each has its own panel.

    Args:
      schedules: functions of `count`, the number of updates made before a step, or numbers. A
        function that does not take an array of counts is called step by step.
      steps: the length of the run, in steps, >= 1; at step 1 the count is 0.
      labels: one label for each schedule. None is the name of the function that made the
        schedule, with a number where several schedules have the same name.

    Returns:
      A matplotlib figure; save it with `figure.savefig(path)`.

    Raises:
      ValueError: without a schedule, for steps that are below 1 or not whole, or if there are not
        as many labels as schedules.

    Example:
      >>> figure = plot_schedule(lambda count: 0.1 / (1 + count), 0.05, steps=100)
      >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
      ['schedule', '0.05']
    """
    from matplotlib.figure import Figure

    if not schedules:
        raise ValueError("plot_schedule needs a schedule: plot_schedule(schedule, steps=1000)")
    if not 1 <= steps < np.inf or steps != int(steps):
        raise ValueError(f"steps must be a whole number in [1, inf), got {steps!r}")
    labels = _labels(schedules) if labels is None else labels
    if len(labels) != len(schedules):
        raise ValueError(f"labels must be as many as schedules, {len(schedules)}, got {labels!r}")

    panels = 1 if len(schedules) <= LINES_IN_A_PANEL else len(schedules)
    columns = min(panels, 4)
    rows = -(-panels // columns)
    size = (7, 4) if panels == 1 else (3.2 * columns, 2.4 * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    points = min(int(steps), POINTS_IN_A_LINE)
    counts = np.unique(np.linspace(0, int(steps) - 1, points).round().astype(int))
    for index, (schedule, label) in enumerate(zip(schedules, labels, strict=True)):
        panel = axes[index % panels]
        marker = "." if steps <= 50 else ""
        panel.plot(counts + 1, _values(schedule, counts), label=label, marker=marker)
        if panels > 1 or len(schedules) == 1:
            panel.set_title(label)
    if 1 < len(schedules) <= LINES_IN_A_PANEL:
        axes[0].legend()
    for index, panel in enumerate(axes):
        if index >= panels:
            panel.set_axis_off()
            continue
        _show_zero(panel)
        if index + columns >= panels:  # the lowest panel of its column
            panel.set_xlabel("step")
            panel.tick_params(labelbottom=True)
    return figure


def _labels(schedules: Sequence[Schedule]) -> list[str]:
    names = [_name(schedule) for schedule in schedules]
    together, so_far, labels = Counter(names), Counter(), []
    for name in names:
        so_far[name] += 1
        labels.append(f"{name} {so_far[name]}" if together[name] > 1 else name)
    return labels


def _name(schedule: Schedule) -> str:
    if not callable(schedule):
        return f"{np.asarray(schedule, float):g}"
    # "cosine.<locals>.schedule" is the function that `cosine` made.
    qualified = getattr(schedule, "__qualname__", type(schedule).__qualname__)
    return qualified.split(".")[0].replace("<lambda>", "schedule")


def _values(schedule: Schedule, counts: np.ndarray) -> np.ndarray:
    if not callable(schedule):
        return np.full(len(counts), np.asarray(schedule, float))
    try:
        values = np.asarray(schedule(counts), float)
    except (TypeError, ValueError):  # from an `if` on the count, or a function of one number
        values = None
    if values is None or values.shape != counts.shape:
        values = np.array([schedule(int(count)) for count in counts], float)
    return values


def _show_zero(axes: Axes) -> None:
    """Lets the axis begin at 0 if no value is negative: half a rate should look like half."""
    low, _ = axes.dataLim.intervaly
    if 0 <= low < np.inf:
        axes.set_ylim(bottom=0)


def plot_paths(landscape: Landscape, paths: Mapping[str, Trajectory], title: str = "") -> Figure:
    """Every path over a landscape, each beside the curve of its values.

    Args:
      landscape: a landscape of one or two coordinates.
      paths: the paths by name.
      title: the title of the whole figure.

    Returns:
      A matplotlib figure. For each path a map shows the start (circle), the end (dot) and the
      minima of the landscape (crosses), and a curve beside it shows value - minimum by step.

    Raises:
      ValueError: without a path.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from amac_jax.tools.landscapes import LANDSCAPES, trajectory
      >>> beale = LANDSCAPES["beale"]
      >>> path = trajectory(optax.adam(0.1), beale.function, jnp.array(beale.start), 10)
      >>> len(plot_paths(beale, {"adam": path}).axes)
      2
    """
    from matplotlib.figure import Figure

    if not paths:
        raise ValueError("paths must hold at least one trajectory, got none")
    columns = min(len(paths), 4 if len(paths) <= 12 else 6)
    rows = -(-len(paths) // columns)
    figure = Figure(figsize=(3.9 * columns, 2.1 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, 2 * columns, squeeze=False)
    maps, curves = panels[:, ::2].flatten(), panels[:, 1::2].flatten()
    background = _background(landscape)
    for name, path, on, beside in zip(paths, paths.values(), maps, curves, strict=False):
        _draw_landscape(on, landscape, background)
        _draw_path(on, path, color="C3")
        on.set_title(name, fontsize="medium")
        _draw_values(beside, landscape, path, color="C3")
        beside.set_ylim(SMALLEST / 2, 3 * beside.dataLim.ymax)
    for unused in (*maps[len(paths) :], *curves[len(paths) :]):
        unused.set_axis_off()
    figure.suptitle(title)
    return figure


def plot_gallery(
    landscapes: Mapping[str, Landscape],
    paths: Mapping[str, Mapping[str, Trajectory]],
    title: str = "",
) -> Figure:
    """Several landscapes, each with all of its paths on one map.

    Args:
      landscapes: the landscapes by name.
      paths: the paths by name, for each name of a landscape.
      title: the title of the whole figure.

    Returns:
      A matplotlib figure with one legend. Paths of the same name have the same colour on all maps.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from amac_jax.tools.landscapes import LANDSCAPES, trajectory
      >>> beale = LANDSCAPES["beale"]
      >>> path = trajectory(optax.adam(0.1), beale.function, jnp.array(beale.start), 10)
      >>> figure = plot_gallery({"beale": beale}, {"beale": {"adam": path}})
      >>> len(figure.axes), figure.legends[0].get_texts()[0].get_text()
      (1, 'adam')
    """
    from matplotlib.figure import Figure

    columns = min(len(landscapes), 3)
    rows = -(-len(landscapes) // columns)
    figure = Figure(figsize=(4 * columns + 1.8, 3.4 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    names = list(dict.fromkeys(name for of_one in paths.values() for name in of_one))
    lines = {}
    for (name, landscape), panel in zip(landscapes.items(), panels, strict=False):
        _draw_landscape(panel, landscape, _background(landscape))
        for label, path in paths[name].items():
            color, style = _look(names.index(label))
            lines[label] = _draw_path(panel, path, color=color, linestyle=style)
        panel.set_title(f"{name}\n{landscape.shows}", fontsize="medium")
    for unused in panels[len(landscapes) :]:
        unused.set_axis_off()
    figure.legend([lines[name] for name in names], names, loc="outside right center", frameon=False)
    figure.suptitle(title)
    return figure


def _look(number: int) -> tuple[str, str]:
    """Ten colours with solid lines, then the same ten colours with dashed lines."""
    return f"C{number % 10}", ("-", "--")[number // 10 % 2]


def _background(landscape: Landscape) -> tuple[np.ndarray, ...]:
    """The points of a grid over the bounds, and the values of the function at them."""
    import jax
    import jax.numpy as jnp

    points = 400 if len(landscape.bounds) == 1 else 120
    grid = [np.linspace(low, high, points, dtype=np.float32) for low, high in landscape.bounds]
    if len(grid) == 1:
        return grid[0], np.asarray(jax.vmap(landscape.function)(jnp.asarray(grid[0])))
    x, y = np.meshgrid(*grid)
    values = jax.vmap(landscape.function)(jnp.stack([x.ravel(), y.ravel()], axis=1))
    return x, y, np.asarray(values).reshape(x.shape)


def _draw_landscape(axes: Axes, landscape: Landscape, background: tuple[np.ndarray, ...]) -> None:
    from matplotlib import colormaps

    if len(background) == 2:
        axes.plot(*background, color="0.6")
        for minimum in landscape.minima:
            axes.plot(minimum, landscape.minimum, "kx", zorder=5)
        axes.set_xlim(*landscape.bounds[0])
        return
    values = background[-1]
    # The area between two lines is always the same, which suits both valleys and plains.
    levels = np.unique(np.quantile(values, np.linspace(0, 1, 13)))
    # The shades are pale, so that paths stand out, and differ equally from level to level.
    shades = colormaps["Blues_r"](np.linspace(0.35, 1.0, len(levels) - 1))
    axes.contourf(*background, levels=levels, colors=shades)
    for minimum in landscape.minima:
        axes.plot(*minimum, "kx", zorder=5)
    axes.set(xlim=landscape.bounds[0], ylim=landscape.bounds[1])
    axes.tick_params(labelsize="x-small")


def _draw_path(axes: Axes, path: Trajectory, **look: Any) -> Line2D:
    points, values = np.asarray(path.points), np.asarray(path.values)
    if points.ndim == 1:
        points = np.stack([points, values], axis=1)
    with np.errstate(invalid="ignore"):
        wild = ~np.all(np.abs(points) < 1e6, axis=1)  # too far for a picture
    points = points[: np.argmax(wild)] if wild.any() else points
    (line,) = axes.plot(*points.T, linewidth=1, marker=".", markersize=2, **look)
    axes.plot(*points[0], "o", markerfacecolor="white", color=look["color"])
    axes.plot(*points[-1], "o", markersize=4, color=look["color"])
    return line


def _draw_values(axes: Axes, landscape: Landscape, path: Trajectory, **look: Any) -> None:
    above = np.asarray(path.values, float) - landscape.minimum
    steps = np.arange(1, len(above) + 1)
    axes.loglog(steps, np.maximum(np.nan_to_num(above, nan=np.inf), SMALLEST), **look)
    axes.minorticks_off()  # minor ticks take longer to draw than everything else
    axes.set_xlabel("step", fontsize="x-small")
    axes.set_title("value - minimum", fontsize="small")
    axes.tick_params(labelsize="x-small")


def plot_range_test(found: RangeTest, title: str = "") -> Figure:
    """The loss by learning rate, and the suggested rate.

    Args:
      found: the result of `lr_range_test`.
      title: the title of the figure.

    Returns:
      A matplotlib figure. Losses that are not finite, or far above the loss before training, are
      crosses at the top.

    Example:
      >>> import jax.numpy as jnp
      >>> from amac_jax.tools import lr_range_test
      >>> found = lr_range_test(lambda w, x: jnp.mean((w - x) ** 2), jnp.zeros(2), jnp.ones((4, 2)))
      >>> plot_range_test(found).axes[0].get_xscale()
      'log'
    """
    from matplotlib.figure import Figure

    rates, losses = np.asarray(found.learning_rates), np.asarray(found.losses, float)
    start = found.start if np.isfinite(found.start) else 0.0  # then not a single loss is finite
    lowest = np.min(losses, initial=start, where=np.isfinite(losses))
    top = start + 0.5 * max(start - lowest, 1e-12)
    shown = np.isfinite(losses) & (losses <= top)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, np.where(shown, losses, np.nan), ".-", color="C0")
    if not shown.all():
        axes.plot(rates[~shown], np.full((~shown).sum(), top), "x", color="C3", label="diverged")
    axes.axhline(start, color="0.5", linewidth=0.8, linestyle="--", label="before training")
    if np.isfinite(found.suggestion):
        label = f"suggestion: {found.suggestion:.2g}"
        axes.axvline(found.suggestion, color="C2", label=label)
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss", title=title)
    axes.legend(frameon=False)
    return figure


def plot_sweep(found: Sweep, title: str = "", ylabel: str = "score") -> Figure:
    """The score of every trial by each axis of the space, the best trial marked.

    Args:
      found: the result of `sweep`.
      title: the title of the figure.
      ylabel: what the score is, with its unit.

    Returns:
      A matplotlib figure with a panel for each axis. Bars are the standard deviations of the seeds.
      Trials that halving dropped are pale, at the score that they had then. Failed trials are
      crosses at the edge of the panel, and trials far worse than the median are triangles there.
      Trials with the same choice stand side by side.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from amac_jax.tools import sweep
      >>> loss, data, space = lambda w, x: jnp.mean((w - x) ** 2), jnp.ones((4, 2)), (0.1, 1.0)
      >>> found = sweep(loss, jnp.zeros(2), data, optax.sgd, space={"learning_rate": space})
      >>> plot_sweep(found).axes[0].get_xlabel()
      'learning_rate'
    """
    from matplotlib.figure import Figure

    scores = np.asarray(found.scores, float)
    seen = np.isfinite(scores).all(axis=1)
    means, spreads = np.full((2, len(scores)), np.nan)
    means[seen] = scores[seen].mean(axis=1)
    spreads[seen] = scores[seen].std(axis=1, ddof=1) if scores.shape[1] > 1 else 0
    best = found.ranking[0]
    sign = 1 if found.higher_is_better else -1
    # Several times as far from the best as the median trial is: beyond that is an edge.
    reach = 4 * abs(np.median(means[seen]) - means[best])
    inside = seen & (sign * (means[best] - means) <= reach)
    whole = found.steps == found.steps.max()

    columns = min(len(found.space), 4)
    rows = -(-len(found.space) // columns)
    size = (3.2 * columns + 0.6, 3 * rows + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for (name, axis), panel in zip(found.space.items(), panels, strict=False):
        places = _places_on(axis, [trial[name] for trial in found.trials], panel)
        for chosen, alpha, label in (
            (inside & whole, 1.0, "whole run"), (inside & ~whole, 0.35, "dropped"),
        ):  # fmt: skip
            if chosen.any():
                panel.errorbar(
                    places[chosen], means[chosen], spreads[chosen], fmt="o", markersize=4,
                    linewidth=1, color="C0", alpha=alpha, label=label,
                )  # fmt: skip
        edge = panel.get_xaxis_transform()  # in which 0 is the bottom and 1 the top
        height, triangle = (0.03, "v") if found.higher_is_better else (0.97, "^")
        for outside, marker, label in (
            (~seen, "x", "failed"), (seen & ~inside, triangle, "far worse"),
        ):  # fmt: skip
            if outside.any():
                heights = np.full(outside.sum(), height)
                panel.plot(
                    places[outside], heights, marker, color="C3", transform=edge, label=label
                )
        panel.plot(
            places[best], means[best], "*", markersize=13, color="C1", markeredgecolor="black",
            label="best", zorder=5,
        )  # fmt: skip
        panel.set_xlabel(name)
    for unused in panels[len(found.space) :]:
        unused.set_axis_off()
    for first in panels[::columns]:
        first.set_ylabel(ylabel)
    handles, labels = panels[0].get_legend_handles_labels()
    place = {"loc": "outside lower center", "ncols": min(5, 2 * columns), "frameon": False}
    figure.legend(handles, labels, **place)
    figure.suptitle(title, fontsize="medium")
    return figure


def _places_on(axis: Axis, values: Sequence[Any], panel: Axes) -> np.ndarray:
    """Where the values of an axis are; choices are side by side, and shifted lest they overlap."""
    if axis.choices is None:
        if axis.log:
            panel.set_xscale("log")
            if axis.high >= 10 * axis.low:  # labels between powers of ten would overlap
                panel.tick_params(axis="x", which="minor", labelbottom=False)
        return np.asarray(values, float)
    names = [name if len(name) <= 20 else f"…{name[-19:]}" for name in axis.names]
    panel.set_xticks(range(len(names)), names)
    panel.set_xlim(-0.5, len(names) - 0.5)
    column = np.asarray([axis.which(value) for value in values], float)
    for which in range(len(names)):
        members = np.flatnonzero(column == which)
        column[members] += np.linspace(-0.25, 0.25, len(members)) if len(members) > 1 else 0
    return column


def plot_ablation(found: Mapping[str, Ablation], title: str = "") -> Figure:
    """A heat map of the effect of each technique on each job, in AMaC and added to its core alone.

    Args:
      found: the results of `ablate` by the name of the job.
      title: the title of the figure.

    Returns:
      A matplotlib figure of two panels. Each cell shows the effect in units of the job's score,
      positive where the technique helps. The colour of a cell is the effect divided by half the
      width of its 95 % interval, from -3 to 3, so that a cell is pale if its interval contains 0.

    Raises:
      ValueError: without a job.
      TypeError: for an ablation that is not in a mapping from names of jobs.

    Example:
      >>> import jax.numpy as jnp
      >>> from amac_jax.tools import ablate
      >>> loss, data = lambda w, x: jnp.mean((w - x) ** 2), jnp.ones((4, 2))
      >>> one = ablate(loss, jnp.zeros(2), data, seeds=2, techniques=("sync_period", "noise"))
      >>> len(plot_ablation({"square": one}).axes)
      3
    """
    from matplotlib.figure import Figure

    if not isinstance(found, Mapping):
        raise TypeError(
            f'found must be ablations by name, as {{"my job": found}}, got {type(found)}'
        )
    if not found:
        raise ValueError("found must hold at least one ablation, got none")
    techniques = list(dict.fromkeys(e.technique for one in found.values() for e in one.effects))
    size = (2 * (0.72 * len(found) + 1.2) + 1.6, 0.36 * len(techniques) + 2.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    image: Any = None
    cores = {e.around for one in found.values() for e in one.effects} - {"amac"}
    core = cores.pop() if len(cores) == 1 else "core"
    added = f"added to {'the core' if core == 'core' else core.capitalize()} alone"
    for axes, heading in zip(panels, ("in AMaC, all else as it is", added), strict=True):
        colours = np.full((len(techniques), len(found)), np.nan)
        for column, one in enumerate(found.values()):
            for effect in one.effects:
                if (effect.around == "amac") == (axes is panels[0]):
                    row = techniques.index(effect.technique)
                    colours[row, column] = shade = _in_half_widths(effect)
                    axes.text(
                        column, row, f"{effect.mean:+.2g}", ha="center", va="center", size=7,
                        color="white" if abs(shade) > 2 else "black",
                    )  # fmt: skip
        image = axes.imshow(colours, cmap="PiYG", vmin=-3, vmax=3, aspect="auto")
        axes.set_title(heading, fontsize="medium")
        axes.set_xticks(range(len(found)), list(found), rotation=45, ha="right")
        axes.set_yticks(range(len(techniques)), techniques)
    label = "effect / half of its 95 % interval"
    figure.colorbar(image, ax=panels, label=label, extend="both", pad=0.01)
    figure.suptitle(title)
    return figure


def _in_half_widths(effect: Effect) -> float:
    if effect.half_width == 0:  # the same effect in every run
        return 3.0 * np.sign(effect.mean)
    return effect.mean / effect.half_width
