"""What a hyperparameter is at a step: numbers, arrays and schedules, and the checks on them."""

from __future__ import annotations

from collections.abc import Callable
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


def check(name: str, value: Any, interval: str, *, whole: bool = False) -> None:
    """Refuses a Python number outside an interval; arrays and schedules pass unread.

    Args:
      name: the argument's name, for the message.
      value: what was passed for it.
      interval: for example `"[0, 1)"` or `"(0, inf]"`. NaN is in no interval.
      whole: whether the number must be a whole one.

    Raises:
      ValueError: naming the argument, the interval and the value received.

    Example:
      >>> check("b1", 1.0, "[0, 1)")
      Traceback (most recent call last):
      ValueError: b1 must be in [0, 1), got 1.0
    """
    if callable(value) or isinstance(value, jax.Array | np.ndarray):
        return
    kind = "a whole number" if whole else ""
    wanted = " ".join(filter(None, ["must be", kind, f"in {interval}"]))
    if isinstance(value, str | bytes) or not isinstance(value, int | float | np.number):
        raise ValueError(f"{name} {wanted}, a schedule or an array, got {value!r}")
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below) or (whole and np.isfinite(value) and value != int(value)):
        raise ValueError(f"{name} {wanted}, got {value!r}")


def _fraction(steps_done: jax.Array, length: jax.Array) -> jax.Array:
    # Exactly 1 at the end, where XLA's n * (1 / n) need not be; a length of 0 is complete at once,
    # and the inner `where` keeps 0 / 0 out of gradients.
    safe_length = jnp.where(length > 0, length, 1.0)
    return jnp.where(steps_done < length, jnp.maximum(steps_done / safe_length, 0.0), 1.0)


def _as_float(number: Any) -> jax.Array:
    # float64 under x64: int32 / int would be float32 there all the same.
    return jnp.asarray(number).astype(jnp.result_type(float))


def step_number(count: Any) -> jax.Array:
    """t = count + 1, the 1-based number of the step being taken, in floating point."""
    return _as_float(count) + 1.0


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
        w, total = (_as_float(value_at(length, count)) for length in (warmup_steps, total_steps))
        high, low = value_at(peak, count), value_at(end, count)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * _fraction(t - w, total - w)))
        return jnp.where(t <= w, high * _fraction(t, w), low + (high - low) * cosine)

    return schedule


def check_lengths(total_steps: Any, warmup_steps: Any) -> None:
    """Refuses a run that is no longer than its warm-up."""
    check("total_steps", total_steps, "(0, inf)")
    check("warmup_steps", warmup_steps, "[0, inf)")
    numbers = all(
        isinstance(steps, int | float | np.number) for steps in (total_steps, warmup_steps)
    )
    if numbers and total_steps <= warmup_steps:
        raise ValueError(
            f"total_steps must be greater than warmup_steps, {warmup_steps!r}, got {total_steps!r}"
        )


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
        progress = _fraction(step_number(count), _as_float(value_at(total_steps, count)))
        first, last = value_at(initial, count), value_at(end, count)
        # This form gives `end` exactly at the end: first + (last - first) need not.
        return first * (1.0 - progress) + last * progress

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
