"""Noise of mean 0 and variance 1 as a function of key, step, leaf and position alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.random import define_prng_impl

Sampler: TypeAlias = Callable[[Any, Any, Any], Any]
"""(key, count, like) -> a tree shaped as `like`, of mean 0 and variance 1."""


def sampler_named(sampler: str | Sampler) -> Sampler:
    """The sampler of that name; a function is its own."""
    samplers = {"fast": fast_normal, "gaussian": gaussian, "threefry": threefry_normal}
    if callable(sampler):
        return sampler
    if sampler not in samplers:
        names = ", ".join(map(repr, samplers))
        raise ValueError(f"sampler must be one of {names} or a function, got {sampler!r}")
    return samplers[sampler]


def fast_normal(key: Any, count: Any, like: Any) -> Any:
    """Near-normal noise from a counter: two dozen integer operations an element, no state.

    With h = `random_words` and T a triangular dither in (-1, 1), itself a hash of h,

        xi = (popcount(h) - 16 + T) / sqrt(8 + 1/6)

    Mean 0 and variance 1; excess kurtosis -0.060; |xi| < 5.95; the distribution function is
    within 0.0015 of the normal one.

    Args:
      key: a typed JAX key.
      count: the number of updates made before this one.
      like: the tree of arrays to draw noise for.

    Returns:
      A tree shaped as `like`, float32.
    """
    return _drawn(_near_normal, key, count, like)


def gaussian(key: Any, count: Any, like: Any) -> Any:
    """Normal noise from a counter: the normal quantile of `random_words`, no state.

    With s the word h as a signed number, x = (s + 1/2) / 2^31 in (-1, 1) and w = -log(1 - x^2),

        xi = sqrt(2) erfinv(x) = x R(w)

    for a rational function R, within 5e-7 of the exact quantile in relative terms, tails
    included. All 2^32 quantiles are equally likely: |xi| < 6.4, and the distribution function
    is within 2^-32 of the normal one, but for the rounding of xi to float32.
    `jax.random.normal` has 2^23 quantiles and |xi| < 5.42.

    Args and Returns: as for `fast_normal`, which costs a sixth of it on CPU.
    """
    return _drawn(_normal_quantile, key, count, like)


def threefry_normal(key: Any, count: Any, like: Any) -> Any:
    """`jax.random.normal`, a key of its own for every step and leaf, bit for bit.

        optax.tree.random_like(jax.random.fold_in(key, count), like, jax.random.normal)

    JAX compiles threefry to a loop over arrays on CPU; where `unrolls_threefry`, it is unrolled
    and becomes part of the loop that uses the noise.
    """
    threefry = jax.random.key_impl(jax.random.key(0, impl="threefry2x32"))
    largest = max((leaf.size for leaf in jax.tree.leaves(like)), default=0)
    if (
        unrolls_threefry()
        and jax.random.key_impl(key) == threefry
        and jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
        and largest <= 2**32  # beyond, JAX counts in 64 bits
    ):
        key = jax.random.wrap_key_data(jax.random.key_data(key), impl=_unrolled_threefry)
    return optax.tree.random_like(jax.random.fold_in(key, count), like, jax.random.normal)


def unrolls_threefry() -> bool:
    """On CPU with jax 0.10. That of 0.11 does not get to the end of compiling it within a step.

    On GPU and TPU JAX unrolls it itself.
    """
    return jax.default_backend() == "cpu" and jax.__version_info__ < (0, 11)


def random_words(key: Any, count: Any, like: Any) -> Any:
    """32 random bits for every element of a tree, as uint32.

    Element i of leaf l at step `count` has the word mix((i G + a) xor b), where the words a and b
    hash (key, step, leaf). A leaf repeats after 2^32 elements; within that all its words differ.
    Two (key, step, leaf) triples share their words with probability 2^-63.
    """
    return _drawn(lambda words: words, key, count, like)


def _drawn(shaped: Callable[[jax.Array], jax.Array], key: Any, count: Any, like: Any) -> Any:
    words, count = jax.random.key_data(key).reshape(-1), jnp.asarray(count)
    leaves, structure = jax.tree.flatten(like)
    stream = jnp.uint32(0x9E3779B9), jnp.uint32(0x85EBCA6B)
    for word in [*(words[i] for i in range(words.size)), count.astype(jnp.uint32)]:
        stream = _absorb(stream, word)
    streams = jnp.stack(_absorb(stream, jnp.arange(len(leaves), dtype=jnp.uint32)), axis=-1)
    # XLA compiles kernels that are the same but once. They are the same for all leaves of a shape
    # if each reads its own number from a constant, at an index that the compiler cannot know.
    zero = jnp.minimum(count.astype(jnp.int32), 0)
    numbers = [jnp.asarray(np.array([number, 0], np.int32)) for number in range(len(leaves))]
    drawn = [
        _drawn_leaf(shaped, leaf.shape, jax.typeof(leaf).sharding, streams, number, zero)
        for leaf, number in zip(leaves, numbers, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


@partial(jax.jit, static_argnums=(0, 1, 2))  # traced once for all leaves of a shape
def _drawn_leaf(shaped, shape, sharding, streams, number, zero):
    row = jax.lax.dynamic_slice(number, (zero,), (1,))[0]
    stream = jax.lax.dynamic_slice(streams, (row, zero), (1, 2))
    return shaped(_hash(_positions(shape, sharding), stream[0, 0], stream[0, 1]))


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32 bits in which every input bit flips every output bit half of the time.

    Wellons' two rounds, https://nullprogram.com/blog/2018/07/31/, with the constants of lower bias
    found since: https://github.com/skeeto/hash-prospector/issues/19.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)


def _absorb(stream: tuple[jax.Array, jax.Array], word: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two words of key, each of which depends on every word absorbed so far."""
    first = _mix(stream[0] ^ word)
    second = _mix(stream[1] + first)
    return first ^ (second << 7), second


