"""Values for the leaves of a tree by patterns of their paths: masks, rates, labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.tree_util import KeyPath

from amac_jax._core.aliases import Tree
from amac_jax._core.paths import check_fits, check_patterns, first_fit, written_path


def by_path(
    patterns: Mapping[str, Any],
    default: Any | Callable[[KeyPath, Tree], Any] | None = None,
    *,
    optional: bool = False,
) -> Callable[[Tree], Tree]:
    """Returns a function from parameters to a tree of values, which patterns of paths choose.

    The tree has the structure of the parameters. The first pattern that fits a leaf decides. The
    function goes wherever Optax or this library takes a function of the parameters:

    - bools are a mask: `decay_mask`, `optax.masked`, `optax.add_decayed_weights(mask=...)`.
    - numbers, arrays and schedules are factors of updates: `layer_multipliers`, `scale_by_layer`.
    - labels, such as strings, say which optimizer of `optax.partition` trains a leaf.

    Frozen leaves have no state, their gradients count in nothing, and they equal their averages:

        optax.partition(
            {"train": amac_jax.amac("auto", total_steps=1000), "freeze": optax.set_to_zero()},
            amac_jax.by_path({"encoder": "freeze"}, default="train"),
        )

    `averaged_params(opt_state, params)` then has the frozen leaf of `params`. With
    `optax.chain(amac(...), optax.masked(optax.set_to_zero(), mask))`, also written `optax.freeze`,
    the optimizer has state for frozen leaves, counts them in its norms, and averages steps
    that are never taken. `layer_multipliers` of 0 freeze a leaf whose state is kept, so that a
    schedule can thaw it.

    Args:
      patterns: pattern -> value. A pattern is a glob (`fnmatch`). It fits a leaf's path, written as
        names joined by "/", such as "Dense_0/kernel", or a leading part of the path: "Dense_0"
        fits every leaf below it. `*` matches across "/", and upper and lower case differ. "*/bias"
        does not fit a "bias" at the top, which is the pattern "bias". A value is anything but
        None, which is not a leaf of a tree.
      default: the value of a leaf that no pattern fits, or a function (key path, leaf) -> value,
        such as `amac_jax.is_kernel`; a schedule for all other leaves is the pattern "*". None:
        every leaf must fit a pattern.
      optional: whether a pattern may fit no leaf, as in settings that several models share.

    Returns:
      A function params -> a tree of values in the structure of params.

    Raises:
      ValueError: for a pattern that is not a non-empty string, for a value None, and for a default
        that is a function of something else, such as a schedule; from the function, for a pattern
        that fits no leaf, or that stands behind a wider one (unless it is `optional`, leaves are
        hidden by `optax.masked` or `optax.partition`, or the tree has none), and without a
        `default` for a leaf that fits none of the patterns.

    When not to use:
      In the arguments of `jax.jit` and `jax.vmap`: they sort the keys of a dict, which changes the
      first pattern. Build the mapping inside them, from values that are passed in.
      In `optax.inject_hyperparams` as it is, which takes every function for a schedule: name the
      argument in its `static_args`.

    Example:
      >>> import amac_jax, jax.numpy as jnp
      >>> params = {"encoder": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
      ...           "head": {"kernel": jnp.ones((2, 1))}}
      >>> by_path({"encoder/kernel": 0.1, "encoder": 0.5}, default=1.0)(params)
      {'encoder': {'bias': 0.5, 'kernel': 0.1}, 'head': {'kernel': 1.0}}
      >>> tx = amac_jax.adamw(1e-3, decay_mask=by_path({"head": False}, default=amac_jax.is_kernel))
    """
    if not isinstance(patterns, Mapping):
        raise ValueError(f"patterns must be a mapping pattern -> value, got {patterns!r}")
    check_patterns("patterns", list(patterns))
    for pattern, value in patterns.items():
        if value is None:
            raise ValueError(f"patterns[{pattern!r}] must be a leaf of a tree, got None")
    if callable(default):
        try:
            inspect.signature(default).bind(None, None)
        except TypeError:
            raise ValueError(
                f"default must be a value or a function of (key path, leaf), got {default!r}; a "
                'schedule for all other leaves is the pattern "*"'
            ) from None
        except ValueError:  # a function that does not say what it takes
            pass
    values = dict(patterns)

    def of_leaf(path: KeyPath, leaf: Tree) -> Any:
        fits = first_fit(path, list(values))
        if fits is not None:
            return values[fits]
        if default is None:
            raise ValueError(
                f"patterns must fit every leaf where there is no default, got none for "
                f"{written_path(path)!r}"
            )
        return default(path, leaf) if callable(default) else default

    def valued(params: Tree) -> Tree:
        if not optional:
            check_fits("patterns", list(values), params, first_decides=True)
        return jax.tree_util.tree_map_with_path(of_leaf, params)

    return valued
