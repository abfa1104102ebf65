"""Sophia: momentum over an estimate of the Hessian's diagonal, clipped."""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Stage, Step, technique
from amac_jax._core.draws.keys import Key, as_key_data, check_key, typed_key
from amac_jax._core.hyperparameters import Hyperparameter
from amac_jax._core.leaves import each_leaf, zeros_like
from amac_jax._core.moments import moving_average
from amac_jax._core.objective import check_objective, hessian_vector_product
from amac_jax._core.ranges import COUNT, DECAY, POSITIVE
from amac_jax._core.xla import only_when
from amac_jax.optimizers._compose import compose
from amac_jax.optimizers._keywords import takes_techniques
from amac_jax.techniques import Techniques


@takes_techniques(weight_decay=0.2)
def sophia(
    learning_rate: Hyperparameter,
    *,
    b1: Hyperparameter = 0.96,
    b2: Hyperparameter = 0.99,
    gamma: Hyperparameter = 0.01,
    eps: Hyperparameter = 1e-12,
    update_interval: Hyperparameter = 10,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """Sophia-H: momentum over an estimate of the Hessian's diagonal, clipped; decoupled decay.

        m <- b1 m + (1 - b1) g
        at steps 1, k + 1, 2k + 1, ...:   h <- b2 h + (1 - b2) z * (H z)
        theta <- theta - eta (clip(m / max(gamma h, eps), -1, 1) + lambda theta)

    H is the Hessian of the objective, and z are random signs. Only kernels decay. The objective is
    a function of the parameters alone and comes with each update:
    `tx.update(g, state, params, value_fn=...)`.

    Args:
      learning_rate: eta, in units of the parameters, the length of the longest step; >= 0. The
        paper takes 0.8 times AdamW's.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the diagonal, in [0, 1), per estimate.
      gamma: scale of the diagonal, > 0. Choose it so large that 10 to 50 % of the elements are not
        clipped.
      eps: the least denominator, > 0.
      update_interval: k, in steps, >= 1.
      weight_decay: lambda, >= 0. Off: 0.
      key: an integer seed or a JAX key, for the signs, for noise and for rounding.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it. Its `update` needs `params` and `value_fn`. The
      core is `scale_by_sophia`.

    Raises:
      ValueError: for an argument outside its range; for `update` without `params`, without
        `value_fn`, or with one that does not return a scalar; from `init`, for complex parameters.

    Differs from Optax:
      `optax.contrib.sophia` corrects the bias of m, uses the diagonal one step late, decays every
      leaf, and calls the objective `obj_fn`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> tx = sophia(0.1, b1=0.0, b2=0.0, gamma=1.0)
      >>> def value_fn(x):
      ...     return jnp.sum(x**2)
      >>> params = jnp.array([0.5, 3.0])
      >>> tx.update(jax.grad(value_fn)(params), tx.init(params), params, value_fn=value_fn)[0]
      Array([-0.05, -0.1 ], dtype=float32)

    Reference:
      Liu et al., Sophia: A Scalable Stochastic Second-order Optimizer for Language Model
      Pre-training, 2023, https://arxiv.org/abs/2305.14342.
    """
    key = techniques.get("key", 0)
    core = scale_by_sophia(b1, b2, gamma, eps, update_interval, key)
    return compose(core, learning_rate, **techniques)


class ScaleBySophiaState(NamedTuple):
    """The momentum, the Hessian's diagonal, and a copy of the key."""

    mu: Tree  # the parameters' shapes, at least float32
    hessian: Tree  # the same
    key: jax.Array  # (2,) uint32


@technique(b1=DECAY, b2=DECAY, gamma=POSITIVE, eps=POSITIVE, update_interval=COUNT)
def scale_by_sophia(
    b1: Hyperparameter = 0.96,
    b2: Hyperparameter = 0.99,
    gamma: Hyperparameter = 0.01,
    eps: Hyperparameter = 1e-12,
    update_interval: Hyperparameter = 10,
    key: Key = 0,
) -> Stage:
    """Sophia-H: the momentum over the Hessian's diagonal, each element clipped to [-1, 1].

        m <- b1 m + (1 - b1) g
        at steps 1, k + 1, 2k + 1, ...:   h <- b2 h + (1 - b2) z * (H z)
        d = clip(m / max(gamma h, eps), -1, 1)

    H is the Hessian of `value_fn` at the parameters, z is a vector of random signs, and * is
    elementwise: z * (H z) is Hutchinson's estimator of the diagonal. Where the curvature is
    negative or unknown, the step is the sign of the momentum. The paper has normal numbers in
    place of the signs, with the same mean and a larger variance of the estimate.

    The objective comes with each update:
    `tx.update(g, state, params, value_fn=lambda params: loss(params, batch))`.

    Place it where Adam's core stands: it sees gradients. An estimate costs as much as two
    gradients.

    Args:
      b1: decay of the momentum, in [0, 1).
      b2: decay of the diagonal, in [0, 1), per estimate.
      gamma: scale of the diagonal, > 0. A larger gamma makes steps smaller where they are not
        clipped.
      eps: the least denominator, > 0.
      update_interval: k, in steps, >= 1.
      key: an integer seed or a JAX key for the signs.

    Returns:
      A transformation whose updates have the shapes and dtypes of the gradients, in [-1, 1].
      State: `CountedState` around `ScaleBySophiaState`.

    Raises:
      ValueError: for an argument outside its range; for `update` without `params`, without
        `value_fn`, or with one that does not return a scalar; from `init`, for complex parameters.

    Differs from Optax:
      `optax.contrib.sophia` corrects the bias of the momentum and names the objective `obj_fn`. It
      estimates the diagonal after the update that should use it, so its first steps are signs.

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
    check_key(key)

    def init(params: Tree) -> ScaleBySophiaState:
        return ScaleBySophiaState(zeros_like(params), zeros_like(params), as_key_data(key))

    def update(updates: Tree, state: ScaleBySophiaState, params: Tree, step: Step):
        objective = check_objective(step.extra_args.get("value_fn"), params, "sophia")
        mu = moving_average(step.b1, state.mu, updates)

        def estimate(hessian: Tree) -> Tree:
            # Folded first, because `inject_noise` folds the count into a key that may be the same.
            own_key = jax.random.fold_in(typed_key(state.key, like=key), 0x50F1A)
            step_key = jax.random.fold_in(own_key, step.count)
            signs = optax.tree.random_like(step_key, params, jax.random.rademacher)
            products = hessian_vector_product(objective, params, signs)
            return moving_average(step.b2, hessian, optax.tree.mul(signs, products))

        due = step.count % step.update_interval == 0
        hessian = only_when(due, estimate, state.hessian)
        direction = each_leaf(clipped_step, mu, hessian, gamma=step.gamma, eps=step.eps)
        return direction, ScaleBySophiaState(mu, hessian, state.key)

    return Stage(update, init, refuses_complex=True)


def clipped_step(m: jax.Array, h: jax.Array, gamma: jax.Array, eps: jax.Array) -> jax.Array:
    """clip(m / max(gamma h, eps), -1, 1)."""
    return jnp.clip(m / jnp.maximum(gamma * h, eps), -1.0, 1.0)
