"""Sophia: momentum over an estimate of the Hessian's diagonal, clipped."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from amac_jax.keys import key_data, typed_key
from amac_jax.leaves import floats_only
from amac_jax.moments import moving_average
from amac_jax.objective import hessian_vector_product, scalar_objective
from amac_jax.precision import wide_zeros, widen
from amac_jax.schedules import Hyperparameter, check, next_count, value_at, whole_value_at


class SophiaState(NamedTuple):
    """The number of updates made, the momentum, the Hessian's diagonal, and a copy of the key."""

    count: jax.Array  # () int32
    mu: optax.Updates  # the parameters' shapes, at least float32
    hessian: optax.Updates  # the same
    key: jax.Array  # (2,) uint32


def scale_by_sophia(
    b1: Hyperparameter = 0.96,
    b2: Hyperparameter = 0.99,
    gamma: Hyperparameter = 0.01,
    eps: Hyperparameter = 1e-12,
    update_interval: Hyperparameter = 10,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Sophia-H: the momentum over the Hessian's diagonal, each element clipped to [-1, 1].

        m <- b1 m + (1 - b1) g
        at steps 1, k + 1, 2k + 1, ...:   h <- b2 h + (1 - b2) z * (H z)
        d = clip(m / max(gamma h, eps), -1, 1)

    with H the Hessian of `value_fn` at the parameters, applied to a vector z of random signs
    (Hutchinson's estimator), and * elementwise. The objective comes with each update:
    `tx.update(g, state, params, value_fn=lambda params: loss(params, batch))`. Where the
    curvature is negative or unknown, the step is the momentum's sign.

    Place it where Adam's core stands; an estimate costs as much as two gradients.

    Args:
      b1: decay of the momentum, in [0, 1).
      b2: decay of the diagonal, in [0, 1), per estimate.
      gamma: of the diagonal, > 0; larger makes steps smaller where they are not clipped.
      eps: the least denominator, > 0.
      update_interval: k, in steps, >= 1.
      key: an integer seed or a JAX key for the signs.

    Returns:
      A transformation whose updates have the shapes and dtypes of the gradients, in [-1, 1].
      State: `SophiaState`.

    Raises:
      ValueError: for an argument outside its range; for `update` without `params`, without
        `value_fn`, or with one that does not return a scalar; from `init`, for complex parameters.

    `optax.contrib.sophia` corrects the momentum's bias, estimates the diagonal after the update
    that should use it, so that its first steps are signs, and names the objective `obj_fn`.
    The paper's signs are normal numbers: the same mean with a larger variance.

    Example:
      >>> tx = scale_by_sophia(b1=0.0, b2=0.0, gamma=1.0)
      >>> params = jnp.array([0.5, 3.0])
      >>> def value_fn(x):
      ...     return jnp.sum(x**2)
      >>> tx.update(jax.grad(value_fn)(params), tx.init(params), params, value_fn=value_fn)[0]
      Array([0.5, 1. ], dtype=float32)

    Reference:
      Liu et al., Sophia: A Scalable Stochastic Second-order Optimizer for Language Model
      Pre-training, 2023, https://arxiv.org/abs/2305.14342.
    """
    check("b1", b1, "[0, 1)")
    check("b2", b2, "[0, 1)")
    check("gamma", gamma, "(0, inf)")
    check("eps", eps, "(0, inf)")
    check("update_interval", update_interval, "[1, inf)", whole=True)

    def init(params: optax.Params) -> SophiaState:
        return SophiaState(
            count=jnp.zeros([], jnp.int32),
            mu=wide_zeros(params),
            hessian=wide_zeros(params),
            key=key_data(key),
        )

    def update(updates, state, params=None, *, value_fn=None, **extra_args):
        objective = scalar_objective(value_fn, params, "sophia")
        count, wide_params = state.count, widen(params)
        b1_t, b2_t, gamma_t, eps_t = (value_at(value, count) for value in (b1, b2, gamma, eps))
        mu = moving_average(b1_t, state.mu, widen(updates))

        def estimate(hessian):
            # Apart from `inject_noise`, which folds the count into what may be the same key.
            own_key = jax.random.fold_in(typed_key(state.key, like=key), 0x50F1A)
            step_key = jax.random.fold_in(own_key, count)
            signs = optax.tree.random_like(step_key, wide_params, jax.random.rademacher)
            products = hessian_vector_product(objective, wide_params, signs)
            return moving_average(b2_t, hessian, optax.tree.mul(signs, products))

        def keep(hessian):
            return hessian

        # `keep` is the false branch: XLA copies every buffer if the branches are exchanged.
        due = count % whole_value_at(update_interval, count) == 0
        hessian = jax.lax.cond(due, estimate, keep, state.hessian)
        direction = jax.tree.map(lambda m, h: clipped_step(m, h, gamma_t, eps_t), mu, hessian)
        state = SophiaState(next_count(count), mu, hessian, state.key)
        return optax.tree.cast_like(direction, updates), state

    tx = optax.GradientTransformationExtraArgs(init, update)
    return floats_only(tx, refuses_complex="sophia")


def clipped_step(m: jax.Array, h: jax.Array, gamma: jax.Array, eps: jax.Array) -> jax.Array:
    gamma, eps = gamma.astype(h.dtype), eps.astype(h.dtype)
    return jnp.clip(m / jnp.maximum(gamma * h, eps), -1.0, 1.0)