def _positions(shape: tuple[int, ...], sharding: Any = None) -> jax.Array:
    """Each element's row-major index modulo 2^32, from iotas alone: nothing to communicate.

    With explicit sharding each device counts its own part only if the iotas are typed so.
    """
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=sharding)
        index = place if stride == 1 else index + place * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return index


def _hash(index: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """For one pair of keys a bijection of the index.

    A sum alone would make all leaves windows on one sequence; the exclusive or scatters them.
    """
    return _mix((index * jnp.uint32(0x9E3779B1) + first) ^ second)


def _near_normal(h: jax.Array) -> jax.Array:
    dither = h * jnp.uint32(0x9E3779B1)
    dither = dither ^ (dither >> 15)
    # One integer, exact in float32: (bits - 16) + (halves - 65535) / 65536 in units of 2^-16,
    # where halves, the sum of the dither's, is 0 ... 131070. Modulo 2^32 until it is signed.
    total = (jax.lax.population_count(h) << 16) + (dither & 0xFFFF) + (dither >> 16)
    total = (total - jnp.uint32(16 * 65536 + 65535)).astype(jnp.int32)
    return total.astype(jnp.float32) * jnp.float32(1.0 / (65536.0 * (8.0 + 1.0 / 6.0) ** 0.5))


# R(w) = sqrt(2) erfinv(x) / x for w = -log(1 - x^2) in [0, 22.2], from the constant term on: a
# weighted least-squares fit to 40 digits of it, made minimax; its relative error is 1.4e-7.
_NUMERATOR = (1.25331431, 0.455648441, 0.0908566724, 0.0120536663, 1.01988386e-3, 2.88295656e-5)
_DENOMINATOR = (1.0, 0.101758784, 0.0328079232, 2.35529551e-3, 1.69707772e-4, 9.80264183e-7)


def _normal_quantile(h: jax.Array) -> jax.Array:
    s = jax.lax.bitcast_convert_type(h, jnp.int32)
    x = (s.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-31)
    # 1 - |x|, from the integers: in floating point the tails would be rounded away.
    rest = (s ^ (s >> 31)) ^ jnp.int32(0x7FFFFFFF)
    rest = (rest.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-31)
    w = -jnp.log(rest * (2.0 - rest))
    return x * (_polynomial(_NUMERATOR, w) / _polynomial(_DENOMINATOR, w))


def _polynomial(coefficients: tuple[float, ...], w: jax.Array) -> jax.Array:
    """By Horner's rule: all terms are positive, so nothing cancels."""
    value = jnp.float32(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * w + jnp.float32(coefficient)
    return value


_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def _threefry(key: Any, first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 20 rounds of two words of counter.

    Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011.
    """
    keys = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA)
    first, second = first + keys[0], second + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            first = first + second
            second = (second << rotation) | (second >> (32 - rotation))
            second = first ^ second
        first = first + keys[(group + 1) % 3]
        second = second + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return first, second


def _threefry_at_positions(key: Any, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    return _threefry(key, jnp.zeros(shape, jnp.uint32), _positions(shape))


def _threefry_bits(key: Any, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    high, low = _threefry_at_positions(key, shape)
    if bit_width == 64:
        return high.astype(jnp.uint64) << 32 | low.astype(jnp.uint64)
    return (high ^ low).astype(f"uint{bit_width}")


def _threefry_split(key: Any, shape: tuple[int, ...]) -> jax.Array:
    return jnp.stack(_threefry_at_positions(key, shape), axis=-1)


def _threefry_seed(seed: Any) -> jax.Array:
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def _threefry_fold_in(key: Any, data: Any) -> jax.Array:
    return jnp.stack(_threefry(key, *_threefry_seed(data)))


_unrolled_threefry = define_prng_impl(
    key_shape=(2,),
    seed=_threefry_seed,
    split=_threefry_split,
    random_bits=_threefry_bits,
    fold_in=_threefry_fold_in,
    name="unrolled_threefry2x32",
    tag="u3fry",
)
