"""Lion: the sign of a momentum."""

from __future__ import annotations

from typing import Unpack

import optax

from amac_jax._core.boundary import stage_of, transformation
from amac_jax._core.hyperparameters import Hyperparameter
from amac_jax._core.ranges import DECAY, checked
from amac_jax.optimizers._compose import compose
from amac_jax.optimizers._keywords import core_of, takes_techniques
from amac_jax.techniques import Techniques


@takes_techniques(weight_decay=0.1)
@checked(b1=DECAY, b2=DECAY)
def lion(
    learning_rate: Hyperparameter,
    *,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.99,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """Lion: the sign of a momentum, with decoupled weight decay.

        theta <- theta - eta (sign(b1 m + (1 - b1) g) + lambda theta)
        m <- b2 m + (1 - b2) g

    Only kernels decay.

    Args:
      learning_rate: eta, in units of the parameters, the length of every step; >= 0. Take a third
        to a tenth of AdamW's.
      b1: share of m in the sign, in [0, 1).
      b2: decay of m, in [0, 1).
      weight_decay: lambda, >= 0. Three to ten times AdamW's give the same eta lambda. Off: 0.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it. The core is `optax.scale_by_lion`.

    Raises:
      ValueError: for an argument outside its range; from `init`, for complex parameters.

    Differs from Optax:
      `optax.lion` decays every leaf, with lambda = 1e-3. `decay_mask=True` decays every leaf here.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = lion(0.1, weight_decay=None)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0]
      Array([-0.1,  0.1], dtype=float32)

    Reference:
      Chen et al., Symbolic Discovery of Optimization Algorithms, 2023,
      https://arxiv.org/abs/2302.06675.
    """
    # The sign of a complex number is a direction: the parts of a step would not be +-1.
    sign = stage_of(core_of(optax.scale_by_lion, b1=b1, b2=b2))
    core = transformation(sign._replace(name="lion", refuses_complex=True))
    return compose(core, learning_rate, **techniques)
