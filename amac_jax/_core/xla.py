"""Programs that XLA compiles as they are meant: a zero it cannot fold, a write only when due."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from amac_jax._core.types import Tree


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


def write_when(
    due: jax.Array, function: Callable[[Tree, Tree], Tree], state: Tree, params: Tree, updates: Tree
) -> Tree:
    """function(state, params + updates), on trees, where `due`; else `state`, untouched.

    Where it is not due, no leaf is read or written, and nothing in `function` is computed.
    `optax.apply_updates` computes params + updates too: XLA has this sum in memory as the new
    parameters and makes it once. Under `vmap` over `due` a conditional becomes a select, which
    reads and writes every leaf at every step.

    Example:
      >>> tree = jnp.zeros(2)
      >>> write_when(jnp.array(True), lambda old, new: (old + new) / 2, tree, tree, tree + 1)
      Array([0.5, 0.5], dtype=float32)
    """
    landing = jax.tree.map(jnp.add, params, updates)
    # Keeping is the false branch: XLA copies every buffer if the branches are exchanged.
    return jax.lax.cond(due, function, lambda state, landing: state, state, landing)
