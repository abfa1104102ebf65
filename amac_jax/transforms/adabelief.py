"""AdaBelief: steps as long as the gradient is as expected."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from amac_jax.moments import abs_square, bias_corrected, moving_average
from amac_jax.precision import wide_zeros, widen
from amac_jax.schedules import Hyperparameter, check, next_count, step_number, value_at


def scale_by_adabelief(
    b1: Hyperparameter = 0.9, b2: Hyperparameter = 0.999, eps: Hyperparameter = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Adam's step over the root of how far gradients are from their average.

        m <- b1 m + (1 - b1) g;   s <- b2 s + (1 - b2) (g - m)^2
        d = (m / (1 - b1^t)) / sqrt(s / (1 - b2^t) + eps)

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second, in [0, 1).
      eps: in the square of the gradient's unit; > 0.

    Returns:
      A transformation whose updates have the shapes and dtypes of the gradients.
      State: `optax.ScaleByBeliefState`.

    Raises:
      ValueError: for an argument outside its range.

    `optax.scale_by_belief` adds a constant to s at every step, where it accumulates to
    eps / (1 - b2), and another outside the root.

    Example:
      >>> tx = scale_by_adabelief(b1=0.0, eps=4.0)  # g - m = 0
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0]
      Array([ 0.5, -1. ], dtype=float32)

    Reference:
      Zhuang et al., AdaBelief Optimizer, 2020, https://arxiv.org/abs/2010.07468.
    """
    check("b1", b1, "[0, 1)")
    check("b2", b2, "[0, 1)")
    check("eps", eps, "(0, inf)")

    def init(params: optax.Params) -> optax.ScaleByBeliefState:
        return optax.ScaleByBeliefState(
            count=jnp.zeros([], jnp.int32), mu=wide_zeros(params), nu=wide_zeros(params)
        )

    def update(updates, state, params=None, **extra_args):
        b1_t, b2_t, eps_t = (value_at(value, state.count) for value in (b1, b2, eps))
        t, gradient = step_number(state.count), widen(updates)
        mu = moving_average(b1_t, state.mu, gradient)
        surprise = jax.tree.map(lambda g, m: abs_square(g - m), gradient, mu)
        nu = moving_average(b2_t, state.nu, surprise)
        direction = jax.tree.map(
            lambda m, s: m / jnp.sqrt(s + eps_t.astype(s.dtype)),
            bias_corrected(mu, b1_t, t),
            bias_corrected(nu, b2_t, t),
        )
        state = optax.ScaleByBeliefState(next_count(state.count), mu, nu)
        return optax.tree.cast_like(direction, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
