"""The boundary: everything that all techniques have in common, written once.

A technique is a `Stage`: a state and an equation. The equation sees only trained leaves, in at
least float32, and the values of its hyperparameters. `technique` puts the boundary around a stage,
which makes it an Optax transformation. `compose` puts one boundary around a whole chain of stages.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import optax

from amac_jax._core.aliases import Keywords, Tree
from amac_jax._core.hyperparameters import Hyperparameter, next_count
from amac_jax._core.leaves import (
    Entered,
    each_leaf,
    enter,
    in_dtypes_of,
    trained_only,
    where,
    widen,
)
from amac_jax._core.measures import Measure
from amac_jax._core.paths import written_path
from amac_jax._core.ranges import Range, check_arguments
from amac_jax._core.xla import only_when


class Step(NamedTuple):
    """The step being taken, as a stage sees it; `step.rate` is the value of its `rate` now."""

    count: jax.Array  # () int32: the updates made before this one
    learning_rate: jax.Array | float = 1.0  # eta_t in `compose`; 1 in any other chain
    extra_args: Keywords = MappingProxyType({})
    values: Mapping[str, jax.Array | None] = {}  # of the stage's hyperparameters
    gradient_factor: jax.Array | None = None  # of all updates, for a stage that takes it; None: 1
    finite: jax.Array | None = None  # whether the step counts; None: every step counts
    entered: Entered | None = None  # what the step works on; None: a part of it, or a trial

    @classmethod
    def into(cls, inside: Entered, count: jax.Array, finite: jax.Array | None = None) -> Step:
        """The step that works on what has entered."""
        return cls(count, extra_args=inside.extra_args, finite=finite, entered=inside)

    def counts(self, due: jax.Array) -> jax.Array:
        """Whether something is done that is due: not at a step that is skipped."""
        return due if self.finite is None else due & self.finite

    def kept(self, new: Tree, old: Tree) -> Tree:
        """The new tree, or the old one at a step that is skipped."""
        return new if self.finite is None else where(self.finite, new, old)

    def silenced(self, updates: Tree) -> Tree:
        """The updates, or -0 at a step that is skipped: a parameter of -0 then stays one."""
        return self.kept(updates, jax.tree.map(lambda u: -jnp.zeros_like(u), updates))

    def in_memory(self, params: Tree) -> Tree:
        """The parameters as a conditional should read them: before they are widened."""
        return params if self.entered is None else self.entered.received[1]

    def landing(self, params: Tree, updates: Tree) -> Tree:
        """The parameters after the step, which `optax.apply_updates` makes too."""
        if self.entered is None:
            return jax.tree.map(jnp.add, params, updates)
        return self.entered.landing(updates)

    def __getattr__(self, name: str) -> Any:
        if name not in self.values:
            raise AttributeError(f"the stage has no hyperparameter {name!r}")
        return self.values[name]


class Observation(NamedTuple):
    """The trees and the step that a stage has seen, for its metrics."""

    before: Tree  # updates
    after: Tree  # updates
    previous: Tree  # the state before the step
    state: Tree  # after the step
    params: Tree
    step: Step


class Landing(NamedTuple):
    """What a stage keeps of the place where the parameters land."""

    due: jax.Array  # () bool: whether it is written at this step
    kept: dict[str, Tree]  # the fields of its state that are written
    # (kept, the parameters after the step in their own dtypes) -> the same fields
    write: Callable[[dict[str, Tree], Tree], dict[str, Tree]]


class Stage(NamedTuple):
    """A transformation on the inside of the boundary."""

    update: Callable[[Tree, Tree, Tree, Step], tuple[Tree, Tree]]  # as in Optax, but with the step
    init: Callable[[Tree], Tree] = lambda params: optax.EmptyState()  # params in their own dtypes
    needs_params: bool = False
    refuses_complex: bool = False
    metrics: Callable[[Observation], dict[str, Measure]] | None = None
    is_optimizer: bool | None = None  # whether updates point down; None: unknown, a foreign one
    # Of a stage that multiplies all updates by one number: (updates, step) -> the number.
    factor: Callable[[Tree, Step], jax.Array] | None = None
    takes_factor: bool = False  # its updates are `gradient_factor` times what the equation says
    holds: bool = False  # its `update` leaves its state alone at a skipped step
    # Of a stage whose state says where the parameters land: (the state that `update` returned, the
    # step) -> what is kept of it. The stage does nothing at a skipped step.
    lands: Callable[[Tree, Step], Landing] | None = None
    is_chain: bool = False  # its `update` is `in_turn`, skipped steps included
    name: str = "core"
    hyperparameters: Mapping[str, tuple[Hyperparameter | None, Range]] = {}

    def begin(self, params: Tree) -> Tree:
        """The state for these parameters."""
        if self.refuses_complex:
            _check_real(self.name, params)
        return self.init(params)

    def after(self, step: Step, new: Tree, old: Tree) -> Tree:
        """The state that `update` returned, or the old one at a step that is skipped."""
        if step.finite is None or self.holds or self.lands is not None:
            return new
        return step.kept(in_dtypes_of(old, new), old)

    def at(self, step: Step, params: Tree) -> Step:
        """The step, with the values of this stage's hyperparameters."""
        if self.needs_params and params is None:
            raise ValueError(f"{self.name} needs params: tx.update(updates, state, params)")
        return step._replace(
            values={
                name: None if given is None else allowed.evaluated(given, step.count)
                for name, (given, allowed) in self.hyperparameters.items()
            }
        )


