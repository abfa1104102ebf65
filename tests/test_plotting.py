"""Pictures: the panels, labels and lines that are drawn, read back from matplotlib."""

import functools
import math

import jax
import numpy as np
import optax
import pytest

from amac_jax.schedules import cosine, step_decay, warmup, warmup_cosine
from amac_jax.tools import Ablation, Effect
from amac_jax.tools.plotting import plot_ablation, plot_schedule
from examples.mnist.curves import training_curves


def lines(figure):
    return [line for axes in figure.axes for line in axes.lines]


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_one_schedule_is_one_line_under_its_name(tmp_path):
    schedule = warmup_cosine(0.3, 10, 4)
    figure = plot_schedule(schedule, steps=12)
    (line,) = lines(figure)
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 13))
    np.testing.assert_allclose(line.get_ydata(), schedule(np.arange(12)), rtol=1e-6)
    (axes,) = figure.axes
    assert axes.get_title() == "warmup_cosine"
    assert axes.get_legend() is None
    assert (axes.get_xlabel(), axes.get_ylim()[0]) == ("step", 0)
    figure.savefig(tmp_path / "schedule.png")


def test_a_few_share_a_panel_with_a_legend():
    rate = functools.partial(warmup_cosine(0.3, 10, 4))
    figure = plot_schedule(
        cosine(0.3, 10), step_decay(0.3, 0.5, 3), cosine(0.2, 10), 0.25,
        optax.constant_schedule(0.1), rate,
        steps=10,
    )  # fmt: skip
    assert len(figure.axes) == 1
    expected = ["cosine 1", "step_decay", "cosine 2", "0.25", "constant_schedule", "partial"]
    assert legend(figure) == expected
    np.testing.assert_array_equal(lines(figure)[3].get_ydata(), np.full(10, 0.25))
    figure = plot_schedule(cosine(0.3, 10), 0.1, steps=10, labels=["fast", "slow"])
    assert legend(figure) == ["fast", "slow"]


def test_many_have_a_panel_each(tmp_path):
    schedules = [warmup(number / 10, 3) for number in range(1, 8)]
    figure = plot_schedule(*schedules, steps=20)
    drawn = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_title() for axes in drawn] == [f"warmup {number}" for number in range(1, 8)]
    for axes, schedule in zip(drawn, schedules, strict=True):
        (line,) = axes.lines
        np.testing.assert_allclose(line.get_ydata(), schedule(np.arange(20)), rtol=1e-6)
    # Four above three: the last of the first row has nothing below it.
    assert [axes.get_xlabel() for axes in drawn] == ["", "", "", "step", "step", "step", "step"]
    figure.savefig(tmp_path / "schedules.png")


def test_schedules_that_take_no_arrays_are_called_step_by_step():
    calls = []

    def branching(count):
        calls.append(count)
        return 0.1 if count < 3 else 0.01

    expected = {
        branching: [0.1, 0.1, 0.1, 0.01, 0.01],
        (lambda count: math.sqrt(count)): np.sqrt(np.arange(5)),
        (lambda count: 0.5): [0.5] * 5,
        (lambda count: [3.0, 2.0, 1.0, 0.0, 0.0][count]): [3.0, 2.0, 1.0, 0.0, 0.0],
        jax.jit(lambda count: 0.5 * count): 0.5 * np.arange(5),
        optax.constant_schedule(0.3): [0.3] * 5,
    }
    figure = plot_schedule(*expected, steps=5)
    for line, values in zip(lines(figure), expected.values(), strict=True):
        np.testing.assert_allclose(line.get_ydata(), values, rtol=1e-6)
    assert calls[1:] == list(range(5))


def test_a_schedule_that_takes_arrays_is_called_once():
    calls = []

    def schedule(count):
        calls.append(count)
        return 0.1 * count

    plot_schedule(schedule, steps=50)
    assert len(calls) == 1


def test_long_runs_are_drawn_at_few_steps_with_both_ends():
    (line,) = lines(plot_schedule(cosine(1.0, 10**7), steps=10**7))
    assert len(line.get_xdata()) == 5000
    assert (line.get_xdata()[0], line.get_xdata()[-1]) == (1, 10**7)
    assert line.get_ydata()[-1] == 0.0


def test_an_axis_shows_values_below_zero_and_leaves_inf_out():
    axes = plot_schedule(lambda count: count - 3.0, steps=5).axes[0]
    assert axes.get_ylim()[0] <= -3
    plot_schedule(math.inf, steps=5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_schedule(steps=5), "plot_schedule needs a schedule"),
        (lambda: plot_schedule(0.1, steps=0), r"steps must be a whole .*\[1, inf\), got 0"),
        (lambda: plot_schedule(0.1, steps=2.5), r"steps must be a whole .*\[1, inf\), got 2.5"),
        (lambda: plot_schedule(0.1, steps=math.nan), r"steps must be a whole .*, got nan"),
        (lambda: plot_schedule(0.1, steps=math.inf), r"steps must be a whole .*, got inf"),
        (lambda: plot_schedule(0.1, 0.2, steps=5, labels=["one"]),
         r"labels must be as many as schedules, 2, got \['one'\]"),
    ],
)  # fmt: skip
def test_errors_name_argument_range_and_value(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_training_curves_have_a_panel_for_what_is_there():
    epochs = [
        {"loss": 1.0 / n, "train_accuracy": 90.0 + n, "test_accuracy": 89.0 + n,
         "averaged_test_accuracy": None if n == 1 else 90.0 + n}
        for n in (1, 2, 3)
    ]  # fmt: skip
    steps = {
        "learning_rate": np.linspace(1, 0, 30),
        "grad_norm": np.ones(30),
        "averaged_count": np.maximum(np.arange(30) - 9, 0),
    }
    figure = training_curves(steps, epochs, "a run")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:4] == ["Learning rate", "Loss", "Accuracy, %", "Gradient norm"]
    effect = figure.axes[4]
    np.testing.assert_allclose(effect.lines[0].get_ydata(), [10, 9, 8])
    np.testing.assert_allclose(effect.lines[1].get_ydata(), [np.nan, 8, 7])
    # The eleventh of thirty steps is the first averaged.
    assert effect.lines[2].get_xdata()[0] == pytest.approx(3 * 11 / 30)


@pytest.mark.parametrize(
    ("around", "whose"), [("muon", "Muon"), ("adam", "Adam"), ("core", "the core")]
)
def test_an_ablation_is_drawn_under_the_name_of_its_job(around, whose):
    effect = Effect("noise", around, 0.5, 0.1, 0.01)
    found = Ablation({}, [effect, effect._replace(around="amac", mean=-0.25)], {})
    in_amac, added, _ = plot_ablation({"my job": found}).axes
    for axes, mean in ((in_amac, "-0.25"), (added, "+0.5")):
        assert [text.get_text() for text in axes.get_xticklabels()] == ["my job"]
        assert [text.get_text() for text in axes.texts] == [mean]
    assert added.get_title() == f"added to {whose} alone"
    with pytest.raises(TypeError, match=r'found must be ablations by name, as {"my job": found}'):
        plot_ablation(found)  # pyright: ignore[reportArgumentType]
