"""Random keys in optimizer states: as data that can be stored."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from amac_jax._core.hyperparameters import is_number

Key: TypeAlias = int | float | np.ndarray | jax.Array
"""An integer seed, which may be a whole float or an array of shape (), or a JAX key."""


def as_key_data(key: Key) -> jax.Array:
    """The data of a key, in a buffer of its own.

    Args:
      key: an integer seed, or a JAX key, typed or raw. A seed may also be a whole float or a
        numeric array of shape (), because `optax.inject_hyperparams` hands integers over as floats.

    Returns:
      uint32 in the shape of the key's implementation, (2,) for threefry.

    Raises:
      ValueError: for anything else.

    Example:
      >>> as_key_data(7)
      Array([0, 7], dtype=uint32)
      >>> as_key_data("a")
      Traceback (most recent call last):
      ValueError: key must be an integer seed or a JAX key, got 'a'
    """
    check_key(key)
    if _is_seed(key):
        key = jax.random.key(key if isinstance(key, int) else jnp.asarray(key).astype(jnp.int32))
    return jnp.array(jax.random.key_data(key) if _is_typed(key) else key, copy=True)


def check_key(key: Key) -> None:
    """Refuses anything but a seed and a key, without making an array."""
    is_raw = getattr(key, "dtype", None) == jnp.uint32 and jnp.ndim(key) > 0
    if not (is_raw or _is_seed(key) or _is_typed(key)):
        raise ValueError(f"key must be an integer seed or a JAX key, got {key!r}")


def typed_key(data: jax.Array, like: Key) -> jax.Array:
    """The typed key whose data is `data`, in the implementation of the key `like`."""
    impl = jax.random.key_impl(like) if _is_typed(like) else None
    return jax.random.wrap_key_data(data, impl=impl)


def sub_key(key: Key, number: int) -> jax.Array:
    """A typed key for part `number` of the uses of `key`."""
    return jax.random.fold_in(typed_key(as_key_data(key), like=key), number)


def _is_seed(key: Key) -> bool:
    if isinstance(key, jax.Array | np.ndarray):
        return key.ndim == 0 and jnp.issubdtype(key.dtype, jnp.number)
    return is_number(key) and key % 1 == 0


def _is_typed(key: Key) -> bool:
    return isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
