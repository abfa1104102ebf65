"""The objective that second-order methods receive as the extra arg `value_fn`."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import optax

from amac_jax._core.aliases import Tree

Objective: TypeAlias = Callable[[Tree], jax.Array]
"""A function of the parameters alone that returns a scalar."""


def check_objective(
    value_fn: Objective | None, params: Tree, needed_by: str, *, name: str = "value_fn"
) -> Objective:
    """Refuses an objective that does not return a scalar at the parameters.

    Args:
      value_fn: the extra arg `value_fn`; None where it was not passed.
      params: the argument `params`; None where it was not passed.
      needed_by: the name of the transformation, for the message.
      name: the name of the objective, for the message.

    Returns:
      `value_fn`.

    Raises:
      ValueError: naming the argument that is missing, or the shape that the objective returns.

    Example:
      >>> check_objective(None, 1.0, "newton")
      Traceback (most recent call last):
      ValueError: newton needs value_fn: tx.update(updates, state, params, value_fn=...)
    """
    if params is None:
        raise ValueError(f"{needed_by} needs params: tx.update(updates, state, params)")
    if not callable(value_fn):
        given = "" if value_fn is None else f", got value_fn={value_fn!r}"
        raise ValueError(
            f"{needed_by} needs value_fn: tx.update(updates, state, params, value_fn=...){given}"
        )
    value = jax.eval_shape(value_fn, params)
    if getattr(value, "shape", None) != ():
        raise ValueError(f"{name} must return a scalar, got {_described(value)}")
    return value_fn


def hessian_vector_product(value_fn: Objective, params: Tree, vector: Tree) -> Tree:
    """The Hessian of `value_fn` at `params` times a tree in the structure of `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> hessian_vector_product(lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0]), jnp.ones(2))
      Array([ 6., 12.], dtype=float32)
    """
    vector = optax.tree.cast_like(vector, params)
    return jax.jvp(jax.grad(value_fn), (params,), (vector,))[1]


def _described(value: Tree) -> str:
    if hasattr(value, "shape"):
        return f"shape {value.shape}"
    return f"a {type(value).__name__} of {len(jax.tree.leaves(value))} arrays"
