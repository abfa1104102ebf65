"""Reading the state of an optimizer: averages, slow weights, the learning rate and metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import CountedState
from amac_jax._core.chain import ComposeState
from amac_jax._core.paths import is_masked
from amac_jax.techniques import AverageWeightsState, LookaheadState
from amac_jax.wrappers import SkipSpikesState

__all__ = [  # with the states that every optimizer has; the others are in their rooms
    "ComposeState",
    "CountedState",
    "averaged_params",
    "learning_rate",
    "metrics",
    "slow_params",
]  # fmt: skip

State = TypeVar("State")


def averaged_params(opt_state: Tree, params: Tree = None) -> Tree:
    """Returns the weights that `average_weights` has averaged.

    The state is found wherever it is nested. Where `optax.partition` gives each group of
    parameters an average of its own, the groups are joined.

    Args:
      opt_state: an optimizer state, nested in any way in Optax's states, a Flax `TrainState` or
        an `nnx.Optimizer`.
      params: the current parameters, optional. With them, the result has their dtypes and equals
        them before the first average. Without them, the result is the accumulator, which holds
        the initial parameters before the first average.

    Returns:
      A tree in the structure and shapes of the parameters, in the dtypes of `params` or of the
      accumulator. For an `nnx.Optimizer` it is a state for `nnx.update(model, ...)`. A leaf that
      is not averaged is the leaf of `params`. Without `params` it is None where it is not
      trained, and `optax.MaskedNode` where `optax.masked` or `optax.partition` hides it.

    Raises:
      ValueError: where there is not an average, or more than one average of the same leaf.

    Example:
      >>> from amac_jax import adam
      >>> tx = adam(0.1, average_start=1)
      >>> params = jnp.zeros(2)
      >>> updates, state = tx.update(jnp.ones(2), tx.init(params), params)
      >>> averaged_params(state).round(3)
      Array([-0.1, -0.1], dtype=float32)
    """
    states = _several(opt_state, AverageWeightsState, "averaged weights", lambda s: s.average)
    if params is None:
        return _joined([state.average for state in states])

    def current(param: Tree, *averages: Tree) -> Tree:
        for state, average in zip(states, averages, strict=True):
            if not _is_hidden(average):
                return jnp.where(state.averaged > 0, average.astype(param.dtype), param)
        return param

    params = _pure(params)
    for state in states:
        _check_same_structure(state.average, params)
    return _map(
        lambda *leaves: current(leaves[-1], *leaves[:-1]), *(s.average for s in states), params
    )


def slow_params(opt_state: Tree) -> Tree:
    """Returns the slow weights of `lookahead`.

    The state is found wherever it is nested. Where `optax.partition` gives each group of
    parameters slow weights of its own, the groups are joined.

    Args:
      opt_state: as for `averaged_params`.

    Returns:
      A tree in the structure and shapes of the parameters, in at least float32. With a
      `state_dtype`, arrays are in this dtype.

    Raises:
      ValueError: where there are not any slow weights, or more than one set for the same leaf.

    Example:
      >>> from amac_jax import sgd
      >>> tx = sgd(1.0, sync_period=1, slow_step_size=0.5)
      >>> params = jnp.zeros(2)
      >>> updates, state = tx.update(jnp.ones(2), tx.init(params), params)
      >>> slow_params(state)
      Array([-0.5, -0.5], dtype=float32)
    """
    states = _several(opt_state, LookaheadState, "slow weights", lambda s: s.slow)
    return _joined([state.slow for state in states])


def learning_rate(opt_state: Tree) -> jax.Array:
    """Returns the learning rate of the last step, eta_t, with which its update was computed.

    Args:
      opt_state: as for `averaged_params`, of an optimizer of this library.

    Returns:
      () float32, float64 with x64 on; 0 before the first step. It does not contain the factors of
      `reduce_on_plateau` and `scale_by_layer`, which multiply whole updates after it.

    Raises:
      ValueError: where there is not an optimizer of this library, or more than one. With several,
        give the state of one group.

    Differs from Optax:
      Optax keeps a learning rate in the state only for `optax.inject_hyperparams`.

    Example:
      >>> from amac_jax import adam, warmup_cosine
      >>> tx = adam(warmup_cosine(0.1, total_steps=10, warmup_steps=4))
      >>> params = jnp.zeros(2)
      >>> updates, state = tx.update(jnp.ones(2), tx.init(params), params)
      >>> float(learning_rate(state))
      0.02500000037252903
    """
    found = _states(opt_state, ComposeState)
    if len(found) != 1:
        hint = (
            "of several give the state of one group"
            if found
            else "Optax's optimizers, and chains such as one with scale_by_amac, do not keep a rate"
        )
        raise ValueError(
            "opt_state must be the state of one optimizer of amac_jax, such as amac, got "
            f"{len(found) or 'none'} of them; {hint}"
        )
    return found[0].last_learning_rate


def metrics(opt_state: Tree) -> dict[str, jax.Array]:
    """Returns the scalars that an optimizer with `record_metrics` recorded last.

    With `record_metrics=True` they are of the last step. With a number n they are of the last of
    the steps 1, n, 2n, ..., and other steps cost nothing.

    Always: grad_norm, update_norm, param_norm (before the step), learning_rate, and
    update_ratio = update_norm / param_norm. Where the optimizer has them: weight_decay,
    noise_scale, clip_fraction, first_moment_norm, second_moment_norm, momentum_norm,
    slow_distance, averaged_count, plateau_scale (the factor of whole updates), skipped_steps.
    slow_distance is ||theta + u - phi||, 0 at a synchronization. A step that `skip_nonfinite` or
    `skip_spikes` skips changes skipped_steps alone, which counts both.

    Args:
      opt_state: as for `averaged_params`.

    Returns:
      Names -> () float32 arrays. The names depend on the optimizer alone, not on the step.
      Before the first step all values are 0. Norms are Euclidean, over all leaves together.

    Raises:
      ValueError: where metrics are not recorded, or more than one set of them is.

    Example:
      >>> from amac_jax import sgd
      >>> tx = sgd(0.5, record_metrics=True)
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> {name: float(value) for name, value in metrics(state).items()}
      {'grad_norm': 5.0, 'learning_rate': 0.5, 'param_norm': 5.0, 'update_norm': 2.5,
       'update_ratio': 0.5}
    """
    found = [state for state in _states(opt_state, ComposeState) if state.metrics is not None]
    if len(found) != 1:
        raise ValueError(_wrong_number(len(found), "metrics", "record_metrics=True"))
    recorded = dict(found[0].metrics or {})
    counts = [
        *(skip.total_notfinite for skip in _states(opt_state, optax.ApplyIfFiniteState)),
        *(skip.skipped for skip in _states(opt_state, SkipSpikesState)),
    ]
    if counts:
        skipped = jnp.asarray(sum(counts))
        recorded["skipped_steps"] = skipped.astype(jnp.float32)
    return recorded


_SOURCES = {
    "averaged weights": "average_weights (average_start=...)",
    "slow weights": "lookahead (sync_period=...)",
}


def _several(
    opt_state: Tree, kind: type[State], what: str, tree_of: Callable[[State], Tree]
) -> list[State]:
    """The states of one kind: one state, or one for each group of `optax.partition`."""
    found = _states(opt_state, kind)
    kept = [_places(tree_of(state)) for state in found]
    if not found or len(set().union(*kept)) < sum(map(len, kept)):
        raise ValueError(_wrong_number(len(found), what, _SOURCES[what]))
    return found


def _wrong_number(number: int, what: str, source: str) -> str:
    count = "no" if not number else f"{number} sets of"
    return f"opt_state must hold one set of {what}, got {count} {what}; they come from {source}"


def _places(tree: Tree) -> set[KeyPath]:
    return {path for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def _joined(trees: list[Tree]) -> Tree:
    """One tree from the trees of several groups, each of which hides the leaves of the others."""

    def first(*leaves: Tree) -> Tree:
        return next((leaf for leaf in leaves if not _is_hidden(leaf)), leaves[0])

    return _map(first, *trees)


def _map(function: Callable[..., Tree], *trees: Tree) -> Tree:
    return jax.tree.map(function, *trees, is_leaf=_is_hidden)


def _is_hidden(node: object) -> bool:
    return node is None or is_masked(node)


def _check_same_structure(average: Tree, params: Tree) -> None:
    try:
        _map(lambda a, p: None, average, params)
    except ValueError as error:
        raise ValueError(
            "params must be the tree that the optimizer was given at init (for Flax NNX "
            "nnx.state(model, nnx.Param), for Linen variables['params']), got "
            f"{type(params).__name__}: {error}"
        ) from error


def _states(tree: Tree, kind: type[State]) -> list[State]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kind))
    return [_pure(leaf) for leaf in leaves if isinstance(leaf, kind)]


def _pure(tree: Tree) -> Tree:
    """The tree with arrays in the place of Flax NNX variables; Flax is not imported."""

    def is_variable(node: object) -> bool:
        return hasattr(node, "get_value")

    return jax.tree.map(
        lambda node: node.get_value() if is_variable(node) else node, tree, is_leaf=is_variable
    )
