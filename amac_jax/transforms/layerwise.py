"""Learning rates that differ from layer to layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import KeyPath

from amac_jax.layout import path_matches, written_path
from amac_jax.leaves import floats_only
from amac_jax.precision import map_wide, widen
from amac_jax.schedules import Hyperparameter, check, next_count, value_at

Multipliers: TypeAlias = (
    float | np.ndarray | jax.Array | Mapping[str, Hyperparameter] | Callable[[Any], Any]
)
"""A number, a mapping path pattern -> multiplier, or a function params -> tree of multipliers."""


class ScaleByLayerState(NamedTuple):
    """The number of updates made; there only where a multiplier is a schedule."""

    count: jax.Array  # () int32


def scale_by_layer(multipliers: Multipliers) -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates of each layer by a factor of its own.

        u <- m(path) u

    A layer with m = 0 is frozen: its updates are 0, also where they were infinite or NaN.

    Place it after the learning rate, the momentum and the weight decay, which it scales with the
    rest, and before `lookahead`. Before Adam's core it would do nothing: that divides by the size
    of the gradients.

    Args:
      multipliers: m, dimensionless, >= 0. Off: 1. One of

        - a number or an array: for every leaf.
        - a mapping path pattern -> number, array or schedule. A pattern is a glob (`fnmatch`) of
          a leaf's path written as names joined by "/", such as "Dense_0/kernel", or of a leading
          part of it: "Dense_0" names all that is below. The first pattern that fits a leaf
          decides; a leaf that none fits has 1. With a schedule a layer thaws while training.
          Build the mapping inside `jax.jit` and `jax.vmap`, from values that these hand in: they
          sort the keys of a dict, and so would change which pattern is first.
        - a function params -> a tree of numbers and arrays in the structure of params, such as
          `layerwise_decay` returns. It is called on the updates where `update` has no `params`.
          `optax.inject_hyperparams` would take it for a schedule: name "multipliers" in its
          `static_args`. For the same reason a schedule for every leaf is written
          {"*": schedule}.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given.
      State: `optax.EmptyState`, or `ScaleByLayerState` if a mapping holds a schedule.

    Raises:
      ValueError: for a negative, infinite or NaN multiplier, and a pattern that is no non-empty
        string; from `init`, for a pattern that fits no leaf (unless leaves are hidden by
        `optax.masked` or `optax.partition`, or there are none), and a function whose tree has
        another structure.

    `optax.partition` gives each group an optimizer of its own, with a state each; this is one
    stage with no state.

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
    by_pattern = multipliers if isinstance(multipliers, Mapping) else {}
    scheduled = any(callable(multiplier) for multiplier in by_pattern.values())
    if isinstance(multipliers, Mapping):
        check_patterns("multipliers", list(multipliers))
        for pattern, multiplier in multipliers.items():
            check_multiplier(f"multipliers[{pattern!r}]", multiplier)
    elif not callable(multipliers):
        check_multiplier("multipliers", multipliers)

    def of_each_leaf(updates: Any, params: Any, count: jax.Array) -> Any:
        if isinstance(multipliers, Mapping):
            values = {pattern: value_at(m, count) for pattern, m in multipliers.items()}
            return jax.tree_util.tree_map_with_path(
                lambda path, _: values.get(first_fit(path, list(values)), 1.0), updates
            )
        if not callable(multipliers):
            return jax.tree.map(lambda _: multipliers, updates)
        tree = updates if params is None else params
        found = multipliers(tree)
        if jax.tree.structure(found) != jax.tree.structure(tree):
            raise ValueError(
                "multipliers must return a tree in the structure of params, got "
                f'{jax.tree.structure(found)}; a schedule for every leaf is {{"*": schedule}}'
            )
        for path, multiplier in jax.tree_util.tree_leaves_with_path(found):
            check_multiplier(f"the multiplier of {written_path(path)!r}", multiplier)
        return found

    def init(params: optax.Params) -> ScaleByLayerState | optax.EmptyState:
        check_fits("multipliers", list(by_pattern), params)
        count = jnp.zeros([], jnp.int32)
        of_each_leaf(params, params, count)  # for its errors
        return ScaleByLayerState(count) if scheduled else optax.EmptyState()

    def update(updates, state, params=None, **extra_args):
        count = state.count if scheduled else jnp.zeros([], jnp.int32)
        updates = map_wide(scaled, updates, of_each_leaf(updates, params, count))
        return updates, ScaleByLayerState(next_count(count)) if scheduled else state

    return floats_only(optax.GradientTransformationExtraArgs(init, update))


def layerwise_decay(
    factor: float | np.ndarray | jax.Array,
    depth_of: Callable[[KeyPath, Any], int | None] | Sequence[str],
) -> Callable[[Any], Any]:
    """Multipliers for `scale_by_layer` that fall from layer to layer, from the top down.

        m = factor^(top - depth)      with depth 0 for the lowest layer and `top` for the highest

    so that the head learns at the full rate and what is below it, which a pretrained model
    already has right, at less and less.

    Args:
      factor: dimensionless, in [0, 1]. Off: 1. At 0 only the top layer learns.
      depth_of: which layer a leaf belongs to. Either path patterns from the lowest layer to the
        top, as `scale_by_layer` takes them, of which the first that fits decides; `top` is the
        last of them. Or a function (key path, leaf) -> depth, a whole number from 0, or None;
        `top` is the largest depth in the tree. A leaf with no pattern, or the depth None, has
        multiplier 1.

    Returns:
      A function params -> a tree of multipliers in the structure of params: numbers, or ()
      arrays where `factor` is one.

    Raises:
      ValueError: for a factor outside [0, 1] or NaN, and patterns that are not one or more
        non-empty strings; from the function, for a pattern that fits no leaf (unless leaves are
        hidden by `optax.masked` or `optax.partition`, or there are none) and a depth that is no
        whole number from 0.

    Layers stacked in one leaf by a scan have one depth. Give them an array of multipliers that
    broadcasts to the leaf, from a function of your own. In `optax.partition` a function of depths
    sees, and counts the top from, only the leaves of its part; patterns do not depend on them.

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
    check("factor", factor, "[0, 1]")
    patterns = [] if callable(depth_of) else depth_of
    if not callable(depth_of):
        check_patterns("depth_of", depth_of)
        if not depth_of:
            raise ValueError("depth_of must be a function or one or more patterns, got none")
    factor = factor if isinstance(factor, int | float) else widen(factor)

    def depth(path: KeyPath, leaf: Any) -> int | None:
        if not callable(depth_of):
            fits = first_fit(path, patterns)
            return None if fits is None else patterns.index(fits)
        found = depth_of(path, leaf)
        if found is not None:
            check(f"the depth of {written_path(path)!r}", found, "[0, inf)", whole=True)
        return found

    def multipliers(params: Any) -> Any:
        check_fits("depth_of", patterns, params)
        leaves = jax.tree_util.tree_leaves_with_path(params)
        depths = [depth(path, leaf) for path, leaf in leaves]
        top = max([len(patterns) - 1, *[d for d in depths if d is not None]])
        powers = [1.0 if d is None else factor ** (top - d) for d in depths]
        return jax.tree.unflatten(jax.tree.structure(params), powers)

    return multipliers


