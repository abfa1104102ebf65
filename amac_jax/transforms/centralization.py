"""Gradient centralization: every output unit's gradient has mean zero."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from amac_jax.layout import FanInRule
from amac_jax.layout import fan_in_axes as fan_in_axes_of
from amac_jax.leaves import floats_only
from amac_jax.precision import widen
from amac_jax.schedules import Hyperparameter, check, next_count, value_at


class CentralizeState(NamedTuple):
    """The number of updates made."""

    count: jax.Array  # () int32


def centralize(
    strength: Hyperparameter = 1.0, *, fan_in_axes: FanInRule | None = None
) -> optax.GradientTransformationExtraArgs:
    """Subtracts from every kernel's gradient its mean over the fan-in.

    For a kernel W with output unit o and fan-in F(o):

        g_o <- g_o - s mean over F(o) of g

    so that the weights of a unit keep their mean while they learn. Biases, norm scales and
    embeddings pass unchanged, and so does a kernel with one input, whose gradient is its mean.

    Place it before the core, where it sees gradients; after a global clip, whose norm it lowers.

    Args:
      strength: s, dimensionless; 1 subtracts the whole mean. Off: 0.
      fan_in_axes: a rule (path, leaf) -> the leaf's fan-in axes, or None to leave it alone.
        None is `amac_jax.fan_in_axes`; see `amac_jax.stacked` for layers stacked by `scan`.

    Returns:
      A transformation whose updates have the shapes and dtypes of the gradients; the mean is
      taken in at least float32. State: `CentralizeState`.

    Raises:
      ValueError: for a strength outside [0, 1] or NaN.

    `optax.centralize` averages over all axes but the first, which mixes output units in every
    Flax kernel, and takes every leaf of two or more axes for one, embeddings too.
    Leave it out of models whose last layer must learn a common offset of its inputs' weights.

    Example:
      >>> tx = centralize()
      >>> gradients = {"kernel": jnp.array([[1.0, 0.0], [3.0, 8.0]]), "bias": jnp.ones(2)}
      >>> tx.update(gradients, tx.init(gradients))[0]
      {'bias': Array([1., 1.], dtype=float32), 'kernel': Array([[-1., -4.],
           [ 1.,  4.]], dtype=float32)}

    Reference:
      Yong et al., Gradient Centralization, 2020, https://arxiv.org/abs/2004.01461.
    """
    check("strength", strength, "[0, 1]")
    rule = fan_in_axes_of if fan_in_axes is None else fan_in_axes

    def init(params: optax.Params) -> CentralizeState:
        return CentralizeState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        s = value_at(strength, state.count)

        def centralize_leaf(path, gradient):
            axes = rule(path, gradient)
            if axes is None or math.prod(gradient.shape[axis] for axis in axes) <= 1:
                return gradient
            return centered(gradient, s, axes)

        updates = jax.tree_util.tree_map_with_path(centralize_leaf, updates)
        return updates, CentralizeState(count=next_count(state.count))

    return floats_only(optax.GradientTransformationExtraArgs(init, update))


def centered(gradient: jax.Array, strength: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    wide = widen(gradient)
    mean = jnp.mean(wide, axis=axes, keepdims=True)
    return (wide - strength.astype(wide.dtype) * mean).astype(gradient.dtype)
