"""Decoupled weight decay, on kernels: plain, cautious, and down to a floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from amac_jax._core.aliases import Tree, is_function, promoted
from amac_jax._core.boundary import Observation, Stage, Step, technique
from amac_jax._core.hyperparameters import Hyperparameter
from amac_jax._core.leaves import each_leaf, global_norm, wide_dtype
from amac_jax._core.measures import Measure
from amac_jax._core.ranges import FLOOR, NON_NEGATIVE, STRENGTH
from amac_jax._core.xla import only_when
from amac_jax.kernels import FanInRule, kernel_mask
from amac_jax.kernels import fan_in_axes as default_rule

Mask: TypeAlias = Tree | Callable[[Tree], Tree]
"""A tree of bools, a prefix of such a tree, or a function of the parameters that returns one."""


MEASURED_EVERY = 20
"""Steps from one measurement of the leaves' norms, which reads all of them, to the next."""


class DecayWeightsState(NamedTuple):
    """The norms that the decaying leaves had at `init`, and when they were last measured."""

    # (number of decaying leaves,), at least float32, in the order of the tree. As a tree it would
    # be sharded by `optax.tree.map_params` as the parameters are, which scalars cannot be.
    first_norms: jax.Array
    norms: jax.Array  # the same


@technique(rate=NON_NEGATIVE, cautious=STRENGTH, floor=FLOOR)
def decay_weights(
    rate: Hyperparameter,
    *,
    cautious: Hyperparameter | None = None,
    floor: Hyperparameter | None = None,
    mask: Mask | None = None,
    fan_in_axes: FanInRule | None = None,
) -> Stage:
    """Shrinks the weights themselves, independently of the scaling of the gradient.

    For the leaves in the mask, with r = `rate`:

        u <- u - min(r, 1) theta             alone or in `optax.chain`
        u <- u - min(eta_t r, 1) theta       in `compose`, whose learning rate is eta_t

    The factor of theta, the share that a step removes, is never above 1. Decay alone therefore
    cannot turn the sign of a weight.

    With `cautious` s, a weight whose update does not shrink it is spared the part s of its decay:

        u <- u - share (1 - s [u theta >= 0]) theta

    For complex weights u theta is Re(conj(u) theta).

    With `floor` rho, decay never takes a leaf below the part rho of the norm n_0 that it had at
    `init`, so that a network that is fine-tuned keeps its weights. With n = ||theta|| over the
    leaf, measured before the first step and then every k = 20 steps:

        share <- max(min(share, 1 - (rho n_0 / n)^(1/k)), 0)

    so that k steps of decay end at rho n_0 at the lowest. The floor bounds the decay alone. The
    update that arrives may still take a leaf below it, and such a leaf does not decay once it is
    measured. A leaf of stacked layers has one norm for all of its layers.

    Place it after the learning rate and the momentum, where it sees updates that will be added to
    the parameters. Alone, its rate is the share of a weight that a step removes. In `compose`
    the share is the learning rate times `weight_decay`, as in AdamW.

    Args:
      rate: r, dimensionless, >= 0. Off: 0.
      cautious: s, dimensionless, in [0, 1]; 1 and True spare such a weight all of its decay. Off:
        None or 0.
      floor: rho, dimensionless, in [0, 1). Off: None, without state, or 0.
      mask: the leaves that decay: a tree of bools, a prefix of such a tree (True is every leaf),
        or a function of the parameters, such as `amac_jax.by_path` returns. None is
        `amac_jax.kernel_mask`: kernels only.
      fan_in_axes: a rule (path, leaf) -> the fan-in axes of the leaf, or None for a leaf that is
        not a kernel. It is used where `mask` is None. None is `amac_jax.fan_in_axes`.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given.
      State: `CountedState` around `optax.EmptyState`; with a floor, around `DecayWeightsState`.

    Raises:
      ValueError: for a negative, infinite or NaN rate; for a strength outside [0, 1], a floor
        outside [0, 1), or NaN; for `update` without `params`; from `init`, for a pattern of
        `stacked` that fits no leaf, and for a mask of anything but bools.

    Differs from Optax:
      `optax.add_decayed_weights` adds the decay before the learning rate, and to every leaf
      unless it is given a mask. Optax does not have `cautious` and `floor`.

    When not to use:
      `cautious` where updates are often exactly 0, such as updates of rare words: a weight
      without an update does not decay here. The paper decays it.

    Example:
      >>> tx = decay_weights(0.1)
      >>> params = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
      >>> tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[0]
      {'bias': Array([0.], dtype=float32), 'kernel': Array([[-0.1],
           [-0.1]], dtype=float32)}
      >>> tx = decay_weights(0.1, cautious=True, mask=True)
      >>> params, updates = jnp.array([1.0, -1.0]), jnp.array([0.5, 0.5])
      >>> tx.update(updates, tx.init(params), params)[0]  # only the second weight shrinks
      Array([0.5, 0.6], dtype=float32)

    Reference:
      Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019,
      https://arxiv.org/abs/1711.05101. For `cautious`: Chen et al., Cautious Weight Decay, 2025,
      https://arxiv.org/abs/2510.12402.
    """
    rule = default_rule if fan_in_axes is None else fan_in_axes

    def masked(params: Tree) -> Tree:
        if mask is None:
            return kernel_mask(params, rule=rule)
        chosen = mask(params) if is_function(mask) else mask
        for decays in jax.tree.leaves(chosen):
            if not isinstance(decays, bool) and getattr(decays, "dtype", None) != np.bool_:
                raise ValueError(f"mask must be a tree of bools, got {decays!r} in it")
        return chosen

    def init(params: Tree) -> Tree:
        decays = masked(params)  # which refuses a rule that fits no leaf
        if floor is None:
            return optax.EmptyState()
        first_norms = _norms(jax.tree.leaves(_chosen(decays, params)))
        return DecayWeightsState(first_norms, jnp.array(first_norms, copy=True))

    def update(updates: Tree, state: Tree, params: Tree, step: Step):
        decays = masked(params)
        leaves, structure = jax.tree.flatten(_chosen(decays, params))
        share = jnp.minimum(step.learning_rate * step.rate, 1.0)
        shares = [share] * len(leaves)
        if floor is not None:
            due = step.counts(step.count % MEASURED_EVERY == 0)
            stored = jax.tree.leaves(_chosen(decays, step.in_memory(params)))
            norms = only_when(
                due, lambda old, leaves: _norms(leaves).astype(old.dtype), state.norms, stored
            )
            shares = [*down_to(step.floor, share, norms, state.first_norms)]
            state = state._replace(norms=norms)

        def where_masked(decays: bool, updates: Tree, params: Tree, shares: Tree) -> Tree:
            if not decays:
                return updates
            if cautious is None:
                return each_leaf(decayed, updates, params, shares)
            return each_leaf(cautiously_decayed, updates, params, shares, strength=step.cautious)

        shares = structure.unflatten(shares)
        return jax.tree.map(where_masked, decays, updates, params, shares), state

    def metrics(seen: Observation) -> dict[str, Measure]:
        return {"weight_decay": seen.step.rate}

    return Stage(update, init, needs_params=True, metrics=metrics)


