"""Programs that XLA compiles as they are meant: a zero it cannot fold, work only when due."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

from amac_jax._core.aliases import Tree


def opaque_zero(count: jax.Array) -> jax.Array:
    """The number 0, as an int32 of shape () that XLA cannot fold into a constant.

        min(count, 0)

    A count of updates is never negative, so this is 0, but XLA does not know that. If an index or a
    summand contains this zero, XLA therefore cannot compute it while compiling, and cannot share
    the result with an equal one.

    Args:
      count: the number of updates made before this one, an integer array of shape ().

    Returns:
      0, int32 of shape ().

    Example:
      >>> opaque_zero(jnp.array(3))
      Array(0, dtype=int32)
    """
    return jnp.minimum(count.astype(jnp.int32), 0)


Kept = TypeVar("Kept")


def only_when(due: jax.Array, function: Callable[..., Kept], kept: Kept, *operands: Tree) -> Kept:
    """function(kept, *operands) where `due`; else `kept`, untouched.

    Where it is not due, no leaf is read or written, and nothing in `function` is computed, on
    every backend. Under `vmap` over `due` a conditional becomes a select, which reads and writes
    every leaf at every step.

    The operands should be in memory anyway: XLA writes to memory for a conditional what it would
    otherwise compute in passing.

    Example:
      >>> only_when(jnp.array(True), lambda old, new: (old + new) / 2, jnp.zeros(2), jnp.ones(2))
      Array([0.5, 0.5], dtype=float32)
    """
    # `lax.cond` copies what it keeps: on a GPU before jax 0.11 (jax issue 39449), and on every
    # other backend if keeping is its true branch. A switch copies nothing if keeping is branch 0.
    branches = [lambda kept, *operands: kept, function]
    return jax.lax.switch(due.astype(jnp.int32), branches, kept, *operands)


def after(norm: jax.Array, tree: Tree) -> Tree:
    """The tree, of which XLA cannot compute with an array of floats before it has the norm.

    What is written over the tree is then written after everything that the norm needs has been
    read, and XLA need not keep a copy for it.

    Args:
      norm: () array >= 0 or NaN that XLA cannot compute while compiling.
      tree: any pytree.

    Example:
      >>> after(jnp.array(2.0), jnp.ones(2))
      Array([1., 1.], dtype=float32)
    """
    never = norm < 0

    def later(leaf: Tree) -> Tree:
        is_array = jnp.ndim(leaf) > 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        return jnp.where(never, jnp.zeros_like(leaf), leaf) if is_array else leaf

    return jax.tree.map(later, tree)


def one_by_one(
    leaves: Sequence[jax.Array], norm_of: Callable[[jax.Array], jax.Array], *, read_again: bool
) -> list[jax.Array]:
    """The leaves, of which XLA computes one after another: each when it has the norm of the last.

    XLA's CPU backend sums what is in memory alone. It would else write there, before the first sum,
    what is summed of all leaves.

    Args:
      leaves: arrays; what is not of real floats passes as it is.
      norm_of: from a leaf to its () norm >= 0 or NaN, which is summed anyway.
      read_again: whether more than the sum reads the leaves. Each is then divided by 1, which is
        dear enough for XLA to compute it once, and not again in every loop that reads it.

    Example:
      >>> leaves = [jnp.ones(2), jnp.array([-0.0])]
      >>> one_by_one(leaves, jnp.linalg.norm, read_again=True)
      [Array([1., 1.], dtype=float32), Array([-0.], dtype=float32)]
    """
    norms, in_turn = jnp.zeros([], jnp.float32), []
    for leaf in leaves:
        never = norms < 0
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            in_turn.append(leaf)
            continue
        if read_again:
            leaf = leaf / jnp.where(never, leaf, jnp.ones_like(leaf))
        else:
            leaf = jnp.where(never, jnp.zeros_like(leaf), leaf)
        norms = norms + norm_of(leaf).astype(norms.dtype)
        in_turn.append(leaf)
    return in_turn
