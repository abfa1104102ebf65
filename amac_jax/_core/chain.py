"""A chain of stages inside one boundary, with one count, one learning rate, and metrics."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath

from amac_jax._core.boundary import Observation, Stage, Step
from amac_jax._core.hyperparameters import Hyperparameter, as_float
from amac_jax._core.leaves import each_leaf, global_norm, widen
from amac_jax._core.ranges import NON_NEGATIVE, checked
from amac_jax._core.types import Tree


class ComposeState(NamedTuple):
    """The learning rate and the metrics of the last step, and the stages' states in their order."""

    last_learning_rate: jax.Array  # () float32, float64 with x64 on; 0 before the first step
    metrics: dict[str, jax.Array] | None  # each () float32; 0 before the first step; None: off
    stages: tuple[Tree, ...]


def chain(stages: Sequence[Stage], learning_rate: Hyperparameter, *, record: bool) -> Stage:
    """Like `optax.chain` of the stages, but every stage sees the learning rate of the step.

    With `record` the state holds scalars about the last step: grad_norm ||g||, update_norm ||u||,
    param_norm ||theta|| before the step, update_ratio ||u|| / ||theta||, learning_rate, and the
    metrics of each stage.
    """

    def init(params: Tree) -> ComposeState:
        states = tuple(stage.begin(params) for stage in stages)
        metrics = None
        if record:
            step = Step(jnp.zeros([], jnp.int32), jnp.zeros([]))

            def at_first(params: Tree, states: Tree) -> dict[str, jax.Array]:
                seen = [
                    Observation(params, params, state, params, stage.at(step, params))
                    for stage, state in zip(stages, states, strict=True)
                ]
                return measured(stages, seen, params, params, params, step)

            names = jax.eval_shape(at_first, widen(params), states)
            metrics = {name: jnp.zeros([], jnp.float32) for name in names}
        return ComposeState(as_float(0), metrics, states)

    def update(updates: Tree, state: ComposeState, params: Tree, step: Step):
        step = step._replace(learning_rate=step.values["learning_rate"])
        gradients, seen = updates, []
        for stage, stage_state in zip(stages, state.stages, strict=True):
            before, its_step = updates, stage.at(step, params)
            updates, stage_state = stage.update(before, stage_state, params, its_step)
            seen.append(Observation(before, updates, stage_state, params, its_step))
        metrics = measured(stages, seen, gradients, updates, params, step) if record else None
        states = tuple(one.state for one in seen)
        return updates, ComposeState(as_float(step.learning_rate), metrics, states)

    return Stage(
        update,
        init,
        needs_params=record,
        is_optimizer=True,
        name="record_metrics",
        hyperparameters={"learning_rate": (learning_rate, NON_NEGATIVE)},
    )


def measured(
    stages: Sequence[Stage],
    seen: Sequence[Observation],
    gradients: Tree,
    updates: Tree,
    params: Tree,
    step: Step,
) -> dict[str, jax.Array]:
    """The metrics of a step: the metrics of the whole chain and of every stage that has some."""
    param_norm, update_norm = global_norm(params), global_norm(updates)
    found = {
        "grad_norm": global_norm(gradients),
        "update_norm": update_norm,
        "param_norm": param_norm,
        "update_ratio": update_norm / jnp.where(param_norm > 0, param_norm, 1.0),
        "learning_rate": as_float(step.learning_rate),
    }
    for stage, one in zip(stages, seen, strict=True):
        found |= stage.metrics(one) if stage.metrics is not None else {}
    return {name: value.astype(jnp.float32) for name, value in found.items()}


@checked(learning_rate=NON_NEGATIVE)
def descend(learning_rate: Hyperparameter) -> Stage:
    """The stage u <- -eta_t u.

    The chain has evaluated the learning rate for all of its stages.
    """

    def update(updates: Tree, state: Tree, params: Tree, step: Step) -> tuple[Tree, Tree]:
        return each_leaf(lambda u, rate: -rate * u, updates, rate=step.learning_rate), state

    return Stage(update)


def moment_norms(seen: Observation) -> dict[str, jax.Array]:
    """first_moment_norm and second_moment_norm of a core that names its moments as Optax does.

    Those are the fields `mu` and `nu` of `optax.ScaleByAdamState` and its like.
    """
    names = {"first_moment_norm": "mu", "second_moment_norm": "nu"}
    found = {name: _fields(seen.state, field) for name, field in names.items()}
    return {name: global_norm(moments) for name, moments in found.items() if moments}


def scale_of(seen: Observation) -> dict[str, jax.Array]:
    """plateau_scale of a plateau that names its scale as `optax.contrib.reduce_on_plateau` does."""
    found = _fields(seen.state, "scale")
    return {"plateau_scale": found[0]} if found else {}


def _fields(state: Tree, name: str) -> list[Tree]:
    def is_field(path: KeyPath, value: object) -> bool:  # and not the name of a parameter
        return isinstance(path[-1], optax.tree_utils.NamedTupleKey)

    return [value for _, value in optax.tree.get_all_with_path(state, name, is_field)]
