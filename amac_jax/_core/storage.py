"""Storage of state between steps: unchanged, or in bfloat16, rounded stochastically."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Observation, Stage, Step
from amac_jax._core.draws import random_words
from amac_jax._core.draws.keys import Key, as_key_data, check_key, sub_key, typed_key
from amac_jax._core.leaves import widen
from amac_jax._core.measures import Measure
from amac_jax._core.xla import opaque_zero


class Storage(NamedTuple):
    """How a stage stores its arrays of floats; scalars, integers and keys stay as they are."""

    dtype: jnp.dtype | None  # bfloat16; None: unchanged
    key: Key  # for the rounding, as the user gave it

    def key_data(self) -> jax.Array | None:
        """The key that the state keeps for rounding; noise from the same key has other bits."""
        return None if self.dtype is None else as_key_data(sub_key(self.key, 0x726F756E))

    def first(self, tree: Tree) -> Tree:
        """A tree in its stored form at `init`: rounded to nearest."""
        return tree if self.dtype is None else narrow(tree, self.dtype)

    def loaded(self, tree: Tree) -> Tree:
        """A stored tree in its form for computing: arrays of floats in at least float32."""
        if self.dtype is None:
            return tree
        return jax.tree.map(lambda leaf: widen(leaf) if is_narrowed(leaf) else leaf, tree)

    def stored(
        self, tree: Tree, key_data: jax.Array | None, count: jax.Array, shift: jax.Array | int = 0
    ) -> Tree:
        """A tree in its stored form after a step: see `narrow_stochastically`."""
        if self.dtype is None or key_data is None:
            return tree
        key = typed_key(key_data, self.key)
        return narrow_stochastically(tree, self.dtype, key, count, shift)


def storage(name: str, dtype: DTypeLike | None, key: Key) -> Storage:
    """The storage for a dtype that a user asks for.

    Raises:
      ValueError: naming the argument, its possible values and the value received.

    Example:
      >>> storage("state_dtype", "bfloat16", 0).dtype, storage("state_dtype", None, 0).dtype
      (dtype(bfloat16), None)
    """
    try:  # compared by name, because to NumPy None is float64
        given = "float32" if dtype is None else jnp.dtype(dtype).name
    except TypeError:
        given = "unknown"
    if given not in ("float32", "bfloat16"):
        raise ValueError(f"{name} must be None, 'float32' or 'bfloat16', got {dtype!r}")
    check_key(key)
    return Storage(None if given == "float32" else jnp.dtype(given), key)


class StoredState(NamedTuple):
    """A key for rounding, and the rounded state of a stage."""

    key: jax.Array  # uint32, (2,) for threefry: key data
    inner: Tree  # arrays of floats in bfloat16, every other leaf as the stage has it


def stored(stage: Stage, kept: Storage) -> Stage:
    """The stage with its whole state stored as `kept` says."""
    if kept.dtype is None:
        return stage

    def init(params: Tree) -> StoredState:
        return StoredState(kept.key_data(), kept.first(stage.begin(params)))  # pyright: ignore

    def update(updates: Tree, state: StoredState, params: Tree, step: Step):
        updates, inner = stage.update(updates, kept.loaded(state.inner), params, step)
        # Each element has one random word for all steps. A step adds to it, modulo 2^16, its number
        # times the golden ratio. The bits of each step are uniform, and the bits of successive
        # steps spread more evenly than fresh bits would. The errors that a moving average gathers
        # therefore largely cancel.
        golden = step.count.astype(jnp.uint32) * 0x9E37
        inner = kept.stored(inner, state.key, opaque_zero(step.count), shift=golden)
        return updates, StoredState(state.key, inner)

    def metrics(seen: Observation) -> dict[str, Measure]:
        seen = seen._replace(state=kept.loaded(seen.state.inner))
        return {} if stage.metrics is None else stage.metrics(seen)

    return stage._replace(init=init, update=update, metrics=metrics)


def is_narrowed(leaf: jax.Array) -> bool:
    """Whether a leaf of state is stored in few bits: arrays of floats are, scalars cost nothing."""
    return jnp.ndim(leaf) > 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def narrow(tree: Tree, dtype: DTypeLike) -> Tree:
    """The arrays of floats in `dtype`, rounded to nearest; other leaves as they are.

    Example:
      >>> narrow({"w": jnp.ones(2), "n": jnp.array(1.0)}, "bfloat16")
      {'n': Array(1., dtype=float32, weak_type=True), 'w': Array([1, 1], dtype=bfloat16)}
    """
    return jax.tree.map(lambda x: x.astype(dtype) if is_narrowed(x) else x, tree)


def narrow_stochastically(
    tree: Tree,
    dtype: DTypeLike,
    key: jax.Array,
    count: jax.Array,
    shift: jax.Array | int = 0,
) -> Tree:
    """Like `narrow`, but rounds each element up or down at random.

    The bits are fresh for every key, count and leaf. `shift` is added to the bits of all
    elements, which stay uniform.
    """
    leaves, structure = jax.tree.flatten(tree)
    places = [place for place, leaf in enumerate(leaves) if is_narrowed(leaf)]
    words = random_words(key, count, [leaves[place] for place in places])
    shift = jnp.asarray(shift).astype(jnp.uint32)
    for place, word in zip(places, words, strict=True):
        leaves[place] = round_stochastically(leaves[place], word + shift, dtype)
    return jax.tree.unflatten(structure, leaves)


def round_stochastically(values: jax.Array, words: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Rounds float32 to one of its two neighbours in bfloat16; the nearer one is likelier.

    With a <= |x| <= b the neighbours, |x| becomes b with probability (|x| - a) / (b - a),
    exactly. The last 16 bits of the float are this probability in units of 2^-16, and adding
    16 random bits carries with this probability. The expectation is therefore x, and a number
    of bfloat16 stays as it is. Infinities, NaN and numbers beyond the largest bfloat16 are
    rounded to nearest.

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
    # All in integers: XLA's own conversion to bfloat16 takes longer than the random bits.
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    size = bits & 0x7FFFFFFF
    to_nearest = 0x7FFF + ((bits >> 16) & 1)  # a tie goes to the even one
    dither = jnp.where(size > 0x7F7F0000, to_nearest, words & 0xFFFF)  # the largest bfloat16
    # A carry would turn a NaN into -0.
    rounded = jnp.where(size > 0x7F800000, bits | 0x400000, bits + dither)
    return jax.lax.bitcast_convert_type((rounded >> 16).astype(jnp.uint16), dtype)
