"""Adam and its nearest relatives, with Optax's cores."""

from __future__ import annotations

from typing import Unpack

import optax

from amac_jax._core.hyperparameters import Hyperparameter
from amac_jax._core.ranges import DECAY, NON_NEGATIVE, checked
from amac_jax.optimizers._compose import compose
from amac_jax.optimizers._keywords import core_of, takes_techniques
from amac_jax.techniques import Techniques


@takes_techniques()
@checked(b1=DECAY, b2=DECAY, eps=NON_NEGATIVE)
def adam(
    learning_rate: Hyperparameter,
    *,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """Adam: a moving average of gradients over the root of a moving average of their squares.

        m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
        theta <- theta - eta (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Args:
      learning_rate: eta, in units of the parameters; >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: in units of the gradient; >= 0.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it. The core is `optax.scale_by_adam`.

    Raises:
      ValueError: for an argument outside its range.

    Differs from Optax:
      `optax.adam` keeps its moments in the precision of the parameters. This one keeps them in at
      least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adam(0.1, sync_period=5)
      >>> params = jnp.zeros(2)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(params), params)[0].round(3)
      Array([-0.1,  0.1], dtype=float32)

    Reference:
      Kingma and Ba, Adam, 2015, https://arxiv.org/abs/1412.6980.
    """
    return compose(core_of(optax.scale_by_adam, b1=b1, b2=b2, eps=eps), learning_rate, **techniques)


@takes_techniques(weight_decay=0.01)
@checked(b1=DECAY, b2=DECAY, eps=NON_NEGATIVE)
def adamw(
    learning_rate: Hyperparameter,
    *,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """Adam with decoupled weight decay.

        theta <- theta - eta (m_hat / (sqrt(v_hat) + eps) + lambda theta)

    The moments are the same as in `adam`. Only kernels decay.

    Args:
      learning_rate: eta, in units of the parameters; >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: in units of the gradient; >= 0.
      weight_decay: lambda, dimensionless; >= 0. A step removes eta lambda of a weight. Off: 0.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it. The core is `optax.scale_by_adam`.

    Raises:
      ValueError: for an argument outside its range.

    Differs from Optax:
      `optax.adamw` decays every leaf. `decay_mask=True` does so here. The default of
      `optax.adamw` is lambda = 1e-4, and here 0.01.

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
    return compose(core_of(optax.scale_by_adam, b1=b1, b2=b2, eps=eps), learning_rate, **techniques)


@takes_techniques()
@checked(b1=DECAY, b2=DECAY, eps=NON_NEGATIVE)
def amsgrad(
    learning_rate: Hyperparameter,
    *,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    bias_corrected: bool = False,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """AMSGrad: Adam whose second moment never falls.

        m, v as in `adam`;   v_max <- max(v_max, v)
        theta <- theta - eta (m / (1 - b1^t)) / (sqrt(v_max) + eps)

    The paper corrects the bias of neither moment. The paper's optimizer is
    `compose(optax.scale_by_amsgrad(bias_correction_mu=False, bias_correction_nu=False), eta)`.

    Args:
      learning_rate: eta, in units of the parameters; >= 0. Without `bias_corrected` the first
        steps are up to 1 / sqrt(1 - b2) times as long, about 30 times with the default b2: warm
        the rate up, or take a lower one.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: in units of the gradient; >= 0.
      bias_corrected: whether v is divided by 1 - b2^t before the maximum is taken.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it. The core is
      `optax.scale_by_amsgrad(bias_correction_nu=bias_corrected)`.

    Raises:
      ValueError: for an argument outside its range.

    Differs from Optax:
      `optax.amsgrad` corrects the bias of v, as `bias_corrected=True` does here.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = amsgrad(0.1, b2=0.75)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([-0.2,  0.2], dtype=float32)

    Reference:
      Reddi et al., On the Convergence of Adam and Beyond, 2018, https://arxiv.org/abs/1904.09237.
    """
    ams = core_of(
        optax.scale_by_amsgrad, b1=b1, b2=b2, eps=eps, bias_correction_nu=bool(bias_corrected)
    )
    return compose(ams, learning_rate, **techniques)


@takes_techniques()
@checked(b1=DECAY, b2=DECAY, eps=NON_NEGATIVE)
def adamax(
    learning_rate: Hyperparameter,
    *,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """AdaMax: Adam with the largest recent gradient in place of the root of the second moment.

        m <- b1 m + (1 - b1) g;   s <- max(b2 s, |g| + eps)
        theta <- theta - eta (m / (1 - b1^t)) / s

    It is the same as `optax.adamax`. The paper has s without eps: it divides by 0 where g has
    always been 0.

    Args:
      learning_rate: eta, in units of the parameters, the length of the longest step; >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the maximum, in [0, 1).
      eps: in units of the gradient; >= 0.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it. The core is `optax.scale_by_adamax`.

    Raises:
      ValueError: for an argument outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adamax(0.1)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([-0.1,  0.1], dtype=float32)

    Reference:
      Kingma and Ba, Adam, 2015, section 7.1, https://arxiv.org/abs/1412.6980.
    """
    return compose(
        core_of(optax.scale_by_adamax, b1=b1, b2=b2, eps=eps), learning_rate, **techniques
    )


@takes_techniques()
@checked(b1=DECAY, b2=DECAY, eps=NON_NEGATIVE)
def nadam(
    learning_rate: Hyperparameter,
    *,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """NAdam: Adam with Nesterov's momentum.

        m, v as in `adam`
        m_bar = b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)
        theta <- theta - eta m_bar / (sqrt(v / (1 - b2^t)) + eps)

    It is the same as `optax.nadam`. The equation is for a constant b1; the paper also has a form
    for a b1 that follows a schedule.

    Args:
      learning_rate: eta, in units of the parameters; >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: in units of the gradient; >= 0.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it. The core is `optax.scale_by_adam(nesterov=True)`.

    Raises:
      ValueError: for an argument outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = nadam(0.1)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([-0.147,  0.147], dtype=float32)

    Reference:
      Dozat, Incorporating Nesterov Momentum into Adam, 2016.
    """
    nesterov_adam = core_of(optax.scale_by_adam, b1=b1, b2=b2, eps=eps, nesterov=True)
    return compose(nesterov_adam, learning_rate, **techniques)
