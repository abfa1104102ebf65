"""Schedules that fall along half a cosine."""

from __future__ import annotations

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
from amac_jax._core.ranges import AT_LEAST_ONE, COUNT, NON_NEGATIVE, POSITIVE, UNIT, checked
from amac_jax.schedules._progress import SHAPES, fraction, half_cosine, whole


@checked(peak=NON_NEGATIVE, total_steps=POSITIVE, warmup_steps=NON_NEGATIVE, end=NON_NEGATIVE)
def warmup_cosine(
    peak: Hyperparameter,
    total_steps: Hyperparameter,
    warmup_steps: Hyperparameter,
    end: Hyperparameter = 0.0,
) -> Schedule:
    """A linear warm-up to `peak`, then half a cosine down to `end`.

    With t = count + 1, the 1-based number of the step being taken, w = `warmup_steps` and
    T = `total_steps`:

        value = peak t / w                                              t <= w
        value = end + (peak - end) (1 + cos(pi (t - w) / (T - w))) / 2  w < t < T
        value = end                                                     t >= T

    Step w takes exactly `peak`. The first step is not wasted at rate 0.

    Use it as a learning rate. The learning rate of `amac` has this form.

    Args:
      peak: the highest value, in the unit of the scheduled hyperparameter; >= 0.
      total_steps: T, in steps, > 0; may be traced.
      warmup_steps: w, in steps, >= 0 and less than T; may be traced. Off: 0.
      end: the value from step T on, in the unit of `peak`; >= 0.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN rate, a negative length, or total_steps <= warmup_steps.

    Differs from Optax:
      `optax.warmup_cosine_decay_schedule` takes its first step at `init_value`, which is usually
      0. Its lengths cannot be traced.

    When not to use:
      The length of the run is not known at its start: `warmup_stable_decay` can be prolonged.

    Example:
      >>> schedule = warmup_cosine(1.0, total_steps=10, warmup_steps=4)
      >>> [round(float(schedule(count)), 3) for count in (0, 3, 6, 9, 20)]
      [0.25, 1.0, 0.5, 0.0, 0.0]

    Reference:
      Loshchilov and Hutter, SGDR, 2017, https://arxiv.org/abs/1608.03983;
      Goyal et al., Accurate, Large Minibatch SGD, 2017, https://arxiv.org/abs/1706.02677.
    """
    check_lengths(total_steps, warmup_steps)

    def schedule(count: Count) -> jax.Array:
        t = step_number(count)
        w, total = float_value_at(warmup_steps, count), float_value_at(total_steps, count)
        high, low = value_at(peak, count), value_at(end, count)
        fall = half_cosine(high, low, fraction(t - w, total - w))
        return jnp.where(t <= w, high * fraction(t, w), fall)

    return schedule


@checked(total_steps=POSITIVE, warmup_steps=NON_NEGATIVE)
def check_lengths(total_steps: Hyperparameter, warmup_steps: Hyperparameter) -> None:
    """Refuses a run that is not longer than its warm-up."""
    if is_number(total_steps) and is_number(warmup_steps) and total_steps <= warmup_steps:
        raise ValueError(
            f"total_steps must be greater than warmup_steps, {warmup_steps!r}, got {total_steps!r}"
        )


