"""A chain of stages inside one boundary, with one count, one learning rate, and metrics."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath

from amac_jax._core.boundary import Observation, Stage, Step, in_turn
from amac_jax._core.hyperparameters import (
    Hyperparameter,
    as_float,
    is_number,
    next_count,
    whole_value_at,
)
from amac_jax._core.leaves import each_leaf, where, widen
from amac_jax._core.measures import Measure, Norm, taken
from amac_jax._core.ranges import NON_NEGATIVE, checked
from amac_jax._core.types import Tree
from amac_jax._core.xla import after, only_when


class ComposeState(NamedTuple):
    """The learning rate and the metrics of the last step, and the stages' states in their order."""

    last_learning_rate: jax.Array  # () float32, float64 with x64 on; 0 before the first step
    metrics: dict[str, jax.Array] | None  # each () float32; 0 before the first step; None: off
    stages: tuple[Tree, ...]


def chain(
    stages: Sequence[Stage],
    learning_rate: Hyperparameter,
    *,
    record_every: Hyperparameter | None = None,
) -> Stage:
    """Like `optax.chain` of the stages, but every stage sees the learning rate of the step.

    With `record_every` n the state holds scalars about the last of the steps 1, n, 2n, ...:
    grad_norm ||g||, update_norm ||u||, param_norm ||theta|| before the step, update_ratio
    ||u|| / ||theta||, learning_rate, and the metrics of each stage.
    """

    is_every_step = is_number(record_every) and record_every == 1

    def init(params: Tree) -> ComposeState:
        states = tuple(stage.begin(params) for stage in stages)
        metrics = None
        if record_every is not None:
            step = Step(jnp.zeros([], jnp.int32), jnp.zeros([]))

            def at_first(params: Tree, states: Tree) -> dict[str, jax.Array]:
                seen = [
                    Observation(params, params, state, state, params, stage.at(step, params))
                    for stage, state in zip(stages, states, strict=True)
                ]
                return measured(stages, seen, params, params, params, step)

            names = jax.eval_shape(at_first, widen(params), states)
            metrics = {name: jnp.zeros([], jnp.float32) for name in names}
        return ComposeState(as_float(0), metrics, states)

    def update(updates: Tree, state: ComposeState, params: Tree, step: Step):
        step = step._replace(learning_rate=step.values["learning_rate"])
        gradients, states, metrics = updates, state.stages, state.metrics
        if record_every is not None and not is_every_step:
            number = next_count(step.count)
            is_nth = number % whole_value_at(record_every, step.count) == 0
            due = step.counts((number == 1) | is_nth)

            # The step is taken once more, from what is in memory before it. Its updates are not,
            # and would have to be written there at every step.
            entered = step.entered if step.entered and step.entered.updates is gradients else None
            received = (gradients, params) if entered is None else entered.received

            def measure(kept: Tree, states: Tree, received: Tree) -> Tree:
                gradients, params = map(entered.widened, received) if entered else received
                updates, seen = in_turn(stages, gradients, states, params, step)
                return measured(stages, seen, gradients, updates, params, step, alone=True)

            with jax.named_scope("record_metrics"):
                metrics = only_when(due, measure, metrics, states, received)
            # What is measured is overwritten in place, and not copied, if it is measured before.
            measured_norm = metrics["param_norm"]
            params = after(measured_norm, params)
            states = tuple(
                one if stage.lands else after(measured_norm, one)  # which are written last anyway
                for stage, one in zip(stages, states, strict=True)
            )
        updates, seen = in_turn(stages, gradients, states, params, step)
        if is_every_step:
            found = measured(stages, seen, gradients, updates, params, step)
            metrics = found if step.finite is None else where(step.finite, found, metrics)
        rate = as_float(step.learning_rate)
        if step.finite is not None:
            rate = jnp.where(step.finite, rate, state.last_learning_rate.astype(rate.dtype))
        return updates, ComposeState(rate, metrics, tuple(one.state for one in seen))

    return Stage(
        update,
        init,
        needs_params=record_every is not None,
        is_optimizer=True,
        is_chain=True,
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
    *,
    alone: bool = False,
) -> dict[str, jax.Array]:
    """The metrics of a step: the metrics of the whole chain and of every stage that has some."""
    measures: dict[str, Measure] = {
        "grad_norm": Norm(gradients),
        "update_norm": Norm(updates),
        "param_norm": Norm(params),
        "learning_rate": as_float(step.learning_rate),
    }
    for stage, one in zip(stages, seen, strict=True):
        measures |= stage.metrics(one) if stage.metrics is not None else {}
    found = taken(measures, alone=alone)
    size = jnp.where(found["param_norm"] > 0, found["param_norm"], 1.0)
    found["update_ratio"] = found["update_norm"] / size
    return {name: value.astype(jnp.float32) for name, value in found.items()}


@checked(learning_rate=NON_NEGATIVE)
def descend(learning_rate: Hyperparameter) -> Stage:
    """The stage u <- -eta_t u.

    The chain has evaluated the learning rate for all of its stages.
    """

    def update(updates: Tree, state: Tree, params: Tree, step: Step) -> tuple[Tree, Tree]:
        return each_leaf(lambda u, rate: -rate * u, updates, rate=step.learning_rate), state

    return Stage(update)


def moment_norms(seen: Observation) -> dict[str, Measure]:
    """first_moment_norm and second_moment_norm of a core that names its moments as Optax does.

    Those are the fields `mu` and `nu` of `optax.ScaleByAdamState` and its like.
    """
    names = {"first_moment_norm": "mu", "second_moment_norm": "nu"}
    found = {name: _fields(seen.state, field) for name, field in names.items()}
    return {name: Norm(moments) for name, moments in found.items() if moments}


def scale_of(seen: Observation) -> dict[str, Measure]:
    """plateau_scale of a plateau that names its scale as `optax.contrib.reduce_on_plateau` does."""
    found = _fields(seen.state, "scale")
    return {"plateau_scale": found[0]} if found else {}


def _fields(state: Tree, name: str) -> list[Tree]:
    def is_field(path: KeyPath, value: object) -> bool:  # and not the name of a parameter
        return isinstance(path[-1], optax.tree_utils.NamedTupleKey)

    return [value for _, value in optax.tree.get_all_with_path(state, name, is_field)]
