"""Clipping: by value, by the global norm, and by the norm of each unit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Observation, Stage, Step, technique, times
from amac_jax._core.hyperparameters import Hyperparameter
from amac_jax._core.leaves import each_leaf, global_norm
from amac_jax._core.measures import Measure, Share
from amac_jax._core.ranges import LIMIT, POSITIVE
from amac_jax.kernels import FanInRule, check_rule
from amac_jax.kernels import fan_in_axes as default_rule


@technique(limit=LIMIT)
def clip_by_value(limit: Hyperparameter) -> Stage:
    """Clips every element of the updates to [-limit, limit].

        u <- min(max(u, -c), c)

    Place it after the core, to bound the step of each parameter in units of the learning rate,
    or before the core, to bound gradients.

    Args:
      limit: c, in the unit of the updates where it stands; > 0. Off: inf.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given.
      State: `CountedState` around `optax.EmptyState`.

    Raises:
      ValueError: for a limit <= 0 or NaN; from `init`, for complex parameters.

    Differs from Optax:
      `optax.clip` is the same for a constant limit. Here the limit may also be a schedule.

    Example:
      >>> tx = clip_by_value(0.5)
      >>> tx.update(jnp.array([-2.0, 0.1]), tx.init(jnp.zeros(2)))[0]
      Array([-0.5,  0.1], dtype=float32)
    """

    def update(updates: Tree, state: Tree, params: Tree, step: Step):
        return each_leaf(clipped, updates, limit=step.limit), state

    return Stage(update, refuses_complex=True, metrics=share_clipped)


def clipped(update: jax.Array, limit: jax.Array) -> jax.Array:
    """min(max(u, -c), c)."""
    return jnp.clip(update, -limit, limit)


def share_clipped(seen: Observation) -> dict[str, Measure]:
    """clip_fraction: the share of elements that clipping changed."""
    return {"clip_fraction": Share(jax.tree.map(jnp.not_equal, seen.before, seen.after))}


@technique(limit=LIMIT)
def clip_by_global_norm(limit: Hyperparameter) -> Stage:
    """Scales all updates down together where their norm exceeds a limit.

        u <- u min(1, c / ||u||),   ||u||^2 = the sum of u_i^2 over every element of every leaf

    Place it first, where it sees raw gradients.

    Args:
      limit: c, in the unit of the updates where it stands; > 0. Off: inf.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given. The norm is taken in
      at least float32. Where the norm is NaN, the updates pass unchanged, so that a NaN stays in
      its leaf. An infinite element makes every finite element 0.
      State: `CountedState` around `optax.EmptyState`.

    Raises:
      ValueError: for a limit <= 0 or NaN.

    Differs from Optax:
      `optax.clip_by_global_norm` takes the norm in the precision of the gradients, which
      overflows in float16 and stalls in bfloat16.

    Example:
      >>> tx = clip_by_global_norm(1.0)
      >>> tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))[0]
      Array([0.6, 0.8], dtype=float32)

    Reference:
      Pascanu et al., On the Difficulty of Training Recurrent Neural Networks, 2013,
      https://arxiv.org/abs/1211.5063.
    """

    def factor(updates: Tree, step: Step) -> jax.Array:
        norm = global_norm(updates)
        return jnp.where(norm > step.limit, step.limit / norm, 1.0)

    def update(updates: Tree, state: Tree, params: Tree, step: Step):
        return times(factor(updates, step), updates), state

    return Stage(update, factor=factor)


@technique(ratio=LIMIT, eps=POSITIVE)
def clip_by_unit_norm(
    ratio: Hyperparameter = 0.01,
    *,
    eps: Hyperparameter = 1e-3,
    fan_in_axes: FanInRule | None = None,
) -> Stage:
    """Clips the gradient of each unit to a share of the norm of its weights.

    This is adaptive gradient clipping. For the weights w_i that lead to output unit i and their
    gradient g_i, with norms over the fan-in:

        g_i <- g_i min(1, r max(||w_i||, eps) / ||g_i||)

    A leaf that is not a kernel (a bias, a scale, an embedding) is one unit as a whole.

    Place it first, where it sees raw gradients.

    Args:
      ratio: r, the largest gradient norm as a share of the weight norm; > 0. Off: inf.
      eps: the least weight norm, in the unit of the weights; > 0. It lets weights that are zero
        learn.
      fan_in_axes: a rule (path, leaf) -> the fan-in axes of the leaf, or None for a leaf that is
        one unit. None is `amac_jax.fan_in_axes`.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given. Norms are taken in
      at least float32. State: `CountedState` around `optax.EmptyState`.

    Raises:
      ValueError: for a ratio or eps <= 0 or NaN; for `update` without `params`; from `init`, for
        a pattern of `stacked` that fits no leaf.

    Differs from Optax:
      `optax.adaptive_grad_clip` guesses the units from the number of axes, and so takes attention
      kernels and embeddings for something else.

    When not to use:
      On the last layer, which the paper leaves unclipped: exclude it with `optax.masked`.

    Example:
      >>> tx = clip_by_unit_norm(0.5)
      >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]])}
      >>> gradients = {"kernel": jnp.array([[5.0, 0.1], [0.0, 0.1]])}
      >>> tx.update(gradients, tx.init(params), params)[0]["kernel"]
      Array([[2.5, 0.1],
             [0. , 0.1]], dtype=float32)

    Reference:
      Brock et al., High-Performance Large-Scale Image Recognition Without Normalization, 2021,
      https://arxiv.org/abs/2102.06171.
    """
    rule = default_rule if fan_in_axes is None else fan_in_axes

    def init(params: Tree) -> Tree:
        check_rule(rule, params)
        return optax.EmptyState()

    def update(updates: Tree, state: Tree, params: Tree, step: Step):
        def clipped_by_unit(path: KeyPath, gradient: jax.Array, weight: jax.Array) -> jax.Array:
            axes = rule(path, weight)  # None: the whole leaf is one unit
            norm, size = unit_norm(gradient, axes), unit_norm(weight, axes)
            limit = step.ratio.astype(norm.dtype) * jnp.maximum(size, step.eps.astype(size.dtype))
            factor = jnp.where(norm > limit, limit / norm, 1.0)
            return gradient * factor.astype(gradient.dtype)

        return jax.tree_util.tree_map_with_path(clipped_by_unit, updates, params), state

    return Stage(update, init, needs_params=True)


def unit_norm(leaf: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
    """The Euclidean norm over the axes (None: all of them), which are kept with length 1."""
    return jnp.sqrt(jnp.sum(jnp.square(jnp.abs(leaf)), axis=axes, keepdims=True))
