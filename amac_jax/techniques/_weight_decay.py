"""Decoupled weight decay, on kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import optax

from amac_jax._core.boundary import Observation, Stage, Step, technique
from amac_jax._core.hyperparameters import Hyperparameter
from amac_jax._core.leaves import each_leaf
from amac_jax._core.ranges import NON_NEGATIVE
from amac_jax._core.types import Tree, is_function
from amac_jax.kernels import FanInRule, kernel_mask
from amac_jax.kernels import fan_in_axes as default_rule

Mask: TypeAlias = Tree | Callable[[Tree], Tree]
"""A tree of bools, a prefix of such a tree, or a function of the parameters that returns one."""


@technique(rate=NON_NEGATIVE)
def decay_weights(
    rate: Hyperparameter, *, mask: Mask | None = None, fan_in_axes: FanInRule | None = None
) -> Stage:
    """Shrinks the weights themselves, independently of the scaling of the gradient.

    For the leaves in the mask, with r = `rate`:

        u <- u - r theta             alone or in `optax.chain`
        u <- u - eta_t r theta       in `compose`, whose learning rate is eta_t

    Place it after the learning rate and the momentum, where it sees updates that will be added to
    the parameters. Alone, its rate is the share of a weight that a step removes. In `compose`
    the share is the learning rate times `weight_decay`, as in AdamW.

    Args:
      rate: r, dimensionless, >= 0. Off: 0.
      mask: the leaves that decay: a tree of bools, a prefix of such a tree (True is every leaf),
        or a function of the parameters. None is `amac_jax.kernel_mask`: kernels only.
      fan_in_axes: a rule (path, leaf) -> the fan-in axes of the leaf, or None for a leaf that is
        not a kernel. It is used where `mask` is None. None is `amac_jax.fan_in_axes`.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given.
      State: `CountedState` around `optax.EmptyState`.

    Raises:
      ValueError: for a negative, infinite or NaN rate; for `update` without `params`; from
        `init`, for a pattern of `stacked` that fits no leaf.

    Differs from Optax:
      `optax.add_decayed_weights` adds the decay before the learning rate, and to every leaf
      unless it is given a mask.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = decay_weights(0.1)
      >>> params = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
      >>> tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[0]
      {'bias': Array([0.], dtype=float32), 'kernel': Array([[-0.1],
           [-0.1]], dtype=float32)}

    Reference:
      Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019,
      https://arxiv.org/abs/1711.05101.
    """
    rule = default_rule if fan_in_axes is None else fan_in_axes

    def masked(params: Tree) -> Tree:
        if mask is None:
            return kernel_mask(params, rule=rule)
        return mask(params) if is_function(mask) else mask

    def init(params: Tree) -> Tree:
        masked(params)  # for its errors
        return optax.EmptyState()

    def update(updates: Tree, state: Tree, params: Tree, step: Step):
        share = step.learning_rate * step.rate

        def where_masked(decays: bool, updates: Tree, params: Tree) -> Tree:
            return each_leaf(decayed, updates, params, share=share) if decays else updates

        return jax.tree.map(where_masked, masked(params), updates, params), state

    def metrics(seen: Observation) -> dict[str, jax.Array]:
        return {"weight_decay": seen.step.rate}

    return Stage(update, init, needs_params=True, metrics=metrics)


def decayed(update: jax.Array, param: jax.Array, share: jax.Array) -> jax.Array:
    """u - eta lambda theta."""
    return update - share * param