class CountedState(NamedTuple):
    """The one counter of a transformation, and the state inside its boundary."""

    count: jax.Array  # () int32: the updates made; stops at the largest int32
    inner: Tree

    def after(self, inner: Tree, finite: jax.Array | None = None) -> CountedState:
        """The state after a step, which counts if it is finite."""
        count = next_count(self.count)
        if finite is not None:
            count = jnp.where(finite, count, self.count)
        return CountedState(count, in_dtypes_of(self.inner, inner))


class Transformation(optax.GradientTransformationExtraArgs):
    """An Optax transformation that keeps its stage, and whose `repr` describes it."""

    stage: Stage | None = None
    description: str = ""
    resolved: Keywords = MappingProxyType({})  # arguments -> the values that "auto" stands for

    def __new__(
        cls,
        init: Callable[..., Tree],
        update: Callable[..., tuple[Tree, Tree]],
        stage: Stage | None = None,
        description: str = "",
    ):
        self = super().__new__(cls, init, update)
        self.stage, self.description = stage, description
        return self

    def __repr__(self) -> str:
        return self.description or super().__repr__()


def in_turn(
    stages: Sequence[Stage],
    updates: Tree,
    states: Sequence[Tree],
    params: Tree,
    step: Step,
    settled: Callable[[Tree, list[Observation]], tuple[Tree, jax.Array]] | None = None,
) -> tuple[Tree, list[Observation]]:
    """One step of each stage in their order.

    A factor of all updates is left to the next stage, if it takes one. What that stage reads is
    then in memory as it came, and XLA need not write the product.

    What stages keep of the place where the parameters land is written last, from the parameters
    after the step: these are then in memory anyway.

    At a step that is skipped, updates are -0 where a stage lands and at the end, so that a
    parameter of -0 stays what it is. States stay what they are, in the loops that write them. What
    updates are computed from should be the state that is kept: XLA would else need the old one
    after it is overwritten, and keep a copy.

    Args:
      settled: (the final updates, what each stage has seen) -> (the same updates, norm). Where the
        parameters land is written after this () norm, >= 0 or NaN, is known. Off: None.

    Returns:
      New updates, and what each stage has seen, its new state among it.
    """
    seen: list[Observation] = []
    landing: list[int] = []  # the stages that wait for the updates to be final

    not_before: jax.Array | None = None

    def land() -> None:
        for place in landing:
            params_after = step.landing(params, updates)
            seen[place] = landed(stages[place], seen[place], params_after, not_before)
        landing.clear()

    factor, is_silenced = None, step.finite is None
    for place, (stage, state) in enumerate(zip(stages, states, strict=True)):
        its_step = stage.at(step, params)
        if stage.lands is None:
            land()
        if stage.takes_factor:
            its_step, factor = its_step._replace(gradient_factor=factor), None
        elif factor is not None:
            updates, factor = times(factor, updates), None
        if stage.lands is not None and not is_silenced:
            updates, is_silenced = step.silenced(updates), True
        before = updates
        with jax.named_scope(stage.name):
            if stage.factor is not None:
                factor, new = stage.factor(before, its_step), state
            else:
                new_updates, new = stage.update(before, state, params, its_step)
                new = stage.after(step, new, state)
                if new_updates is not before:
                    land()
                updates = new_updates
        seen.append(Observation(before, updates, state, new, params, its_step))
        if stage.lands is not None:
            landing.append(place)
    if factor is not None:
        updates = times(factor, updates)
    if not is_silenced:
        updates = step.silenced(updates)
    if settled is not None:
        updates, norm = settled(updates, seen)
        not_before = norm
    land()
    return updates, seen


