"""Arithmetic in at least float32, however low the precision of the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def wide_dtype(dtype: Any) -> jnp.dtype:
    """The dtype in which leaves of `dtype` are computed: float32 for float16 and bfloat16."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return dtype
    return jnp.promote_types(dtype, jnp.float32)


def _wide(leaf: Any) -> jnp.dtype:
    return wide_dtype(jnp.result_type(leaf))


def widen(tree: Any) -> Any:
    """Every floating-point leaf in at least float32; other leaves as they are.

    Example:
      >>> widen({"w": jnp.ones(2, jnp.bfloat16), "n": jnp.ones(2, jnp.int32)})
      {'n': Array([1, 1], dtype=int32), 'w': Array([1., 1.], dtype=float32)}
    """

    def wide(leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct):  # `init` may be given shapes alone
            return leaf.update(dtype=_wide(leaf))
        return jnp.asarray(leaf).astype(_wide(leaf))

    return jax.tree.map(wide, tree)


def wide_copy(tree: Any) -> Any:
    """`widen`, in buffers of its own, so that state and parameters can be donated together."""
    return jax.tree.map(lambda leaf: copy_in(_wide(leaf), leaf), tree)


def copy_in(dtype: Any, leaf: Any) -> jax.Array:
    """A leaf in a dtype and a buffer of its own; of a `jax.ShapeDtypeStruct` zeros."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros_like(leaf, dtype=dtype)
    return jnp.array(leaf, dtype=dtype, copy=True)


def wide_zeros(tree: Any) -> Any:
    """Zeros in the shapes of `tree`, in at least float32."""
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=_wide(leaf)), tree)


def map_wide(function: Callable[..., jax.Array], updates: Any, *rest: Any) -> Any:
    """`jax.tree.map` with the leaves widened, and the result in the dtype of `updates`."""

    def leafwise(update: jax.Array, *others: jax.Array) -> jax.Array:
        return function(widen(update), *map(widen, others)).astype(jnp.result_type(update))

    return jax.tree.map(leafwise, updates, *rest)


def write_when(
    due: jax.Array,
    function: Callable[[Any, Any], Any],
    state: Any,
    params: Any,
    updates: Any,
) -> Any:
    """function(state, params + updates), of trees, where `due`, else `state`, left untouched.

    When it is not due, no leaf is read or written and nothing in `function` is computed:
    `optax.apply_updates` computes params + updates too, so that XLA has it in memory as the new
    parameters, and makes it once. Under `vmap` over `due` a conditional becomes a select, which
    reads and writes every leaf at every step.

    Example:
      >>> tree = jnp.zeros(2)
      >>> write_when(jnp.array(True), lambda old, new: (old + new) / 2, tree, tree, tree + 1)
      Array([0.5, 0.5], dtype=float32)
    """
    landing = jax.tree.map(lambda p, u: widen(p) + widen(u), params, updates)
    # To keep is the false branch: XLA copies every buffer if the branches are exchanged.
    return jax.lax.cond(
        due,
        function,
        lambda state, landing: state,
        state,
        landing,
    )


def global_norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all leaves together, () in at least float32."""
    return optax.tree.norm(widen(tree))


def at_least_float32(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Runs `inner` on gradients and parameters widened to at least float32.

    The state is that of `inner` for the widened parameters, the updates come back in the dtype
    of the gradients. In bfloat16 itself b2 = 0.999 is 1.0 and a second moment never decays;
    `optax.scale_by_adam` lets only the first moment be kept in another dtype.

    Example:
      >>> params = {"w": jnp.ones(3, jnp.bfloat16)}
      >>> tx = at_least_float32(optax.scale_by_adam())
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> state.nu["w"].dtype.name, updates["w"].dtype.name
      ('float32', 'bfloat16')
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> optax.OptState:
        return inner.init(widen(params))

    def update(updates, state, params=None, **extra_args):
        wide_params = None if params is None else widen(params)
        wide_updates, new_state = inner.update(widen(updates), state, wide_params, **extra_args)
        return optax.tree.cast_like(wide_updates, updates), _with_dtypes_of(state, new_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _with_dtypes_of(state: optax.OptState, new_state: optax.OptState) -> optax.OptState:
    """`new_state` in the dtypes of `state`: with x64 on, a float64 hyperparameter promotes."""
    if jax.tree.structure(state) != jax.tree.structure(new_state):
        return new_state

    def cast(old: Any, new: Any) -> Any:
        dtype = jnp.result_type(old)
        return new if jnp.result_type(new) == dtype else jnp.asarray(new).astype(dtype)

    return jax.tree.map(cast, state, new_state)
