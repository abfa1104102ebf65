"""Reading an optimizer's state: averages, slow weights and metrics, wherever they are nested."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from amac_jax.transforms.averaging import AverageWeightsState
from amac_jax.transforms.lookahead import LookaheadState
from amac_jax.transforms.recording import RecordState

State = TypeVar("State")


def averaged_params(opt_state: Any, params: Any = None) -> Any:
    """The weights that `average_weights` has averaged.

    Args:
      opt_state: an optimizer state, nested in any way in Optax's states, a Flax `TrainState` or
        an `nnx.Optimizer`.
      params: the current parameters, optional. With them the result has their dtypes, and
        before the first average it is they; without, it is the accumulator, which before the
        first average holds the initial parameters.

    Returns:
      A tree in the structure and shapes of the parameters, in `params`' dtypes or the
      accumulator's. For an `nnx.Optimizer` a state for `nnx.update(model, ...)`. What an
      `optax.masked` or `optax.partition` keeps from the average is `params`' own, or
      `optax.MaskedNode`.

    Raises:
      ValueError: where there is no average, or more than one.

    Example:
      >>> from amac_jax import adam
      >>> tx = adam(0.1, average_start=1)
      >>> params = jnp.zeros(2)
      >>> updates, state = tx.update(jnp.ones(2), tx.init(params), params)
      >>> averaged_params(state).round(3)
      Array([-0.1, -0.1], dtype=float32)
    """
    state = _only(
        opt_state, AverageWeightsState, "averaged weights", "average_weights (average_start=...)"
    )
    if params is None:
        return state.average

    def current(average: Any, param: Any) -> Any:
        if _is_masked(average):
            return param
        return jnp.where(state.averaged > 0, average.astype(param.dtype), param)

    return jax.tree.map(current, state.average, _pure(params), is_leaf=_is_masked)


def slow_params(opt_state: Any) -> Any:
    """The slow weights of `lookahead`.

    Args:
      opt_state: as for `averaged_params`.

    Returns:
      A tree in the structure and shapes of the parameters, in at least float32 or, for arrays,
      the `state_dtype`.

    Raises:
      ValueError: where there are no slow weights, or more than one set of them.

    Example:
      >>> from amac_jax import sgd
      >>> tx = sgd(1.0, sync_period=1, slow_step_size=0.5)
      >>> params = jnp.zeros(2)
      >>> updates, state = tx.update(jnp.ones(2), tx.init(params), params)
      >>> slow_params(state)
      Array([-0.5, -0.5], dtype=float32)
    """
    return _only(opt_state, LookaheadState, "slow weights", "lookahead (sync_period=...)").slow


def metrics(opt_state: Any) -> dict[str, jax.Array]:
    """The scalars recorded at the last step by an optimizer with `record_metrics=True`.

    grad_norm, update_norm, param_norm (before the step), update_ratio = update_norm / param_norm,
    learning_rate, and, where the optimizer has them: weight_decay, noise_scale, clip_fraction,
    first_moment_norm, second_moment_norm, momentum_norm, slow_distance, averaged_count,
    plateau_scale (by which the learning rate is multiplied), skipped_steps. A step that
    `skip_nonfinite` skips changes skipped_steps alone.

    Args:
      opt_state: as for `averaged_params`.

    Returns:
      Names to () float32 arrays; the names depend on the optimizer alone, not on the step.
      Before the first step all are 0. Norms are Euclidean, over all leaves together.

    Raises:
      ValueError: where nothing is recorded, or more than one set of metrics is.

    Example:
      >>> from amac_jax import sgd
      >>> tx = sgd(0.5, record_metrics=True)
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> {name: float(value) for name, value in metrics(state).items()}
      {'grad_norm': 5.0, 'learning_rate': 0.5, 'param_norm': 5.0, 'update_norm': 2.5,
       'update_ratio': 0.5}
    """
    recorded = _only(opt_state, RecordState, "metrics", "record_metrics=True").metrics
    skips = _states(opt_state, optax.ApplyIfFiniteState)
    if not skips:
        return dict(recorded)
    skipped = jnp.asarray(sum(skip.total_notfinite for skip in skips))
    return {**recorded, "skipped_steps": skipped.astype(jnp.float32)}


def _only(opt_state: Any, kind: type[State], what: str, how: str) -> State:
    found = _states(opt_state, kind)
    if len(found) != 1:
        count = "no" if not found else f"{len(found)} sets of"
        raise ValueError(
            f"opt_state must hold one set of {what}, got {count} {what}; they come from {how}"
        )
    return found[0]


def _states(tree: Any, kind: type[State]) -> list[State]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kind))
    return [_pure(leaf) for leaf in leaves if isinstance(leaf, kind)]


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _pure(tree: Any) -> Any:
    """The tree with Flax NNX variables replaced by their arrays, without importing Flax."""

    def is_variable(node):
        return hasattr(node, "get_value")

    return jax.tree.map(
        lambda node: node.get_value() if is_variable(node) else node, tree, is_leaf=is_variable
    )
