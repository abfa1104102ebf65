"""Schedules that fall along a power, an exponential, stairs or a line."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from amac_jax._core.hyperparameters import (
    Count,
    Hyperparameter,
    Schedule,
    as_float,
    float_value_at,
    step_number,
    value_at,
    whole_value_at,
)
from amac_jax._core.ranges import COUNT, NON_NEGATIVE, POSITIVE, REAL, UNIT, checked
from amac_jax.schedules._progress import fraction, line, whole


@checked(initial=NON_NEGATIVE, factor=UNIT, period=COUNT)
def step_decay(initial: Hyperparameter, factor: Hyperparameter, period: Hyperparameter) -> Schedule:
    """A value that is multiplied by `factor` every `period` steps.

    With t = count, the number of updates made before this one:

        value = initial factor^floor(t / period)

    The first `period` steps take exactly `initial`.

    Use it as a learning rate.

    Args:
      initial: the first value, in the unit of the scheduled hyperparameter; >= 0.
      factor: dimensionless, in [0, 1]. Off: 1.
      period: in steps, whole, >= 1; may be traced.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN value, a factor outside [0, 1], or a period < 1 or not
        whole.

    Differs from Optax:
      `optax.exponential_decay` with `staircase` divides in floating point, which can place a
      fall one step too late. Here the division is in integers.

    When not to use:
      The falls come at uneven distances: use `piecewise_constant`.

    Example:
      >>> schedule = step_decay(1.0, factor=0.5, period=2)
      >>> [float(schedule(count)) for count in range(6)]
      [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """

    def schedule(count: Count) -> jax.Array:
        # Integers: XLA's t * (1 / period) falls short of whole numbers.
        falls = whole(count) // jnp.maximum(whole(whole_value_at(period, count)), 1)
        return float_value_at(initial, count) * float_value_at(factor, count) ** as_float(falls)

    return schedule


@checked(initial=NON_NEGATIVE, factor=UNIT, rate=NON_NEGATIVE)
def exponential_decay(
    initial: Hyperparameter,
    factor: Hyperparameter | None = None,
    *,
    rate: Hyperparameter | None = None,
) -> Schedule:
    """A value that loses the same share of itself at every step.

    With t = count, the number of updates made before this one:

        value = initial factor^t   or   value = initial e^(-rate t)

    The first step takes exactly `initial`.

    Use it as a learning rate, alone or as the second part of `warmup`.

    Args:
      initial: the first value, in the unit of the scheduled hyperparameter; >= 0.
      factor: the multiplier of one step, dimensionless, in [0, 1]. Off: 1.
      rate: an exponent per step, >= 0, to be given instead of `factor`. Off: 0. A small rate
        keeps more digits than a factor near 1, which float32 rounds.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for both or neither of factor and rate, a negative or NaN value, or a factor
        outside [0, 1].

    Differs from Optax:
      `optax.exponential_decay` with one transition step is the first form. Optax does not have
      the second.

    Example:
      >>> schedule = exponential_decay(1.0, factor=0.5)
      >>> [float(schedule(count)) for count in range(4)]
      [1.0, 0.5, 0.25, 0.125]
    """
    if (factor is None) == (rate is None):
        raise ValueError(
            "exponential_decay needs one of factor and rate, "
            f"got factor={factor!r} and rate={rate!r}"
        )

    def schedule(count: Count) -> jax.Array:
        t, value = as_float(count), float_value_at(initial, count)
        if factor is not None:
            value *= float_value_at(factor, count) ** t
        if rate is not None:
            value *= jnp.exp(-float_value_at(rate, count) * t)
        return value

    return schedule


@checked(initial=NON_NEGATIVE, power=NON_NEGATIVE, scale=NON_NEGATIVE)
def inverse_power_decay(
    initial: Hyperparameter, power: Hyperparameter = 0.5, scale: Hyperparameter = 1.0
) -> Schedule:
    """A negative power of the step number; convergence proofs often use power 0.5.

    With t = count, the number of updates made before this one:

        value = initial (scale t + 1)^(-power)

    The first step takes exactly `initial`. The value never reaches 0.

    Use it as a learning rate where the length of the run is not known. With power 0.5, after
    `warmup`, it is the inverse square root of the step number.

    Args:
      initial: the first value, in the unit of the scheduled hyperparameter; >= 0.
      power: dimensionless, >= 0. Off: 0.
      scale: per step, >= 0; 1 / scale is the number of steps until decay sets in. Off: 0.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN argument.

    Differs from Optax:
      Optax does not have this schedule. `optax.polynomial_schedule` is `polynomial_decay`.

    When not to use:
      The length of the run is known and its last steps should be small: use `cosine` or
      `polynomial_decay`.

    Example:
      >>> schedule = inverse_power_decay(1.0, power=0.5)
      >>> [float(schedule(count)) for count in (0, 3, 8 * 2 - 1)]
      [1.0, 0.5, 0.25]

    Reference:
      Robbins and Monro, A Stochastic Approximation Method, 1951,
      https://doi.org/10.1214/aoms/1177729586.
    """

    def schedule(count: Count) -> jax.Array:
        base = float_value_at(scale, count) * as_float(count) + 1.0
        return float_value_at(initial, count) * base ** -float_value_at(power, count)

    return schedule


@checked(initial=NON_NEGATIVE, total_steps=POSITIVE, power=NON_NEGATIVE, end=NON_NEGATIVE)
def polynomial_decay(
    initial: Hyperparameter,
    total_steps: Hyperparameter,
    power: Hyperparameter = 1.0,
    end: Hyperparameter = 0.0,
) -> Schedule:
    """A power of the share of the steps that are left, between `initial` and `end`.

    With t = count, the number of updates made before this one, and T = `total_steps`:

        value = end + (initial - end) (1 - t / T)^power  t < T
        value = end                                      t >= T

    The first step takes exactly `initial`. Keras's `PolynomialDecay` and PyTorch's `PolynomialLR`
    are this schedule too.

    Use it as a learning rate, alone or as the second part of `warmup`.

    Args:
      initial: the first value, in the unit of the scheduled hyperparameter; >= 0.
      total_steps: T, in steps, > 0; may be traced.
      power: dimensionless, >= 0. At 1 the schedule is a straight line. At 0 it is `initial`
        until T.
      end: the value once T updates have been made, in the unit of `initial`; >= 0.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN value, or total_steps <= 0.

    Differs from Optax:
      `optax.polynomial_schedule(initial, end, power, total_steps)` has the same values. Its
      length cannot be traced. Its delay `transition_begin` is not here: use `warmup`.

    When not to use:
      The last step of the run should take exactly `end`: in a run of T steps none does here.
      With power 1 use `linear_anneal`, which counts its steps from 1.

    Example:
      >>> schedule = polynomial_decay(1.0, total_steps=4, power=2.0)
      >>> [float(schedule(count)) for count in range(6)]
      [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """

    def schedule(count: Count) -> jax.Array:
        t, total = as_float(count), float_value_at(total_steps, count)
        first, last = float_value_at(initial, count), float_value_at(end, count)
        # The inner `where` keeps 0^power, whose slope may be infinite, out of gradients.
        left = jnp.where(t < total, fraction(total - t, total), 1.0)
        value = line(last, first, left ** float_value_at(power, count))
        return jnp.where(t < total, value, last)

    return schedule


@checked(initial=REAL, total_steps=POSITIVE, end=REAL)
def linear_anneal(
    initial: Hyperparameter, total_steps: Hyperparameter, end: Hyperparameter = 0.0
) -> Schedule:
    """A straight line from `initial` to `end`, which it reaches at `total_steps` and keeps.

    With t = count + 1, the 1-based number of the step being taken:

        value = initial + (end - initial) min(t / total_steps, 1)

    Step `total_steps` takes exactly `end`.

    Use it for hyperparameters that end with the run. The noise of `amac` is annealed with it.

    Args:
      initial: the value extrapolated to t = 0, in the unit of the scheduled hyperparameter.
      total_steps: in steps, > 0; may be traced.
      end: the value from step `total_steps` on, in the unit of `initial`.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a NaN or infinite value, or total_steps <= 0.

    Differs from Optax:
      `optax.linear_schedule` counts from 0: its first step takes `initial`, and in a run of
      `total_steps` steps none takes `end`. Its length cannot be traced.

    Example:
      >>> schedule = linear_anneal(1.0, total_steps=4)
      >>> [float(schedule(count)) for count in (0, 1, 3, 9)]
      [0.75, 0.5, 0.0, 0.0]
    """

    def schedule(count: Count) -> jax.Array:
        progress = fraction(step_number(count), float_value_at(total_steps, count))
        return line(value_at(initial, count), value_at(end, count), progress)

    return schedule


@checked(eta=NON_NEGATIVE, gamma=NON_NEGATIVE)
def noise_anneal(eta: Hyperparameter = 0.01, gamma: Hyperparameter = 0.55) -> Schedule:
    """The annealed gradient noise of Neelakantan et al., as a standard deviation.

    With t = count, the number of updates made before this one (the paper counts from 0):

        sigma_t = sqrt(eta / (1 + t)^gamma)

    Use it as the scale of `inject_noise`.

    Args:
      eta: the variance at the first step, in the squared unit of the noise, >= 0; the paper
        tries 0.01, 0.3 and 1.0. Off: 0.
      gamma: the decay exponent, dimensionless, >= 0; the paper uses 0.55. At 0 the noise does
        not decay.

    Returns:
      A schedule: count (int or array) -> array of the same shape.

    Raises:
      ValueError: for a negative or NaN argument.

    Differs from Optax:
      `optax.add_noise` has the same annealing built in.

    Example:
      >>> [round(float(noise_anneal(0.01)(count)), 4) for count in (0, 99)]
      [0.1, 0.0282]

    Reference:
      Neelakantan et al., Adding Gradient Noise Improves Learning for Very Deep Networks, 2015,
      https://arxiv.org/abs/1511.06807.
    """

    def schedule(count: Count) -> jax.Array:
        return jnp.sqrt(value_at(eta, count) / step_number(count) ** value_at(gamma, count))

    return schedule
