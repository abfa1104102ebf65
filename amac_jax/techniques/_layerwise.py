"""Learning rates that differ from layer to layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import KeyPath
from jax.typing import ArrayLike

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Stage, Step, technique
from amac_jax._core.hyperparameters import Hyperparameter, value_at
from amac_jax._core.leaves import widen
from amac_jax._core.paths import check_fits, check_patterns, first_fit, written_path
from amac_jax._core.ranges import COUNT_OR_ZERO, MULTIPLIERS, NON_NEGATIVE, UNIT, check, checked

Multipliers: TypeAlias = (
    float | np.ndarray | jax.Array | Mapping[str, Hyperparameter] | Callable[[Tree], Tree]
)
"""A number, a mapping path pattern -> multiplier, or a function params -> tree of multipliers."""


@technique(multipliers=MULTIPLIERS)
def scale_by_layer(multipliers: Multipliers) -> Stage:
    """Multiplies the updates of each layer by a factor of its own.

        u <- m(path) u

    A layer with m = 0 is frozen: its updates are 0, even where they were infinite or NaN.

    Place it after the learning rate, the momentum and the weight decay, all of which it scales,
    and before `lookahead`. Before the core of Adam it would do nothing, because Adam divides by
    the size of the gradients.

    Args:
      multipliers: m, dimensionless, >= 0. Off: 1. One of

        - a number or an array, for every leaf.
        - a mapping path pattern -> number, array or schedule. A pattern is a glob (`fnmatch`). It
          fits a leaf's path, written as names joined by "/", such as "Dense_0/kernel", or a
          leading part of the path: "Dense_0" fits every leaf below it. The first pattern that
          fits a leaf decides. A leaf that no pattern fits has m = 1. With a schedule a layer can
          thaw during training. `jax.jit` and `jax.vmap` sort the keys of a dict that is passed
          in, which changes the first pattern: build the mapping inside them, from values that are
          passed in.
        - a function params -> a tree of numbers, arrays and schedules in the structure of params,
          such as `layerwise_decay` and `amac_jax.by_path` return. It is called on the updates where
          `update` has no `params`.
          `optax.inject_hyperparams` would take it for a schedule: name "multipliers" in its
          `static_args`. For the same reason a schedule for every leaf is written
          {"*": schedule}.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given.
      State: `CountedState` around `optax.EmptyState`.

    Raises:
      ValueError: for a negative, infinite or NaN multiplier, or a pattern that is not a non-empty
        string; from `init`, for a pattern that fits no leaf (unless leaves are hidden by
        `optax.masked` or `optax.partition`, or the tree has none), and for a function whose tree
        has another structure.

    Differs from Optax:
      `optax.partition` gives each group of leaves an optimizer of its own, with its own state.
      This is one stage, and its state is one counter.

    Example:
      >>> tx = optax.chain(optax.sgd(1.0), scale_by_layer({"encoder": 0.1, "embed": 0.0}))
      >>> params = {"embed": jnp.ones(2), "encoder": {"kernel": jnp.ones(2)}, "head": jnp.ones(2)}
      >>> tx.update(params, tx.init(params))[0]
      {'embed': Array([0., 0.], dtype=float32),
       'encoder': {'kernel': Array([-0.1, -0.1], dtype=float32)},
       'head': Array([-1., -1.], dtype=float32)}

    Reference:
      Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, 2018,
      https://arxiv.org/abs/1801.06146: discriminative fine-tuning and gradual unfreezing.
    """
    of_each_leaf = _by_leaf(multipliers)
    patterns = list(multipliers) if isinstance(multipliers, Mapping) else []

    def init(params: Tree) -> Tree:
        check_fits("multipliers", patterns, params, first_decides=True)
        of_each_leaf(params, jnp.zeros([], jnp.int32))  # for its errors
        return optax.EmptyState()

    def update(updates: Tree, state: Tree, params: Tree, step: Step):
        found = of_each_leaf(updates if params is None else params, step.count)
        return jax.tree.map(scaled, updates, found), state

    return Stage(update, init)


def _by_leaf(multipliers: Multipliers) -> Callable[[Tree, jax.Array], Tree]:
    """A function (tree, count) -> a tree of multipliers, from any of the three forms."""
    if isinstance(multipliers, Mapping):
        check_patterns("multipliers", list(multipliers))
        for pattern, multiplier in multipliers.items():
            _check_multiplier(f"multipliers[{pattern!r}]", multiplier)

        def by_pattern(tree: Tree, count: jax.Array) -> Tree:
            values = {pattern: value_at(m, count) for pattern, m in multipliers.items()}
            return jax.tree_util.tree_map_with_path(
                lambda path, _: values.get(first_fit(path, list(values)) or "", 1.0), tree
            )

        return by_pattern
    if not callable(multipliers):
        return lambda tree, count: jax.tree.map(lambda _: multipliers, tree)

    def by_function(tree: Tree, count: jax.Array) -> Tree:
        found = multipliers(tree)
        if jax.tree.structure(found) != jax.tree.structure(tree):
            raise ValueError(
                "multipliers must return a tree in the structure of params, got "
                f'{jax.tree.structure(found)}; a schedule for every leaf is {{"*": schedule}}'
            )
        for path, multiplier in jax.tree_util.tree_leaves_with_path(found):
            _check_multiplier(f"the multiplier of {written_path(path)!r}", multiplier)
        return jax.tree.map(lambda m: value_at(m, count), found)

    return by_function


def scaled(update: jax.Array, multiplier: ArrayLike) -> jax.Array:
    """m u, and 0 at m = 0, where an infinite or NaN update would give NaN."""
    sharding = jax.typeof(update).sharding
    m = jnp.broadcast_to(multiplier, update.shape, out_sharding=sharding).astype(update.dtype)
    return jnp.where(m == 0, jnp.zeros_like(update), m * update)


@checked(factor=UNIT)
def layerwise_decay(
    factor: float | np.ndarray | jax.Array,
    depth_of: Callable[[KeyPath, Tree], int | None] | Sequence[str],
) -> Callable[[Tree], Tree]:
    """Returns multipliers for `scale_by_layer` that fall from layer to layer, from the top down.

        m = factor^(top - depth)      with depth 0 for the lowest layer and `top` for the highest

    The head learns at the full rate. The layers below it, which a pretrained model has already
    learnt, learn more slowly the lower they are.

    Pass the result to `scale_by_layer`, or to an optimizer as `layer_multipliers`.

    Args:
      factor: dimensionless, in [0, 1]. Off: 1. At 0 only the top layer learns.
      depth_of: the layer of each leaf, in one of two forms. A leaf with no pattern, or with the
        depth None, has the multiplier 1.

        - path patterns, as `scale_by_layer` takes them, from the lowest layer to the top. The
          first pattern that fits a leaf decides. `top` is the last pattern, whichever leaves the
          tree has.
        - a function (key path, leaf) -> depth, a whole number from 0, or None. `top` is the
          largest depth in the tree. In `optax.partition` the function sees only the leaves of its
          part, and `top` is counted from them.

    Returns:
      A function params -> a tree of multipliers in the structure of params. The multipliers are
      numbers, or arrays of shape () where `factor` is an array.

    Raises:
      ValueError: for a factor outside [0, 1] or NaN, and for patterns that are not one or more
        non-empty strings; from the function, for a pattern that fits no leaf (unless leaves are
        hidden by `optax.masked` or `optax.partition`, or the tree has none), and for a depth that
        is not a whole number from 0.

    When not to use:
      A scan stacks the layers in one leaf, which has one depth. Give `scale_by_layer` a function
      of your own that returns, for this leaf, an array of multipliers that broadcasts to it.

    Example:
      >>> params = {"Embed_0": 1.0, "Dense_0": {"kernel": 1.0}, "Dense_1": {"kernel": 1.0}}
      >>> layerwise_decay(0.5, ["Embed_0", "Dense_0", "Dense_1"])(params)
      {'Dense_0': {'kernel': 0.5}, 'Dense_1': {'kernel': 1.0}, 'Embed_0': 0.25}

      The depth from the number in Flax's names, for the stage after the learning rate:

      >>> def depth_of(path, leaf):
      ...     return int(path[0].key.removeprefix("Dense_"))
      >>> tx = optax.chain(optax.sgd(1.0), scale_by_layer(layerwise_decay(0.1, depth_of)))
      >>> params = {"Dense_0": jnp.ones(1), "Dense_1": jnp.ones(1)}
      >>> tx.update(params, tx.init(params), params)[0]
      {'Dense_0': Array([-0.1], dtype=float32), 'Dense_1': Array([-1.], dtype=float32)}

    Reference:
      Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, 2018,
      https://arxiv.org/abs/1801.06146;
      Clark et al., ELECTRA, 2020, https://arxiv.org/abs/2003.10555.
    """
    if callable(factor):
        raise ValueError(f"factor must be in [0, 1] or an array, got {factor!r}")
    patterns = [] if callable(depth_of) else depth_of
    if not callable(depth_of):
        check_patterns("depth_of", depth_of)
        if not depth_of:
            raise ValueError("depth_of must be a function or one or more patterns, got none")
    factor = factor if isinstance(factor, int | float) else widen(factor)

    def depth(path: KeyPath, leaf: object) -> int | None:
        if not callable(depth_of):
            fits = first_fit(path, patterns)
            return None if fits is None else patterns.index(fits)
        found = depth_of(path, leaf)
        if found is not None:
            check(f"the depth of {written_path(path)!r}", found, COUNT_OR_ZERO)
        return found

    def multipliers(params: Tree) -> Tree:
        check_fits("depth_of", patterns, params, first_decides=True)
        leaves = jax.tree_util.tree_leaves_with_path(params)
        depths = [depth(path, leaf) for path, leaf in leaves]
        top = max([len(patterns) - 1, *[d for d in depths if d is not None]])
        powers = [1.0 if d is None else factor ** (top - d) for d in depths]
        return jax.tree.unflatten(jax.tree.structure(params), powers)

    return multipliers


def _check_multiplier(name: str, multiplier: object) -> None:
    if not isinstance(multiplier, jax.Array | np.ndarray):  # an array may broadcast to a leaf
        check(name, multiplier, NON_NEGATIVE)
