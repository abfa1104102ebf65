"""Scalars about a step: norms and shares of trees, all of them in one pass over each leaf."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from amac_jax._core.aliases import Tree, promoted
from amac_jax._core.leaves import wide_dtype
from amac_jax._core.moments import abs_square
from amac_jax._core.xla import one_by_one


class Norm(NamedTuple):
    """The Euclidean norm of all leaves together."""

    tree: Tree


class Share(NamedTuple):
    """The share of elements that are true, of all leaves together; 0 of nothing."""

    tree: Tree  # of bools


Measure: TypeAlias = jax.Array | Norm | Share
"""A number, or what a number is to be made of."""


def taken(
    measures: Mapping[str, Measure], *, alone: bool = False, in_memory: Tree = ()
) -> dict[str, jax.Array]:
    """The numbers: () in at least float32 where they are made here.

    Args:
      measures: names -> numbers, and what numbers are to be made of.
      alone: whether nothing else reads the same leaves. Leaves in the same place of several trees
        are then summed together. XLA would else write to memory what several sums have in
        common. Beside a step, the sums join the loops that write its results.
      in_memory: leaves that the step reads or writes anyway, if not `alone`. A CPU, which sums what
        is in memory alone, writes the others there, one after another.

    Example:
      >>> taken({"norm": Norm([jnp.array([3.0, 4.0])]), "share": Share([jnp.array([True, False])])})
      {'norm': Array(5., dtype=float32), 'share': Array(0.5, dtype=float32)}
    """
    places: dict[object, list[tuple[str, jax.Array]]] = {}
    sizes = {name: 0 for name, one in measures.items() if isinstance(one, Share)}
    for name, one in measures.items():
        if not isinstance(one, Norm | Share):
            continue
        for path, leaf in jax.tree_util.tree_leaves_with_path(one.tree):
            if isinstance(one, Share):
                sizes[name] += leaf.size
            places.setdefault((path, leaf.shape), []).append((name, leaf))
    names = [name for place in places.values() for name, _ in place]
    leaves = [[leaf for _, leaf in place] for place in places.values()]
    if alone:
        sums = jax.lax.platform_dependent(
            leaves, cpu=partial(together, row_by_row), default=partial(together, summed_together)
        )
    else:
        known = {id(leaf) for leaf in jax.tree.leaves(in_memory)}
        is_known = [id(leaf) in known for leaf in jax.tree.leaves(leaves)]
        sums = jax.lax.platform_dependent(
            jax.tree.leaves(leaves), cpu=partial(each_in_turn, is_known), default=each_alone
        )
    totals = {name: jnp.zeros([], jnp.float32) for name in measures}
    for name, total in zip(names, sums, strict=True):
        dtype = promoted(totals[name].dtype, total.dtype)
        totals[name] = totals[name].astype(dtype) + total.astype(dtype)

    def number(name: str, one: Measure) -> jax.Array:
        if isinstance(one, Norm):
            return jnp.sqrt(totals[name])
        return totals[name] / float(max(sizes[name], 1)) if isinstance(one, Share) else one

    return {name: number(name, one) for name, one in measures.items()}


def term_of(leaf: jax.Array) -> jax.Array:
    """What is summed: |x|^2 of numbers, in at least float32; 1 or 0 of bools."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.float32)
    return abs_square(leaf.astype(wide_dtype(leaf.dtype)))


def each_alone(leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """The sum of each leaf's terms."""
    return [jnp.sum(term_of(leaf)) for leaf in leaves]


def each_in_turn(is_in_memory: Sequence[bool], leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """The sum of each leaf's terms. What is not in memory is written there, leaf after leaf."""
    # Without the barrier XLA computes what a sum has in common with the step apart from both.
    terms = [
        term_of(jax.lax.optimization_barrier(leaf) if is_there else leaf)
        for leaf, is_there in zip(leaves, is_in_memory, strict=True)
    ]
    others = [term for term, is_there in zip(terms, is_in_memory, strict=True) if not is_there]
    in_turn = iter(one_by_one(others, jnp.sum, read_again=False))
    return [
        jnp.sum(term if is_there else next(in_turn))
        for term, is_there in zip(terms, is_in_memory, strict=True)
    ]


def together(
    sums_of: Callable[..., list[jax.Array]], places: Sequence[Sequence[jax.Array]]
) -> list[jax.Array]:
    """The sums of all leaves' terms; the leaves in one place are summed at once."""
    return [total for leaves in places for total in sums_of(*map(term_of, leaves))]


def summed_together(*terms: jax.Array, axes: Sequence[int] | None = None) -> list[jax.Array]:
    """The sum of each array over some axes, by one reduction with several results.

    Example:
      >>> summed_together(jnp.ones(3), 2 * jnp.ones(3))
      [Array(3., dtype=float32), Array(6., dtype=float32)]
    """
    zeros = tuple(jnp.zeros([], term.dtype) for term in terms)

    def add(left: tuple[jax.Array, ...], right: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(a + b for a, b in zip(left, right, strict=True))

    axes = range(terms[0].ndim) if axes is None else axes
    return [*jax.lax.reduce(terms, zeros, add, tuple(axes))]


def row_by_row(*terms: jax.Array) -> list[jax.Array]:
    """The sum of each array, by one reduction of every row, and then of what the rows make.

    A CPU adds the terms of one reduction with several results one after another, and of millions
    the last ones would count nothing.
    """
    if terms[0].ndim < 2:
        return [jnp.sum(term) for term in terms]
    return [jnp.sum(rows) for rows in summed_together(*terms, axes=[terms[0].ndim - 1])]