@checked(peak=NON_NEGATIVE, total_steps=POSITIVE, end=NON_NEGATIVE)
def cosine(
    peak: Hyperparameter, total_steps: Hyperparameter, end: Hyperparameter = 0.0
) -> Schedule:
    """Half a cosine from `peak` down to `end`: `warmup_cosine` without a warm-up.

    With t = count + 1, the 1-based number of the step being taken, and T = `total_steps`:

        value = end + (peak - end) (1 + cos(pi t / T)) / 2  t < T
        value = end                                         t >= T

    Step T takes exactly `end`.

    Use it as a learning rate, alone or as the second part of `warmup`.

    Args:
      peak: the value extrapolated to t = 0, in the unit of the scheduled hyperparameter; >= 0.
      total_steps: T, in steps, > 0; may be traced.
      end: the value from step T on, in the unit of `peak`; >= 0.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN value, or total_steps <= 0.

    Differs from Optax:
      `optax.cosine_decay_schedule` counts from 0: its first step takes `peak`, and in a run of T
      steps none takes `end`. Its length cannot be traced.

    Example:
      >>> schedule = cosine(1.0, total_steps=4)
      >>> [round(float(schedule(count)), 3) for count in range(5)]
      [0.854, 0.5, 0.146, 0.0, 0.0]

    Reference:
      Loshchilov and Hutter, SGDR, 2017, https://arxiv.org/abs/1608.03983.
    """
    fall = warmup_cosine(peak, total_steps, 0, end)

    # Not `fall` itself: `plot_schedule` reads the label from the schedule's own name.
    def schedule(count: Count) -> jax.Array:
        return fall(count)

    return schedule


@checked(peak=NON_NEGATIVE, first_steps=COUNT, multiplier=AT_LEAST_ONE, end=NON_NEGATIVE)
def cosine_restarts(
    peak: Hyperparameter,
    first_steps: Hyperparameter,
    multiplier: Hyperparameter = 1.0,
    end: Hyperparameter = 0.0,
) -> Schedule:
    """Half a cosine from `peak` towards `end`, again and again, for ever.

    With T_0 = `first_steps` and m = `multiplier`, cycle i = 0, 1, ... begins when S_i updates
    have been made and lasts T_i steps. T_cur is the number of updates made since it began:

        S_i   = T_0 (1 + m + ... + m^(i - 1)), rounded to a whole step
        T_i   = S_(i + 1) - S_i, which is T_0 m^i but for the rounding
        T_cur = count - S_i
        value = end + (peak - end) (1 + cos(pi T_cur / T_i)) / 2

    Every cycle begins at exactly `peak`. The next restart comes where the value would be `end`.

    Use it as a learning rate.

    Args:
      peak: the value at each restart, in the unit of the scheduled hyperparameter; >= 0.
      first_steps: T_0, in steps, whole, >= 1; may be traced.
      multiplier: m, dimensionless, >= 1; may be traced. At 1 all cycles are equally long.
      end: the lower end of the cosine, in the unit of `peak`; >= 0.

    Returns:
      A schedule: count (int or array) -> array of the same shape. Restarts come at whole steps,
      which do not depend smoothly on the lengths: gradients with respect to the lengths are 0.
      Restarts are exact with m = 1. With another m, float32 can place restarts beyond some
      thousand steps one step off.

    Raises:
      ValueError: for a negative or NaN value, first_steps < 1 or not whole, or multiplier < 1.

    Differs from Optax:
      `optax.sgdr_schedule` takes a list of cycles and ends with the last one. Here the cycles
      follow from two numbers, which may be traced.

    When not to use:
      The run ends in the middle of a cycle: its last steps are then taken at a high rate.

    Example:
      >>> schedule = cosine_restarts(1.0, first_steps=2, multiplier=2.0)
      >>> [round(float(schedule(count)), 3) for count in range(7)]
      [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]

    Reference:
      Loshchilov and Hutter, SGDR, 2017, https://arxiv.org/abs/1608.03983.
    """

    def schedule(count: Count) -> jax.Array:
        first, m = whole_value_at(first_steps, count), float_value_at(multiplier, count)
        progress = fraction(*_position_in_cycle(whole(count), first, m))
        return half_cosine(float_value_at(peak, count), float_value_at(end, count), progress)

    return schedule