def landed(
    stage: Stage, seen: Observation, params: Tree, not_before: jax.Array | None
) -> Observation:
    """What a stage that lands has seen, with the state that knows where the parameters land."""
    assert stage.lands is not None
    with jax.named_scope(stage.name):
        due, kept, write = stage.lands(seen.state, seen.step)
        if not_before is not None:  # what reads the old ones is done, and nothing is copied for it
            due = due & ~(not_before < 0)
        kept = only_when(due, write, kept, params)
    return seen._replace(state=seen.state._replace(**kept))


def times(factor: jax.Array, updates: Tree) -> Tree:
    """c u."""
    return each_leaf(lambda u, factor: u * factor, updates, factor=factor)


def self_contained(stage: Stage) -> Stage:
    """The stage as a chain of one, if it is not a chain: skipped steps are its own affair."""
    if stage.is_chain:
        return stage

    def update(updates: Tree, state: Tree, params: Tree, step: Step) -> tuple[Tree, Tree]:
        updates, (seen,) = in_turn([stage], updates, [state], params, step)
        return updates, seen.state

    return stage._replace(update=update, hyperparameters={}, is_chain=True)


def transformation(stage: Stage, description: str = "") -> Transformation:
    """Puts the boundary around a stage.

    State: `CountedState` around the state of the stage.
    """
    whole = self_contained(stage)

    def init(params: Tree) -> CountedState:
        return CountedState(jnp.zeros([], jnp.int32), stage.begin(trained_only(params)))

    def update(updates: Tree, state: CountedState, params: Tree = None, **extra_args: Any):
        inside = enter(updates, params, extra_args)
        step = whole.at(Step.into(inside, state.count), inside.params)
        updates, inner = whole.update(inside.updates, state.inner, inside.params, step)
        return inside.leave(updates), state.after(inner)

    return Transformation(init, update, stage, description)


def stage_of(tx: optax.GradientTransformation | Stage, argument: str = "tx") -> Stage:
    """A transformation as a stage: ours without its own boundary, a foreign one as it is.

    Raises:
      ValueError: for anything that is not a transformation.
    """
    if isinstance(tx, Stage):
        return tx
    if not hasattr(tx, "update"):
        raise ValueError(f"{argument} must be a gradient transformation, got {tx!r}")
    if isinstance(tx, Transformation) and tx.stage is not None:
        return tx.stage

    return foreign(tx)


def foreign(tx: optax.GradientTransformation) -> Stage:
    """Any transformation as a stage, which gets the extra args if it takes them.

    Strict promotion of dtypes is asked of this library alone: Optax is not written for it.
    """
    takes_them = isinstance(tx, optax.GradientTransformationExtraArgs)

    def update(updates: Tree, state: Tree, params: Tree, step: Step) -> tuple[Tree, Tree]:
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(updates, state, params, **(step.extra_args if takes_them else {}))

    return Stage(update, lambda params: tx.init(widen(params)))


