"""Which leaves of a tree are trained: floating-point and complex numbers, and no others."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from amac_jax.layout import written_path


def floats_only(
    tx: optax.GradientTransformation, *, refuses_complex: str | None = None
) -> optax.GradientTransformationExtraArgs:
    """Hides from `tx` the leaves that are no floating-point or complex numbers.

    A tree of parameters may hold step counters, masks and random keys. `jax.grad(...,
    allow_int=True)` gives them gradients of dtype float0, which no arithmetic takes, and moments
    of theirs would be memory for nothing. In the state their places are `optax.MaskedNode()`, as
    `optax.masked` leaves them. Where all leaves are floating-point `tx` is called as it is.

    Args:
      tx: any Optax transformation. A `value_fn` among its extra args still gets the whole tree.
      refuses_complex: the name of a transformation that has no meaning for complex parameters.

    Returns:
      A transformation whose updates are 0 for integers and bools, and for other leaves (keys)
      whatever gradient they came with. State: that of `tx` for the floating-point leaves.

    Raises:
      ValueError: from `init`, with `refuses_complex`, for a complex parameter.

    Example:
      >>> params = {"w": jnp.ones(2), "steps": jnp.array(7)}
      >>> gradients = jax.grad(lambda p: jnp.sum(p["w"] ** 2), allow_int=True)(params)
      >>> tx = floats_only(optax.sgd(0.25))
      >>> updates, state = tx.update(gradients, tx.init(params), params)
      >>> optax.apply_updates(params, updates)
      {'steps': Array(7, dtype=int32), 'w': Array([0.5, 0.5], dtype=float32)}
    """
    tx = optax.with_extra_args_support(tx)

    def init(params: optax.Params) -> optax.OptState:
        if refuses_complex is not None:
            _check_real(refuses_complex, params)
        return tx.init(_floats(params, params))

    def update(updates, state, params=None, **extra_args):
        like = updates if params is None else params
        if all(map(_is_float, jax.tree.leaves(like))):
            return tx.update(updates, state, params, **extra_args)
        value_fn = extra_args.get("value_fn")
        if callable(value_fn):
            extra_args["value_fn"] = lambda floats: value_fn(_merged(floats, like, like))
        floats, state = tx.update(
            _floats(updates, like),
            state,
            None if params is None else _floats(params, like),
            **extra_args,
        )
        return _merged(floats, jax.tree.map(_no_update, like, updates), like), state

    return optax.GradientTransformationExtraArgs(init, update)


def _is_float(leaf: Any) -> bool:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return jnp.issubdtype(dtype, jnp.inexact)


def _floats(tree: Any, like: Any) -> Any:
    return jax.tree.map(
        lambda param, leaf: leaf if _is_float(param) else optax.MaskedNode(), like, tree
    )


def _merged(floats: Any, others: Any, like: Any) -> Any:
    return jax.tree.map(
        lambda leaf, float_, other: float_ if _is_float(leaf) else other, like, floats, others
    )


def _no_update(param: Any, update: Any) -> Any:
    whole = jnp.issubdtype(jnp.asarray(param).dtype, jnp.integer)
    return jnp.zeros_like(param) if whole or jnp.asarray(param).dtype == bool else update


def _check_real(name: str, params: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                f"{name} must have real parameters, got {leaf.dtype.name} at "
                f"{written_path(path)!r}; optax.contrib.split_real_and_imaginary(...) around the "
                "whole optimizer, if it takes no extra args, hands it their two parts"
            )
