"""Batches in one tree of arrays, stacked on the first axis."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from amac_jax._core.aliases import Tree


def number_of_batches(batches: Tree) -> int:
    """The length of the first axis, which all arrays share.

    Raises:
      ValueError: if the arrays do not share a first axis, if it is empty, or for a list of trees.

    Example:
      >>> number_of_batches({"x": jnp.ones((5, 2)), "y": jnp.ones(5)})
      5
    """
    if isinstance(batches, list) and any(isinstance(x, tuple | list | dict) for x in batches):
        raise ValueError(
            "batches must be stacked on a first axis, got a list of batches; "
            "jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches) stacks it"
        )
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
    if len(sizes) != 1 or () in sizes or (0,) in sizes:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batches)]
        raise ValueError(f"batches must be arrays with one first axis, got shapes {shapes}")
    return sizes.pop()[0]


def random_order(key: jax.Array, size: int, steps: int) -> jax.Array:
    """Numbers of batches, (steps,) int32: each pass goes through all batches in a new random order.

    Example:
      >>> random_order(jax.random.key(0), 3, 6).reshape(2, 3).sort(axis=1).tolist()
      [[0, 1, 2], [0, 1, 2]]
    """
    keys = jax.random.split(key, -(-steps // size))
    return jax.vmap(lambda key: jax.random.permutation(key, size))(keys).ravel()[:steps]


def batch_at(batches: Tree, index: int | jax.Array) -> Tree:
    """Batch number `index` of a tree of stacked batches.

    Example:
      >>> batch_at({"x": jnp.array([[1.0], [2.0]])}, 1)["x"].tolist()
      [2.0]
    """
    return jax.tree.map(lambda array: jnp.asarray(array)[index], batches)
