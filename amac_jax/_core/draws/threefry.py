"""`jax.random.normal` with a key for every step and leaf, and threefry without its loop."""

import jax
import jax.numpy as jnp
import optax
from jax.extend.random import define_prng_impl

from amac_jax._core.aliases import Tree
from amac_jax._core.draws.counter import positions
from amac_jax._core.hyperparameters import Count


def threefry_normal(key: jax.Array, count: Count, like: Tree) -> Tree:
    """`jax.random.normal`, bit for bit, with a key for every step and leaf.

        optax.tree.random_like(jax.random.fold_in(key, count), like, jax.random.normal)

    On CPU, JAX compiles threefry to a loop over arrays. Where `UNROLLS_THREEFRY` is true, threefry
    is unrolled there and becomes part of the loop that uses the noise.

    Args:
      key: a typed JAX key.
      count: the number of updates made before this one.
      like: the tree of arrays to draw noise for.

    Returns:
      A tree shaped as `like`, in its dtypes.
    """
    threefry = jax.random.key_impl(jax.random.key(0, impl="threefry2x32"))
    largest = max((leaf.size for leaf in jax.tree.leaves(like)), default=0)
    is_unrolled = (
        UNROLLS_THREEFRY
        and jax.random.key_impl(key) == threefry
        and jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
        and largest <= 2**32  # JAX counts larger arrays in 64 bits
    )

    def drawn(key: jax.Array, count: Count) -> Tree:
        return optax.tree.random_like(jax.random.fold_in(key, count), like, jax.random.normal)

    def drawn_unrolled(key: jax.Array, count: Count) -> Tree:
        data = jax.random.key_data(key)
        return drawn(jax.random.wrap_key_data(data, impl=_unrolled_threefry), count)

    if not is_unrolled:
        return drawn(key, count)
    return jax.lax.platform_dependent(key, count, cpu=drawn_unrolled, default=drawn)


UNROLLS_THREEFRY = jax.__version_info__ < (0, 11)
"""Whether `threefry_normal` unrolls threefry on a CPU.

jax 0.11 does not finish compiling the unrolled threefry within a step. On GPU and TPU, JAX unrolls
threefry itself.
"""

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def _threefry(key: jax.Array, first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 20 rounds, of two words of counter.

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


def _threefry_at_positions(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    return _threefry(key, jnp.zeros(shape, jnp.uint32), positions(shape))


def _threefry_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    high, low = _threefry_at_positions(key, shape)
    if bit_width == 64:
        return high.astype(jnp.uint64) << 32 | low.astype(jnp.uint64)
    return (high ^ low).astype(f"uint{bit_width}")


def _threefry_split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.stack(_threefry_at_positions(key, shape), axis=-1)


def _threefry_seed(seed: int | jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def _threefry_fold_in(key: jax.Array, data: int | jax.Array) -> jax.Array:
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
