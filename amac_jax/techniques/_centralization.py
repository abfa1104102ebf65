"""Gradient centralization: every output unit's gradient has mean zero."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Stage, Step, technique
from amac_jax._core.hyperparameters import Hyperparameter
from amac_jax._core.leaves import is_explicit
from amac_jax._core.ranges import STRENGTH
from amac_jax.kernels import FanInRule, check_rule
from amac_jax.kernels import fan_in_axes as default_rule


@technique(strength=STRENGTH)
def centralize(strength: Hyperparameter = 1.0, *, fan_in_axes: FanInRule | None = None) -> Stage:
    """Subtracts from the gradient of every kernel its mean over the fan-in.

    For a kernel W with output unit o and fan-in F(o):

        g_o <- g_o - s mean over F(o) of g

    The weights of a unit therefore keep their mean while they learn. Biases, norm scales and
    embeddings pass unchanged. So does a kernel with one input, whose gradient is its own mean.

    Place it before the core, where it sees gradients. Place it after `clip_by_global_norm`,
    because it lowers the norm.

    Args:
      strength: s, dimensionless, in [0, 1]; 1 and True subtract the whole mean. Off: 0.
      fan_in_axes: a rule (path, leaf) -> the fan-in axes of the leaf, or None for a leaf that
        passes unchanged. None is `amac_jax.fan_in_axes`. For layers stacked by a scan see
        `amac_jax.stacked`.

    Returns:
      A transformation whose updates have the shapes and dtypes of the gradients. The mean is
      taken in at least float32. State: `CountedState` around `optax.EmptyState`.

    Raises:
      ValueError: for a strength outside [0, 1] or NaN; from `init`, for a pattern of `stacked`
        that fits no leaf.

    Differs from Optax:
      `optax.centralize` averages over all axes but the first, which mixes the output units of
      every Flax kernel. It centralizes every leaf of two or more axes, embeddings too.

    When not to use:
      The last layer of the model must learn a common offset of the weights of its inputs.

    Example:
      >>> tx = centralize()
      >>> gradients = {"kernel": jnp.array([[1.0, 0.0], [3.0, 8.0]]), "bias": jnp.ones(2)}
      >>> tx.update(gradients, tx.init(gradients))[0]
      {'bias': Array([1., 1.], dtype=float32), 'kernel': Array([[-1., -4.],
           [ 1.,  4.]], dtype=float32)}

    Reference:
      Yong et al., Gradient Centralization, 2020, https://arxiv.org/abs/2004.01461.
    """
    rule = default_rule if fan_in_axes is None else fan_in_axes

    def init(params: Tree) -> Tree:
        check_rule(rule, params)
        return optax.EmptyState()

    def update(updates: Tree, state: Tree, params: Tree, step: Step):
        def scaled(part: jax.Array) -> jax.Array:
            return (
                part
                if step.gradient_factor is None
                else step.gradient_factor.astype(part.dtype) * part
            )

        def centralized(path: KeyPath, gradient: jax.Array) -> jax.Array:
            axes = rule(path, gradient)
            if axes is None or math.prod(gradient.shape[axis] for axis in axes) <= 1:
                return scaled(gradient)
            mean = fan_in_mean(
                gradient, axes, is_read_alone=step.gradient_factor is None and step.finite is None
            )
            return scaled(gradient) - step.strength.astype(mean.dtype) * scaled(mean)

        return jax.tree_util.tree_map_with_path(centralized, updates), state

    return Stage(update, init, takes_factor=True)


PARTS = 16
"""The parts of a long fan-in axis that a GPU sums side by side."""

ROWS = 2
"""The rows of ones by which a TPU multiplies. Of a single row it makes a sum again."""


def fan_in_mean(leaf: jax.Array, axes: tuple[int, ...], *, is_read_alone: bool) -> jax.Array:
    """The mean over the fan-in axes, which are kept with length 1.

    A GPU has a block of threads for 64 columns, so that most of its processors would have none:
    there a long axis is summed in parts, and then the parts. A TPU, by its compiler's estimate,
    takes two thirds of the time if its matrix unit makes the sums. A CPU does not care.

    Args:
      leaf: an array of numbers.
      axes: of the fan-in.
      is_read_alone: whether no other sum reads the leaf in the same pass, as a norm does.
    """
    size = math.prod(leaf.shape[axis] for axis in axes)

    def whole(leaf: jax.Array) -> jax.Array:
        return jnp.mean(leaf, axis=axes, keepdims=True)

    def in_parts(leaf: jax.Array) -> jax.Array:
        shape = (*leaf.shape[:longest], PARTS, length // PARTS, *leaf.shape[longest + 1 :])
        within = tuple(axis + (axis >= longest) for axis in axes)
        of_parts = jnp.sum(leaf.reshape(shape), axis=within, keepdims=True)
        # Without the barrier XLA makes the two sums one again.
        return jnp.sum(jax.lax.optimization_barrier(of_parts), axis=longest) / size

    def by_product(leaf: jax.Array) -> jax.Array:
        ones = jnp.ones((ROWS, *(leaf.shape[axis] for axis in axes)), leaf.dtype)
        within = (tuple(range(1, ones.ndim)), axes), ((), ())
        sums = jax.lax.dot_general(ones, leaf, within, precision=jax.lax.Precision.HIGHEST)
        return jnp.expand_dims(sums[0] / size, axes)

    longest = max(axes, key=lambda axis: leaf.shape[axis])
    length = leaf.shape[longest]
    is_short = length % PARTS or length < 8 * PARTS or longest == leaf.ndim - 1
    if is_short or is_explicit(leaf):
        return whole(leaf)
    on_tpu = by_product if is_read_alone else whole
    return jax.lax.platform_dependent(leaf, cuda=in_parts, rocm=in_parts, tpu=on_tpu, default=whole)
