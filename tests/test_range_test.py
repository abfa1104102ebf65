"""`lr_range_test` on a parabola, where every loss is known, and where there is nothing to find."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from amac_jax.tools import lr_range_test
from amac_jax.tools.plotting import plot_range_test

CURVATURE = 4.0
BATCHES = jnp.array([1.0, 1.0, 1.0])


def parabola(w, scale):
    return scale * CURVATURE * w**2 / 2


def test_losses_of_gradient_descent_are_those_of_the_equation():
    """w_t = (1 - eta a)^t, and its loss at steps 15 .. 19 of 20 is what is averaged."""
    found = lr_range_test(
        parabola, jnp.array(1.0), BATCHES, optimizer=optax.sgd,
        low=1e-3, high=1.0, number=13, steps=20,
    )  # fmt: skip
    np.testing.assert_allclose(found.learning_rates, 10.0 ** np.linspace(-3, 0, 13))
    factor = 1 - found.learning_rates * CURVATURE
    expected = np.mean([CURVATURE / 2 * factor ** (2 * t) for t in range(15, 20)], axis=0)
    np.testing.assert_allclose(found.losses, expected, rtol=1e-4, atol=1e-6)
    assert found.start == pytest.approx(CURVATURE / 2)
    good = found.learning_rates[found.start - expected >= 0.9 * np.max(found.start - expected)]
    assert found.suggestion == pytest.approx(np.sqrt(good[0] * good[-1]), rel=1e-5)
    assert 0.02 < found.suggestion < 2 / CURVATURE  # where gradient descent converges


def test_every_rate_sees_the_same_batches_in_a_random_order():
    batches = jnp.arange(8.0)

    def loss(w, batch):  # its value says which batch it was
        return batch + 0 * w

    found = lr_range_test(loss, jnp.array(0.0), batches, number=5, steps=8, key=3)
    assert len(set(found.losses.tolist())) == 1
    other = lr_range_test(loss, jnp.array(0.0), batches, number=2, steps=8, key=4)
    assert found.losses[0] != other.losses[0]
    assert found.start == found.losses[0]
    whole = lr_range_test(loss, jnp.array(0.0), batches[:2], number=2, steps=8)
    assert whole.losses[0] == 0.5  # the last pass has each batch once


def test_nothing_is_suggested_where_no_rate_lowers_the_loss():
    found = lr_range_test(lambda w, x: x + 0 * w, jnp.array(0.0), BATCHES, number=3, steps=4)
    assert np.isnan(found.suggestion)
    upwards = lr_range_test(lambda w, x: x * jnp.sqrt(w - w), jnp.array(1.0), BATCHES, number=3)
    assert np.isnan(upwards.suggestion)


def test_the_picture_has_losses_that_are_finite_as_dots_and_the_others_as_crosses():
    found = lr_range_test(
        parabola, jnp.array(1.0), BATCHES, optimizer=optax.sgd, low=0.1, high=1e4, number=11
    )
    marks = {line.get_marker(): line for line in plot_range_test(found).axes[0].lines}
    dots, crosses = np.asarray(marks["."].get_ydata()), np.asarray(marks["x"].get_xdata())
    assert np.isfinite(dots).sum() + len(crosses) == 11
    assert set(found.learning_rates[~np.isfinite(found.losses)]) <= set(crosses)
    never = lr_range_test(lambda w, x: w * jnp.nan, jnp.array(1.0), BATCHES, number=3)
    (line,) = (x for x in plot_range_test(never).axes[0].lines if x.get_marker() == "x")
    np.testing.assert_array_equal(line.get_xdata(), never.learning_rates)
    assert np.isfinite(line.get_ydata()).all()  # else they are not seen


def test_rates_that_diverge_are_not_finite_and_never_suggested():
    found = lr_range_test(
        parabola, jnp.array(1.0), BATCHES, optimizer=optax.sgd, low=0.1, high=1e4, number=11
    )
    assert not np.isfinite(found.losses[-1])
    assert found.suggestion < 2 / CURVATURE


def test_one_program_for_all_rates():
    def traces_for(number):
        traces = 0

        def counted(w, scale):  # a new function, of which JAX remembers no trace
            nonlocal traces
            traces += 1
            return parabola(w, scale)

        lr_range_test(counted, jnp.array(1.0), BATCHES, number=number)
        return traces

    assert traces_for(30) == traces_for(3) > 0


def test_weights_and_batches_may_be_functions_of_keys_and_few_runs_go_at_a_time():
    def run(**changes):
        return lr_range_test(
            parabola, lambda key: jax.random.normal(key), lambda key: jax.random.uniform(key),
            optimizer=optax.sgd, low=1e-3, high=0.1, number=5, steps=16, **changes,
        )  # fmt: skip

    found = run()
    assert np.all(np.diff(found.losses) < 0)  # the larger the rate the better, below 1 / curvature
    assert found.start > found.losses[0]
    np.testing.assert_allclose(run(width=2).losses, found.losses, rtol=1e-6)
    assert run(key=1).start != found.start


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": 0.1, "high": 0.1}, "low and high must be 0 < low < high < inf, got 0.1 and 0.1"),
        ({"low": 0.0}, "low and high must be"),
        ({"high": float("nan")}, "low and high must be"),
        ({"number": 1}, r"number must be a whole number in \[2, inf\), got 1"),
        ({"steps": 3}, r"steps must be a whole number in \[4, inf\), got 3"),
        ({"width": 0}, r"width must be a whole number in \[1, inf\), got 0"),
        ({"has_aux": True}, r"loss_fn must return \(loss, aux\) with has_aux=True"),
        ({"batches": {"x": BATCHES, "y": 1.0}}, "batches must be arrays with one first axis"),
        ({"batches": jnp.zeros((0, 3))}, "batches must be arrays with one first axis"),
        ({"loss_fn": lambda w, x: jnp.ones(2)}, "loss_fn must return a scalar"),
        ({"params": jnp.array(1)}, "params must be floating-point, got int32 at their leaf"),
    ],
)
def test_bad_input_is_refused_in_a_line(changes, message):
    arguments = {"loss_fn": parabola, "params": jnp.array(1.0), "batches": BATCHES, **changes}
    with pytest.raises(ValueError, match=message) as error:
        lr_range_test(**arguments)
    assert "\n" not in str(error.value)
