"""Smaller steps whenever a metric has stopped improving."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from amac_jax.leaves import floats_only
from amac_jax.precision import map_wide
from amac_jax.schedules import Hyperparameter, check, next_count, value_at, whole_value_at


class ReduceOnPlateauState(NamedTuple):
    """The number of updates made, the scale, and what is remembered of the metric."""

    count: jax.Array  # () int32
    scale: jax.Array  # () float32
    best: jax.Array  # () float32, inf or -inf before the first value
    stagnant: jax.Array  # () int32, values in a row without improvement
    cooldown: jax.Array  # () int32, values still to come that do not count
    total: jax.Array  # () float32, the sum of the values not yet judged
    collected: jax.Array  # () int32, their number


def reduce_on_plateau(
    factor: Hyperparameter = 0.1,
    patience: Hyperparameter = 10,
    *,
    mode: str = "min",
    rtol: Hyperparameter = 1e-4,
    atol: Hyperparameter = 0.0,
    cooldown: Hyperparameter = 0,
    accumulation_size: Hyperparameter = 1,
    min_scale: Hyperparameter = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by a scale that falls whenever a metric has stopped improving.

    Each update is handed the metric: `tx.update(updates, state, params, value=loss)`. The scale
    s is 1 at first. With "min", a value x is an improvement on the best so far if

        x < best - (rtol |best| + atol)        "max": x > best + (rtol |best| + atol)

    and NaN is none. At the `patience`-th value in a row without improvement

        s <- max(factor s, min_scale)

    which already holds for the update of that step; then the count begins anew, and the next
    `cooldown` values are not counted, though the best one is remembered.

    Place it after the learning rate and `decay_weights`, so that it acts as a smaller learning
    rate does, and before `lookahead` and `average_weights`.

    Args:
      factor: dimensionless, in (0, 1]. Off: 1.
      patience: in values, whole, >= 1.
      mode: "min" for a loss, "max" for an accuracy.
      rtol: share of the best value that an improvement must exceed, >= 0.
      atol: the same in the metric's unit, >= 0.
      cooldown: in values, whole, >= 0.
      accumulation_size: how many values are averaged into one that is judged, whole, >= 1; for
        the noisy loss of single batches. `patience` and `cooldown` count the averages.
      min_scale: what the scale does not fall below, dimensionless, in [0, 1].

    Returns:
      A transformation whose updates have the shapes and dtypes it is given, computed in at
      least float32. State: `ReduceOnPlateauState`, scalars only.

    Raises:
      ValueError: for a number outside its range or NaN, or another mode; for `update` without
        `value`, or with one that is not a scalar.

    `optax.contrib.reduce_on_plateau` compares with (1 - rtol) best, which a negative loss is
    below without getting better, and has no "max"; PyTorch's ReduceLROnPlateau waits for one
    value more than its patience. Not for losses that a schedule already brings down: with
    `warmup_cosine` the end comes by itself.

    Example:
      >>> tx = reduce_on_plateau(factor=0.5, patience=2)
      >>> state = tx.init(jnp.array(0.0))
      >>> for loss in (3.0, 2.0, 2.0, 2.0, 1.0):
      ...     updates, state = tx.update(jnp.array(-1.0), state, value=loss)
      ...     print(updates)
      -1.0
      -1.0
      -1.0
      -0.5
      -0.5

    Reference:
      The callback of Keras, https://keras.io/api/callbacks/reduce_lr_on_plateau.
    """
    check("factor", factor, "(0, 1]")
    check("patience", patience, "[1, inf)", whole=True)
    check("rtol", rtol, "[0, inf)")
    check("atol", atol, "[0, inf)")
    check("cooldown", cooldown, "[0, inf)", whole=True)
    check("accumulation_size", accumulation_size, "[1, inf)", whole=True)
    check("min_scale", min_scale, "[0, 1]")
    if mode not in ("min", "max"):
        raise ValueError(f"mode must be one of 'min', 'max', got {mode!r}")
    sign = 1.0 if mode == "min" else -1.0

    def init(params: optax.Params) -> ReduceOnPlateauState:
        return ReduceOnPlateauState(
            count=jnp.zeros([], jnp.int32),
            scale=jnp.ones([], jnp.float32),
            best=jnp.array(sign * jnp.inf, jnp.float32),
            stagnant=jnp.zeros([], jnp.int32),
            cooldown=jnp.zeros([], jnp.int32),
            total=jnp.zeros([], jnp.float32),
            collected=jnp.zeros([], jnp.int32),
        )

    def update(updates, state, params=None, *, value=None, **extra_args):
        total = state.total + _scalar(value)
        collected = next_count(state.collected)
        is_due = collected >= whole_value_at(accumulation_size, state.count)
        mean = total / collected.astype(jnp.float32)

        margin = value_at(rtol, state.count) * jnp.abs(state.best) + value_at(atol, state.count)
        # Anything finite improves on the inf at first, where inf - inf would be NaN.
        margin = jnp.where(jnp.isfinite(state.best), margin, 0.0)
        improved = sign * mean < sign * state.best - margin
        in_cooldown = state.cooldown > 0
        stagnant = jnp.where(improved | in_cooldown, 0, next_count(state.stagnant))
        fires = stagnant >= whole_value_at(patience, state.count)
        lowest = jnp.minimum(value_at(min_scale, state.count), state.scale)
        reduced = jnp.maximum(state.scale * value_at(factor, state.count), lowest)
        pause = whole_value_at(cooldown, state.count)

        judged = ReduceOnPlateauState(
            count=state.count,
            scale=jnp.where(fires, reduced, state.scale),
            best=jnp.where(improved, mean, state.best),
            stagnant=jnp.where(fires, 0, stagnant),
            cooldown=jnp.where(fires, pause, jnp.maximum(state.cooldown - 1, 0)),
            total=jnp.zeros_like(total),
            collected=jnp.zeros_like(collected),
        )
        waiting = state._replace(total=total, collected=collected)
        state = jax.tree.map(
            lambda new, old: jnp.where(is_due, new, old).astype(old.dtype), judged, waiting
        )
        updates = map_wide(lambda u: state.scale * u, updates)
        return updates, state._replace(count=next_count(state.count))

    return floats_only(optax.GradientTransformationExtraArgs(init, update))


def _scalar(value: Any) -> jax.Array:
    if value is None:
        raise ValueError(
            "reduce_on_plateau needs value: tx.update(updates, state, params, value=loss)"
        )
    if jnp.shape(value) != ():
        raise ValueError(f"value must be a scalar, got an array of shape {jnp.shape(value)}")
    return jnp.asarray(value).astype(jnp.float32)
