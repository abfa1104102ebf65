"""Stochastic weight averaging, with equal weights or an exponential moving average."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from amac_jax.keys import typed_key
from amac_jax.leaves import floats_only
from amac_jax.precision import copy_in, wide_dtype, write_when
from amac_jax.rounding import narrow, narrow_dtype, narrow_stochastically, rounding_key
from amac_jax.schedules import Hyperparameter, check, next_count, value_at, whole_value_at


class AverageWeightsState(NamedTuple):
    """The number of updates made, of weights averaged, their average, and what rounds it."""

    count: jax.Array  # () int32
    averaged: jax.Array  # () int32
    average: optax.Params  # the parameters' shapes, the accumulator's dtype or `state_dtype`
    key: Any = None  # with a `state_dtype` (2,) uint32: key data


def average_weights(
    start: Hyperparameter = 0,
    period: Hyperparameter = 1,
    *,
    decay: Hyperparameter | None = None,
    # A dtype, not jnp.float32, which `optax.inject_hyperparams` would take for a schedule.
    dtype: Any = jnp.dtype("float32"),  # noqa: B008
    state_dtype: Any = None,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Keeps the average of the weights that training passes through; updates pass unchanged.

    At step t = start, start + period, ... (1-based), the n-th of them, with theta + u the
    weights that the step ends with:

        A <- A + max(1 / n, 1 - decay) (theta + u - A)

    Without `decay` that is the mean of all n. With it, a moving average that is the plain mean
    until 1 / n falls to 1 - decay: it starts from the weights, with no bias to correct.

    Place it last, where theta + u is what the parameters become. It counts updates: inside
    `optax.MultiSteps` those are optimizer steps, beside it they are micro-batches.
    Read the average with `amac_jax.averaged_params`.

    Args:
      start: the first step averaged, in steps, >= 0; a fraction is rounded up. Off: inf.
      period: in steps, >= 1.
      decay: of the moving average, in [0, 1]. Off: None or 1, the plain mean.
      dtype: of the accumulator; at least the parameters' precision is kept.
      state_dtype: "bfloat16" keeps the average in it, whatever `dtype`: computed in at least
        float32 and rounded stochastically when it is written, so that even increments far below
        its precision add up. Without bias, but each weight's average is off by the root mean
        square of 0.3 % after 1,000 weights that drift by 1 %. Scalars stay wide. Off: None or
        "float32".
      key: an integer seed or a JAX key, typed or raw, for that rounding.

    Returns:
      A transformation that returns the updates it is given. State: `AverageWeightsState`, whose
      `average` is a copy of the parameters until the first average.

    Raises:
      ValueError: for a negative start, a period < 1 or not whole, a decay outside [0, 1], or
        NaN; for another `state_dtype`; for `update` without `params`.

    `optax.ema` averages updates, not weights. With BatchNorm, recompute the statistics for the
    averaged weights: `amac_jax.recompute_batch_stats`.

    Example:
      >>> tx = optax.chain(optax.sgd(1.0), average_weights(start=2))
      >>> params = jnp.array(0.0)
      >>> state = tx.init(params)
      >>> for _ in range(4):  # through 1, 2, 3, 4
      ...     updates, state = tx.update(jnp.array(-1.0), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(state[-1].averaged, state[-1].average)
      3 3.0

    Reference:
      Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018,
      https://arxiv.org/abs/1803.05407.
    """
    check("start", start, "[0, inf]")
    check("period", period, "[1, inf)", whole=True)
    if decay is not None:
        check("decay", decay, "[0, 1]")
    narrowed = narrow_dtype("state_dtype", state_dtype)

    def init(params: optax.Params) -> AverageWeightsState:
        def accumulator(param):
            wide = jnp.promote_types(jnp.result_type(param), dtype)
            return copy_in(wide, param)

        average = jax.tree.map(accumulator, params)
        return AverageWeightsState(
            count=jnp.zeros([], jnp.int32),
            averaged=jnp.zeros([], jnp.int32),
            average=average if narrowed is None else narrow(average, narrowed),
            key=None if narrowed is None else rounding_key(key),
        )

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError("average_weights needs params: tx.update(updates, state, params)")
        step = next_count(state.count)
        due = is_due(step, value_at(start, state.count), whole_value_at(period, state.count))
        averaged = jnp.where(due, next_count(state.averaged), state.averaged)
        weight = 1.0 / jnp.maximum(averaged, 1).astype(jnp.result_type(float))
        if decay is not None:
            weight = jnp.maximum(weight, 1.0 - value_at(decay, state.count))

        def fold_in(average, theta):
            if narrowed is not None:
                average = average.astype(wide_dtype(average.dtype))
            return average + weight.astype(average.dtype) * (theta.astype(average.dtype) - average)

        def fold_in_all(average, theta):
            average = jax.tree.map(fold_in, average, theta)
            if narrowed is None:
                return average
            return narrow_stochastically(average, narrowed, typed_key(state.key, key), state.count)

        average = write_when(due, fold_in_all, state.average, params, updates)
        return updates, AverageWeightsState(step, averaged, average, state.key)

    return floats_only(optax.GradientTransformationExtraArgs(init, update))


def is_due(step: jax.Array, start: jax.Array, period: jax.Array) -> jax.Array:
    """Whether step is start, rounded up, start + period, ...; a start of inf never comes."""
    started = step >= start
    first = -(-jnp.where(started, start, 0) // 1)  # `ceil` would make floats of integers
    since_start = step - first.astype(step.dtype)
    return started & (since_start % period == 0)
