"""What a hyperparameter is at a step: numbers, arrays and schedules, and the checks on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

Schedule: TypeAlias = Callable[[Any], Any]
"""A function of `count`, the number of updates made before this one (0 at first)."""

Hyperparameter: TypeAlias = float | np.ndarray | jax.Array | Schedule
"""A Python number, an array (traced or not) or a schedule."""


def value_at(hyperparameter: Hyperparameter, count: Any) -> jax.Array:
    """The value of a hyperparameter when `count` updates have been made.

    Args:
      hyperparameter: a number, an array or a schedule of `count`.
      count: int or integer array, 0 at the first update.

    Returns:
      An array of at least 32 bits: float16 and bfloat16 become float32.

    Example:
      >>> float(value_at(0.5, 3)), float(value_at(lambda count: 2.0 * count, 3))
      (0.5, 6.0)
    """
    value = hyperparameter(count) if callable(hyperparameter) else hyperparameter
    value = jnp.asarray(value)
    if jnp.issubdtype(value.dtype, jnp.floating):
        value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
    return value


def whole_value_at(hyperparameter: Hyperparameter, count: Any) -> jax.Array:
    """`value_at` as an int32: `optax.inject_hyperparams` hands integers over as floats."""
    return jnp.round(value_at(hyperparameter, count)).astype(jnp.int32)


def next_count(count: jax.Array) -> jax.Array:
    """count + 1, stopping at the largest int32 instead of overflowing."""
    return jnp.asarray(optax.safe_increment(count))


def as_schedule(hyperparameter: Hyperparameter) -> Schedule:
    """`value_at` with the hyperparameter filled in: a constant and a schedule become alike."""
    return lambda count: value_at(hyperparameter, count)


def product(first: Hyperparameter, second: Hyperparameter) -> Hyperparameter:
    """The hyperparameter whose value at every step is the product of the two.

    Example:
      >>> float(value_at(product(0.5, lambda count: count + 1.0), 3))
      2.0
    """
    return lambda count: value_at(first, count) * value_at(second, count)


def quotient(first: Hyperparameter, second: Hyperparameter) -> Schedule:
    """The hyperparameter whose value at every step is the first by the second, 0 where that is 0.

    Example:
      >>> float(value_at(quotient(3.0, lambda count: count + 1.0), 3))
      0.75
    """

    def value(count: Any) -> jax.Array:
        divisor = value_at(second, count)
        safe = jnp.where(divisor == 0, 1.0, divisor)
        return jnp.where(divisor == 0, 0.0, value_at(first, count) / safe)

    return value


def check(name: str, value: Any, interval: str, *, whole: bool = False) -> None:
    """Refuses a Python number outside an interval; () arrays and schedules pass unread.

    Args:
      name: the argument's name, for the message.
      value: what was passed for it.
      interval: for example `"[0, 1)"` or `"(0, inf]"`. NaN is in no interval.
      whole: whether the number must be a whole one.

    Raises:
      ValueError: naming the argument, the interval and the value received; for a decay, in
        [0, 1), as an array of 16 bits.

    Example:
      >>> check("b1", 1.0, "[0, 1)")
      Traceback (most recent call last):
      ValueError: b1 must be in [0, 1), got 1.0
    """
    if isinstance(value, jax.Array | np.ndarray) and value.ndim > 0:
        raise ValueError(f"{name} must be a scalar, got shape {value.shape}; vmap is a sweep")
    if interval == "[0, 1)" and getattr(value, "dtype", None) in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"{name} must be in at least float32, got {value.dtype.name}, in which 0.9999 is 1; "
            "optax.inject_hyperparams takes hyperparam_dtype=jnp.float32"
        )
    if callable(value) or isinstance(value, jax.Array | np.ndarray):
        return
    kind = "a whole number" if whole else ""
    wanted = " ".join(filter(None, ["must be", kind, f"in {interval}"]))
    if isinstance(value, str | bytes) or not isinstance(value, int | float | np.number):
        raise ValueError(f"{name} {wanted}, a schedule or an array, got {value!r}")
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below) or (
        whole and (isinstance(value, bool) or (np.isfinite(value) and value != int(value)))
    ):
        raise ValueError(f"{name} {wanted}, got {value!r}")


def _fraction(steps_done: jax.Array, length: jax.Array) -> jax.Array:
    # Exactly 1 at the end, where XLA's n * (1 / n) need not be; a length of 0 is complete at once,
    # and the inner `where` keeps 0 / 0 out of gradients.
    safe_length = jnp.where(length > 0, length, 1.0)
    return jnp.where(steps_done < length, jnp.maximum(steps_done / safe_length, 0.0), 1.0)


def _as_float(number: Any) -> jax.Array:
    # float64 under x64: int32 / int would be float32 there all the same.
    return jnp.asarray(number).astype(jnp.result_type(float))


def _float_at(hyperparameter: Hyperparameter, count: Any) -> jax.Array:
    return _as_float(value_at(hyperparameter, count))


def _whole(count: Any) -> jax.Array:
    # Integers stay exact beyond 2^24, where float32 leaves numbers out.
    return jnp.asarray(count).astype(jnp.result_type(int))


def step_number(count: Any) -> jax.Array:
    """t = count + 1, the 1-based number of the step being taken, in floating point."""
    return _as_float(count) + 1.0


def _line(start: jax.Array, end: jax.Array, progress: jax.Array) -> jax.Array:
    # This form gives `end` exactly at the end: start + (end - start) need not.
    return start * (1.0 - progress) + end * progress


def _half_cosine(start: jax.Array, end: jax.Array, progress: jax.Array) -> jax.Array:
    # Between the same two values, and as exact at both ends.
    return _line(end, start, 0.5 * (1.0 + jnp.cos(jnp.pi * progress)))


_SHAPES = {"linear": _line, "cosine": _half_cosine}


def constant(value: Hyperparameter) -> Schedule:
    """The same value at every step.

    Args:
      value: in the unit of what is scheduled; >= 0, and inf where that means off.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN value.

    Unlike `optax.constant_schedule` it returns an array of the shape of `count`.

    Example:
      >>> constant(0.5)(np.arange(3))
      Array([0.5, 0.5, 0.5], dtype=float32)
    """
    check("value", value, "[0, inf]")

    def schedule(count: Any) -> jax.Array:
        return jnp.broadcast_to(_float_at(value, count), jnp.shape(count))

    return schedule


def warmup_cosine(
    peak: Hyperparameter,
    total_steps: Hyperparameter,
    warmup_steps: Hyperparameter,
    end: Hyperparameter = 0.0,
) -> Schedule:
    """Linear warm-up to `peak`, then half a cosine down to `end`.

    With t = count + 1, the 1-based number of the step being taken, w = `warmup_steps` and
    T = `total_steps`:

        value = peak t / w                                              t <= w
        value = end + (peak - end) (1 + cos(pi (t - w) / (T - w))) / 2  w < t < T
        value = end                                                     t >= T

    so that step w takes `peak` and no step is wasted at rate 0.

    Args:
      peak: the highest value, in the unit of what is scheduled; >= 0.
      total_steps: T, in steps; may be traced.
      warmup_steps: w, in steps, less than T; 0 leaves the warm-up out; may be traced.
      end: the value from step T on; >= 0.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN rate, a negative length, or total_steps <= warmup_steps.

    Unlike `optax.warmup_cosine_decay_schedule` the first step is not taken at rate 0, and the
    lengths may be traced.

    Example:
      >>> schedule = warmup_cosine(1.0, total_steps=10, warmup_steps=4)
      >>> [round(float(schedule(count)), 3) for count in (0, 3, 6, 9, 20)]
      [0.25, 1.0, 0.5, 0.0, 0.0]

    Reference:
      Loshchilov and Hutter, SGDR, 2017, https://arxiv.org/abs/1608.03983;
      Goyal et al., Accurate, Large Minibatch SGD, 2017, https://arxiv.org/abs/1706.02677.
    """
    check("peak", peak, "[0, inf)")
    check("end", end, "[0, inf)")
    check_lengths(total_steps, warmup_steps)

    def schedule(count: Any) -> jax.Array:
        t = step_number(count)
        w, total = _float_at(warmup_steps, count), _float_at(total_steps, count)
        high, low = value_at(peak, count), value_at(end, count)
        fall = _half_cosine(high, low, _fraction(t - w, total - w))
        return jnp.where(t <= w, high * _fraction(t, w), fall)

    return schedule


def check_lengths(total_steps: Any, warmup_steps: Any) -> None:
    """Refuses a run that is no longer than its warm-up."""
    check("total_steps", total_steps, "(0, inf)")
    check("warmup_steps", warmup_steps, "[0, inf)")
    if _are_numbers(total_steps, warmup_steps) and total_steps <= warmup_steps:
        raise ValueError(
            f"total_steps must be greater than warmup_steps, {warmup_steps!r}, got {total_steps!r}"
        )


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float | np.number) for value in values)


def linear_anneal(
    initial: Hyperparameter, total_steps: Hyperparameter, end: Hyperparameter = 0.0
) -> Schedule:
    """A straight line from `initial` to `end`, which it reaches at `total_steps` and keeps.

    With t = count + 1:  value = initial + (end - initial) min(t / total_steps, 1).

    Args:
      initial: the value extrapolated to t = 0, in the unit of what is scheduled.
      total_steps: in steps, > 0; may be traced.
      end: the value from step `total_steps` on.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a NaN value or total_steps <= 0.

    Example:
      >>> schedule = linear_anneal(1.0, total_steps=4)
      >>> [float(schedule(count)) for count in (0, 1, 3, 9)]
      [0.75, 0.5, 0.0, 0.0]
    """
    check("initial", initial, "(-inf, inf)")
    check("total_steps", total_steps, "(0, inf)")
    check("end", end, "(-inf, inf)")

    def schedule(count: Any) -> jax.Array:
        progress = _fraction(step_number(count), _float_at(total_steps, count))
        return _line(value_at(initial, count), value_at(end, count), progress)

    return schedule


def noise_anneal(eta: Hyperparameter = 0.01, gamma: Hyperparameter = 0.55) -> Schedule:
    """The annealed gradient noise of Neelakantan et al., as a standard deviation.

    With t the number of updates made before this one (the paper counts from 0):

        sigma_t = sqrt(eta / (1 + t)^gamma)

    Use it as the scale of `inject_noise`. `optax.add_noise` has the same annealing built in.

    Args:
      eta: the variance at the first step, >= 0; the paper tries 0.01, 0.3 and 1.0. Off: 0.
      gamma: the decay exponent, >= 0; the paper's is 0.55.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN argument.

    Example:
      >>> [round(float(noise_anneal(0.01)(count)), 4) for count in (0, 99)]
      [0.1, 0.0282]

    Reference:
      Neelakantan et al., Adding Gradient Noise Improves Learning for Very Deep Networks, 2015,
      https://arxiv.org/abs/1511.06807.
    """
    check("eta", eta, "[0, inf)")
    check("gamma", gamma, "[0, inf)")

    def schedule(count: Any) -> jax.Array:
        return jnp.sqrt(value_at(eta, count) / step_number(count) ** value_at(gamma, count))

    return schedule


def cosine(
    peak: Hyperparameter, total_steps: Hyperparameter, end: Hyperparameter = 0.0
) -> Schedule:
    """Half a cosine from `peak` down to `end`: `warmup_cosine` with no warm-up.

    With t = count + 1 and T = `total_steps`:

        value = end + (peak - end) (1 + cos(pi t / T)) / 2  t < T
        value = end                                         t >= T

    so that step T takes exactly `end`.

    Args:
      peak: the value extrapolated to t = 0, in the unit of what is scheduled; >= 0.
      total_steps: T, in steps, > 0; may be traced.
      end: the value from step T on; >= 0.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN value, or total_steps <= 0.

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
    def schedule(count: Any) -> jax.Array:
        return fall(count)

    return schedule


