"""The classic optimizers: each a core, and through `compose` every technique."""

from __future__ import annotations

from typing import Any

import optax

from amac_jax.optimizers.compose import compose, takes_techniques
from amac_jax.schedules import Hyperparameter, check


def adam_core(
    b1: Hyperparameter, b2: Hyperparameter, eps: Hyperparameter
) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, its arguments checked."""
    check("b1", b1, "[0, 1)")
    check("b2", b2, "[0, 1)")
    check("eps", eps, "[0, inf)")
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)  # pyright: ignore[reportArgumentType]


@takes_techniques
def sgd(learning_rate: Hyperparameter, **techniques: Any) -> optax.GradientTransformationExtraArgs:
    """Gradient descent.

        theta <- theta - eta g

    Args:
      learning_rate: eta, in the unit of parameter per unit of gradient; >= 0.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it.

    Raises:
      ValueError: for an argument outside its range.

    `optax.sgd` has momentum built in; here it is `momentum=0.9`, which is a technique.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = sgd(0.1)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0]
      Array([-0.1,  0.2], dtype=float32)

    Reference:
      Robbins and Monro, A Stochastic Approximation Method, 1951.
    """
    return compose(optax.identity(), learning_rate, **techniques)


@takes_techniques
def adam(
    learning_rate: Hyperparameter,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """Adam.

        m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
        theta <- theta - eta (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Args:
      learning_rate: eta, in units of the parameters; >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: in units of the gradient; >= 0.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it; the core is `optax.scale_by_adam`.

    Raises:
      ValueError: for an argument outside its range.

    `optax.adam` keeps moments in the parameters' precision; this keeps at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adam(0.1, sync_period=5)
      >>> params = jnp.zeros(2)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(params), params)[0].round(3)
      Array([-0.1,  0.1], dtype=float32)

    Reference:
      Kingma and Ba, Adam, 2015, https://arxiv.org/abs/1412.6980.
    """
    return compose(adam_core(b1, b2, eps), learning_rate, **techniques)


@takes_techniques
def adamw(
    learning_rate: Hyperparameter,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter | None = 0.01,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """Adam with decoupled weight decay.

        theta <- theta - eta (m_hat / (sqrt(v_hat) + eps) + lambda theta)

    with the moments of `adam`, and the decay on kernels only.

    Args:
      learning_rate: eta, in units of the parameters; >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: in units of the gradient; >= 0.
      weight_decay: lambda, dimensionless: a step removes eta lambda of a weight. Off: 0.
      **techniques: keywords of `compose`.

    Returns:
      A transformation, as `compose` returns it.

    Raises:
      ValueError: for an argument outside its range.

    `optax.adamw` decays every leaf: that is `decay_mask=True` here.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adamw(0.1, weight_decay=0.5)
      >>> params = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
      >>> gradients = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
      >>> updates, state = tx.update(gradients, tx.init(params), params)
      >>> updates["kernel"].round(3), updates["bias"].round(3)
      (Array([[-0.15],
             [-0.15]], dtype=float32), Array([-0.1], dtype=float32))

    Reference:
      Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019,
      https://arxiv.org/abs/1711.05101.
    """
    return compose(adam_core(b1, b2, eps), learning_rate, weight_decay=weight_decay, **techniques)
