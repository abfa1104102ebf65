"""The losses that the tools take: one contract for all of them.

    loss_fn(params, batch) -> loss
    loss_fn(params, batch, key) -> loss                           dropout and other noise
    loss_fn(params, model_state, batch) -> (loss, model_state)    BatchNorm
    loss_fn(params, model_state, batch, key) -> (loss, model_state)

With `has_aux` the loss stands where it stood, with something beside it that the tools leave alone:
`(loss, aux)`, and with model state `(loss, (model_state, aux))`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from amac_jax._core.aliases import Tree


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss of any kind, called as `loss(params, model_state, batch, key)`."""

    function: Callable[..., Any]
    takes_state: bool = False
    key: str | None = None  # None: it takes no key; "": a positional one; else its keyword
    has_aux: bool = False

    def __call__(
        self, params: Tree, model_state: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, Tree]:
        """The loss, and the new model state: None where there is none."""
        result = self.raw(params, model_state, batch, key)
        if not self.takes_state:
            return (result[0] if self.has_aux else result), model_state
        value, model_state = result
        return value, (model_state[0] if self.has_aux else model_state)

    def raw(self, params: Tree, model_state: Tree, batch: Tree, key: jax.Array) -> Any:
        """What the function itself returns."""
        # Anew, because a variable of Flax NNX may change only where it was made.
        params, model_state = jax.tree.map(lambda leaf: leaf, (params, model_state))
        first = (params, model_state, batch) if self.takes_state else (params, batch)
        if self.key is None:
            return self.function(*first)
        return self.function(*first, key) if not self.key else self.function(*first, key=key)


def loss_of(loss_fn: Callable[..., Any], *, takes_state: bool, has_aux: bool) -> Loss:
    """The loss, and whether it takes a key: as a required argument after the batch, or as `key`.

    Raises:
      ValueError: for a function with another number of arguments.

    Example:
      >>> loss_of(lambda params, batch, key: 0.0, takes_state=False, has_aux=False).key
      ''
    """
    arguments = ["params", "model_state", "batch"] if takes_state else ["params", "batch"]
    if not callable(loss_fn):
        raise ValueError(f"loss_fn must be a function ({', '.join(arguments)}), got {loss_fn!r}")
    try:
        parameters = list(inspect.signature(loss_fn).parameters.values())
    except (TypeError, ValueError):  # a function that does not say what it takes
        return Loss(loss_fn, takes_state, None, has_aux)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    open_ended = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    required = [p for p in positional if p.default is p.empty]
    count = len(arguments)
    if len(required) > count + 1 or (len(positional) < count and not open_ended):
        wanted = ", ".join(arguments)
        taken = ", ".join(p.name for p in positional)
        hint = "" if takes_state else "; model_state=... brings the state of BatchNorm"
        raise ValueError(
            f"loss_fn must take ({wanted}) or ({wanted}, key), got a function of ({taken}){hint}"
        )
    key = "" if len(required) == count + 1 else None
    if key is None and any(p.name == "key" for p in parameters if p not in required):
        key = "key"
    return Loss(loss_fn, takes_state, key, has_aux)


def check_loss(loss: Loss, params: Tree, model_state: Tree, batch: Tree, key: jax.Array) -> None:
    """Refuses a loss that does not return what the contract says, with one line that says what.

    Args:
      loss: the loss.
      params, model_state, batch, key: its arguments, or their shapes.

    Raises:
      ValueError: saying what it should return, and what it returned.
    """
    result = jax.eval_shape(loss.raw, params, model_state, batch, key)
    wanted = _wanted(loss)
    if not loss.takes_state and not loss.has_aux:
        more = "; has_aux=True takes (loss, aux)" if isinstance(result, tuple | list) else ""
        _check_scalar(result, more)
        return
    if not _is_pair(result):
        raise ValueError(f"loss_fn must return {wanted}, got {_described(result)}")
    value, rest = result
    _check_scalar(value, f"; it must return {wanted}")
    if not loss.takes_state:
        return
    if loss.has_aux:
        if not _is_pair(rest):
            raise ValueError(f"loss_fn must return {wanted}, got (loss, {_described(rest)})")
        rest = rest[0]
    if jax.tree.structure(rest) != jax.tree.structure(model_state):
        raise ValueError(
            "loss_fn must return a model_state in the structure of the one it gets, got "
            f"{_described(rest)} for {_described(model_state)}"
        )
    for (path, new), old in zip(
        jax.tree.leaves_with_path(rest), jax.tree.leaves(model_state), strict=True
    ):
        if (new.shape, new.dtype) != (jnp.shape(old), jnp.result_type(old)):
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"loss_fn must keep the shapes and dtypes of model_state, got {new.shape} "
                f"{new.dtype} for {jnp.shape(old)} {jnp.result_type(old)} at {name or 'its leaf'}"
            )


def check_score(score_fn: Callable[..., Any], *arguments: Tree) -> None:
    """Refuses a function of the weights (and model state) that is not a score, in one line.

    Args:
      score_fn: the function.
      *arguments: its arguments, or their shapes.

    Raises:
      ValueError: where it takes others, cannot be traced, or does not return a scalar.
    """
    wanted = "(params, model_state)" if len(arguments) == 2 else "(params)"
    if not callable(score_fn):
        raise ValueError(f"score_fn must be a function of {wanted}, got {score_fn!r}")
    try:
        signature = inspect.signature(score_fn)
    except (TypeError, ValueError):  # a function that does not say what it takes
        signature = None
    if signature is not None:
        try:
            signature.bind(*arguments)
        except TypeError:
            raise ValueError(
                f"score_fn must take {wanted}, got a function of {signature}; the loss on other "
                "data is lambda params: loss(params, other_batch)"
            ) from None
    try:
        # Anew, because a variable of Flax NNX may change only where it was made.
        result = jax.eval_shape(lambda *a: score_fn(*jax.tree.map(lambda x: x, a)), *arguments)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise ValueError(
            "score_fn must compute with jax.numpy, because it is compiled: NumPy, float() and if "
            f"cannot read its arguments ({type(error).__name__})"
        ) from error
    _check_scalar(result, "", name="score_fn")


def _wanted(loss: Loss) -> str:
    if not loss.takes_state:
        return "(loss, aux) with has_aux=True"
    return (
        "(loss, (model_state, aux)) with model_state and has_aux=True"
        if loss.has_aux
        else "(loss, model_state) with model_state"
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _check_scalar(value: Any, more: str, name: str = "loss_fn") -> None:
    if getattr(value, "shape", None) != ():
        raise ValueError(f"{name} must return a scalar, got {_described(value)}{more}")
    if name == "loss_fn" and not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"loss_fn must return a real floating-point number, got {value.dtype}")


def _described(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"shape {value.shape}"
    return f"a {type(value).__name__} of {len(jax.tree.leaves(value))} arrays"
