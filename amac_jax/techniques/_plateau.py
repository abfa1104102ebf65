"""Smaller steps where a metric has stopped improving."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Stage, Step, technique
from amac_jax._core.hyperparameters import Hyperparameter, next_count
from amac_jax._core.leaves import each_leaf
from amac_jax._core.ranges import COUNT, COUNT_OR_ZERO, NON_NEGATIVE, SHARE, UNIT


class ReduceOnPlateauState(NamedTuple):
    """The scale, and the record of the metric."""

    scale: jax.Array  # () float32
    best: jax.Array  # () float32, inf or -inf before the first value
    stagnant: jax.Array  # () int32, the number of values in a row without improvement
    cooldown: jax.Array  # () int32, the number of coming values that do not count
    total: jax.Array  # () float32, the sum of the values that wait for the next average
    collected: jax.Array  # () int32, their number


@technique(
    factor=SHARE,
    patience=COUNT,
    rtol=NON_NEGATIVE,
    atol=NON_NEGATIVE,
    cooldown=COUNT_OR_ZERO,
    accumulation_size=COUNT,
    min_scale=UNIT,
)
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
) -> Stage:
    """Multiplies updates by a scale that falls whenever a metric has stopped improving.

    Each update is handed the metric: `tx.update(updates, state, params, value=loss)`. The scale
    s is 1 at first. A value x improves on the best value so far if

        x < best - (rtol |best| + atol)        with "min"
        x > best + (rtol |best| + atol)        with "max"

    A NaN never improves. At the `patience`-th value in a row without improvement

        s <- max(factor s, min_scale)

    The new s already multiplies the update of that step. Then the count begins anew. The next
    `cooldown` values are not counted, but the best among them is remembered.

    Place it after the learning rate and `decay_weights`, so that it acts like a smaller learning
    rate, and before `lookahead` and `average_weights`.

    Args:
      factor: dimensionless, in (0, 1]. Off: 1.
      patience: in values, whole, >= 1.
      mode: "min" for a loss, "max" for an accuracy.
      rtol: the margin of an improvement as a share of the best value, dimensionless, >= 0.
      atol: a further margin, in the unit of the metric, >= 0.
      cooldown: in values, whole, >= 0. Off: 0.
      accumulation_size: the number of values that are averaged into one, which is then judged;
        whole, >= 1. Use it for the noisy loss of single batches. `patience` and `cooldown` count
        the averages. Off: 1.
      min_scale: the lower limit of the scale, dimensionless, in [0, 1]. Off: 0.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given, computed in at
      least float32. State: `CountedState` around `ReduceOnPlateauState`, which holds scalars only.

    Raises:
      ValueError: for a number outside its range or NaN, or another mode; for `update` without
        `value`, or with a value that is not a scalar.

    Differs from Optax:
      `optax.contrib.reduce_on_plateau` compares with (1 - rtol) best. A negative loss is below
      this limit without getting better. It does not have "max". PyTorch's `ReduceLROnPlateau`
      waits for one value more than its patience.

    When not to use:
      A schedule already brings the loss down: with `warmup_cosine` the end comes by itself.

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
    if mode not in ("min", "max"):
        raise ValueError(f"mode must be one of 'min', 'max', got {mode!r}")
    sign = 1.0 if mode == "min" else -1.0

    def init(params: Tree) -> ReduceOnPlateauState:
        number, count = jnp.zeros([], jnp.float32), jnp.zeros([], jnp.int32)
        return ReduceOnPlateauState(
            scale=number + 1,
            best=number + sign * jnp.inf,
            stagnant=count,
            cooldown=count + 0,  # a buffer of its own, for donation
            total=number,
            collected=count + 0,
        )

    def update(updates: Tree, state: ReduceOnPlateauState, params: Tree, step: Step):
        total = state.total + _scalar(step.extra_args.get("value"))
        collected = next_count(state.collected)
        is_due = collected >= step.accumulation_size
        mean = total / collected.astype(jnp.float32)

        # The first best value is inf, on which every finite value improves; inf - inf is NaN.
        rtol, atol = (tolerance.astype(jnp.float32) for tolerance in (step.rtol, step.atol))
        margin = rtol * jnp.abs(state.best) + atol
        margin = jnp.where(jnp.isfinite(state.best), margin, 0.0)
        improved = sign * mean < sign * state.best - margin
        in_cooldown = state.cooldown > 0
        stagnant = jnp.where(improved | in_cooldown, 0, next_count(state.stagnant))
        fires = stagnant >= step.patience
        factor, least = (number.astype(jnp.float32) for number in (step.factor, step.min_scale))
        reduced = jnp.maximum(state.scale * factor, jnp.minimum(least, state.scale))

        judged = ReduceOnPlateauState(
            scale=jnp.where(fires, reduced, state.scale),
            best=jnp.where(improved, mean, state.best),
            stagnant=jnp.where(fires, 0, stagnant),
            cooldown=jnp.where(fires, step.cooldown, jnp.maximum(state.cooldown - 1, 0)),
            total=jnp.zeros_like(total),
            collected=jnp.zeros_like(collected),
        )
        waiting = state._replace(total=total, collected=collected)
        state = jax.tree.map(
            lambda new, old: jnp.where(is_due, new, old).astype(old.dtype), judged, waiting
        )
        return each_leaf(lambda u, scale: scale * u, updates, scale=state.scale), state

    return Stage(update, init, metrics=lambda seen: {"plateau_scale": seen.state.scale})


def _scalar(value: ArrayLike | None) -> jax.Array:
    if value is None:
        raise ValueError(
            "reduce_on_plateau needs value: tx.update(updates, state, params, value=loss)"
        )
    if jnp.shape(value) != ():
        raise ValueError(f"value must be a scalar, got an array of shape {jnp.shape(value)}")
    return jnp.asarray(value).astype(jnp.float32)
