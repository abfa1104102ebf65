"""Factories of optimizers: they pass on the keywords of techniques and refuse all others."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from amac_jax._core.aliases import Keywords, Tree
from amac_jax._core.boundary import (
    Step,
    Transformation,
    described,
    stage_of,
    transformation,
)  # fmt: skip
from amac_jax._core.hyperparameters import is_number
from amac_jax.techniques import KEYWORDS, TECHNIQUES

Factory = TypeVar("Factory", bound=Callable[..., Any])

_FOREIGN = {  # keywords of Optax, PyTorch and Keras, and where to find the same here
    "mask": "it is decay_mask here",
    "betas": "they are b1 and b2 here",
    "beta": "it is b1 here",
    "beta1": "it is b1 here",
    "beta2": "it is b2 here",
    "lr": "it is learning_rate here",
    "wd": "it is weight_decay here",
    "steps": "amac takes total_steps",
    "total_steps": "a schedule takes it: amac_jax.warmup_cosine(learning_rate, total_steps, ...)",
    "epsilon": "it is eps here",
    "nesterov": "the optimizers amac_jax.nesterov and amac_jax.nadam have Nesterov's momentum",
    "amsgrad": "it is the optimizer amac_jax.amsgrad here",
    "centered": "compose(optax.scale_by_stddev(), learning_rate) is centered",
    "eps_root": "put Optax's core in compose: compose(optax.scale_by_adam(eps_root=...), ...)",
    "mu_dtype": "state_dtype='bfloat16' stores all state in it, rounded stochastically",
    "accumulator_dtype": "state_dtype='bfloat16' stores all state in it, rounded stochastically",
    "initial_accumulator_value": (
        "compose(optax.scale_by_rss(initial_accumulator_value=...), learning_rate) has it"
    ),
    "initial_scale": "compose(optax.scale_by_rms(initial_scale=...), learning_rate) has it",
    "layer_scale": "it is layer_multipliers here",
    "max_norm": "it is clip_norm here",
    "ns_steps": "amac_jax.muon takes quintics, one for each step",
    "ns_coeffs": "amac_jax.muon takes quintics, one for each step",
    "adam_b1": "amac_jax.muon takes others, such as optax.scale_by_adam(b1=...)",
    "adam_b2": "amac_jax.muon takes others, such as optax.scale_by_adam(b2=...)",
    "adam_learning_rate": "amac_jax.muon takes others_multiplier, a factor of learning_rate",
    "adam_weight_decay": "decay_mask says which leaves decay here",
    "muon_weight_dimension_numbers": "fan_in_axes says here which leaves are kernels",
    "adaptive": "amac_jax.muon has NorMuon's second moment, b2",
    **dict.fromkeys(
        ("exclude", "others", "others_multiplier", "product_dtype", "quintics", "rms"),
        "amac_jax.muon takes it, and so does scale_by_orthogonal, as a core of amac and compose",
    ),
    "preconditioning": "amac_jax.muon takes quintics, one for each step",
    "consistent_rms": "amac_jax.muon has rms, 0.2 by default",
    "weight_decay_mask": "it is decay_mask here",
}


def takes_techniques(**defaults: Any) -> Callable[[Factory], Factory]:
    """Lets a factory take the keywords of all techniques, some with defaults of its own.

    The keywords are in the signature of the factory, where `help` shows them. From there
    `optax.inject_hyperparams`, which cannot see through `**`, takes them too. A keyword that the
    factory does not have is refused, and the message names the nearest one. The `repr` of the
    transformation says how it was made.

    Args:
      **defaults: keyword -> default. The default of a companion, such as `slow_step_size`, counts
        only where its technique is in.
    """

    def decorate(factory: Factory) -> Factory:
        signature = inspect.signature(factory)
        named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        own = {parameter.name for parameter in named}
        techniques = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name, usual)
            )
            for name, usual in KEYWORDS.items()
            if name not in own
        ]
        in_order = [p.name for p in named if p.kind is p.POSITIONAL_OR_KEYWORD]
        positional = f"{', '.join(in_order)} may be positional, every other argument is a keyword"
        known = [*own, *(parameter.name for parameter in techniques)]

        @functools.wraps(factory)
        def build(*args: Any, **given: Any) -> Any:
            for name in given:
                if name not in known:
                    raise TypeError(unknown_keyword(factory.__name__, name, known))
            given = with_defaults(defaults, given)
            try:
                arguments = signature.bind(*args, **given)
            except TypeError as error:
                raise TypeError(f"{factory.__name__}(): {error}; {positional}") from None
            tx = factory(*args, **given)
            if isinstance(tx, Transformation):
                arguments.apply_defaults()
                written = dict(arguments.arguments)
                techniques = written.pop("techniques", {})
                written |= {**techniques, **{n: _short(v) for n, v in tx.resolved.items()}}
                left_out = {name for name, value in given.items() if value is None}
                tx.description = described(factory.__name__, written, left_out)
            return tx

        build.__signature__ = signature.replace(  # pyright: ignore[reportAttributeAccessIssue]
            parameters=[*named, *techniques]
        )
        build.defaults = defaults  # pyright: ignore[reportAttributeAccessIssue]
        return build  # pyright: ignore[reportReturnType]

    return decorate


def _short(value: Any) -> Any:
    """A number that nobody has written, in six digits."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def with_defaults(defaults: Keywords, given: Keywords) -> dict[str, Any]:
    """The keywords given, and the defaults of the others.

    The default of a companion is left out where its technique is not in.

    Example:
      >>> with_defaults({"sync_period": 5, "slow_step_size": 0.8}, {"sync_period": None})
      {'sync_period': None}
    """
    merged = {**defaults, **given}
    for row in TECHNIQUES:
        for companion in row.companions():
            if companion in merged and companion not in given and not row.is_in(merged):
                del merged[companion]
    return merged