def held(tx: optax.GradientTransformation) -> tuple[Callable[..., Tree], Callable[..., Any]]:
    """A whole transformation of which single steps are skipped: its `init`, and a step.

    The step is (entered, inner state, takes, count) -> (updates, inner state), with `takes` ()
    bool: where it is False, the updates are -0 and the state stays what it is, to the bit. A
    foreign transformation, which keeps its own count, has no use for `count`.
    """
    is_ours = isinstance(tx, Transformation) and tx.stage is not None
    stage = self_contained(stage_of(tx))

    def step(inside: Entered, inner: Tree, takes: jax.Array, count: jax.Array) -> tuple[Tree, Tree]:
        before = inner if is_ours else CountedState(count, inner)
        one = stage.at(Step.into(inside, before.count, takes), inside.params)
        new, state = stage.update(inside.updates, before.inner, inside.params, one)
        after = before.after(state, takes)
        return inside.leave(new), after if is_ours else after.inner

    return lambda params: tx.init(trained_only(params)), step


Arguments = ParamSpec("Arguments")


def technique(
    **ranges: Range,
) -> Callable[[Callable[Arguments, Stage]], Callable[Arguments, Transformation]]:
    """Makes a factory of stages a factory of Optax transformations.

    Args:
      **ranges: the range of each numeric hyperparameter, by its name in the factory. Numbers are
        checked against their ranges when the factory is called. In `update` the value of each
        hyperparameter is an attribute of the step; it is None where None was given.

    Returns:
      A decorator. The factory that it returns also has an attribute `ranges`.

    Example:
      >>> from amac_jax._core.ranges import POSITIVE
      >>> @technique(factor=POSITIVE)
      ... def scale(factor):
      ...     def update(updates, state, params, step):
      ...         return jax.tree.map(lambda u: step.factor * u, updates), state
      ...     return Stage(update)
      >>> tx = scale(lambda count: 2.0 + count)
      >>> tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0]
      Array([2., 2.], dtype=float32)
    """

    def decorate(factory: Callable[Arguments, Stage]) -> Callable[Arguments, Transformation]:
        signature = inspect.signature(factory)

        @functools.wraps(factory)
        def build(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Transformation:
            arguments = check_arguments(signature, ranges, args, kwargs)
            numeric = {name: r for name, r in ranges.items() if not r.takes_trees}
            stage = factory(*args, **kwargs)._replace(
                name=factory.__name__,
                is_optimizer=False,
                hyperparameters={name: (arguments[name], r) for name, r in numeric.items()},
            )
            return transformation(stage, described(factory.__name__, arguments))

        build.ranges = ranges  # pyright: ignore[reportAttributeAccessIssue]
        build.__signature__ = signature.replace(  # pyright: ignore[reportAttributeAccessIssue]
            return_annotation="optax.GradientTransformationExtraArgs"
        )
        return build

    return decorate


def described(name: str, arguments: Keywords, left_out: Container[str] = ()) -> str:
    """A call as text, as a user would write it; arrays and functions stand as their kind.

    None is written for the arguments in `left_out` alone, to which a user has given it.

    Example:
      >>> described("sgd", {"learning_rate": jnp.array(0.1), "clip_norm": 1.0, "noise": None})
      'sgd(learning_rate=<array>, clip_norm=1.0)'
    """

    def written(value: object) -> str:
        if isinstance(value, jax.Array):
            return "<array>"
        is_tuple = isinstance(value, optax.GradientTransformation)
        if is_tuple and not getattr(value, "description", ""):
            return "<transformation>"
        return f"<{value.__name__}>" if inspect.isfunction(value) else repr(value)

    given = [
        f"{key}={written(value)}"
        for key, value in arguments.items()
        if value is not None or key in left_out
    ]
    return f"{name}({', '.join(given)})"


def _check_real(name: str, params: Tree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                f"{name} must have real parameters, got {leaf.dtype.name} at "
                f"{written_path(path)!r}; optax.contrib.split_real_and_imaginary(...) around the "
                "whole optimizer, if it takes no extra args, hands it their two parts"
            )