def _position_in_cycle(
    count: jax.Array, first: jax.Array, multiplier: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The steps done in the cycle that holds `count`, and its length, in floating point."""
    t, first_length, m = as_float(count), as_float(first), jax.lax.stop_gradient(multiplier)
    growing = jnp.where(m > 1.0, m, 2.0)
    log_m = jnp.log(growing)

    def begin_of(cycle: jax.Array) -> jax.Array:
        # Either form of m^i - 1 has its digits where the other loses them.
        excess = jnp.where(growing < 1.1, jnp.expm1(cycle * log_m), growing**cycle - 1.0)
        return jnp.round(first_length * excess / (growing - 1.0))

    cycle = jnp.floor(jnp.log1p(t * (growing - 1.0) / jnp.maximum(first_length, 1.0)) / log_m)
    # The logarithm may round to either side of a start.
    cycle = jnp.where(begin_of(cycle) > t, cycle - 1.0, cycle)
    cycle = jnp.where(begin_of(cycle + 1.0) <= t, cycle + 1.0, cycle)
    begin, following = begin_of(cycle), begin_of(cycle + 1.0)
    # Cycles of equal length are the common case: integers keep them exact at every count.
    is_equal = m == 1.0
    steps_done = jnp.where(is_equal, as_float(count % jnp.maximum(whole(first), 1)), t - begin)
    return steps_done, jnp.where(is_equal, first_length, following - begin)


@checked(peak=NON_NEGATIVE, total_steps=POSITIVE, rise=UNIT, start=NON_NEGATIVE, end=NON_NEGATIVE)
def one_cycle(
    peak: Hyperparameter,
    total_steps: Hyperparameter,
    rise: Hyperparameter = 0.45,
    *,
    start: Hyperparameter = 0.0,
    end: Hyperparameter = 0.0,
    shape: str = "linear",
) -> Schedule:
    """A rise to `peak` and a fall to `end` in one run; the fall is half a cosine.

    With t = count + 1, the 1-based number of the step being taken, T = `total_steps` and
    r = rise T, rounded to a whole step:

        value = start + (peak - start) t / r                            t < r, "linear"
        value = peak + (start - peak) (1 + cos(pi t / r)) / 2           t < r, "cosine"
        value = end + (peak - end) (1 + cos(pi (t - r) / (T - r))) / 2  r <= t < T
        value = end                                                     t >= T

    Step r takes exactly `peak` and step T exactly `end`.

    Use it as a learning rate.

    Args:
      peak: the highest value, in the unit of the scheduled hyperparameter; >= 0.
      total_steps: T, in steps, > 0; may be traced.
      rise: the rising share of the steps, dimensionless, in [0, 1]. At 0 the schedule is
        `cosine`. At 1 the value rises until step T, which takes `end`.
      start: the value extrapolated to t = 0, in the unit of `peak`; >= 0.
      end: the value from step T on, in the unit of `peak`; >= 0.
      shape: "linear" or "cosine", the shape of the rise.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN value, total_steps <= 0, a share outside [0, 1], or an
        unknown shape.

    Differs from Optax:
      `optax.cosine_onecycle_schedule(T, peak)` is `one_cycle(peak, T, 0.3, start=peak / 25,
      end=peak / 25e4, shape="cosine")` one step earlier, where 0.3 T is whole. Its length
      cannot be traced. `optax.linear_onecycle_schedule` falls along two straight lines.

    Example:
      >>> schedule = one_cycle(1.0, total_steps=8, rise=0.5)
      >>> [round(float(schedule(count)), 3) for count in range(9)]
      [0.25, 0.5, 0.75, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]

    Reference:
      Smith and Topin, Super-Convergence, 2017, https://arxiv.org/abs/1708.07120.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(map(repr, SHAPES))}, got {shape!r}")

    def schedule(count: Count) -> jax.Array:
        t, total = step_number(count), float_value_at(total_steps, count)
        r = jnp.round(float_value_at(rise, count) * total)
        low, high, last = (float_value_at(value, count) for value in (start, peak, end))
        up = SHAPES[shape](low, high, fraction(t, r))
        return jnp.where(t < r, up, half_cosine(high, last, fraction(t - r, total - r)))

    return schedule
