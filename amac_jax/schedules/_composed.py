"""Schedules that are put together of pieces: plateaus, warm-ups and other schedules."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp

from amac_jax._core.hyperparameters import (
    Count,
    Hyperparameter,
    Schedule,
    as_float,
    float_value_at,
    is_number,
    step_number,
    value_at,
    whole_value_at,
)
from amac_jax._core.ranges import (
    COUNT,
    COUNT_OR_ZERO,
    NON_NEGATIVE,
    POSITIVE,
    START,
    check,
    checked,
)
from amac_jax.schedules._progress import fraction, half_cosine, line, root, whole


@checked(value=START)
def constant(value: Hyperparameter) -> Schedule:
    """The same value at every step.

    Use it where a schedule is needed and a number is not enough. Hyperparameters of this library
    may be numbers.

    Args:
      value: in the unit of the scheduled hyperparameter; >= 0, and inf where inf means off.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN value.

    Differs from Optax:
      `optax.constant_schedule` returns the number as it is. This schedule returns an array of
      the shape of `count`.

    Example:
      >>> import jax.numpy as jnp
      >>> constant(0.5)(jnp.arange(3))
      Array([0.5, 0.5, 0.5], dtype=float32)
    """

    def schedule(count: Count) -> jax.Array:
        return jnp.broadcast_to(float_value_at(value, count), jnp.shape(count))

    return schedule


def piecewise_constant(
    values: Sequence[Hyperparameter] | jax.Array, boundaries: Sequence[Hyperparameter] | jax.Array
) -> Schedule:
    """One constant value after another.

    With count, the number of updates made before this one:

        value = values[i]   for boundaries[i - 1] <= count < boundaries[i]

    The first boundaries[0] steps take values[0].

    Use it as a learning rate that falls at chosen steps, or for a hyperparameter that is off
    (0 or inf) in a part of the run.

    Args:
      values: in the unit of the scheduled hyperparameter; >= 0, and inf where inf means off.
        Each may be traced.
      boundaries: in steps from the beginning, one fewer than `values`, whole, >= 1 and strictly
        increasing. Each may be traced.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN value, a boundary < 1 or not whole, boundaries that do
        not increase, or a number of boundaries that does not fit.

    Differs from Optax:
      `optax.piecewise_constant_schedule` takes the factors from one value to the next. This
      schedule takes the values.

    When not to use:
      The falls come at even distances: use `step_decay`.

    Example:
      >>> schedule = piecewise_constant([1.0, 0.1, 0.5], boundaries=[2, 3])
      >>> [round(float(schedule(count)), 3) for count in range(5)]
      [1.0, 1.0, 0.1, 0.5, 0.5]
    """
    if len(values) != len(boundaries) + 1:
        raise ValueError(
            f"values must be one more than the {len(boundaries)} boundaries, got {len(values)}"
        )
    for index, value in enumerate(values):
        check(f"values[{index}]", value, START)
    for index, boundary in enumerate(boundaries):
        check(f"boundaries[{index}]", boundary, COUNT)
    numbers = [boundary for boundary in boundaries if is_number(boundary)]
    for earlier, later in pairwise(numbers):
        if later <= earlier:
            raise ValueError(f"boundaries must increase strictly, got {later!r} after {earlier!r}")

    def schedule(count: Count) -> jax.Array:
        result = constant(values[0])(count)
        for boundary, value in zip(boundaries, values[1:], strict=True):
            is_later = whole(count) >= whole(whole_value_at(boundary, count))
            result = jnp.where(is_later, float_value_at(value, count), result)
        return result

    return schedule


@checked(schedule=NON_NEGATIVE, warmup_steps=COUNT_OR_ZERO)
def warmup(schedule: Hyperparameter, warmup_steps: Hyperparameter) -> Schedule:
    """A linear warm-up to the first value of another schedule, and then that schedule.

    With t = count + 1, the 1-based number of the step being taken, and w = `warmup_steps`:

        value = schedule(0) t / w      t <= w
        value = schedule(count - w)    t > w

    Step w takes exactly schedule(0). The first step is not wasted at rate 0. A schedule that
    decays from an initial value takes the initial value at step w + 1 too.

    Use it before any learning-rate schedule that begins at its highest value.

    Args:
      schedule: a schedule for the steps after the warm-up, or a number, which then stays; >= 0.
      warmup_steps: w, in steps, whole, >= 0; may be traced. Off: 0.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative number as the schedule, or a length that is negative, NaN or
        not whole.

    Differs from Optax:
      `optax.join_schedules` of `optax.linear_schedule` and a schedule takes the first step at
      rate 0.

    When not to use:
      The schedule has a warm-up of its own: `warmup_cosine`, `one_cycle`, `warmup_stable_decay`.

    Example:
      >>> from amac_jax.schedules import exponential_decay
      >>> warmed = warmup(exponential_decay(1.0, factor=0.5), warmup_steps=2)
      >>> [float(warmed(count)) for count in range(5)]
      [0.5, 1.0, 1.0, 0.5, 0.25]

    Reference:
      Goyal et al., Accurate, Large Minibatch SGD, 2017, https://arxiv.org/abs/1706.02677.
    """

    def warmed(count: Count) -> jax.Array:
        w = whole_value_at(warmup_steps, count)
        later = jnp.maximum(whole(count) - whole(w), 0)
        return value_at(schedule, later) * fraction(step_number(count), as_float(w))

    return warmed


FALLS = {"linear": line, "sqrt": root, "cosine": half_cosine}


@checked(
    peak=NON_NEGATIVE,
    total_steps=POSITIVE,
    warmup_steps=NON_NEGATIVE,
    decay_steps=POSITIVE,
    end=NON_NEGATIVE,
)
def warmup_stable_decay(
    peak: Hyperparameter,
    total_steps: Hyperparameter,
    warmup_steps: Hyperparameter,
    decay_steps: Hyperparameter,
    end: Hyperparameter = 0.0,
    *,
    shape: Literal["linear", "sqrt", "cosine"] = "linear",
) -> Schedule:
    """A linear warm-up to `peak`, a long stay at `peak`, and a fall to `end`.

    With t = count + 1, the 1-based number of the step being taken, w = `warmup_steps`,
    d = `decay_steps`, T = `total_steps` and x = (t - T + d) / d:

        value = peak t / w                                      t <= w
        value = peak                                            w < t <= T - d
        value = peak + (end - peak) x                           T - d < t < T, "linear"
        value = peak + (end - peak) sqrt(x)                     T - d < t < T, "sqrt"
        value = end + (peak - end) (1 + cos(pi x)) / 2          T - d < t < T, "cosine"
        value = end                                             t >= T

    Use it as a learning rate where T is not known at the start: the stay may be prolonged, and
    any checkpoint of the stay can be trained down in d steps.

    Args:
      peak: the highest value, in the unit of the scheduled hyperparameter; >= 0.
      total_steps: T, in steps, > 0; may be traced.
      warmup_steps: w, in steps, >= 0; may be traced. Off: 0.
      decay_steps: d, in steps, > 0, with w + d <= T; may be traced.
      end: the value from step T on, in the unit of `peak`; >= 0.
      shape: "linear", "sqrt" or "cosine", the shape of the fall. "sqrt" with `end` 0 is
        1 - sqrt(x), which Hägele et al. found better than the straight line.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN value or length, total_steps or decay_steps of 0,
        warmup_steps + decay_steps > total_steps, or an unknown shape.

    Differs from Optax:
      Optax does not have this schedule. Hu et al. leave the form of the decay open.

    Example:
      >>> schedule = warmup_stable_decay(1.0, total_steps=8, warmup_steps=2, decay_steps=4)
      >>> [float(schedule(count)) for count in range(9)]
      [0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
      >>> schedule = warmup_stable_decay(1.0, 8, 2, decay_steps=4, shape="sqrt")
      >>> [round(float(schedule(count)), 3) for count in range(9)]
      [0.5, 1.0, 1.0, 1.0, 0.5, 0.293, 0.134, 0.0, 0.0]

    Reference:
      Hu et al., MiniCPM, 2024, https://arxiv.org/abs/2404.06395. For "sqrt": Hägele et al.,
      Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations, 2024,
      https://arxiv.org/abs/2405.18392.
    """
    if shape not in FALLS:
        raise ValueError(f"shape must be one of {', '.join(map(repr, FALLS))}, got {shape!r}")
    lengths = (total_steps, warmup_steps, decay_steps)
    numbers = [length for length in lengths if is_number(length)]
    if len(numbers) == 3 and numbers[0] < numbers[1] + numbers[2]:
        raise ValueError(
            "total_steps must be at least warmup_steps + decay_steps, "
            f"{warmup_steps!r} + {decay_steps!r}, got {total_steps!r}"
        )

    def schedule(count: Count) -> jax.Array:
        t = step_number(count)
        total, w, d = (float_value_at(length, count) for length in lengths)
        high, low = float_value_at(peak, count), float_value_at(end, count)
        return FALLS[shape](high, low, fraction(t - (total - d), d)) * fraction(t, w)

    return schedule
