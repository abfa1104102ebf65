"""Gradient descent: plain, with Polyak's momentum and with Nesterov's."""

from __future__ import annotations

from typing import Unpack

import optax

from amac_jax._core.hyperparameters import Hyperparameter
from amac_jax._core.ranges import DECAY, UNIT, checked
from amac_jax.optimizers._compose import compose
from amac_jax.optimizers._keywords import core_of, takes_techniques
from amac_jax.techniques import Techniques, UndampedTechniques, heavy_ball


@takes_techniques()
def sgd(
    learning_rate: Hyperparameter, **techniques: Unpack[Techniques]
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent.

        theta <- theta - eta g

    Args:
      learning_rate: eta, in units of parameter per unit of gradient; >= 0.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it. The core is `optax.identity`.

    Raises:
      ValueError: for an argument outside its range.

    Differs from Optax:
      The technique `momentum=` acts on updates, after the learning rate. The argument `momentum`
      of `optax.sgd` acts on gradients, before the learning rate. The two agree at a constant rate.
      `amac_jax.momentum` and `amac_jax.nesterov` are Optax's: they act on gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = sgd(0.1)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0]
      Array([-0.1,  0.2], dtype=float32)

    Reference:
      Robbins and Monro, A Stochastic Approximation Method, 1951.
    """
    return compose(core_of(optax.identity), learning_rate, **techniques)


@takes_techniques()
@checked(decay=DECAY, dampening=UNIT)
def momentum(
    learning_rate: Hyperparameter,
    *,
    decay: Hyperparameter = 0.9,
    dampening: Hyperparameter = 0.0,
    **techniques: Unpack[UndampedTechniques],
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with Polyak's momentum.

        v <- beta v + (1 - dampening) g
        theta <- theta - eta v

    It is the same as `optax.sgd(learning_rate, momentum=decay)`, which has no dampening.

    The velocity v holds gradients, so a new learning rate acts at once. The technique
    `momentum=0.9` of the other optimizers holds updates, which keep the rate they were taken with.

    Args:
      learning_rate: eta, in units of parameter per unit of gradient; >= 0. Without dampening, a
        constant gradient moves a weight 1 / (1 - beta) times as far per step as `sgd` does.
      decay: beta, in [0, 1). At 0, without dampening, it is `sgd`.
      dampening: in [0, 1]. At beta, v is an average of gradients, and the learning rate has the
        same meaning as in `sgd`. Off: 0.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it. The core is `heavy_ball`.

    Raises:
      ValueError: for an argument outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = momentum(0.1, decay=0.5)
      >>> state = tx.init(jnp.zeros(1))
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.ones(1), state)
      >>> updates.round(3)
      Array([-0.15], dtype=float32)

    Reference:
      Polyak, Some Methods of Speeding Up the Convergence of Iteration Methods, 1964.
    """
    return compose(heavy_ball(decay, dampening=dampening), learning_rate, **techniques)


@takes_techniques()
@checked(decay=DECAY)
def nesterov(
    learning_rate: Hyperparameter,
    *,
    decay: Hyperparameter = 0.9,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with Nesterov's momentum, whose gradient is taken one step ahead.

        v <- beta v + grad L(w - eta beta v);   w <- w - eta v

    The parameters are theta = w - eta beta v, the point at which the gradient g is taken:

        v <- beta v + g;   theta <- theta - eta (g + beta v)

    It is the same as `optax.sgd(learning_rate, momentum=decay, nesterov=True)`.

    Args:
      learning_rate: eta, in units of parameter per unit of gradient; >= 0.
      decay: beta, in [0, 1). At 0 it is `sgd`.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it. The core is `optax.trace(decay, nesterov=True)`.

    Raises:
      ValueError: for an argument outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = nesterov(0.1, decay=0.5)
      >>> tx.update(jnp.ones(1), tx.init(jnp.zeros(1)))[0].round(3)
      Array([-0.15], dtype=float32)

    Reference:
      Nesterov, A Method of Solving a Convex Programming Problem with Convergence Rate O(1/k^2),
      1983; Sutskever et al., On the Importance of Initialization and Momentum in Deep Learning,
      2013.
    """
    return compose(core_of(optax.trace, decay=decay, nesterov=True), learning_rate, **techniques)
