"""Names for the types of arguments and results in this library, and the dtypes of numbers."""

import functools
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Tree: TypeAlias = Any
"""Any pytree: of parameters, gradients, updates, or a state."""

Keywords: TypeAlias = Mapping[str, Any]
"""Arguments of a call by their names."""


def promoted(*dtypes: DTypeLike) -> DTypeLike:
    """The dtype that holds the numbers of all, also under strict implicit promotion.

    Example:
      >>> promoted(jnp.bfloat16, jnp.float32)
      dtype('float32')
    """
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def is_function(value: object) -> bool:
    """Whether it is a function; a callable Equinox model is a tree of parameters instead."""
    return callable(value) and jax.tree_util.all_leaves([value])