def cosine_restarts(
    peak: Hyperparameter,
    first_steps: Hyperparameter,
    multiplier: Hyperparameter = 1.0,
    end: Hyperparameter = 0.0,
) -> Schedule:
    """Half a cosine from `peak` towards `end`, again and again, each longer than the one before.

    With T_0 = `first_steps`, m = `multiplier`, cycle i = 0, 1, ... begins when

        S_i = T_0 (1 + m + ... + m^(i - 1)), rounded to a whole step,

    updates have been made and lasts T_i = S_(i + 1) - S_i steps, which is T_0 m^i but for the
    rounding. In it, with T_cur = count - S_i the updates made since it began,

        value = end + (peak - end) (1 + cos(pi T_cur / T_i)) / 2

    so that every cycle begins at exactly `peak`; `end` itself is what the next restart replaces.
    It never ends.

    Args:
      peak: the value at each restart, in the unit of what is scheduled; >= 0.
      first_steps: T_0, in steps, whole, >= 1; may be traced.
      multiplier: m, dimensionless, >= 1; 1 is cycles of equal length; may be traced.
      end: the value that each cycle goes down to; >= 0.

    Returns:
      A schedule: count (int or array) -> array of the same shape. Restarts come at whole steps,
      which do not depend smoothly on the lengths: gradients with respect to these are 0. They
      are exact with m = 1; with others float32 can place restarts beyond some thousand steps one
      step off.

    Raises:
      ValueError: for a negative or NaN value, first_steps < 1 or not whole, or multiplier < 1.

    Unlike `optax.sgdr_schedule` it takes no list of cycles, and the lengths may be traced.

    Example:
      >>> schedule = cosine_restarts(1.0, first_steps=2, multiplier=2.0)
      >>> [round(float(schedule(count)), 3) for count in range(7)]
      [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]

    Reference:
      Loshchilov and Hutter, SGDR, 2017, https://arxiv.org/abs/1608.03983.
    """
    check("peak", peak, "[0, inf)")
    check("first_steps", first_steps, "[1, inf)", whole=True)
    check("multiplier", multiplier, "[1, inf)")
    check("end", end, "[0, inf)")

    def schedule(count: Any) -> jax.Array:
        first, m = whole_value_at(first_steps, count), _float_at(multiplier, count)
        steps_done, length = _position_in_cycle(_whole(count), first, m)
        progress = _fraction(steps_done, length)
        return _half_cosine(_float_at(peak, count), _float_at(end, count), progress)

    return schedule


