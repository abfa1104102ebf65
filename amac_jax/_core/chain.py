"""A chain of stages inside one boundary, with one count, one learning rate, and metrics."""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Observation, Stage, Step, in_turn
from amac_jax._core.hyperparameters import (
    Hyperparameter,
    as_float,
    is_number,
    next_count,
    whole_value_at,
)
from amac_jax._core.leaves import each_leaf, widen
from amac_jax._core.measures import Measure, Norm, taken, term_of
from amac_jax._core.ranges import NON_NEGATIVE, checked
from amac_jax._core.xla import after, one_by_one, only_when


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
                return measured(stages, seen, params, params, params, step)[0]

            names = jax.eval_shape(at_first, widen(params), states)
            metrics = {name: jnp.zeros([], jnp.float32) for name in names}
        return ComposeState(as_float(0), metrics, states)

    def update(updates: Tree, state: ComposeState, params: Tree, step: Step):
        step = step._replace(learning_rate=step.values["learning_rate"])
        states, metrics, settled = state.stages, state.metrics, None
        found: dict[str, jax.Array] = {}
        if is_every_step:
            settled = partial(measure, found, stages, updates, params, step)
            params = summed_first(params)
        elif record_every is not None:
            number = next_count(step.count)
            is_nth = number % whole_value_at(record_every, step.count) == 0
            due = step.counts((number == 1) | is_nth)
            metrics, states, params = measured_when(
                due, metrics, stages, updates, states, params, step
            )
        updates, seen = in_turn(stages, updates, states, params, step, settled)
        if is_every_step:
            metrics = step.kept(found, metrics)
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


def without_rate(stages: Sequence[Stage]) -> Stage:
    """Like `optax.chain` of the stages, inside one boundary: a direction, not an optimizer."""

    def init(params: Tree) -> tuple[Tree, ...]:
        return tuple(stage.begin(params) for stage in stages)

    def update(updates: Tree, state: Tree, params: Tree, step: Step):
        updates, seen = in_turn(stages, updates, state, params, step)
        return updates, tuple(one.state for one in seen)

    return Stage(update, init, is_optimizer=False, is_chain=True)


def summed_first(params: Tree) -> Tree:
    """The parameters, which a CPU has summed before the step writes over them.

    It sums what is in memory alone, and would else keep a copy.
    """
    norm = taken({"param_norm": Norm(params)}, in_memory=params)["param_norm"]
    return jax.lax.platform_dependent(norm, params, cpu=after, default=lambda norm, params: params)


def measure(
    found: dict[str, jax.Array],
    stages: Sequence[Stage],
    gradients: Tree,
    params: Tree,
    step: Step,
    updates: Tree,
    seen: list[Observation],
) -> tuple[Tree, jax.Array]:
    """Puts the metrics of a step into `found`; returns the updates and the sum of all norms.

    Nothing is written yet of where the parameters land, and nothing is copied to be measured.
    """
    settled = written_in_turn(updates)
    seen = [one._replace(after=settled) if one.after is updates else one for one in seen]
    in_memory = gradients, params, settled, [one.state for one in seen]
    metrics, norms = measured(stages, seen, gradients, params, settled, step, in_memory=in_memory)
    found.update(metrics)
    return settled, norms


def measured_when(
    due: jax.Array,
    metrics: Tree,
    stages: Sequence[Stage],
    gradients: Tree,
    states: Sequence[Tree],
    params: Tree,
    step: Step,
) -> tuple[Tree, Sequence[Tree], Tree]:
    """The metrics, of this step if they are due; states and parameters, which are measured first.

    To measure, the step is taken once more, from what is in memory before it. Its updates are not,
    and would have to be written there at every step.
    """
    entered = step.entered if step.entered and step.entered.updates is gradients else None
    received = (gradients, params) if entered is None else entered.received

    def once_more(kept: Tree, states: Tree, received: Tree) -> Tree:
        gradients, params = map(entered.widened, received) if entered else received
        updates, seen = in_turn(stages, gradients, states, params, step)
        return measured(stages, seen, gradients, params, updates, step, alone=True)[0]

    with jax.named_scope("record_metrics"):
        metrics = only_when(due, once_more, metrics, states, received)
    # What is measured is overwritten in place, and not copied, if it is measured before.
    norm = metrics["param_norm"]
    states = [
        one if stage.lands else after(norm, one)  # which are written last anyway
        for stage, one in zip(stages, states, strict=True)
    ]
    return metrics, states, after(norm, params)


def measured(
    stages: Sequence[Stage],
    seen: Sequence[Observation],
    gradients: Tree,
    params: Tree,
    updates: Tree,
    step: Step,
    **how: Any,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """The metrics of a step: the metrics of the whole chain and of every stage that has some.

    Args:
      **how: arguments of `taken`.

    Returns:
      The metrics by their names, and the sum of all norms, which is known when all are.
    """
    measures: dict[str, Measure] = {
        "grad_norm": Norm(gradients),
        "update_norm": Norm(updates),
        "param_norm": Norm(params),
        "learning_rate": as_float(step.learning_rate),
    }
    for stage, one in zip(stages, seen, strict=True):
        measures |= stage.metrics(one) if stage.metrics is not None else {}
    found = taken(measures, **how)
    norms = [found[name] for name, one in measures.items() if isinstance(one, Norm)]
    size = jnp.where(found["param_norm"] > 0, found["param_norm"], 1.0)
    found["update_ratio"] = found["update_norm"] / size
    metrics = {name: value.astype(jnp.float32) for name, value in found.items()}
    return metrics, reduce(jnp.add, [norm.astype(jnp.float32) for norm in norms])


def written_in_turn(updates: Tree) -> Tree:
    """The updates, which a CPU writes to memory and sums one leaf after another."""
    leaves, structure = jax.tree.flatten(updates)
    in_turn = partial(one_by_one, norm_of=lambda x: jnp.sum(term_of(x)), read_again=True)
    return structure.unflatten(jax.lax.platform_dependent(leaves, cpu=in_turn, default=list))


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
