"""Names for the types of arguments and results in this library."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax

Tree: TypeAlias = Any
"""Any pytree: of parameters, gradients, updates, or a state."""

Keywords: TypeAlias = Mapping[str, Any]
"""Arguments of a call by their names."""


def is_function(value: object) -> bool:
    """Whether it is a function; a callable Equinox model is a tree of parameters instead."""
    return callable(value) and jax.tree_util.all_leaves([value])