def _position_in_cycle(
    count: jax.Array, first: jax.Array, multiplier: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The steps done in the cycle that holds `count`, and its length, in floating point."""
    t, first_length, m = _as_float(count), _as_float(first), jax.lax.stop_gradient(multiplier)
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
    steps_done = jnp.where(is_equal, _as_float(count % jnp.maximum(first, 1)), t - begin)
    return steps_done, jnp.where(is_equal, first_length, following - begin)


def step_decay(initial: Hyperparameter, factor: Hyperparameter, period: Hyperparameter) -> Schedule:
    """Multiplied by `factor` every `period` steps.

    With t = count, the number of updates made before this one:

        value = initial factor^floor(t / period)

    so that the first `period` steps take exactly `initial`.

    Args:
      initial: the first value, in the unit of what is scheduled; >= 0.
      factor: dimensionless, in [0, 1]. Off: 1.
      period: in steps, whole, >= 1; may be traced.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN value, a factor outside [0, 1], or a period < 1 or not
        whole.

    `optax.exponential_decay` with `staircase` divides in floating point, which can place a step
    one too late.

    Example:
      >>> schedule = step_decay(1.0, factor=0.5, period=2)
      >>> [float(schedule(count)) for count in range(6)]
      [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """
    check("initial", initial, "[0, inf)")
    check("factor", factor, "[0, 1]")
    check("period", period, "[1, inf)", whole=True)

    def schedule(count: Any) -> jax.Array:
        # Integers: XLA's t * (1 / period) falls short of whole numbers.
        falls = _whole(count) // jnp.maximum(whole_value_at(period, count), 1)
        return _float_at(initial, count) * _float_at(factor, count) ** _as_float(falls)

    return schedule


def exponential_decay(
    initial: Hyperparameter,
    factor: Hyperparameter | None = None,
    *,
    rate: Hyperparameter | None = None,
) -> Schedule:
    """The same share less at every step.

    With t = count, the number of updates made before this one:

        value = initial factor^t   or   value = initial e^(-rate t)

    so that the first step takes exactly `initial`.

    Args:
      initial: the first value, in the unit of what is scheduled; >= 0.
      factor: what a step multiplies by, dimensionless, in [0, 1]. Off: 1.
      rate: instead of `factor`, per step, >= 0; small rates keep more digits than factors near
        1, which float32 rounds. Off: 0.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for both or neither of factor and rate, a negative or NaN value, or a factor
        outside [0, 1].

    `optax.exponential_decay` with one transition step is the first form.

    Example:
      >>> schedule = exponential_decay(1.0, factor=0.5)
      >>> [float(schedule(count)) for count in range(4)]
      [1.0, 0.5, 0.25, 0.125]
    """
    check("initial", initial, "[0, inf)")
    if (factor is None) == (rate is None):
        raise ValueError(
            "exponential_decay needs one of factor and rate, "
            f"got factor={factor!r} and rate={rate!r}"
        )
    if factor is not None:
        check("factor", factor, "[0, 1]")
    if rate is not None:
        check("rate", rate, "[0, inf)")

    def schedule(count: Any) -> jax.Array:
        t, value = _as_float(count), _float_at(initial, count)
        if factor is not None:
            value *= _float_at(factor, count) ** t
        if rate is not None:
            value *= jnp.exp(-_float_at(rate, count) * t)
        return value

    return schedule


def polynomial_decay(
    initial: Hyperparameter, power: Hyperparameter = 0.5, scale: Hyperparameter = 1.0
) -> Schedule:
    """A power of the step number: with power 0.5, that of many convergence proofs.

    With t = count, the number of updates made before this one:

        value = initial (scale t + 1)^(-power)

    so that the first step takes exactly `initial`.

    Args:
      initial: the first value, in the unit of what is scheduled; >= 0.
      power: dimensionless, >= 0. Off: 0.
      scale: per step, >= 0; 1 / scale is the number of steps until decay sets in.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN argument.

    `optax.polynomial_schedule` is something else: a power of the share of the steps that are
    left, with an end.

    Example:
      >>> schedule = polynomial_decay(1.0, power=0.5)
      >>> [float(schedule(count)) for count in (0, 3, 8 * 2 - 1)]
      [1.0, 0.5, 0.25]

    Reference:
      Robbins and Monro, A Stochastic Approximation Method, 1951,
      https://doi.org/10.1214/aoms/1177729586.
    """
    check("initial", initial, "[0, inf)")
    check("power", power, "[0, inf)")
    check("scale", scale, "[0, inf)")

    def schedule(count: Any) -> jax.Array:
        base = _float_at(scale, count) * _as_float(count) + 1.0
        return _float_at(initial, count) * base ** -_float_at(power, count)

    return schedule


def piecewise_constant(
    values: Sequence[Hyperparameter] | jax.Array, boundaries: Sequence[Hyperparameter] | jax.Array
) -> Schedule:
    """One value after another.

        value = values[i]   for boundaries[i - 1] <= count < boundaries[i]

    so that the first boundaries[0] steps take values[0].

    Args:
      values: in the unit of what is scheduled; >= 0, and inf where that means off.
      boundaries: numbers of steps from the beginning, one fewer than `values`, whole, >= 1 and
        strictly increasing. Each element of both may be traced.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN value, a boundary < 1 or not whole, boundaries that do
        not increase, or a number of boundaries that does not fit.

    `optax.piecewise_constant_schedule` takes factors from one value to the next, this one the
    values.

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
        check(f"values[{index}]", value, "[0, inf]")
    for index, boundary in enumerate(boundaries):
        check(f"boundaries[{index}]", boundary, "[1, inf)", whole=True)
    numbers: list[Any] = [boundary for boundary in boundaries if _are_numbers(boundary)]
    for earlier, later in pairwise(numbers):
        if later <= earlier:
            raise ValueError(f"boundaries must increase strictly, got {later!r} after {earlier!r}")

    def schedule(count: Any) -> jax.Array:
        result = constant(values[0])(count)
        for boundary, value in zip(boundaries, values[1:], strict=True):
            is_later = _whole(count) >= whole_value_at(boundary, count)
            result = jnp.where(is_later, _float_at(value, count), result)
        return result

    return schedule


def warmup(schedule: Hyperparameter, warmup_steps: Hyperparameter) -> Schedule:
    """A linear warm-up to where another schedule begins, and then that schedule.

    With t = count + 1, the 1-based number of the step being taken, and w = `warmup_steps`:

        value = schedule(0) t / w      t <= w
        value = schedule(count - w)    t > w

    so that step w takes exactly schedule(0) and no step is wasted at rate 0. A schedule that
    decays from an initial value takes that value at step w + 1 too.

    Args:
      schedule: what follows the warm-up; a number stays as it is.
      warmup_steps: w, in steps, whole, >= 0. Off: 0.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative number as the schedule, or a length that is negative, NaN or
        not whole.

    `optax.join_schedules` with `optax.linear_schedule` before takes the first step at rate 0.

    Example:
      >>> warmed = warmup(exponential_decay(1.0, factor=0.5), warmup_steps=2)
      >>> [float(warmed(count)) for count in range(5)]
      [0.5, 1.0, 1.0, 0.5, 0.25]

    Reference:
      Goyal et al., Accurate, Large Minibatch SGD, 2017, https://arxiv.org/abs/1706.02677.
    """
    check("schedule", schedule, "[0, inf)")
    check("warmup_steps", warmup_steps, "[0, inf)", whole=True)

    def warmed(count: Any) -> jax.Array:
        w = whole_value_at(warmup_steps, count)
        later = jnp.maximum(jnp.asarray(count) - w, 0)
        return value_at(schedule, later) * _fraction(step_number(count), _as_float(w))

    return warmed


def one_cycle(
    peak: Hyperparameter,
    total_steps: Hyperparameter,
    rise: Hyperparameter = 0.45,
    *,
    start: Hyperparameter = 0.0,
    end: Hyperparameter = 0.0,
    shape: str = "linear",
) -> Schedule:
    """Up to `peak` and down again in one run, the way down along half a cosine.

    With t = count + 1, the 1-based number of the step being taken, T = `total_steps` and
    r = rise T, rounded to a whole step:

        value = start + (peak - start) t / r                            t < r, "linear"
        value = peak + (start - peak) (1 + cos(pi t / r)) / 2           t < r, "cosine"
        value = end + (peak - end) (1 + cos(pi (t - r) / (T - r))) / 2  r <= t < T
        value = end                                                     t >= T

    so that step r takes exactly `peak` and step T exactly `end`.

    Args:
      peak: the highest value, in the unit of what is scheduled; >= 0.
      total_steps: T, in steps, > 0; may be traced.
      rise: the share of the steps on the way up, in [0, 1]. 0 is `cosine`; at 1 the value
        rises until step T, which takes `end`.
      start: the value extrapolated to t = 0; >= 0.
      end: the value from step T on; >= 0.
      shape: "linear" or "cosine", of the way up.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN value, total_steps <= 0, a share outside [0, 1], or a
        shape that is not there.

    `optax.cosine_onecycle_schedule(T, peak)` is `one_cycle(peak, T, 0.3, start=peak / 25,
    end=peak / 25e4, shape="cosine")` one step earlier, where 0.3 T is whole; its length
    cannot be traced.
    `optax.linear_onecycle_schedule` goes down in two straight lines.

    Example:
      >>> schedule = one_cycle(1.0, total_steps=8, rise=0.5)
      >>> [round(float(schedule(count)), 3) for count in range(9)]
      [0.25, 0.5, 0.75, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]

    Reference:
      Smith and Topin, Super-Convergence, 2017, https://arxiv.org/abs/1708.07120.
    """
    check("peak", peak, "[0, inf)")
    check("total_steps", total_steps, "(0, inf)")
    check("rise", rise, "[0, 1]")
    check("start", start, "[0, inf)")
    check("end", end, "[0, inf)")
    if shape not in _SHAPES:
        raise ValueError(f"shape must be one of {', '.join(map(repr, _SHAPES))}, got {shape!r}")

    def schedule(count: Any) -> jax.Array:
        t, total = step_number(count), _float_at(total_steps, count)
        r = jnp.round(_float_at(rise, count) * total)
        low, high, last = (_float_at(value, count) for value in (start, peak, end))
        up = _SHAPES[shape](low, high, _fraction(t, r))
        return jnp.where(t < r, up, _half_cosine(high, last, _fraction(t - r, total - r)))

    return schedule


def warmup_stable_decay(
    peak: Hyperparameter,
    total_steps: Hyperparameter,
    warmup_steps: Hyperparameter,
    decay_steps: Hyperparameter,
    end: Hyperparameter = 0.0,
) -> Schedule:
    """Linear warm-up to `peak`, a long stay there, and a linear way down to `end`.

    With t = count + 1, the 1-based number of the step being taken, w = `warmup_steps`,
    d = `decay_steps` and T = `total_steps`:

        value = peak t / w                              t <= w
        value = peak                                    w < t <= T - d
        value = peak + (end - peak) (t - T + d) / d     T - d < t < T
        value = end                                     t >= T

    The stay may be prolonged without having chosen T at the start: any checkpoint of it can be
    trained down in d steps.

    Args:
      peak: the highest value, in the unit of what is scheduled; >= 0.
      total_steps: T, in steps, > 0; may be traced.
      warmup_steps: w, in steps; 0 leaves the warm-up out; may be traced.
      decay_steps: d, in steps, > 0, with w + d <= T; may be traced.
      end: the value from step T on; >= 0.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN value or length, total_steps or decay_steps of 0, or
        warmup_steps + decay_steps > total_steps.

    Optax has none; the paper leaves the form of the decay open.

    Example:
      >>> schedule = warmup_stable_decay(1.0, total_steps=8, warmup_steps=2, decay_steps=4)
      >>> [float(schedule(count)) for count in range(9)]
      [0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]

    Reference:
      Hu et al., MiniCPM, 2024, https://arxiv.org/abs/2404.06395.
    """
    check("peak", peak, "[0, inf)")
    check("total_steps", total_steps, "(0, inf)")
    check("warmup_steps", warmup_steps, "[0, inf)")
    check("decay_steps", decay_steps, "(0, inf)")
    check("end", end, "[0, inf)")
    _check_room(total_steps, warmup_steps, decay_steps)

    def schedule(count: Any) -> jax.Array:
        t = step_number(count)
        total, w, d = (
            _float_at(length, count) for length in (total_steps, warmup_steps, decay_steps)
        )
        down = _line(_float_at(peak, count), _float_at(end, count), _fraction(t - (total - d), d))
        return down * _fraction(t, w)

    return schedule


def _check_room(total_steps: Any, warmup_steps: Any, decay_steps: Any) -> None:
    if not _are_numbers(total_steps, warmup_steps, decay_steps):
        return
    if total_steps < warmup_steps + decay_steps:
        raise ValueError(
            "total_steps must be at least warmup_steps + decay_steps, "
            f"{warmup_steps!r} + {decay_steps!r}, got {total_steps!r}"
        )
