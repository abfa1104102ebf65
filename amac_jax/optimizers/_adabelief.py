"""AdaBelief: the closer gradients are to their average, the longer the step."""

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
from amac_jax._core.ranges import DECAY, NON_NEGATIVE, POSITIVE, checked
from amac_jax.optimizers._compose import compose
from amac_jax.optimizers._keywords import core_of, takes_techniques
from amac_jax.techniques import Techniques


@takes_techniques()
@checked(b1=DECAY, b2=DECAY, eps=NON_NEGATIVE, eps_root=NON_NEGATIVE)
def adabelief(
    learning_rate: Hyperparameter,
    *,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    eps_root: Hyperparameter | None = None,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """AdaBelief: Adam with the spread of gradients in place of their size.

        m <- b1 m + (1 - b1) g;   s <- b2 s + (1 - b2) (g - m)^2
        theta <- theta - eta (m / (1 - b1^t)) / sqrt(s / (1 - b2^t) + eps)

    Args:
      learning_rate: eta, in units of the parameters; >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: in the square of the gradient's unit; > 0.
      eps_root: None is the equation above. A number places both constants as the paper and Optax
        do: eps_root is added to s at every step, and the denominator is
        sqrt(s / (1 - b2^t)) + eps. Both are then >= 0.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it. The core is `scale_by_adabelief`, or with
      `eps_root` `optax.scale_by_belief(eps=eps, eps_root=eps_root)`.

    Raises:
      ValueError: for an argument outside its range.

    Differs from Optax:
      `optax.adabelief` is `adabelief` with eps=1e-16 and eps_root=1e-16.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adabelief(0.1, b1=0.5)
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([-0.2,  0.2], dtype=float32)

    Reference:
      Zhuang et al., AdaBelief Optimizer, 2020, https://arxiv.org/abs/2010.07468.
    """
    if eps_root is None:
        belief = scale_by_adabelief(b1, b2, eps)
    else:
        belief = core_of(optax.scale_by_belief, b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    return compose(belief, learning_rate, **techniques)


class ScaleByAdabeliefState(NamedTuple):
    """Two moving averages: of the gradients, and of their squared distances from the first."""

    mu: Tree  # the parameters' shapes, at least float32
    nu: Tree  # the same


@technique(b1=DECAY, b2=DECAY, eps=POSITIVE)
def scale_by_adabelief(
    b1: Hyperparameter = 0.9, b2: Hyperparameter = 0.999, eps: Hyperparameter = 1e-8
) -> Stage:
    """Divides the average gradient by the root of how far gradients are from their average.

        m <- b1 m + (1 - b1) g;   s <- b2 s + (1 - b2) (g - m)^2
        d = (m / (1 - b1^t)) / sqrt(s / (1 - b2^t) + eps)

    Place it where Adam's core stands: it sees gradients.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: in the square of the gradient's unit; > 0.

    Returns:
      A transformation whose updates have the shapes and dtypes of the gradients.
      State: `CountedState` around `ScaleByAdabeliefState`.

    Raises:
      ValueError: for an argument outside its range.

    Differs from Optax:
      `optax.scale_by_belief` has two constants. It adds one to s at every step, where it
      accumulates to eps / (1 - b2). It adds the other outside the root.

    Example:
      >>> tx = scale_by_adabelief(b1=0.0, eps=4.0)  # g - m = 0
      >>> tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0]
      Array([ 0.5, -1. ], dtype=float32)

    Reference:
      Zhuang et al., AdaBelief Optimizer, 2020, https://arxiv.org/abs/2010.07468.
    """

    def init(params: Tree) -> ScaleByAdabeliefState:
        return ScaleByAdabeliefState(zeros_like(params), zeros_like(params))

    def update(updates: Tree, state: ScaleByAdabeliefState, params: Tree, step: Step):
        t = step_number(step.count)
        mu = moving_average(step.b1, state.mu, updates)
        surprise = jax.tree.map(lambda g, m: abs_square(g - m), updates, mu)
        nu = moving_average(step.b2, state.nu, surprise)
        m_hat, s_hat = bias_corrected(mu, step.b1, t), bias_corrected(nu, step.b2, t)
        direction = each_leaf(lambda m, s, eps: m / jnp.sqrt(s + eps), m_hat, s_hat, eps=step.eps)
        return direction, ScaleByAdabeliefState(mu, nu)

    return Stage(update, init)
