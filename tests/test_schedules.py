"""The schedules against values worked out by hand, and the checks on arguments."""

import functools
import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amac_jax._core.hyperparameters import next_count, product, value_at, whole_value_at
from amac_jax._core.ranges import COUNT, DECAY, LIMIT, START, STRENGTH, UNIT, check
from amac_jax.schedules import (
    constant,
    cosine,
    cosine_restarts,
    exponential_decay,
    inverse_power_decay,
    linear_anneal,
    noise_anneal,
    one_cycle,
    piecewise_constant,
    polynomial_decay,
    step_decay,
    warmup,
    warmup_cosine,
    warmup_stable_decay,
)
from amac_jax.schedules._cosine import check_lengths
from tests.helpers import assert_close

modest = settings(deadline=None, max_examples=40, derandomize=True)
rates = st.floats(2.0**-20, 2.0**10, width=32)
MANY = 2**31 - 2  # near the largest int32, where Optax's counters stop
COUNTS = np.arange(100)  # of one shape: outside jit, each operation is compiled for each shape


def half_cosine(t: int, peak: float, total: int, warmup: int, end: float) -> float:
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
    rates = warmup_cosine(rate, total_steps, warmup_steps, end)(counts)
    return rates, linear_anneal(rate, total_steps, end)(counts)


@modest
@given(rates, st.floats(0.0, 1.0, width=32), st.integers(0, 300), st.integers(1, 300))
def test_warmup_cosine_goes_up_to_the_peak_and_down_to_the_end(peak, fraction, warmup, fall):
    end, total = float(np.float32(peak * fraction)), warmup + fall
    values = np.asarray(table_of_both(peak, end, total, warmup)[0])
    expected = [half_cosine(t, peak, total, warmup, end) for t in range(1, 701)]
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
    up, down = warmup_cosine(0.3, 2 * steps, steps), linear_anneal(3.0, steps, 0.1)

    def values(count, counts):
        return (up(count), up(counts)), (down(count), down(counts))

    for function in (jax.jit(values), values):
        for (one, many), end in zip(function(steps - 1, COUNTS), (0.3, 0.1), strict=True):
            assert float(one) == float(np.asarray(many)[steps - 1]) == np.float32(end)


def test_without_warmup_it_is_a_cosine_from_the_first_step():
    schedule = warmup_cosine(2.0, total_steps=4, warmup_steps=0)
    values = np.asarray(schedule(COUNTS))[:5]
    expected = [1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0.0, 0.0]
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_linear_anneal_by_hand():
    schedule = linear_anneal(3.0, total_steps=4, end=1.0)
    values = np.asarray(schedule(COUNTS))[:6]
    assert_close(values, np.array([2.5, 2.0, 1.5, 1.0, 1.0, 1.0]))


@pytest.mark.parametrize(("eta", "gamma"), [(0.01, 0.55), (0.3, 0.55), (1.0, 0.0), (0.0, 0.55)])
def test_noise_anneal_is_the_papers_formula(eta, gamma):
    counts = np.array([0, 1, 9, 99, 10**5, MANY])
    expected = np.sqrt(eta / (1.0 + counts) ** gamma)
    values = jax.jit(noise_anneal(eta, gamma))(counts)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def piecewise(first, second, third, one, other):
    return piecewise_constant([first, second, third], [one, other])


def warmed_decay(initial, rate, warmup_steps):
    return warmup(exponential_decay(initial, rate=rate), warmup_steps)


def stable_then(shape):
    return functools.partial(warmup_stable_decay, shape=shape)


def cosine_cycle(**numbers):
    return one_cycle(**numbers, shape="cosine")


