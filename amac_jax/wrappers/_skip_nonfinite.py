"""Skipping of steps whose gradient is not finite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from amac_jax._core.boundary import Transformation, described
from amac_jax._core.leaves import enter, trained_only
from amac_jax._core.types import Tree


def skip_nonfinite(tx: optax.GradientTransformation) -> Transformation:
    """Skips every step with a NaN or infinite gradient: such a step changes only a counter.

    Place it around a whole optimizer.

    Args:
      tx: any Optax transformation.

    Returns:
      A transformation whose updates are the updates of `tx`, or -0 for a skipped step, with the
      shapes and dtypes it is given. State: `optax.ApplyIfFiniteState`. Its `total_notfinite`
      counts the skipped steps.

    Differs from Optax:
      `optax.apply_if_finite` has a limit of consecutive errors, and its update for a skipped step
      is 0. To add 0 would turn a parameter of -0 into 0; to add -0 does not.

    Example:
      >>> tx = skip_nonfinite(optax.sgd(0.1, momentum=0.9))
      >>> updates, state = tx.update(jnp.array([1.0, jnp.nan]), tx.init(jnp.ones(2)))
      >>> optax.apply_updates(jnp.array([1.0, -0.0]), updates), int(state.total_notfinite)
      (Array([ 1., -0.], dtype=float32), 1)
    """
    skipping = optax.with_extra_args_support(
        optax.apply_if_finite(tx, max_consecutive_errors=jnp.iinfo(jnp.int32).max)
    )

    def init(params: Tree) -> Tree:
        return skipping.init(trained_only(params))

    def update(
        updates: Tree, state: Tree, params: Tree = None, **extra_args: Any
    ) -> tuple[Tree, Tree]:
        inside = enter(updates, params, extra_args)
        new, state = skipping.update(inside.updates, state, inside.params, **inside.extra_args)
        assert isinstance(state, optax.ApplyIfFiniteState)

        def or_nothing(update: jax.Array) -> jax.Array:
            return jnp.where(state.last_finite, update, -jnp.zeros_like(update))

        return inside.leave(jax.tree.map(or_nothing, new)), state

    return Transformation(init, update, description=described("skip_nonfinite", {"tx": tx}))
