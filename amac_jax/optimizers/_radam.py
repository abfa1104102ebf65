"""Rectified Adam: the step is adaptive only when its denominator can be trusted."""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Stage, Step, technique
from amac_jax._core.hyperparameters import Hyperparameter, step_number
from amac_jax._core.leaves import each_leaf, zeros_like
from amac_jax._core.moments import abs_square, bias_corrected, moving_average
from amac_jax._core.ranges import DECAY, NON_NEGATIVE, Range
from amac_jax.optimizers._compose import compose
from amac_jax.optimizers._keywords import takes_techniques
from amac_jax.techniques import Techniques

THRESHOLD = Range(4, jnp.inf, includes_high=False)


@takes_techniques()
def radam(
    learning_rate: Hyperparameter,
    *,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    threshold: Hyperparameter = 4.0,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """RAdam: Adam rectified for the variance of its first denominators; it needs no warm-up.

        m_hat, v_hat as in `adam`
        rho_inf = 2 / (1 - b2) - 1,   rho_t = rho_inf - 2 t b2^t / (1 - b2^t)
        r_t = sqrt((rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t))
        theta <- theta - eta r_t m_hat / (sqrt(v_hat) + eps)     where rho_t > threshold
        theta <- theta - eta m_hat                               elsewhere

    Args:
      learning_rate: eta, in units of the parameters; >= 0. The first steps, four with the
        defaults, are steps of momentum: there eta is in units of parameter per unit of gradient.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: in units of the gradient; >= 0.
      threshold: the limit on rho_t, >= 4.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it. The core is `scale_by_radam`.

    Raises:
      ValueError: for an argument outside its range.

    Differs from Optax:
      `optax.radam` evaluates rho_t as it is written above. In float32 this form loses all its
      digits for b2 near 1; `scale_by_radam` keeps them. The threshold of `optax.radam` is 5, and
      rho_t = threshold counts as above it.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = radam(0.1)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([-0.1,  0.2], dtype=float32)

    Reference:
      Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, 2020,
      https://arxiv.org/abs/1908.03265.
    """
    return compose(scale_by_radam(b1, b2, eps, threshold), learning_rate, **techniques)


class ScaleByRadamState(NamedTuple):
    """The moments of the gradients."""

    mu: Tree  # the parameters' shapes, at least float32
    nu: Tree  # the same


@technique(b1=DECAY, b2=DECAY, eps=NON_NEGATIVE, threshold=THRESHOLD)
def scale_by_radam(
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    threshold: Hyperparameter = 4.0,
) -> Stage:
    """Takes Adam's step, rectified for the variance of its denominator, or momentum alone.

        m_hat, v_hat as in Adam;   rho_inf = 2 / (1 - b2) - 1
        rho_t = rho_inf - 2 t b2^t / (1 - b2^t)
        r_t = sqrt((rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t))
        d = r_t m_hat / (sqrt(v_hat) + eps)   where rho_t > threshold,   else m_hat

    Place it where Adam's core stands: it sees gradients.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1). At 0.6 and below, rho_t never passes 4.
      eps: in units of the gradient; >= 0.
      threshold: the limit on rho_t, the number of gradients that v_hat in effect averages; >= 4.
        From 4 on, r_t is real.

    Returns:
      A transformation whose updates have the shapes and dtypes of the gradients.
      State: `CountedState` around `ScaleByRadamState`.

    Raises:
      ValueError: for an argument outside its range.

    Differs from Optax:
      `optax.scale_by_radam` evaluates rho_t as it is written above. In float32 its terms cancel:
      with b2 = 0.9999 it gets rho_1 = 4.3 in place of 1, and steps adaptively at once. Its
      threshold is 5, and rho_t = threshold counts as above it.

    Example:
      >>> tx = scale_by_radam()
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0]
      Array([ 1., -2.], dtype=float32)

    Reference:
      Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, 2020,
      https://arxiv.org/abs/1908.03265.
    """

    def init(params: Tree) -> ScaleByRadamState:
        return ScaleByRadamState(zeros_like(params), zeros_like(params))

    def update(updates: Tree, state: ScaleByRadamState, params: Tree, step: Step):
        t = step_number(step.count)
        mu = moving_average(step.b1, state.mu, updates)
        nu = moving_average(step.b2, state.nu, jax.tree.map(abs_square, updates))
        rho = effective_samples(step.b2, t)
        rectified = rho > step.threshold
        r = rectification(jnp.where(rectified, rho, 5.0), step.b2)

        def direction(m: jax.Array, v: jax.Array, r: jax.Array, eps: jax.Array) -> jax.Array:
            return jnp.where(rectified, r * m / (jnp.sqrt(v) + eps), m)

        m_hat, v_hat = bias_corrected(mu, step.b1, t), bias_corrected(nu, step.b2, t)
        return each_leaf(direction, m_hat, v_hat, r=r, eps=step.eps), ScaleByRadamState(mu, nu)

    return Stage(update, init)


def rectification(rho: jax.Array, b2: jax.Array) -> jax.Array:
    """r_t; 0 where the root is not real."""
    most = 2.0 / (1.0 - b2) - 1.0
    share = (rho - 4.0) / (most - 4.0) * ((rho - 2.0) / (most - 2.0)) * (most / rho)
    return jnp.sqrt(jnp.maximum(share, 0.0))


def effective_samples(b2: jax.Array, t: jax.Array) -> jax.Array:
    """rho_t, in a form without cancellation.

    With a = 1 - b2, c = -log(b2) and x = c t it is

        (2/c) (1 - x / (e^x - 1)) + (2/a - 2/c - 1)

    The first bracket is summed as a power series for small x, the second for small a.
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
