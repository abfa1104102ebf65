"""Random words from a counter: a hash of key, step, leaf and position."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from amac_jax._core.aliases import Tree
from amac_jax._core.hyperparameters import Count
from amac_jax._core.xla import opaque_zero


def random_words(key: jax.Array, count: Count, like: Tree) -> Tree:
    """32 random bits for every element of a tree.

        word of element i of leaf l at step `count` = mix((i G + a) xor b)

    The words a and b are a hash of (key, step, leaf), and G is an odd constant. A leaf repeats
    after 2^32 elements; within 2^32 elements all of its words differ. Two (key, step, leaf)
    triples share their words with probability 2^-63.

    Args:
      key: a typed JAX key.
      count: the number of updates made before this one.
      like: the tree of arrays to draw words for.

    Returns:
      A tree shaped as `like`, uint32.
    """
    return drawn(lambda words: words, key, count, like)


def drawn(
    shaped: Callable[[jax.Array], jax.Array], key: jax.Array, count: Count, like: Tree
) -> Tree:
    """`shaped` of the random words of every leaf; the words themselves are never stored."""
    words, count = jax.random.key_data(key).reshape(-1), jnp.asarray(count)
    leaves, structure = jax.tree.flatten(like)
    stream = jnp.uint32(0x9E3779B9), jnp.uint32(0x85EBCA6B)
    for word in [*(words[i] for i in range(words.size)), count.astype(jnp.uint32)]:
        stream = _absorb(stream, word)
    streams = jnp.stack(_absorb(stream, jnp.arange(len(leaves), dtype=jnp.uint32)), axis=-1)
    # XLA compiles equal kernels only once. The kernels of all leaves of one shape are equal if
    # each reads the number of its leaf from a constant, at an index that XLA cannot know.
    zero = opaque_zero(count)
    numbers = [jnp.asarray(np.array([number, 0], np.int32)) for number in range(len(leaves))]
    noise = [
        _drawn_leaf(shaped, leaf.shape, jax.typeof(leaf).sharding, streams, number, zero)
        for leaf, number in zip(leaves, numbers, strict=True)
    ]
    return jax.tree.unflatten(structure, noise)


@partial(jax.jit, static_argnums=(0, 1, 2))  # traced once for all leaves of one shape
def _drawn_leaf(shaped, shape, sharding, streams, number, zero):
    row = jax.lax.dynamic_slice(number, (zero,), (1,))[0]
    stream = jax.lax.dynamic_slice(streams, (row, zero), (1, 2))
    return shaped(_hash(positions(shape, sharding), stream[0, 0], stream[0, 1]))


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32 bits: every input bit flips every output bit half of the time.

    These are Wellons' two rounds, https://nullprogram.com/blog/2018/07/31/, with constants of
    lower bias that were found later: https://github.com/skeeto/hash-prospector/issues/19.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)


def _absorb(stream: tuple[jax.Array, jax.Array], word: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two words of key, each of which depends on every word absorbed so far."""
    first = _mix(stream[0] ^ word)
    second = _mix(stream[1] + first)
    return first ^ (second << 7), second


def positions(shape: tuple[int, ...], sharding: Sharding | None = None) -> jax.Array:
    """The row-major index of each element modulo 2^32, from iotas alone.

    Devices therefore have nothing to communicate. With explicit sharding, each device counts only
    its own part if the type of the iotas includes the sharding.
    """
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=sharding)
        index = place if stride == 1 else index + place * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return index


def _hash(index: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """A bijection of the index for each pair of words of key.

    With the sum alone, all leaves would be windows on one sequence; the exclusive or scatters
    them.
    """
    return _mix((index * jnp.uint32(0x9E3779B1) + first) ^ second)
