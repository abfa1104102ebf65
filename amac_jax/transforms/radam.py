"""Rectified Adam: no adaptive step before its denominator can be trusted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from amac_jax.moments import abs_square, bias_corrected, moving_average
from amac_jax.precision import wide_zeros, widen
from amac_jax.schedules import Hyperparameter, check, next_count, step_number, value_at


def scale_by_radam(
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    threshold: Hyperparameter = 4.0,
) -> optax.GradientTransformationExtraArgs:
    """Adam's step, rectified for the variance of its denominator, or momentum alone.

        m_hat, v_hat as in Adam;   rho_inf = 2 / (1 - b2) - 1
        rho_t = rho_inf - 2 t b2^t / (1 - b2^t)
        r_t = sqrt((rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t))
        d = r_t m_hat / (sqrt(v_hat) + eps)   where rho_t > threshold,   else m_hat

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second, in [0, 1). At 0.6 and below rho_t never passes 4.
      eps: in units of the gradient; >= 0.
      threshold: on rho_t, the number of gradients that v_hat in effect averages; >= 4, where r_t
        begins to be real.

    Returns:
      A transformation whose updates have the shapes and dtypes of the gradients.
      State: `optax.ScaleByAdamState`.

    Raises:
      ValueError: for an argument outside its range.

    `optax.scale_by_radam` evaluates rho_t as it is written above. In float32 its terms cancel:
    with b2 = 0.9999 it has 4.3 for rho_1 = 1, and steps adaptively at once. Its threshold of 5
    is not strict.

    Example:
      >>> tx = scale_by_radam()
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0]
      Array([ 1., -2.], dtype=float32)

    Reference:
      Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, 2020,
      https://arxiv.org/abs/1908.03265.
    """
    check("b1", b1, "[0, 1)")
    check("b2", b2, "[0, 1)")
    check("eps", eps, "[0, inf)")
    check("threshold", threshold, "[4, inf)")

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        return optax.ScaleByAdamState(
            count=jnp.zeros([], jnp.int32), mu=wide_zeros(params), nu=wide_zeros(params)
        )

    def update(updates, state, params=None, **extra_args):
        b1_t, b2_t, eps_t = (value_at(value, state.count) for value in (b1, b2, eps))
        t, gradient = step_number(state.count), widen(updates)
        mu = moving_average(b1_t, state.mu, gradient)
        nu = moving_average(b2_t, state.nu, jax.tree.map(abs_square, gradient))
        rho = effective_samples(b2_t, t)
        rectified = rho > value_at(threshold, state.count)
        r = rectification(jnp.where(rectified, rho, 5.0), b2_t)

        def step(m, v):
            adaptive = r.astype(m.dtype) * m / (jnp.sqrt(v) + eps_t.astype(v.dtype))
            return jnp.where(rectified, adaptive, m)

        direction = jax.tree.map(step, bias_corrected(mu, b1_t, t), bias_corrected(nu, b2_t, t))
        state = optax.ScaleByAdamState(next_count(state.count), mu, nu)
        return optax.tree.cast_like(direction, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def rectification(rho: jax.Array, b2: jax.Array) -> jax.Array:
    most = 2.0 / (1.0 - b2) - 1.0
    share = (rho - 4.0) / (most - 4.0) * ((rho - 2.0) / (most - 2.0)) * (most / rho)
    return jnp.sqrt(jnp.maximum(share, 0.0))


def effective_samples(b2: jax.Array, t: jax.Array) -> jax.Array:
    """rho_t, in a form without cancellation.

    With a = 1 - b2, c = -log(b2) and x = c t it is

        (2/c) (1 - x / (e^x - 1)) + (2/a - 2/c - 1)

    in which the first bracket for small x and the second for small a are summed as power series.
    """
    small_x, small_a = (1.0, 0.1) if t.dtype == jnp.float32 else (0.1, 0.01)
    a = 1.0 - b2.astype(t.dtype)
    c = -jnp.log(jnp.maximum(b2.astype(t.dtype), jnp.finfo(t.dtype).tiny))
    x = c * t
    bernoulli = (1 / 1209600, 0, -1 / 30240, 0, 1 / 720, 0, -1 / 12, 1 / 2, 0)
    gregory = (863 / 30240, 3 / 80, 19 / 360, 1 / 12, 1 / 6, 0)
    first = 1.0 - x / jnp.expm1(jnp.maximum(x, small_x))
    first = jnp.where(x < small_x, jnp.polyval(jnp.array(bernoulli, t.dtype), x), first)
    second = 2.0 / a - 2.0 / c - 1.0
    second = jnp.where(a < small_a, jnp.polyval(jnp.array(gregory, t.dtype), a), second)
    return 2.0 / c * first + second
