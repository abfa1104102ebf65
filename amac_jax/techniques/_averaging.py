"""Stochastic weight averaging, with equal weights or an exponential moving average."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from amac_jax._core.aliases import Tree, promoted
from amac_jax._core.boundary import Landing, Observation, Stage, Step, technique
from amac_jax._core.draws.keys import Key
from amac_jax._core.hyperparameters import Hyperparameter, as_float, next_count
from amac_jax._core.leaves import copied, each_leaf
from amac_jax._core.measures import Measure
from amac_jax._core.ranges import COUNT, DECAY_OR_MEAN, START
from amac_jax._core.storage import storage


class AverageWeightsState(NamedTuple):
    """The number of weights averaged, their average, and the key for its rounding."""

    averaged: jax.Array  # () int32
    average: Tree  # the parameters' shapes, in `dtype` or `state_dtype`
    key: jax.Array | None  # (2,) uint32: key data; None without a `state_dtype`


@technique(start=START, period=COUNT, decay=DECAY_OR_MEAN)
def average_weights(
    start: Hyperparameter = 0,
    period: Hyperparameter = 1,
    *,
    decay: Hyperparameter | None = None,
    # jnp.float32 is callable: `optax.inject_hyperparams` would take it for a schedule.
    dtype: DTypeLike = jnp.dtype("float32"),  # noqa: B008
    state_dtype: DTypeLike | None = None,
    key: Key = 0,
) -> Stage:
    """Keeps the average of the weights that training passes through; updates pass unchanged.

    At the steps t = start, start + period, ... (1-based), with theta + u the weights that the
    step ends with, rounded as `optax.apply_updates` rounds them, and n the number of weights
    averaged so far, these included:

        A <- A + max(1 / n, 1 - decay) (theta + u - A)

    Without `decay` the factor is 1 / n, and A is the mean of all n weights. With `decay`, A is a
    moving average. It is the plain mean until 1 / n falls to 1 - decay: it starts from the
    weights and has no bias to correct.

    Place it last, where theta + u are the new parameters. It counts updates: inside
    `optax.MultiSteps` these are optimizer steps, beside it they are micro-batches.
    Read the average with `amac_jax.averaged_params`. With BatchNorm, recompute the statistics for
    the averaged weights: `amac_jax.recompute_batch_stats`.

    Args:
      start: the first step averaged, in steps, >= 0; a fraction is rounded up. Off: inf.
      period: in steps, whole, >= 1.
      decay: of the moving average, in [0, 1]. Off: None or 1, the plain mean.
      dtype: of the accumulator; it has at least float32 and the precision of the parameters.
      state_dtype: "bfloat16" stores the average in bfloat16, whatever `dtype` is. The average is
        computed in at least float32 and rounded stochastically when it is written, so that even
        increments far below the precision of bfloat16 add up. The rounding has no bias. After
        1,000 weights that drift by 1 %, the root mean square error of a weight's average is
        0.3 %. Scalars stay wide. Off: None or "float32".
      key: an integer seed or a JAX key, typed or raw, for this rounding.

    Returns:
      A transformation that returns the updates it is given. State: `CountedState` around
      `AverageWeightsState`. Its `average` is a copy of the parameters until the first average.

    Raises:
      ValueError: for a negative start, a period < 1 or not whole, a decay outside [0, 1], or
        NaN; for a decay in a 16-bit array; for another `state_dtype`; for `update` without
        `params`.

    Differs from Optax:
      `optax.ema` averages updates, not weights.

    Differs from Flax:
      `nnx.EMA(model, decay)`, of Flax 0.12.8, is A <- decay A + (1 - decay) theta at every call of
      its `update`, from the weights of the model at first. `average_weights(decay=decay)` is the
      same average once 1 / n has fallen to 1 - decay, and before it the plain mean, in which the
      first weights do not count for more than others. Here it is a part of the optimizer, which
      updates it, saves it and shards it; it starts at a step and has a period; it is in float32 at
      least, where `nnx.EMA` keeps the dtype of the weights: in bfloat16 an increment below a 256th
      of the average is lost, which is all of them with a decay of 0.999. What `nnx.EMA` has
      besides: `only`, a filter of variables, which is `wrt` of `nnx.Optimizer` or `optax.masked`
      here, and averages of BatchNorm's statistics, which `recompute_batch_stats` computes anew.

    Example:
      >>> import optax
      >>> tx = optax.chain(optax.sgd(1.0), average_weights(start=2))
      >>> params = jnp.array(0.0)
      >>> state = tx.init(params)
      >>> for _ in range(4):  # through 1, 2, 3, 4
      ...     updates, state = tx.update(jnp.array(-1.0), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> average = state[-1].inner
      >>> print(average.averaged, average.average)
      3 3.0

    Reference:
      Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018,
      https://arxiv.org/abs/1803.05407.
    """
    kept = storage("state_dtype", state_dtype, key)

    def init(params: Tree) -> AverageWeightsState:
        average = kept.first(copied(params, dtype))
        return AverageWeightsState(jnp.zeros([], jnp.int32), average, kept.key_data())

    def is_averaged(step: Step) -> jax.Array:
        return step.counts(is_due(next_count(step.count), step.start, step.period))

    def update(updates: Tree, state: AverageWeightsState, params: Tree, step: Step):
        averaged = jnp.where(is_averaged(step), next_count(state.averaged), state.averaged)
        return updates, state._replace(averaged=averaged)

    def lands(state: AverageWeightsState, step: Step) -> Landing:
        weight = 1.0 / as_float(jnp.maximum(state.averaged, 1))
        if step.decay is not None:
            weight = jnp.maximum(weight, 1.0 - step.decay)

        def write(old: dict[str, Tree], landing: Tree) -> dict[str, Tree]:
            average = each_leaf(folded_in, kept.loaded(old["average"]), landing, weight=weight)
            return {"average": kept.stored(average, state.key, step.count)}

        return Landing(is_averaged(step), {"average": state.average}, write)

    def metrics(seen: Observation) -> dict[str, Measure]:
        return {"averaged_count": seen.state.averaged}

    return Stage(update, init, needs_params=True, metrics=metrics, lands=lands)


def folded_in(average: jax.Array, landing: jax.Array, weight: jax.Array) -> jax.Array:
    """A + w (theta + u - A)."""
    return average + weight * (landing - average)


def is_due(step: jax.Array, start: jax.Array, period: jax.Array) -> jax.Array:
    """Whether a step is start (rounded up), start + period, ...; a start of inf never comes."""
    both = promoted(step.dtype, start.dtype)
    started = step.astype(both) >= start.astype(both)
    first = -(-jnp.where(started, start, 0) // 1)  # `ceil` would turn integers into floats
    since_start = step - first.astype(step.dtype)
    return started & (since_start % period == 0)