# Each factory with two values of every number.
FACTORIES: dict[str, tuple[Any, dict[str, tuple[float, float]]]] = {
    "constant": (constant, {"value": (0.3, 0.2)}),
    "warmup_cosine": (
        warmup_cosine,
        {"peak": (0.3, 0.2), "total_steps": (10, 7), "warmup_steps": (4, 0), "end": (0.1, 0.0)},
    ),
    "linear_anneal": (
        linear_anneal,
        {"initial": (0.3, 0.2), "total_steps": (10, 7), "end": (0.1, 0.0)},
    ),
    "noise_anneal": (noise_anneal, {"eta": (0.01, 0.3), "gamma": (0.55, 0.0)}),
    "cosine": (cosine, {"peak": (0.3, 0.2), "total_steps": (10, 7), "end": (0.1, 0.0)}),
    "cosine_restarts": (
        cosine_restarts,
        {"peak": (0.3, 0.2), "first_steps": (3, 2), "multiplier": (1.5, 1.0), "end": (0.1, 0.0)},
    ),
    "step_decay": (step_decay, {"initial": (0.3, 0.2), "factor": (0.5, 0.1), "period": (3, 2)}),
    "exponential_decay": (exponential_decay, {"initial": (0.3, 0.2), "factor": (0.9, 0.5)}),
    "exponential_decay rate": (exponential_decay, {"initial": (0.3, 0.2), "rate": (0.1, 0.0)}),
    "inverse_power_decay": (
        inverse_power_decay,
        {"initial": (0.3, 0.2), "power": (0.5, 1.0), "scale": (1.0, 0.1)},
    ),
    "polynomial_decay": (
        polynomial_decay,
        {"initial": (0.3, 0.2), "total_steps": (10, 7), "power": (0.5, 2.0), "end": (0.1, 0.0)},
    ),
    "piecewise_constant": (
        piecewise,
        {"first": (0.3, 1.0), "second": (0.1, 0.2), "third": (0.2, 0.0), "one": (2, 1),
         "other": (5, 8)},
    ),
    "warmup": (
        warmed_decay,
        {"initial": (0.3, 0.2), "rate": (0.1, 0.5), "warmup_steps": (4, 0)},
    ),
    "one_cycle": (
        one_cycle,
        {"peak": (0.3, 0.2), "total_steps": (10, 7), "rise": (0.4, 1.0), "start": (0.1, 0.0),
         "end": (0.01, 0.0)},
    ),
    "one_cycle cosine": (
        cosine_cycle,
        {"peak": (0.3, 0.2), "total_steps": (10, 7), "rise": (0.4, 0.0), "start": (0.1, 0.0),
         "end": (0.01, 0.0)},
    ),
    **{
        f"warmup_stable_decay {shape}": (
            stable_then(shape),
            {"peak": (0.3, 0.2), "total_steps": (10, 9), "warmup_steps": (4, 0),
             "decay_steps": (3, 9), "end": (0.1, 0.0)},
        )
        for shape in ("linear", "sqrt", "cosine")
    },
}  # fmt: skip
SCHEDULES = {
    name: factory(**{argument: first for argument, (first, _) in numbers.items()})
    for name, (factory, numbers) in FACTORIES.items()
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
def test_arrays_of_counts_give_arrays_of_values(schedule):
    counts = np.arange(12).reshape(3, 4)
    values, mapped = jax.jit(
        lambda counts: (schedule(counts), jax.vmap(jax.vmap(schedule))(counts))
    )(counts)
    assert values.shape == (3, 4)
    assert values.dtype == schedule(COUNTS).dtype == jnp.float32
    one_by_one = [float(schedule(int(count))) for count in counts.ravel()]
    np.testing.assert_allclose(np.ravel(values), one_by_one, rtol=1e-6)
    np.testing.assert_allclose(mapped, values, rtol=1e-6)
    assert schedule(3).shape == schedule(jnp.int32(3)).shape == ()


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
def test_values_are_float64_where_numbers_are(schedule):
    with jax.enable_x64(True):
        values = np.asarray(jax.jit(schedule)(COUNTS))
    assert values.dtype == np.float64
    np.testing.assert_allclose(values[:12], np.asarray(schedule(COUNTS))[:12], rtol=1e-6)


@pytest.mark.parametrize("name", FACTORIES)
def test_every_number_may_be_traced_swept_or_a_schedule(name):
    factory, numbers = FACTORIES[name]
    counts = np.arange(24)
    traces = 0

    @jax.jit
    def values(numbers: dict[str, Any]) -> jax.Array:
        nonlocal traces
        traces += 1
        return factory(**numbers)(counts)

    choices = [{name: float(two[which]) for name, two in numbers.items()} for which in (0, 1)]
    schedules = [
        {name: lambda count, number=number: number for name, number in choice.items()}
        for choice in choices
    ]

    @jax.jit
    def rows(counts: jax.Array) -> list[jax.Array]:
        return [factory(**numbers)(counts) for numbers in (*choices, *schedules)]

    *expected, first, second = rows(counts)
    for choice, scheduled, row in zip(choices, (first, second), expected, strict=True):
        np.testing.assert_allclose(values(choice), row, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(scheduled, row, rtol=1e-6, atol=1e-8)
    assert traces == 1
    swept = jax.vmap(values)({name: np.float32(two) for name, two in numbers.items()})
    np.testing.assert_allclose(swept, expected, rtol=1e-6, atol=1e-8)


@functools.cache
def slopes_of(factory: Any) -> Any:
    """Compiled once, for numbers of every value."""
    return jax.jit(jax.grad(lambda numbers: jnp.sum(factory(**numbers)(jnp.arange(24)))))


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("which", [0, 1])
def test_gradients_are_finite(name, which):
    factory, numbers = FACTORIES[name]
    numbers = {argument: np.float32(two[which]) for argument, two in numbers.items()}
    slopes = slopes_of(factory)(numbers)
    assert all(np.isfinite(slope) for slope in slopes.values())
    assert any(slope != 0 for slope in slopes.values())


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
def test_no_value_is_negative_or_above_the_largest_number(schedule):
    values = np.asarray(jax.jit(schedule)(np.append(np.arange(200), [MANY, MANY + 1])))
    assert np.all((values >= 0) & (values <= np.float32(0.3)))
    np.testing.assert_allclose(values[-1], schedule(MANY + 1), rtol=1e-5)


def test_float64_values_are_exact_to_float64():
    with jax.enable_x64(True):
        t = 123_457
        value = float(warmup_cosine(0.3, 1_000_003, 1_001)(t - 1))
        assert value == pytest.approx(half_cosine(t, 0.3, 1_000_003, 1_001, 0.0), rel=1e-14)
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
    for total, w in lengths:
        rate, annealed = values(total, w)
        np.testing.assert_allclose(
            rate, [half_cosine(t, 4.0, total, w, 1.0) for t in range(1, 21)], rtol=1e-5
        )
        np.testing.assert_allclose(annealed, np.maximum(1 - np.arange(1, 21) / total, 0), atol=1e-6)
    assert traces == 1
    swept, _ = jax.vmap(values)(*map(jnp.array, zip(*lengths, strict=True)))
    for row, (total, w) in zip(np.asarray(swept), lengths, strict=True):
        np.testing.assert_allclose(row, values(total, w)[0], rtol=1e-6)


def test_hyperparameters_of_schedules_may_be_schedules_and_arrays():
    peak = warmup_cosine(lambda count: 2.0 + count, np.array(4.0), jnp.array(2.0))
    assert_close(np.asarray(peak(COUNTS))[:5], np.array([1.0, 3.0, 2.0, 0.0, 0.0]))
    total = linear_anneal(jnp.array(1.0), lambda count: 4.0)
    assert_close(np.asarray(total(COUNTS))[:5], np.array([0.75, 0.5, 0.25, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant(0.5), [0.5] * 6),
        (constant(math.inf), [math.inf] * 6),
        (cosine(4.0, 4, 2.0), [2 + 1 + math.sqrt(0.5), 3.0, 3 - math.sqrt(0.5), 2.0, 2.0, 2.0]),
        (cosine_restarts(4.0, 2, end=2.0), [4.0, 3.0, 4.0, 3.0, 4.0, 3.0]),
        (cosine_restarts(4.0, 1, 2.0), [4.0, 4.0, 2.0, 4.0, 2 + math.sqrt(2), 2.0]),
        (cosine_restarts(4.0, 2, 1.5), [4.0, 2.0, 4.0, 3.0, 1.0, 4.0]),  # 2, 3 and 4.5 steps
        (step_decay(8.0, 0.5, 2), [8.0, 8.0, 4.0, 4.0, 2.0, 2.0]),
        (step_decay(8.0, 0.0, 2), [8.0, 8.0, 0.0, 0.0, 0.0, 0.0]),
        (exponential_decay(8.0, 0.5), [8.0, 4.0, 2.0, 1.0, 0.5, 0.25]),
        (exponential_decay(8.0, 0.0), [8.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        (exponential_decay(8.0, rate=math.log(2)), [8.0, 4.0, 2.0, 1.0, 0.5, 0.25]),
        (inverse_power_decay(6.0, 1.0), [6.0, 3.0, 2.0, 1.5, 1.2, 1.0]),
        (inverse_power_decay(6.0, 0.5, 3.0), [6 / math.sqrt(n) for n in (1, 4, 7, 10, 13, 16)]),
        (inverse_power_decay(6.0, 0.0), [6.0] * 6),
        (polynomial_decay(5.0, 4, end=1.0), [5.0, 4.0, 3.0, 2.0, 1.0, 1.0]),
        (polynomial_decay(16.0, 4, 2.0), [16.0, 9.0, 4.0, 1.0, 0.0, 0.0]),
        (polynomial_decay(2.0, 4, 0.5), [2.0, math.sqrt(3), math.sqrt(2), 1.0, 0.0, 0.0]),
        (polynomial_decay(2.0, 4, 0.0, 1.0), [2.0, 2.0, 2.0, 2.0, 1.0, 1.0]),
        (polynomial_decay(1.0, 4, 1.0, 5.0), [1.0, 2.0, 3.0, 4.0, 5.0, 5.0]),
        (piecewise_constant([1.0, 3.0, 2.0], [2, 3]), [1.0, 1.0, 3.0, 2.0, 2.0, 2.0]),
        (piecewise_constant([math.inf, 3], [1]), [math.inf, 3.0, 3.0, 3.0, 3.0, 3.0]),
        (piecewise_constant([3.0], []), [3.0] * 6),
        (warmup(6.0, 3), [2.0, 4.0, 6.0, 6.0, 6.0, 6.0]),
        (warmup(inverse_power_decay(6.0, 1.0), 3), [2.0, 4.0, 6.0, 6.0, 3.0, 2.0]),
        (warmup(inverse_power_decay(6.0, 1.0), 0), [6.0, 3.0, 2.0, 1.5, 1.2, 1.0]),
        (one_cycle(4.0, 5, 0.6, start=1.0, end=2.0), [2.0, 3.0, 4.0, 3.0, 2.0, 2.0]),
        (one_cycle(4.0, 4, 0.5, shape="cosine"), [2.0, 4.0, 2.0, 0.0, 0.0, 0.0]),
        # Like cosine(4.0, 4).
        (one_cycle(4.0, 4, 0.0), [2 + math.sqrt(2), 2.0, 2 - math.sqrt(2), 0.0, 0.0, 0.0]),
        (one_cycle(4.0, 4, 1.0), [1.0, 2.0, 3.0, 0.0, 0.0, 0.0]),
        (warmup_stable_decay(4.0, 5, 2, 2, 1.0), [2.0, 4.0, 4.0, 2.5, 1.0, 1.0]),
        (warmup_stable_decay(4.0, 4, 2, 2), [2.0, 4.0, 2.0, 0.0, 0.0, 0.0]),
        (warmup_stable_decay(4.0, 4, 0, 4), [3.0, 2.0, 1.0, 0.0, 0.0, 0.0]),
        (warmup_stable_decay(4.0, 4, 0, 4, shape="sqrt"),
         [2.0, 4 - 2 * math.sqrt(2), 4 - 2 * math.sqrt(3), 0.0, 0.0, 0.0]),
        (warmup_stable_decay(4.0, 6, 1, 4, 2.0, shape="sqrt"),
         [4.0, 4.0, 3.0, 4 - math.sqrt(2), 4 - math.sqrt(3), 2.0]),
        (warmup_stable_decay(4.0, 4, 0, 4, shape="cosine"),  # like cosine(4.0, 4)
         [2 + math.sqrt(2), 2.0, 2 - math.sqrt(2), 0.0, 0.0, 0.0]),
        (warmup_stable_decay(4.0, 6, 2, 2, 2.0, shape="cosine"), [2.0, 4.0, 4.0, 4.0, 3.0, 2.0]),
    ],
)  # fmt: skip
def test_by_hand(schedule, expected):
    np.testing.assert_allclose(np.asarray(schedule(COUNTS))[:6], expected, rtol=1e-6, atol=1e-6)


@jax.jit
def table_of_shapes(peak: Any, low: Any, total_steps: Any, part: Any, fall: Any) -> Any:
    """Compiled once, for arguments of every value."""
    counts = jnp.arange(700)
    rise = part / total_steps
    straight = one_cycle(peak, total_steps, rise, start=low, end=low)
    curved = one_cycle(peak, total_steps, rise, start=low, end=low, shape="cosine")
    plateau = warmup_stable_decay(peak, total_steps, part, fall, low)
    return straight(counts), curved(counts), plateau(counts)


@modest
@given(rates, st.floats(0.0, 1.0, width=32), st.integers(1, 300), st.integers(1, 300))
def test_shapes_go_up_to_the_peak_and_down_to_the_end(peak, fraction, part, fall):
    low, total = float(np.float32(peak * fraction)), part + 7 + fall
    *cycles, plateau = map(np.asarray, table_of_shapes(peak, low, total, part, fall))
    for values in cycles:
        assert np.all(values[total - 1 :] == np.float32(low))
        assert values[part - 1] == peak
        assert np.all(np.diff(values[:part]) >= -1e-6 * peak)
        assert np.all(np.diff(values[part:]) <= 1e-6 * peak)
        # No jump: half a cosine is at most pi / 2 times as steep as a straight line.
        steepest = np.pi / 2 / min(part, total - part) * (peak - low) + 1e-6 * peak
        assert np.all(np.abs(np.diff(values)) <= steepest)
        assert np.all((values >= low * (1 - 1e-6)) & (values <= peak * (1 + 1e-6)))
    t = np.arange(1, 701)
    straight = cycles[0][: part - 1]
    np.testing.assert_allclose(straight, low + (peak - low) * t[: part - 1] / part, rtol=1e-5)
    assert np.all(plateau[total - 1 :] == np.float32(low))
    assert np.all(plateau[part - 1 : part + 7] == peak)
    corners = [0, part, part + 7, total, 10**4]
    expected = np.interp(t, corners, [0.0, peak, peak, low, low])
    np.testing.assert_allclose(plateau, expected, rtol=1e-4, atol=1e-6 * peak)


@pytest.mark.parametrize("steps", [41, 61, 97, 100])
def test_boundaries_are_exact_though_xla_divides_by_multiplying(steps):
    # The last multiple below the largest int32, where neighbouring float32 are 128 apart.
    last = (MANY // steps) * steps
    counts = np.array([0, steps - 1, steps, 9 * steps - 1, 9 * steps, last - 1, last])

    def values(counts):
        falls = step_decay(1.0, 0.5, steps)(counts)
        fall = step_decay(1.0, 0.5, last)(counts)
        return falls, fall, piecewise_constant([1.0, 2.0], [last])(counts)

    for function in (jax.jit(values), values):
        falls, fall, rise = map(np.asarray, function(counts))
        np.testing.assert_array_equal(falls[:5], 0.5 ** (counts[:5] // steps))
        assert fall[5:].tolist() == [1.0, 0.5]
        assert rise[5:].tolist() == [1.0, 2.0]
    cycles = np.asarray(jax.jit(cosine_restarts(0.3, steps))(counts))
    np.testing.assert_array_equal(cycles == np.float32(0.3), counts % steps == 0)


def cycle_starts(first: int, multiplier: float, steps: int) -> list[int]:
    """The definition, in exact arithmetic, past `steps`."""
    starts, total, power = [0], Fraction(0), Fraction(1)
    while starts[-1] <= steps:
        total, power = total + power, power * Fraction(multiplier)
        starts.append(round(first * total))
    return starts


RESTARTS = jax.jit(lambda *lengths: cosine_restarts(2.0, *lengths, 0.5)(jnp.arange(5000)))


@pytest.mark.parametrize(
    ("first", "multiplier"),
    [(1, 1.0), (1, 2.0), (2, 1.0), (7, 1.25), (10, 1.5), (10, 2.0), (41, 1.0), (3, 3.0),
     (100, 1.125), (5000, 2.0), (6000, 1.0), (10, 1e6)],
)  # fmt: skip
def test_restarts_are_a_plain_loop(first, multiplier):
    expected = []
    starts = cycle_starts(first, multiplier, 5000)
    for start, following in pairwise(starts):
        for done in range(min(following, 5000) - start):
            fall = (1 + math.cos(math.pi * done / (following - start))) / 2
            expected.append(0.5 + 1.5 * fall)
    values = np.asarray(RESTARTS(first, multiplier))
    np.testing.assert_allclose(values, expected, rtol=3e-6)
    assert np.all(values[np.array([start for start in starts if start < 5000])] == 2.0)
    assert RESTARTS._cache_size() == 1


@pytest.mark.parametrize("multiplier", [1.01, 1.1, 1.7])
def test_restarts_of_any_multiplier_are_exact_in_float64(multiplier):
    starts = np.array(cycle_starts(9, multiplier, 20_000)[:-1])
    with jax.enable_x64(True):
        schedule = jax.jit(cosine_restarts(2.0, 9, multiplier))
        values = np.asarray(schedule(np.append(starts, starts[1:] - 1)))
    assert np.all(values[: len(starts)] == 2.0)
    assert np.all(values[len(starts) :] < 1.0)


def test_restarts_go_on_to_the_largest_int32():
    starts = np.array([10 * (2**cycle - 1) for cycle in range(21)])
    counts = np.concatenate([starts, starts[1:] - 1, [MANY + 1]])
    values = np.asarray(jax.jit(cosine_restarts(0.3, 10, 2.0))(counts))
    assert np.all(values[:21] == np.float32(0.3))
    assert np.all(values[21:-1] < 0.01)
    done, length = MANY + 1 - 10 * (2**27 - 1), 10 * 2**27
    expected = 0.15 * (1 + math.cos(math.pi * done / length))
    assert values[-1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("total", "w"), [(20, 4), (61, 41), (20, 0)])
def test_a_warmed_cosine_is_warmup_cosine_after_the_warmup(total, w):
    warmed = np.asarray(warmup(cosine(0.3, total - w, 0.1), w)(COUNTS))
    expected = np.asarray(warmup_cosine(0.3, total, w, 0.1)(COUNTS))
    np.testing.assert_allclose(warmed[w:], expected[w:], rtol=1e-6)
    flat = np.asarray(warmup(0.3, w)(COUNTS))
    np.testing.assert_allclose(flat[:w], expected[:w], rtol=1e-6)


def test_warmup_hands_schedules_no_count_below_zero():
    seen = []

    def schedule(count):
        seen.append(np.asarray(count))
        return 0.3

    warmup(schedule, 4)(COUNTS)
    np.testing.assert_array_equal(seen, [[0, 0, 0, 0, *range(96)]])


@pytest.mark.parametrize(
    ("ours", "theirs", "later"),
    [
        (constant(0.3), optax.constant_schedule(0.3), 0),
        (exponential_decay(0.3, 0.9), optax.exponential_decay(0.3, 1, 0.9), 0),
        (exponential_decay(0.3, rate=0.1), optax.exponential_decay(0.3, 1, math.exp(-0.1)), 0),
        (step_decay(0.3, 0.5, 8), optax.exponential_decay(0.3, 8, 0.5, staircase=True), 0),
        (piecewise_constant([0.3, 0.03, 0.06], [10, 20]),
         optax.piecewise_constant_schedule(0.3, {10: 0.1, 20: 2.0}), 0),
        (cosine(0.3, 40, 0.03), optax.cosine_decay_schedule(0.3, 40, alpha=0.1), 1),
        (cosine_restarts(0.3, 10, 2.0, 0.1),
         optax.sgdr_schedule([
             {"init_value": 0.3, "peak_value": 0.3, "warmup_steps": 0, "decay_steps": steps,
              "end_value": 0.1} for steps in (10, 20, 40)
         ]), 0),
        (one_cycle(0.3, 40, 0.3, start=0.3 / 25, end=0.3 / 25e4, shape="cosine"),
         optax.cosine_onecycle_schedule(40, 0.3), 1),
        # A power of two: Optax's is NaN at other ends where XLA divides by multiplying.
        (polynomial_decay(0.3, 32, 0.9, 0.03), optax.polynomial_schedule(0.3, 0.03, 0.9, 32), 0),
        (polynomial_decay(0.3, 50), optax.linear_schedule(0.3, 0.0, 50), 0),
    ],
    ids=["constant", "exponential", "rate", "step", "piecewise", "cosine", "restarts", "one cycle",
         "polynomial", "polynomial line"],
)  # fmt: skip
def test_equals_optax(ours, theirs, later):
    with jax.numpy_dtype_promotion("standard"):
        expected = jax.jit(jax.vmap(theirs))(COUNTS[:60] + later)
    np.testing.assert_allclose(np.asarray(ours(COUNTS))[:60], expected, rtol=2e-5, atol=1e-8)


def test_float64_values_of_decays_are_exact_to_float64():
    with jax.enable_x64(True):
        t = 12_345
        for schedule, expected in (
            (step_decay(0.3, 0.99, 7), 0.3 * 0.99 ** (t // 7)),
            (exponential_decay(0.3, 0.9999), 0.3 * 0.9999**t),
            (exponential_decay(0.3, rate=1e-4), 0.3 * math.exp(-1e-4 * t)),
            (inverse_power_decay(0.3, 0.5, 0.1), 0.3 / math.sqrt(0.1 * t + 1)),
            (polynomial_decay(0.3, 20_000, 2.5, 0.1), 0.1 + 0.2 * (1 - t / 20_000) ** 2.5),
            (warmup_stable_decay(0.3, 20_000, 11, 10_000), 0.3 * (20_000 - t - 1) / 10_000),
            (
                warmup_stable_decay(0.3, 20_000, 11, 10_000, shape="sqrt"),
                0.3 * (1 - math.sqrt((t + 1 - 10_000) / 10_000)),
            ),
            (one_cycle(0.3, 20_000, 0.75), 0.3 * (t + 1) / 15_000),
            (warmup(inverse_power_decay(0.3), 11), 0.3 / math.sqrt(t - 11 + 1)),
        ):
            assert float(schedule(t)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", [
    step_decay(0.3, 0.5, 3), exponential_decay(0.3, 0.9), exponential_decay(0.3, rate=0.1),
    inverse_power_decay(0.3, 0.7), cosine_restarts(0.3, 10, 1.5, 0.1),
    polynomial_decay(0.3, 41, 0.7, 0.1), piecewise_constant([0.3, 0.1], [5]),
])  # fmt: skip
def test_the_first_step_takes_exactly_the_first_value(schedule):
    def values(count, counts):
        return schedule(count), schedule(counts)

    for function in (jax.jit(values), values):
        one, many = function(0, COUNTS)
        assert float(one) == float(np.asarray(many)[0]) == np.float32(0.3)


@modest
@given(rates, st.floats(0.0, 2.0, width=32), st.integers(1, 600), st.floats(0.0, 8.0, width=32))
def test_polynomial_decay_is_its_equation_and_exact_at_both_ends(initial, fraction, total, power):
    end, t = float(np.float32(initial * fraction)), np.arange(700)
    expected = np.where(
        t < total, end + (initial - end) * (1 - np.minimum(t, total) / total) ** power, end
    )
    values = np.asarray(table_of_powers(initial, total, power, end))
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6 * initial)
    assert values[0] == initial
    assert np.all(values[total:] == np.float32(end))
    assert np.all(np.diff(values) * np.sign(end - initial) >= -1e-6 * initial)
    assert table_of_powers._cache_size() == 1


@jax.jit
def table_of_powers(initial: Any, total_steps: Any, power: Any, end: Any) -> jax.Array:
    """Compiled once, for arguments of every value."""
    return polynomial_decay(initial, total_steps, power, end)(jnp.arange(700))


@jax.jit
def slopes_of_powers(initial: Any, total_steps: Any, power: Any, end: Any, count: Any) -> Any:
    """Compiled once, for arguments of every value."""

    def value(*numbers):
        return polynomial_decay(*numbers)(count)

    return jax.grad(value, (0, 1, 2, 3))(initial, total_steps, power, end)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_gradients_of_polynomial_decay_are_finite_up_to_its_end_and_past_it(power):
    """At the end the slope of a power below 1 is infinite."""
    for t in (0, 3, 4, 9):
        slopes = slopes_of_powers(*map(np.float32, (0.3, 4.0, power, 0.1)), t)
        assert np.all(np.isfinite(slopes))
        left = max(1 - t / 4, 0)
        share = left**power if left else 0.0
        np.testing.assert_allclose([slopes[0], slopes[3]], [share, 1 - share], atol=1e-6)


def test_elements_of_piecewise_constant_may_be_an_array():
    values = jax.jit(lambda values, boundaries: piecewise_constant(values, boundaries)(COUNTS[:4]))
    found = values(jnp.array([0.5, 0.25]), jnp.array([2.0]))  # as `inject_hyperparams` has them
    assert found.tolist() == [0.5, 0.5, 0.25, 0.25]


def test_gradients_at_the_ends_are_finite():
    slopes_of_lengths = jax.jit(
        jax.grad(lambda w, total, count: warmup_cosine(1.0, total, w)(count), (0, 1))
    )
    for total, w, t in ((4.0, 0.0, 1.0), (4.0, 4.0, 4.0), (4.0, 1.0, 9.0)):
        slopes = slopes_of_lengths(np.float32(w), np.float32(total), t - 1)
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
        (lambda: constant(-1.0), r"value must be in \[0, inf\].* got -1.0"),
        (lambda: cosine(-1.0, 10), r"peak must be in \[0, inf\).* got -1.0"),
        (lambda: cosine(1.0, 0), r"total_steps must be in \(0, inf\).* got 0"),
        (lambda: cosine_restarts(math.nan, 10), r"peak must be in \[0, inf\).* got nan"),
        (lambda: cosine_restarts(1.0, 0), r"first_steps .*whole number in \[1, inf\).* got 0"),
        (lambda: cosine_restarts(1.0, 2.5), r"first_steps .*whole number in \[1, inf\).* got 2.5"),
        (lambda: cosine_restarts(1.0, 2, 0.5), r"multiplier must be in \[1, inf\).* got 0.5"),
        (lambda: cosine_restarts(1.0, 2, 1.0, -1), r"end must be in \[0, inf\).* got -1"),
        (lambda: step_decay(-1.0, 0.5, 2), r"initial must be in \[0, inf\).* got -1.0"),
        (lambda: step_decay(1.0, 1.5, 2), r"factor must be in \[0, 1\].* got 1.5"),
        (lambda: step_decay(1.0, 0.5, 0), r"period must be a whole number in \[1, inf\).* got 0"),
        (lambda: exponential_decay(-1.0, 0.5), r"initial must be in \[0, inf\).* got -1.0"),
        (lambda: exponential_decay(1.0, 1.5), r"factor must be in \[0, 1\].* got 1.5"),
        (lambda: exponential_decay(1.0, rate=-0.5), r"rate must be in \[0, inf\).* got -0.5"),
        (lambda: exponential_decay(1.0), r"one of factor and rate, got factor=None and rate=None"),
        (lambda: exponential_decay(1.0, 0.5, rate=1.0),
         r"one of factor and rate, got factor=0.5 and rate=1.0"),
        (lambda: inverse_power_decay(-1.0), r"initial must be in \[0, inf\).* got -1.0"),
        (lambda: inverse_power_decay(1.0, -0.5), r"power must be in \[0, inf\).* got -0.5"),
        (lambda: inverse_power_decay(1.0, 0.5, -1), r"scale must be in \[0, inf\).* got -1"),
        (lambda: polynomial_decay(-1.0, 10), r"initial must be in \[0, inf\).* got -1.0"),
        (lambda: polynomial_decay(1.0, 0), r"total_steps must be in \(0, inf\).* got 0"),
        (lambda: polynomial_decay(1.0, 10, -0.5), r"power must be in \[0, inf\).* got -0.5"),
        (lambda: polynomial_decay(1.0, 10, 1.0, -1), r"end must be in \[0, inf\).* got -1"),
        (lambda: piecewise_constant([1.0], [2]),
         r"values must be one more than the 1 boundaries, got 1"),
        (lambda: piecewise_constant([1.0, -2.0], [2]),
         r"values\[1\] must be in \[0, inf\].* got -2.0"),
        (lambda: piecewise_constant([1.0, 2.0], [0]),
         r"boundaries\[0\] must be a whole number in \[1, inf\).* got 0"),
        (lambda: piecewise_constant([1.0, 2.0, 3.0], [5, 5]),
         r"boundaries must increase strictly, got 5 after 5"),
        (lambda: piecewise_constant([1.0, 2.0, 3.0, 4.0], [5, jnp.array(6), 4]),
         r"boundaries must increase strictly, got 4 after 5"),
        (lambda: warmup(-1.0, 2), r"schedule must be in \[0, inf\).* got -1.0"),
        (lambda: warmup(1.0, -2), r"warmup_steps must be a whole number in \[0, inf\).* got -2"),
        (lambda: warmup(1.0, 2.5), r"warmup_steps .*whole number in \[0, inf\).* got 2.5"),
        (lambda: one_cycle(-1.0, 10), r"peak must be in \[0, inf\).* got -1.0"),
        (lambda: one_cycle(1.0, 0), r"total_steps must be in \(0, inf\).* got 0"),
        (lambda: one_cycle(1.0, 10, 1.5), r"rise must be in \[0, 1\].* got 1.5"),
        (lambda: one_cycle(1.0, 10, start=-1), r"start must be in \[0, inf\).* got -1"),
        (lambda: one_cycle(1.0, 10, end=-1), r"end must be in \[0, inf\).* got -1"),
        (lambda: one_cycle(1.0, 10, shape="up"),
         r"shape must be one of 'linear', 'cosine', got 'up'"),
        (lambda: warmup_stable_decay(-1.0, 9, 2, 3), r"peak must be in \[0, inf\).* got -1.0"),
        (lambda: warmup_stable_decay(1.0, 0, 2, 3), r"total_steps must be in \(0, inf\).* got 0"),
        (lambda: warmup_stable_decay(1.0, 9, -2, 3),
         r"warmup_steps must be in \[0, inf\).* got -2"),
        (lambda: warmup_stable_decay(1.0, 9, 2, 0), r"decay_steps must be in \(0, inf\).* got 0"),
        (lambda: warmup_stable_decay(1.0, 9, 2, 3, -1), r"end must be in \[0, inf\).* got -1"),
        (lambda: warmup_stable_decay(1.0, 9, 5, 5),
         r"total_steps must be at least warmup_steps \+ decay_steps, 5 \+ 5, got 9"),
        (lambda: warmup_stable_decay(1.0, 9, 2, 3, shape="root"),
         r"shape must be one of 'linear', 'sqrt', 'cosine', got 'root'"),
        (lambda: check_lengths(5, 7.5), r"total_steps .* greater than warmup_steps, 7.5, got 5"),
        (lambda: check("k", 2.5, COUNT),
         r"k must be a whole number in \[1, inf\).* got 2.5"),
        (lambda: check("k", None, COUNT),
         r"k must be a whole number in \[1, inf\), a schedule or an array, got None"),
        (lambda: check("b1", 1, DECAY), r"b1 must be in \[0, 1\).* got 1"),
        (lambda: check("c", 0.0, LIMIT), r"c must be in \(0, inf\].* got 0.0"),
    ],
)  # fmt: skip
def test_errors_name_argument_range_and_value(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        (0, DECAY), (1, UNIT), (math.inf, LIMIT), (True, STRENGTH), (np.float32(0.5), DECAY),
        (5.0, COUNT), (math.inf, START), (jnp.array(-1.0), DECAY), (np.array(math.nan), DECAY),
        (lambda count: -1.0, COUNT),
    ],
)  # fmt: skip
def test_ends_of_ranges_arrays_and_schedules_pass(value, allowed):
    check("name", value, allowed)


def test_value_at_is_at_least_32_bits():
    for low in (jnp.float16, jnp.bfloat16):
        assert value_at(jnp.asarray(0.5, low), 0).dtype == jnp.float32
        assert value_at(lambda count, low=low: jnp.asarray(0.5, low), 0).dtype == jnp.float32
    assert float(value_at(product(0.5, lambda count: count + 1.0), 3)) == 2.0
    whole = whole_value_at(5.0, 0)
    assert (whole.dtype, int(whole)) == (jnp.int32, 5)


def test_counts_stop_at_the_largest_int32():
    assert int(next_count(jnp.int32(MANY))) == int(next_count(jnp.int32(MANY + 1))) == 2**31 - 1


@pytest.mark.parametrize("count", [1, 5, 12])
def test_a_shape_that_is_scheduled_is_its_value_at_the_count(count):
    """The power and the scale, which a run changes more seldom than its rates."""

    def shape(count):
        return 0.5 + 0.1 * count

    for schedule in (
        lambda value: inverse_power_decay(1.0, power=0.5, scale=value),
        lambda value: inverse_power_decay(1.0, power=value, scale=0.5),
        lambda value: polynomial_decay(1.0, 20, power=value),
    ):
        fixed = schedule(shape(count))(count)
        np.testing.assert_allclose(schedule(shape)(count), fixed, rtol=1e-6)
        assert abs(float(schedule(shape(0))(count)) - float(fixed)) > 1e-3
