"""Heavy-ball momentum on updates."""

from __future__ import annotations

from typing import NamedTuple

from jax import Array

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Observation, Stage, Step, technique
from amac_jax._core.hyperparameters import Hyperparameter
from amac_jax._core.leaves import each_leaf, zeros_like
from amac_jax._core.measures import Measure, Norm
from amac_jax._core.ranges import DECAY, UNIT


class HeavyBallState(NamedTuple):
    """The velocity."""

    velocity: Tree  # the parameters' shapes, at least float32


@technique(decay=DECAY, dampening=UNIT)
def heavy_ball(decay: Hyperparameter, *, dampening: Hyperparameter = 0.0) -> Stage:
    """Replaces the update by a decaying sum of it and the updates before it: Polyak's momentum.

        v <- mu v + (1 - dampening) u;   the update is v

    Place it after the learning rate, so that each step keeps the rate at which it was taken, and
    before the weight decay, so that the decay is not carried along.

    Args:
      decay: mu, dimensionless, in [0, 1). Off: 0, with `dampening` 0.
      dampening: dimensionless, in [0, 1]. At 0 a constant update u is amplified to u / (1 - mu).
        With dampening = mu it stays u, and the learning rate keeps its meaning.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given.
      State: `CountedState` around `HeavyBallState`.

    Raises:
      ValueError: for a decay outside [0, 1), a dampening outside [0, 1], or NaN; for a decay in a
        16-bit array.

    Differs from Optax:
      `optax.trace` is the same with `dampening` 0. Here the hyperparameters may be schedules, and
      the velocity is kept in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = heavy_ball(0.5)
      >>> state = tx.init(jnp.zeros(1))
      >>> for _ in range(3):
      ...     update, state = tx.update(jnp.ones(1), state)
      >>> update
      Array([1.75], dtype=float32)

    Reference:
      Polyak, Some Methods of Speeding Up the Convergence of Iteration Methods, 1964.
    """

    def init(params: Tree) -> HeavyBallState:
        return HeavyBallState(zeros_like(params))

    def update(updates: Tree, state: HeavyBallState, params: Tree, step: Step):
        share = 1.0 - step.dampening
        velocity = each_leaf(accelerated, state.velocity, updates, decay=step.decay, share=share)
        velocity = step.kept(velocity, state.velocity)
        return velocity, HeavyBallState(velocity)

    def metrics(seen: Observation) -> dict[str, Measure]:
        return {"momentum_norm": Norm(seen.state.velocity)}

    return Stage(update, init, metrics=metrics, holds=True)


def accelerated(velocity: Array, update: Array, decay: Array, share: Array) -> Array:
    """mu v + (1 - dampening) u."""
    return decay * velocity + share * update
