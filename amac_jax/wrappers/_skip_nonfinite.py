"""Skipping of steps whose gradient is not finite."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Transformation, described, held
from amac_jax._core.hyperparameters import next_count
from amac_jax._core.leaves import all_finite, enter


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
    begin, step = held(tx)

    def init(params: Tree) -> optax.ApplyIfFiniteState:
        none, in_all = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)  # each can be donated
        return optax.ApplyIfFiniteState(none, jnp.array(True), in_all, begin(params))

    def update(
        updates: Tree, state: optax.ApplyIfFiniteState, params: Tree = None, **extra_args: Any
    ) -> tuple[Tree, Tree]:
        inside = enter(updates, params, extra_args)
        finite = all_finite(inside.updates, inside.received[0])
        new, inner = step(inside, state.inner_state, finite, state.total_notfinite)
        return new, optax.ApplyIfFiniteState(
            notfinite_count=jnp.where(finite, 0, next_count(state.notfinite_count)),
            last_finite=finite,
            total_notfinite=jnp.where(
                finite, state.total_notfinite, next_count(state.total_notfinite)
            ),
            inner_state=inner,
        )

    return Transformation(init, update, description=described("skip_nonfinite", {"tx": tx}))
