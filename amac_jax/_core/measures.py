"""Scalars about a step: norms and shares of trees, all of them in one pass over each leaf."""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from amac_jax._core.leaves import wide_dtype
from amac_jax._core.moments import abs_square
from amac_jax._core.types import Tree, promoted


class Norm(NamedTuple):
    """The Euclidean norm of all leaves together."""

    tree: Tree


class Share(NamedTuple):
    """The share of elements that are true, of all leaves together; 0 of nothing."""

    tree: Tree  # of bools


Measure: TypeAlias = jax.Array | Norm | Share
"""A number, or what a number is to be made of."""


def taken(measures: Mapping[str, Measure], *, alone: bool = False) -> dict[str, jax.Array]:
    """The numbers: () in at least float32 where they are made here.

    Args:
      measures: names -> numbers, and what numbers are to be made of.
      alone: whether nothing else reads the same leaves. Leaves in the same place of several trees
        are then summed together. XLA would else write to memory what several sums have in
        common. Beside a step, the sums join the loops that write its results.

    Example:
      >>> taken({"norm": Norm([jnp.array([3.0, 4.0])]), "share": Share([jnp.array([True, False])])})
      {'norm': Array(5., dtype=float32), 'share': Array(0.5, dtype=float32)}
    """
    terms: dict[object, list[tuple[str, jax.Array]]] = {}
    sizes = {name: 0 for name, one in measures.items() if isinstance(one, Share)}
    for name, one in measures.items():
        if not isinstance(one, Norm | Share):
            continue
        for path, leaf in jax.tree_util.tree_leaves_with_path(one.tree):
            if isinstance(one, Share):
                sizes[name] += leaf.size
                term = leaf.astype(jnp.float32)
            else:
                term = abs_square(leaf.astype(wide_dtype(leaf.dtype)))
            terms.setdefault((path, leaf.shape), []).append((name, term))
    totals = {name: jnp.zeros([], jnp.float32) for name in measures}
    for same_place in terms.values():
        sums_of = summed_together if alone else one_by_one
        sums = sums_of(*(term for _, term in same_place))
        for (name, _), total in zip(same_place, sums, strict=True):
            dtype = promoted(totals[name].dtype, total.dtype)
            totals[name] = totals[name].astype(dtype) + total.astype(dtype)

    def number(name: str, one: Measure) -> jax.Array:
        if isinstance(one, Norm):
            return jnp.sqrt(totals[name])
        return totals[name] / float(max(sizes[name], 1)) if isinstance(one, Share) else one

    return {name: number(name, one) for name, one in measures.items()}


def one_by_one(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The sum of each array."""
    return tuple(jnp.sum(array) for array in arrays)


def summed_together(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The sum of each array, all of one shape, by one reduction with several results.

    Example:
      >>> summed_together(jnp.ones(3), 2 * jnp.ones(3))
      (Array(3., dtype=float32), Array(6., dtype=float32))
    """
    zeros = tuple(jnp.zeros([], array.dtype) for array in arrays)

    def add(left: tuple[jax.Array, ...], right: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(a + b for a, b in zip(left, right, strict=True))

    return tuple(jax.lax.reduce(arrays, zeros, add, tuple(range(arrays[0].ndim))))