def decayed(update: jax.Array, param: jax.Array, share: jax.Array) -> jax.Array:
    """u - eta lambda theta."""
    return update - share * param


def cautiously_decayed(
    update: jax.Array, param: jax.Array, share: jax.Array, strength: jax.Array
) -> jax.Array:
    """u - eta lambda (1 - s [Re(conj(u) theta) >= 0]) theta."""
    does_not_shrink = jnp.real(jnp.conj(update) * param) >= 0
    return update - jnp.where(does_not_shrink, share * (1.0 - strength), share) * param


def down_to(floor: jax.Array, share: jax.Array, norms: jax.Array, first: jax.Array) -> jax.Array:
    """The largest part of the share with (1 - share)^k n >= rho n_0, for each leaf."""
    dtype = norms.dtype
    least = floor.astype(dtype) * first
    ratio = least / jnp.where(norms == 0, 1.0, norms)
    excess = -jnp.expm1(jnp.log(ratio) / MEASURED_EVERY)
    # Where the norm is NaN `fmin` takes the share, so that a NaN stays in its element.
    return jnp.maximum(jnp.fmin(share.astype(dtype), excess), 0.0)


def _chosen(mask: Tree, params: Tree) -> Tree:
    """The parameters that decay, and None in the place of the others."""
    return jax.tree.map(lambda decays, part: part if decays else None, mask, params)


def _norms(leaves: list[Tree]) -> jax.Array:
    """The norm of each leaf, in at least float32; 0 for shapes alone."""
    dtype = promoted(jnp.float32, *(jnp.finfo(wide_dtype(leaf.dtype)).dtype for leaf in leaves))

    def norm(leaf: Tree) -> jax.Array:
        is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
        return jnp.zeros([], dtype) if is_shape else global_norm(leaf).astype(dtype)

    return jnp.stack([norm(leaf) for leaf in leaves]) if leaves else jnp.zeros(0, dtype)
