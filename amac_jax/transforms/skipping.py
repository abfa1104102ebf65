"""Leaving out steps whose gradient is not finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def skip_nonfinite(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A step with a NaN or infinite gradient changes nothing but a counter.

    `optax.apply_if_finite` without its limit, and with updates of -0 for the steps it leaves out:
    adding the 0 that it returns would turn a parameter of -0 into 0.

    Args:
      tx: any Optax transformation.

    Returns:
      A transformation whose updates are those of `tx`, or -0. State: `optax.ApplyIfFiniteState`,
      whose `total_notfinite` counts the steps left out.

    Example:
      >>> tx = skip_nonfinite(optax.sgd(0.1, momentum=0.9))
      >>> updates, state = tx.update(jnp.array([1.0, jnp.nan]), tx.init(jnp.ones(2)))
      >>> optax.apply_updates(jnp.array([1.0, -0.0]), updates), int(state.total_notfinite)
      (Array([ 1., -0.], dtype=float32), 1)
    """
    tx = optax.with_extra_args_support(
        optax.apply_if_finite(tx, max_consecutive_errors=jnp.iinfo(jnp.int32).max)
    )

    def update(updates, state, params=None, **extra_args):
        updates, state = tx.update(updates, state, params, **extra_args)
        assert isinstance(state, optax.ApplyIfFiniteState)

        def or_nothing(update):
            return jnp.where(state.last_finite, update, -jnp.zeros_like(update))

        return jax.tree.map(or_nothing, updates), state

    return optax.GradientTransformationExtraArgs(tx.init, update)
