"""AdaGrad and RMSProp: the gradient over the root of all its squares, or of the recent ones."""

from __future__ import annotations

from typing import Unpack

import optax

from amac_jax._core.hyperparameters import Hyperparameter
from amac_jax._core.ranges import DECAY, NON_NEGATIVE, checked
from amac_jax.optimizers._compose import compose
from amac_jax.optimizers._keywords import core_of, takes_techniques
from amac_jax.techniques import Techniques


@takes_techniques()
@checked(eps=NON_NEGATIVE)
def adagrad(
    learning_rate: Hyperparameter,
    *,
    eps: Hyperparameter = 1e-6,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad: the rate of every weight falls as the squares of its gradients add up.

        s <- s + g^2;   theta <- theta - eta g / sqrt(s + eps),   s = 0 at first

    Args:
      learning_rate: eta, in units of the parameters, the length of the first step; >= 0.
      eps: in the square of the gradient's unit; >= 0.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it. The core is
      `optax.scale_by_rss(initial_accumulator_value=0.0)`.

    Raises:
      ValueError: for an argument outside its range.

    Differs from Optax:
      `optax.adagrad` starts from s = 0.1, with eps = 1e-7.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adagrad(0.1)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([-0.1,  0.1], dtype=float32)

    Reference:
      Duchi et al., Adaptive Subgradient Methods for Online Learning and Stochastic Optimization,
      2011.
    """
    rss = core_of(optax.scale_by_rss, initial_accumulator_value=0.0, eps=eps)
    return compose(rss, learning_rate, **techniques)


@takes_techniques()
@checked(decay=DECAY, eps=NON_NEGATIVE)
def rmsprop(
    learning_rate: Hyperparameter,
    *,
    decay: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-8,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """RMSProp: the gradient over the root of its recent mean square.

        s <- gamma s + (1 - gamma) g^2;   theta <- theta - eta g / sqrt(s + eps)

    It is the same as `optax.rmsprop` with the defaults of Optax.

    Args:
      learning_rate: eta, in units of the parameters; >= 0. The first steps are up to
        1 / sqrt(1 - gamma) times as long as later ones.
      decay: gamma, in [0, 1).
      eps: in the square of the gradient's unit; >= 0.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it. The core is `optax.scale_by_rms`.

    Raises:
      ValueError: for an argument outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = rmsprop(0.1, decay=0.75)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([-0.2,  0.2], dtype=float32)

    Reference:
      Hinton, Neural Networks for Machine Learning, lecture 6e, 2012.
    """
    return compose(core_of(optax.scale_by_rms, decay=decay, eps=eps), learning_rate, **techniques)