def check_companions(given: Keywords) -> None:
    """Refuses a keyword that does nothing because its technique is not in the chain.

    Arrays pass, as everywhere: `optax.inject_hyperparams` hands over defaults as arrays.
    """
    for row in TECHNIQUES:
        for name in [] if row.is_in(given) else row.companions():
            value = given.get(name)
            if value is None or isinstance(value, jax.Array | np.ndarray):
                continue
            if is_number(value) or value != row.default(name):
                raise ValueError(
                    f"{name} needs {row.keyword}, without which it does nothing, "
                    f"got {name}={value!r}"
                )


def core_of(
    factory: Callable[..., optax.GradientTransformation], *args: Any, **hyperparameters: Any
) -> optax.GradientTransformation:
    """A core of Optax. Its hyperparameters may be schedules."""
    if any(callable(value) for value in hyperparameters.values()):
        factory = optax.inject_hyperparams(factory)
    stage = stage_of(factory(*args, **hyperparameters))
    if factory is optax.scale_by_adam:
        stage = stage._replace(update=_held_adam(hyperparameters), holds=True)
    return transformation(stage._replace(is_optimizer=False))


def _held_adam(hyperparameters: Keywords) -> Callable[..., tuple[Tree, Tree]]:
    """Adam's update, which keeps its moments at a skipped step by decays of 1 and gradients of -0.

    A choice between the moments and the old ones would come after what the direction reads.
    """

    def update(updates: Tree, state: Any, params: Tree, step: Step) -> tuple[Tree, Tree]:
        held = dict(hyperparameters)
        if step.finite is not None:
            updates = step.silenced(updates)
            for name, usual in ADAM_DECAYS.items():
                held[name] = jnp.where(step.finite, hyperparameters.get(name, usual), 1.0)
        with jax.numpy_dtype_promotion("standard"):  # in which Optax is written
            updates, new = optax.scale_by_adam(**held).update(updates, state, params)
        if step.finite is not None:
            new = cast(optax.ScaleByAdamState, new)
            new = new._replace(count=step.kept(new.count, state.count))
        return updates, new

    return update


ADAM_DECAYS = {"b1": 0.9, "b2": 0.999}
"""The decays of `optax.scale_by_adam` and their defaults."""


def unknown_keyword(factory: str, name: str, known: list[str]) -> str:
    """What is said of a keyword that a factory does not have, with the nearest that it has."""
    if name in _FOREIGN:
        return f"{factory}() does not take {name!r}: {_FOREIGN[name]}"
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "; its help lists the keywords"
    return f"{factory}() does not take {name!r}{hint}"
