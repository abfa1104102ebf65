"""The schedules against values worked out by hand, and the checks on arguments."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amac_jax import linear_anneal, noise_anneal, warmup_cosine
from amac_jax.schedules import check, check_lengths, next_count, product, value_at, whole_value_at
from tests.helpers import assert_close

modest = settings(deadline=None, max_examples=40, derandomize=True)
rates = st.floats(2.0**-20, 2.0**10, width=32)
MANY = 2**31 - 2  # near the largest int32, where Optax's counters stop


def cosine(t: int, peak: float, total: int, warmup: int, end: float) -> float:
    """The definition, at the 1-based step t."""
    if t <= warmup:
        return peak * t / warmup
    if t >= total:
        return end
    return end + (peak - end) * (1 + math.cos(math.pi * (t - warmup) / (total - warmup))) / 2


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, 1.0),  # t = 1, a quarter of the way up
        (1, 2.0),
        (3, 4.0),  # t = w
        (4, 3.7990381),  # t = 5: 1 + 3 (1 + sqrt(3) / 2) / 2
        (5, 3.25),  # t = 6: 1 + 3 (1 + 1/2) / 2
        (6, 2.5),  # t = 7: half-way
        (7, 1.75),
        (9, 1.0),  # t = T
        (10, 1.0),
        (10**6, 1.0),
    ],
)
def test_warmup_cosine_by_hand(count, expected):
    schedule = warmup_cosine(4.0, total_steps=10, warmup_steps=4, end=1.0)
    np.testing.assert_allclose(float(schedule(count)), expected, rtol=1e-6)


@jax.jit
def table_of_both(rate: Any, end: Any, total_steps: Any, warmup_steps: Any) -> Any:
    """Compiled once, for arguments of every value."""
    counts = jnp.arange(700)
    cosine = warmup_cosine(rate, total_steps, warmup_steps, end)
    return cosine(counts), linear_anneal(rate, total_steps, end)(counts)


@modest
@given(rates, st.floats(0.0, 1.0, width=32), st.integers(0, 300), st.integers(1, 300))
def test_warmup_cosine_goes_up_to_the_peak_and_down_to_the_end(peak, fraction, warmup, fall):
    end, total = float(np.float32(peak * fraction)), warmup + fall
    values = np.asarray(table_of_both(peak, end, total, warmup)[0])
    expected = [cosine(t, peak, total, warmup, end) for t in range(1, 701)]
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6 * peak)
    if warmup > 0:
        assert values[warmup - 1] == peak
    assert np.all(values[total - 1 :] == end)
    assert np.all(np.diff(values[:warmup]) >= 0)
    assert np.all(np.diff(values[warmup:]) <= 1e-6 * peak)
    assert np.all((values >= 0) & (values <= peak * (1 + 1e-6)))


@modest
@given(rates, st.floats(0.0, 1.0, width=32), st.integers(1, 600))
def test_linear_anneal_falls_to_its_end_and_never_below(initial, fraction, total):
    end = float(np.float32(initial * fraction))
    values = np.asarray(table_of_both(initial, end, total, 0)[1])
    expected = initial + (end - initial) * np.minimum(np.arange(1, 701) / total, 1)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6 * initial)
    assert np.all(values[total - 1 :] == end)
    assert np.all(values >= end * (1 - 1e-6))


@pytest.mark.parametrize("steps", [41, 61, 97, 100])
def test_ends_are_exact_though_xla_divides_by_multiplying(steps):
    assert np.float32(41) * (np.float32(1) / np.float32(41)) != 1
    counts = np.arange(steps)
    for schedule in (jax.jit, lambda function: function):
        up = schedule(warmup_cosine(0.3, 2 * steps, steps))
        assert float(up(steps - 1)) == float(up(counts)[-1]) == np.float32(0.3)
        down = schedule(linear_anneal(3.0, steps, 0.1))
        assert float(down(steps - 1)) == float(down(counts)[-1]) == np.float32(0.1)


def test_without_warmup_it_is_a_cosine_from_the_first_step():
    schedule = warmup_cosine(2.0, total_steps=4, warmup_steps=0)
    np.testing.assert_allclose(
        schedule(np.arange(5)), [1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0.0, 0.0], atol=1e-6
    )


def test_linear_anneal_by_hand():
    schedule = linear_anneal(3.0, total_steps=4, end=1.0)
    assert_close(schedule(np.arange(6)), np.array([2.5, 2.0, 1.5, 1.0, 1.0, 1.0]))


@pytest.mark.parametrize(("eta", "gamma"), [(0.01, 0.55), (0.3, 0.55), (1.0, 0.0), (0.0, 0.55)])
def test_noise_anneal_is_the_papers_formula(eta, gamma):
    counts = np.array([0, 1, 9, 99, 10**5, MANY])
    expected = np.sqrt(eta / (1.0 + counts) ** gamma)
    np.testing.assert_allclose(noise_anneal(eta, gamma)(counts), expected, rtol=1e-5)


SCHEDULES = {
    "warmup_cosine": warmup_cosine(0.3, 10, 4, 0.1),
    "linear_anneal": linear_anneal(0.3, 10, 0.1),
    "noise_anneal": noise_anneal(),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
def test_arrays_of_counts_give_arrays_of_values(schedule):
    counts = np.arange(12).reshape(3, 4)
    values = schedule(counts)
    assert values.shape == (3, 4)
    assert values.dtype == jnp.float32
    one_by_one = [float(schedule(int(count))) for count in counts.ravel()]
    np.testing.assert_allclose(values.ravel(), one_by_one, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.vmap(schedule))(counts), values, rtol=1e-6)
    assert schedule(3).shape == schedule(jnp.int32(3)).shape == ()


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
def test_values_are_float64_where_numbers_are(schedule):
    with jax.enable_x64(True):
        values = schedule(jnp.arange(12))
        assert values.dtype == jnp.float64
    np.testing.assert_allclose(values, schedule(np.arange(12)), rtol=1e-6)


def test_float64_values_are_exact_to_float64():
    with jax.enable_x64(True):
        t = 123_457
        value = float(warmup_cosine(0.3, 1_000_003, 1_001)(t - 1))
        assert value == pytest.approx(cosine(t, 0.3, 1_000_003, 1_001, 0.0), rel=1e-14)
        value = float(linear_anneal(0.3, 1_000_003)(t - 1))
        assert value == pytest.approx(0.3 * (1 - t / 1_000_003), rel=1e-14)


@pytest.mark.parametrize("count", [MANY, MANY + 1, jnp.int32(MANY + 1)])
def test_counts_near_the_largest_int32(count):
    assert float(warmup_cosine(0.3, 10, 4, 0.1)(count)) == np.float32(0.1)
    assert float(linear_anneal(0.3, 10, 0.1)(count)) == np.float32(0.1)
    assert float(warmup_cosine(1.0, 2.0**31, 1)(2**30 - 1)) == pytest.approx(0.5, abs=1e-6)


def test_lengths_may_be_traced_and_do_not_compile_anew():
    traces = 0

    @jax.jit
    def values(total_steps: Any, warmup_steps: Any) -> tuple[jax.Array, jax.Array]:
        nonlocal traces
        traces += 1
        counts = jnp.arange(20)
        rate = warmup_cosine(4.0, total_steps, warmup_steps, 1.0)(counts)
        return rate, linear_anneal(1.0, total_steps)(counts)

    lengths = [(10, 4), (12, 1), (20, 0), (7, 6)]
    for total, warmup in lengths:
        rate, annealed = values(total, warmup)
        np.testing.assert_allclose(
            rate, [cosine(t, 4.0, total, warmup, 1.0) for t in range(1, 21)], rtol=1e-5
        )
        np.testing.assert_allclose(annealed, np.maximum(1 - np.arange(1, 21) / total, 0), atol=1e-6)
    assert traces == 1
    swept, _ = jax.vmap(values)(*map(jnp.array, zip(*lengths, strict=True)))
    for row, (total, warmup) in zip(swept, lengths, strict=True):
        np.testing.assert_allclose(row, values(total, warmup)[0], rtol=1e-6)


def test_hyperparameters_of_schedules_may_be_schedules_and_arrays():
    peak = warmup_cosine(lambda count: 2.0 + count, np.array(4.0), jnp.array(2.0))
    assert_close(peak(np.arange(5)), np.array([1.0, 3.0, 2.0, 0.0, 0.0]))
    total = linear_anneal(jnp.array(1.0), lambda count: 4.0)
    assert_close(total(np.arange(5)), np.array([0.75, 0.5, 0.25, 0.0, 0.0]))


def test_gradients_at_the_ends_are_finite():
    for total, warmup, t in ((4.0, 0.0, 1.0), (4.0, 4.0, 4.0), (4.0, 1.0, 9.0)):
        slopes = jax.grad(lambda w, T, t=t: warmup_cosine(1.0, T, w)(t - 1), (0, 1))(
            jnp.float32(warmup), jnp.float32(total)
        )
        assert np.all(np.isfinite(slopes))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: warmup_cosine(-1.0, 10, 2), r"peak must be in \[0, inf\).* got -1.0"),
        (lambda: warmup_cosine(math.nan, 10, 2), r"peak must be in \[0, inf\).* got nan"),
        (lambda: warmup_cosine(math.inf, 10, 2), r"peak must be in \[0, inf\).* got inf"),
        (lambda: warmup_cosine("1", 10, 2), r"peak must be in \[0, inf\).* got '1'"),  # pyright: ignore
        (lambda: warmup_cosine(1.0, 0, 0), r"total_steps must be in \(0, inf\).* got 0"),
        (lambda: warmup_cosine(1.0, -5, 0), r"total_steps must be in \(0, inf\).* got -5"),
        (lambda: warmup_cosine(1.0, math.inf, 0), r"total_steps must be in \(0, inf\).* got inf"),
        (lambda: warmup_cosine(1.0, 10, -1), r"warmup_steps must be in \[0, inf\).* got -1"),
        (lambda: warmup_cosine(1.0, 10, 10), r"total_steps .*than warmup_steps, 10, got 10"),
        (lambda: warmup_cosine(1.0, 9, 10), r"total_steps .*than warmup_steps, 10, got 9"),
        (lambda: warmup_cosine(1.0, 10, 2, -0.1), r"end must be in \[0, inf\).* got -0.1"),
        (lambda: linear_anneal(math.nan, 10), r"initial must be in \(-inf, inf\).* got nan"),
        (lambda: linear_anneal(1.0, 0), r"total_steps must be in \(0, inf\).* got 0"),
        (lambda: linear_anneal(1.0, math.nan), r"total_steps must be in \(0, inf\).* got nan"),
        (lambda: linear_anneal(1.0, 10, math.inf), r"end must be in \(-inf, inf\).* got inf"),
        (lambda: noise_anneal(-0.01), r"eta must be in \[0, inf\).* got -0.01"),
        (lambda: noise_anneal(0.01, math.nan), r"gamma must be in \[0, inf\).* got nan"),
        (lambda: check_lengths(5, 7.5), r"total_steps .* greater than warmup_steps, 7.5, got 5"),
        (lambda: check("k", 2.5, "[1, inf)", whole=True),
         r"k must be a whole number in \[1, inf\).* got 2.5"),
        (lambda: check("k", None, "[1, inf)", whole=True),
         r"k must be a whole number in \[1, inf\), a schedule or an array, got None"),
        (lambda: check("b1", 1, "[0, 1)"), r"b1 must be in \[0, 1\).* got 1"),
        (lambda: check("c", 0.0, "(0, inf]"), r"c must be in \(0, inf\].* got 0.0"),
    ],
)  # fmt: skip
def test_errors_name_argument_range_and_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("value", "interval", "whole"),
    [
        (0, "[0, 1)", False), (1, "[0, 1]", False), (math.inf, "(0, inf]", False),
        (True, "[0, 1]", False), (np.float32(0.5), "[0, 1)", False), (5.0, "[1, inf)", True),
        (math.inf, "[0, inf]", True), (jnp.array(-1.0), "[0, 1)", False),
        (np.array(math.nan), "[0, 1)", False), (lambda count: -1.0, "[0, 1)", True),
    ],
)  # fmt: skip
def test_ends_of_ranges_arrays_and_schedules_pass(value, interval, whole):
    check("name", value, interval, whole=whole)


def test_value_at_is_at_least_32_bits():
    for low in (jnp.float16, jnp.bfloat16):
        assert value_at(jnp.asarray(0.5, low), 0).dtype == jnp.float32
        assert value_at(lambda count, low=low: jnp.asarray(0.5, low), 0).dtype == jnp.float32
    assert float(value_at(product(0.5, lambda count: count + 1.0), 3)) == 2.0
    whole = whole_value_at(5.0, 0)
    assert (whole.dtype, int(whole)) == (jnp.int32, 5)


def test_counts_stop_at_the_largest_int32():
    assert int(next_count(jnp.int32(MANY))) == int(next_count(jnp.int32(MANY + 1))) == 2**31 - 1