def scaled(update: jax.Array, multiplier: jax.Array) -> jax.Array:
    """m u, and 0 at m = 0, where an infinite or NaN update would give NaN."""
    sharding = jax.typeof(update).sharding
    m = jnp.broadcast_to(multiplier, update.shape, out_sharding=sharding).astype(update.dtype)
    return jnp.where(m == 0, jnp.zeros_like(update), m * update)


def first_fit(path: KeyPath, patterns: Sequence[str]) -> str | None:
    return next((pattern for pattern in patterns if path_matches(path, pattern)), None)


def check_multiplier(name: str, multiplier: Any) -> None:
    if not isinstance(multiplier, jax.Array | np.ndarray):  # which may broadcast to a leaf
        check(name, multiplier, "[0, inf)")


def check_patterns(name: str, patterns: Any) -> None:
    """Refuses what is not a sequence of non-empty strings, such as one string."""
    strings = isinstance(patterns, Sequence) and not isinstance(patterns, str | bytes)
    if not strings or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise ValueError(f"{name} must have non-empty strings for patterns, got {patterns!r}")


def check_fits(name: str, patterns: Sequence[str], tree: Any) -> None:
    """Refuses a pattern that fits no leaf: nothing would tell of a misspelt name."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    nodes = jax.tree.leaves(tree, is_leaf=is_masked)
    if not paths or any(is_masked(node) for node in nodes):  # it may fit what is hidden
        return
    for pattern in patterns:
        if not any(path_matches(path, pattern) for path in paths):
            raise ValueError(
                f"{name} must be patterns that each fit a leaf, such as "
                f"{written_path(paths[0])!r}, got {pattern!r}"
            )


def is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
