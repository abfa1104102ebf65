"""Leaves on their way into a step and out of it: which are trained, in which dtype and shape."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType
from jax.tree_util import KeyPath
from jax.typing import ArrayLike, DTypeLike

from amac_jax._core.aliases import Keywords, Tree, promoted
from amac_jax._core.paths import written_path
from amac_jax._core.xla import only_when

Arrays = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct


def is_trained(leaf: object) -> bool:
    """Whether a leaf is an array of floating-point or complex numbers.

    Counters, masks, random keys, Python numbers, functions and other leaves of a model are not
    trained.
    """
    return isinstance(leaf, Arrays) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def trained_only(params: Tree) -> Tree:
    """The tree with None in the place of every leaf that is not trained, as in Equinox's filter.

    Example:
      >>> trained_only({"w": jnp.ones(2), "steps": jnp.array(7), "activation": jax.nn.relu})
      {'activation': None, 'steps': None, 'w': Array([1., 1.], dtype=float32)}
    """
    return jax.tree.map(lambda leaf: leaf if is_trained(leaf) else None, params)


def wide_dtype(dtype: DTypeLike) -> DTypeLike:
    """The dtype for computing with leaves of `dtype`: float32 for float16 and bfloat16."""
    return promoted(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.inexact) else dtype


def widen(tree: Tree) -> Tree:
    """Every floating-point leaf in at least float32; other leaves as they are.

    Example:
      >>> widen({"w": jnp.ones(2, jnp.bfloat16), "n": jnp.ones(2, jnp.int32)})
      {'n': Array([1, 1], dtype=int32), 'w': Array([1., 1.], dtype=float32)}
    """

    def wide(leaf: Tree) -> Tree:
        dtype = wide_dtype(jnp.result_type(leaf))
        if isinstance(leaf, jax.ShapeDtypeStruct):  # `init` may receive shapes alone
            return leaf.update(dtype=dtype)
        return jnp.asarray(leaf).astype(dtype)

    return jax.tree.map(wide, tree)


def copied(tree: Tree, dtype: DTypeLike = jnp.float32) -> Tree:
    """Every leaf in at least `dtype`, in a buffer of its own; zeros for shapes alone.

    If state shared a buffer with the parameters, the two could not be donated together.
    """

    def copy(leaf: Tree) -> jax.Array:
        wide = promoted(jnp.result_type(leaf), dtype)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jnp.zeros_like(leaf, dtype=wide)
        return jnp.array(leaf, dtype=wide, copy=True)

    return jax.tree.map(copy, tree)


def zeros_like(tree: Tree) -> Tree:
    """Zeros in the shapes of a tree, in at least float32."""
    return jax.tree.map(
        lambda leaf: jnp.zeros_like(leaf, dtype=wide_dtype(jnp.result_type(leaf))), tree
    )


def each_leaf(
    function: Callable[..., jax.Array], tree: Tree, *rest: Tree, **scalars: ArrayLike
) -> Tree:
    """`jax.tree.map` of leaf maths that reads like its equation.

    `function` receives a leaf of `tree`, the leaves of `rest` in the same place, and the scalars
    by name, all in the dtype of the leaf.

    Example:
      >>> each_leaf(lambda u, p, rate: u - rate * p, jnp.ones(2), jnp.ones(2), rate=0.5)
      Array([0.5, 0.5], dtype=float32)
    """
    values = {name: jnp.asarray(value) for name, value in scalars.items()}

    def leafwise(leaf: jax.Array, *others: jax.Array) -> jax.Array:
        cast = {name: value.astype(leaf.dtype) for name, value in values.items()}
        return function(leaf, *(other.astype(leaf.dtype) for other in others), **cast)

    return jax.tree.map(leafwise, tree, *rest)


def where(condition: jax.Array, tree: Tree, other: Tree) -> Tree:
    """`jnp.where`, leaf by leaf, in the dtypes of `tree`."""

    def chosen(leaf: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.where(condition, leaf, jnp.asarray(other).astype(jnp.result_type(leaf)))

    return jax.tree.map(chosen, tree, other)


def global_norm(tree: Tree) -> jax.Array:
    """The Euclidean norm of all leaves together, () in at least float32."""
    return optax.tree.norm(widen(tree))


def all_finite(tree: Tree, received: Tree) -> jax.Array:
    """Whether every element of every leaf is finite, () bool.

    A finite norm says so, and clipping needs this norm too. Squares of finite numbers may overflow:
    where the norm is not finite, every element is asked.

    Args:
      tree: in at least float32.
      received: the same numbers as they are in memory.

    Example:
      >>> tree = {"w": jnp.full(2, 1e30), "b": jnp.array([0.0])}
      >>> all_finite(tree, tree), all_finite(tree | {"b": jnp.inf}, tree | {"b": jnp.inf})
      (Array(True, dtype=bool), Array(False, dtype=bool))
    """

    def each_is(finite: jax.Array, received: Tree) -> jax.Array:
        leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(received)]
        return functools.reduce(jnp.logical_and, leaves, jnp.array(True))

    finite = jnp.isfinite(global_norm(tree))
    with jax.named_scope("skip_nonfinite"):
        return only_when(~finite, each_is, finite, received)


def is_explicit(x: jax.Array) -> bool:
    """Whether the program says where this array lies, and XLA does not choose."""
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def in_dtypes_of(state: Tree, new_state: Tree) -> Tree:
    """`new_state` in the dtypes of `state`: with x64 on, float64 hyperparameters change them."""
    if jax.tree.structure(state) != jax.tree.structure(new_state):
        return new_state

    def cast(old: jax.Array, new: jax.Array) -> jax.Array:
        dtype = jnp.result_type(old)
        return new if jnp.result_type(new) == dtype else jnp.asarray(new).astype(dtype)

    return jax.tree.map(cast, state, new_state)


class Entered(NamedTuple):
    """The inputs of a step inside the boundary, and the way back out."""

    updates: Tree  # the trained leaves, in at least float32 and the parameters' precision
    params: Tree  # the parameters in the same form, or None
    leave: Callable[[Tree], Tree]  # new updates -> updates in the structure and dtypes received
    landing: Callable[[Tree], Tree]  # new updates -> the parameters after `optax.apply_updates`
    received: tuple[Tree, Tree]  # updates and params in the dtypes received; the trained leaves
    widened: Callable[[Tree], Tree]  # from there to here
    extra_args: Keywords


def enter(updates: Tree, params: Tree, extra_args: Keywords) -> Entered:
    """Takes gradients and parameters in: trained leaves alone, in at least float32.

    A leaf is trained where the parameter is an array of floating-point or complex numbers that
    has a gradient. For any other parameter the gradient may be None, as Equinox gives it, or
    float0, as `jax.grad(..., allow_int=True)` gives it. On the way out, updates are 0 for integers
    and bools. For other leaves that are not trained they are the gradients received.

    Raises:
      ValueError: naming the leaf, for a gradient whose parameter is not an array or has another
        shape.
    """
    places, structure = jax.tree_util.tree_flatten_with_path(updates, is_leaf=lambda g: g is None)
    gradients = [gradient for _, gradient in places]
    weights = gradients if params is None else structure.flatten_up_to(params)
    inside = [_is_inside(path, g, w) for (path, g), w in zip(places, weights, strict=True)]

    def chosen(trained: Sequence[Tree], others: Sequence[Tree]) -> Tree:
        leaves = zip(trained, others, inside, strict=True)
        return structure.unflatten(leaf if is_in else other for leaf, other, is_in in leaves)

    dtypes = [
        promoted(jnp.result_type(g), jnp.result_type(w), jnp.float32) if is_in else None
        for g, w, is_in in zip(gradients, weights, inside, strict=True)
    ]

    def wide(leaves: Sequence[Tree]) -> Tree:
        both = zip(leaves, dtypes, strict=True)
        return structure.unflatten(
            None if dtype is None else jnp.asarray(leaf).astype(dtype) for leaf, dtype in both
        )

    def leave(new_updates: Tree) -> Tree:
        both = zip(structure.flatten_up_to(new_updates), gradients, inside, strict=True)
        new = [u.astype(jnp.result_type(g)) if is_in else None for u, g, is_in in both]
        return chosen(new, [*map(_no_update, gradients, weights)])

    def landing(new_updates: Tree) -> Tree:
        """As `optax.apply_updates` computes them, so that XLA makes them once."""

        def landed(new: jax.Array, gradient: jax.Array, weight: jax.Array) -> jax.Array:
            dtype = promoted(jnp.result_type(gradient), jnp.result_type(weight))
            update = new.astype(jnp.result_type(gradient)).astype(dtype)
            return (jnp.asarray(weight).astype(dtype) + update).astype(jnp.result_type(weight))

        trained = zip(structure.flatten_up_to(new_updates), gradients, weights, inside, strict=True)
        return structure.unflatten(landed(u, g, w) if is_in else None for u, g, w, is_in in trained)

    value_fn = extra_args.get("value_fn")
    if callable(value_fn) and not all(inside):

        def of_trained(trained: Tree) -> Tree:
            return value_fn(chosen(structure.flatten_up_to(trained), weights))

        extra_args = {**extra_args, "value_fn": of_trained}

    def widened(received: Tree) -> Tree:
        return None if received is None else wide(structure.flatten_up_to(received))

    nothing = [None] * len(gradients)
    received_params = None if params is None else chosen(weights, nothing)
    received = chosen(gradients, nothing), received_params
    wide_updates, wide_params = map(widened, received)
    return Entered(wide_updates, wide_params, leave, landing, received, widened, extra_args)


def _is_inside(path: KeyPath, gradient: Tree, weight: Tree) -> bool:
    if gradient is None or getattr(gradient, "dtype", None) == jax.dtypes.float0:
        return False
    place = f"at {written_path(path)!r}"
    if is_trained(weight):
        if jnp.shape(gradient) != jnp.shape(weight):
            raise ValueError(
                f"the gradient {place} must have the shape of its parameter, "
                f"{jnp.shape(weight)}, got {jnp.shape(gradient)}"
            )
        return True
    if not isinstance(weight, Arrays) and (gradient is weight or is_trained(gradient)):
        what = "the gradient" if gradient is weight else "the parameter of a gradient"
        raise ValueError(f"{what} {place} must be an array, got {weight!r}")
    return False


def _no_update(gradient: Tree, weight: Tree) -> Tree:
    is_whole = isinstance(weight, Arrays) and (
        jnp.issubdtype(weight.dtype, jnp.integer) or weight.dtype == bool
    )
    return jnp.zeros_like(weight) if is_whole and gradient is not None else gradient
