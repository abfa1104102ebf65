"""The figure training.png of a run, from the rows of its metrics.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEP_PANELS = {
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
    "first_moment_norm": "First moment, norm",
    "second_moment_norm": "Second moment, norm",
    "momentum_norm": "Momentum, norm",
}


def training_curves(
    steps: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]], title: str = ""
) -> Figure:
    """One panel for each quantity that is worth watching in a run.

    Args:
      steps: arrays (number of steps,) by the names of `amac_jax.metrics`. Each of the names in
        `STEP_PANELS` that is present has a panel, and averaged_count shows where averaging begins.
      epochs: for each epoch a mapping with loss, train_accuracy, test_accuracy and
        averaged_test_accuracy (None where there is not an average), accuracies in percent.
      title: the title of the whole figure.

    Returns:
      A matplotlib figure; save it with `figure.savefig(path)`.
    """
    from matplotlib.figure import Figure  # only here: importing it delays the training

    series = {name: np.asarray(steps[name]) for name in STEP_PANELS if name in steps}
    averaged = [epoch["averaged_test_accuracy"] for epoch in epochs]
    has_average = any(value is not None for value in averaged)
    panels = len(series) + 2 + has_average
    columns = min(panels, 4)
    rows = -(-panels // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    axes = iter(figure.subplots(rows, columns, squeeze=False).flat)
    numbers = np.arange(1, len(epochs) + 1)

    if "learning_rate" in series:
        _draw_steps(next(axes), STEP_PANELS["learning_rate"], series.pop("learning_rate"))
    loss = next(axes)
    loss.plot(numbers, [epoch["loss"] for epoch in epochs], marker=".")
    loss.set(title="Loss", xlabel="epoch")
    _plain_logarithm(loss)
    accuracy = next(axes)
    for name, label in (("train_accuracy", "train"), ("test_accuracy", "test")):
        accuracy.plot(numbers, [epoch[name] for epoch in epochs], marker=".", label=label)
    accuracy.set(title="Accuracy, %", xlabel="epoch")
    accuracy.legend()
    for name, values in series.items():
        _draw_steps(next(axes), STEP_PANELS[name], values, logarithmic=True)
    if has_average:
        effect = next(axes)
        errors = [100 - epoch["test_accuracy"] for epoch in epochs]
        averaged_errors = [np.nan if value is None else 100 - value for value in averaged]
        effect.plot(numbers, errors, marker=".", label="last weights")
        effect.plot(numbers, averaged_errors, marker=".", label="averaged weights")
        effect.set(title="Effect of averaging: test error, %", xlabel="epoch")
        _plain_logarithm(effect)
        counts = np.asarray(steps.get("averaged_count", []))
        if counts.any():
            begins = len(epochs) * (np.argmax(counts > 0) + 1) / len(counts)
            effect.axvline(begins, color="grey", linestyle=":", label="averaging begins")
        effect.legend()
    for unused in axes:
        unused.set_axis_off()
    figure.suptitle(title)
    return figure


def _plain_logarithm(axes: Axes) -> None:
    """A logarithmic axis with labels such as 0.5 instead of 5 x 10^-1, for one or two decades."""
    axes.set_yscale("log")
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else "")


def _draw_steps(axes: Axes, title: str, values: np.ndarray, *, logarithmic: bool = False) -> None:
    numbers = np.arange(1, len(values) + 1)
    # Values that jump from step to step are thin lines with their running mean on top.
    axes.plot(numbers, values, linewidth=0.5, alpha=0.5 if logarithmic else 1.0)
    if logarithmic:
        window = max(len(values) // 100, 1)
        usable = len(values) // window * window
        blocks = (array[:usable].reshape(-1, window).mean(1) for array in (numbers, values))
        axes.plot(*blocks, color="C0")
        axes.set_yscale("log")
    axes.set(title=title, xlabel="step")
