"""Random keys as optimizers keep them: whatever was given, as data that can be stored."""

from typing import Any

import jax
import jax.numpy as jnp


def key_data(key: Any) -> jax.Array:
    """The data of a key, in a buffer of its own.

    Args:
      key: an integer seed, or a JAX key, typed or raw.

    Returns:
      uint32 of the key's implementation's shape, (2,) for threefry.

    Example:
      >>> key_data(7)
      Array([0, 7], dtype=uint32)
    """
    if not _is_typed(key) and jnp.ndim(key) == 0:
        # A seed; `optax.inject_hyperparams` may hand it over as a float.
        key = jax.random.key(key if isinstance(key, int) else jnp.asarray(key).astype(jnp.int32))
    data = jax.random.key_data(key) if _is_typed(key) else key
    return jnp.array(data, dtype=jnp.uint32, copy=True)


def typed_key(data: jax.Array, like: Any) -> jax.Array:
    """The typed key of `key_data(like)`."""
    impl = jax.random.key_impl(like) if _is_typed(like) else None
    return jax.random.wrap_key_data(data, impl=impl)


def sub_key(key: Any, number: int) -> jax.Array:
    """A typed key of its own for part `number` of what `key` is for."""
    return jax.random.fold_in(typed_key(key_data(key), like=key), number)


def _is_typed(key: Any) -> bool:
    return isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
