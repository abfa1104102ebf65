"""Stochastic rounding of state to bfloat16, with random bits from the counter generator."""

from typing import Any

import jax
import jax.numpy as jnp

from amac_jax.keys import key_data, sub_key
from amac_jax.samplers import random_words


def narrow_dtype(name: str, dtype: Any) -> jnp.dtype | None:
    """The dtype to round state to; None where state stays as it is, for None and float32.

    Args:
      name: the argument's name, for the message.
      dtype: what was passed for it.

    Raises:
      ValueError: naming the argument, what it may be and the value received.

    Example:
      >>> narrow_dtype("state_dtype", "bfloat16"), narrow_dtype("state_dtype", None)
      (dtype(bfloat16), None)
    """
    try:  # by name: to NumPy None is float64
        given = "float32" if dtype is None else jnp.dtype(dtype).name
    except TypeError:
        given = "unknown"
    if given not in ("float32", "bfloat16"):
        raise ValueError(f"{name} must be None, 'float32' or 'bfloat16', got {dtype!r}")
    return None if given == "float32" else jnp.dtype(given)


def rounding_key(key: Any) -> jax.Array:
    """Data of a key for rounding alone: noise from the same key has other bits."""
    return key_data(sub_key(key, 0x726F756E))


def is_narrowed(leaf: Any) -> bool:
    """Whether a leaf of state is kept in few bits: arrays of floats. Scalars cost nothing."""
    return jnp.ndim(leaf) > 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def narrow(tree: Any, dtype: Any) -> Any:
    """The arrays of floats in `dtype`, to nearest; other leaves as they are.

    Example:
      >>> narrow({"w": jnp.ones(2), "n": jnp.array(1.0)}, "bfloat16")
      {'n': Array(1., dtype=float32, weak_type=True), 'w': Array([1, 1], dtype=bfloat16)}
    """
    return jax.tree.map(lambda x: x.astype(dtype) if is_narrowed(x) else x, tree)


def narrow_stochastically(tree: Any, dtype: Any, key: Any, count: Any, shift: Any = 0) -> Any:
    """`narrow`, each element up or down at random; fresh bits for every key, count and leaf.

    `shift` is added to the bits of all elements: uniform they remain.
    """
    leaves, structure = jax.tree.flatten(tree)
    places = [place for place, leaf in enumerate(leaves) if is_narrowed(leaf)]
    words = random_words(key, count, [leaves[place] for place in places])
    shift = jnp.asarray(shift).astype(jnp.uint32)
    for place, word in zip(places, words, strict=True):
        leaves[place] = round_stochastically(leaves[place], word + shift, dtype)
    return jax.tree.unflatten(structure, leaves)


def round_stochastically(values: jax.Array, words: jax.Array, dtype: Any) -> jax.Array:
    """Rounds float32 to one of its two neighbours in bfloat16, the nearer the likelier.

    With a <= |x| <= b the neighbours, |x| becomes b with probability (|x| - a) / (b - a), to
    within nothing: the float's last 16 bits are that probability in units of 2^-16, and adding
    16 random bits carries with it. So the expectation is x, and what is in bfloat16 stays as it
    is. Infinities, NaN and what is beyond the largest bfloat16 are rounded to nearest.

    Args:
      values: floating-point, any shape; first rounded to float32.
      words: uint32 of the same shape; the low 16 bits are used.
      dtype: bfloat16.

    Returns:
      An array in `dtype`, shaped as `values`.

    Example:
      >>> x = jnp.full(4, 1 + 2**-9)  # a quarter of the way from 1 to the next bfloat16
      >>> round_stochastically(x, jnp.uint32([0, 0x4000, 0xBFFF, 0xC000]), jnp.bfloat16)
      Array([1, 1, 1, 1.00781], dtype=bfloat16)

    Reference:
      Gupta et al., Deep Learning with Limited Numerical Precision, 2015,
      https://arxiv.org/abs/1502.02551.
    """
    # In integers throughout: XLA's own conversion to bfloat16 takes longer than the random bits.
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    size = bits & 0x7FFFFFFF
    to_nearest = 0x7FFF + ((bits >> 16) & 1)  # and of two equally near to the even one
    dither = jnp.where(size > 0x7F7F0000, to_nearest, words & 0xFFFF)  # the largest bfloat16
    # A carry would make a NaN -0.
    rounded = jnp.where(size > 0x7F800000, bits | 0x400000, bits + dither)
    return jax.lax.bitcast_convert_type((rounded >> 16).astype(jnp.uint16), dtype)
