"""Heavy-ball momentum on updates."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from amac_jax.leaves import floats_only
from amac_jax.precision import wide_zeros, widen
from amac_jax.schedules import Hyperparameter, check, next_count, value_at


class HeavyBallState(NamedTuple):
    """The number of updates made, and the velocity."""

    count: jax.Array  # () int32
    velocity: optax.Updates  # the parameters' shapes, at least float32


def heavy_ball(
    decay: Hyperparameter, *, dampening: Hyperparameter = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Polyak's momentum: the update is a decaying sum of the updates before it.

        v <- mu v + (1 - dampening) u;   the update is v

    Place it after the learning rate, so that a step keeps the rate it was taken with, and
    before weight decay, which then is not carried along.

    Args:
      decay: mu, dimensionless, in [0, 1). Off: 0, with `dampening` 0.
      dampening: in [0, 1]. At 0 a constant update is amplified to u / (1 - mu), with
        dampening = mu it stays u, and the learning rate keeps its meaning.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given.
      State: `HeavyBallState`.

    Raises:
      ValueError: for a decay outside [0, 1), a dampening outside [0, 1], or NaN.

    `optax.trace` is the same with `dampening` 0; this one may be scheduled and keeps its
    velocity in at least float32.

    Example:
      >>> tx = heavy_ball(0.5)
      >>> state = tx.init(jnp.zeros(1))
      >>> for _ in range(3):
      ...     update, state = tx.update(jnp.ones(1), state)
      >>> update
      Array([1.75], dtype=float32)

    Reference:
      Polyak, Some Methods of Speeding Up the Convergence of Iteration Methods, 1964.
    """
    check("decay", decay, "[0, 1)")
    check("dampening", dampening, "[0, 1]")

    def init(params: optax.Params) -> HeavyBallState:
        return HeavyBallState(count=jnp.zeros([], jnp.int32), velocity=wide_zeros(params))

    def update(updates, state, params=None, **extra_args):
        mu = value_at(decay, state.count)
        share = 1.0 - value_at(dampening, state.count)
        velocity = jax.tree.map(
            lambda v, u: mu.astype(v.dtype) * v + share.astype(v.dtype) * widen(u).astype(v.dtype),
            state.velocity,
            updates,
        )
        state = HeavyBallState(count=next_count(state.count), velocity=velocity)
        return optax.tree.cast_like(velocity, updates), state

    return floats_only(optax.GradientTransformationExtraArgs(init, update))
