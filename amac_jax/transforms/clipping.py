"""Clipping: by value, by the global norm, and by the norm of each unit."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from amac_jax.layout import FanInRule
from amac_jax.layout import fan_in_axes as fan_in_axes_of
from amac_jax.leaves import floats_only
from amac_jax.precision import global_norm, map_wide, widen
from amac_jax.schedules import Hyperparameter, check, next_count, value_at


class ClipState(NamedTuple):
    """The number of updates made."""

    count: jax.Array  # () int32


def _init(params: optax.Params) -> ClipState:
    return ClipState(count=jnp.zeros([], jnp.int32))


def _next(state: ClipState) -> ClipState:
    return ClipState(count=next_count(state.count))


def clip_by_value(limit: Hyperparameter) -> optax.GradientTransformationExtraArgs:
    """Clips every element to [-limit, limit].

        u <- min(max(u, -c), c)

    Place it after the core to bound the step of each parameter in units of the learning rate,
    or before it to bound gradients.

    Args:
      limit: c, in the unit of the updates where it stands; > 0. Off: inf.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given. State: `ClipState`.

    Raises:
      ValueError: for a limit <= 0 or NaN; from `init`, for complex parameters.

    `optax.clip` is the same for a constant limit; this one may also be scheduled.

    Example:
      >>> tx = clip_by_value(0.5)
      >>> tx.update(jnp.array([-2.0, 0.1]), tx.init(jnp.zeros(2)))[0]
      Array([-0.5,  0.1], dtype=float32)
    """
    check("limit", limit, "(0, inf]")

    def update(updates, state, params=None, **extra_args):
        c = value_at(limit, state.count)
        updates = map_wide(lambda u: jnp.clip(u, -c.astype(u.dtype), c.astype(u.dtype)), updates)
        return updates, _next(state)

    tx = optax.GradientTransformationExtraArgs(_init, update)
    return floats_only(tx, refuses_complex="clip_by_value")


def clip_by_global_norm(limit: Hyperparameter) -> optax.GradientTransformationExtraArgs:
    """Scales all updates down together when their norm exceeds a limit.

        u <- u min(1, c / ||u||),   ||u||^2 = the sum of u_i^2 over every element of every leaf

    Place it first, where it sees raw gradients.

    Args:
      limit: c, in the unit of the updates where it stands; > 0. Off: inf.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given; the norm is taken in
      at least float32. State: `ClipState`. Where the norm is NaN the updates pass unchanged, so
      that a NaN stays in its leaf; an infinite element makes every finite one 0.

    Raises:
      ValueError: for a limit <= 0 or NaN.

    `optax.clip_by_global_norm` takes the norm in the gradients' own precision, which overflows
    in float16 and stalls in bfloat16.

    Example:
      >>> tx = clip_by_global_norm(1.0)
      >>> tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))[0]
      Array([0.6, 0.8], dtype=float32)

    Reference:
      Pascanu et al., On the Difficulty of Training Recurrent Neural Networks, 2013,
      https://arxiv.org/abs/1211.5063.
    """
    check("limit", limit, "(0, inf]")

    def update(updates, state, params=None, **extra_args):
        c, norm = value_at(limit, state.count), global_norm(updates)
        factor = jnp.where(norm > c, c / norm, 1.0)
        return map_wide(lambda u: u * factor.astype(u.dtype), updates), _next(state)

    return floats_only(optax.GradientTransformationExtraArgs(_init, update))


def clip_by_unit_norm(
    ratio: Hyperparameter = 0.01,
    *,
    eps: Hyperparameter = 1e-3,
    fan_in_axes: FanInRule | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adaptive gradient clipping: each unit's gradient is bounded by its weights' norm.

    For the weights w_i that lead to output unit i and their gradient g_i, norms over the fan-in:

        g_i <- g_i min(1, r max(||w_i||, eps) / ||g_i||)

    A leaf that is no kernel (a bias, a scale, an embedding) is one unit as a whole.
    Place it first, where it sees raw gradients.

    Args:
      ratio: r, the largest gradient norm as a share of the weight norm; > 0. Off: inf.
      eps: the least weight norm, so that weights that are zero can learn; > 0.
      fan_in_axes: a rule (path, leaf) -> the leaf's fan-in axes, or None for one unit a leaf.
        None is `amac_jax.fan_in_axes`.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given; norms are taken in
      at least float32. State: `ClipState`.

    Raises:
      ValueError: for a ratio or eps <= 0 or NaN; for `update` without `params`.

    `optax.adaptive_grad_clip` guesses the units from the number of axes, which takes attention
    kernels and embeddings for what they are not. The paper leaves the last layer unclipped: use
    `optax.masked`.

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
    check("ratio", ratio, "(0, inf]")
    check("eps", eps, "(0, inf)")
    rule = fan_in_axes_of if fan_in_axes is None else fan_in_axes

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError("clip_by_unit_norm needs params: tx.update(updates, state, params)")
        r, least = value_at(ratio, state.count), value_at(eps, state.count)

        def clip_leaf(path, gradient, weight):
            g, w = widen(gradient), widen(weight)
            axes = rule(path, weight)  # None: the whole leaf is one unit
            norm, size = _unit_norm(g, axes), _unit_norm(w, axes)
            limit = r.astype(norm.dtype) * jnp.maximum(size, least.astype(size.dtype))
            factor = jnp.where(norm > limit, limit / norm, 1.0)
            return (g * factor.astype(g.dtype)).astype(gradient.dtype)

        return jax.tree_util.tree_map_with_path(clip_leaf, updates, params), _next(state)

    return floats_only(optax.GradientTransformationExtraArgs(_init, update))


def _unit_norm(leaf: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(jnp.abs(leaf)), axis=axes, keepdims=True))
