"""The table of techniques: a row each, in the order of the pipeline.

A keyword, its range, its default, its off value and its metrics stand here or in the factory that
the row names. They stand nowhere else: `compose`, its errors, `help`, `ablate` and the README
read them from here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypedDict

import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from amac_jax._core.aliases import Keywords
from amac_jax._core.boundary import Stage, stage_of
from amac_jax._core.chain import descend, moment_norms, scale_of
from amac_jax._core.cores import core_stage
from amac_jax._core.draws import Sampler
from amac_jax._core.draws.keys import Key, sub_key
from amac_jax._core.hyperparameters import Hyperparameter
from amac_jax._core.ranges import Range, ranges_of
from amac_jax._core.storage import storage, stored
from amac_jax.kernels import FanInRule
from amac_jax.techniques._averaging import average_weights
from amac_jax.techniques._centralization import centralize
from amac_jax.techniques._clipping import clip_by_global_norm, clip_by_value
from amac_jax.techniques._heavy_ball import heavy_ball
from amac_jax.techniques._layerwise import Multipliers, scale_by_layer
from amac_jax.techniques._lookahead import lookahead
from amac_jax.techniques._noise import inject_noise
from amac_jax.techniques._weight_decay import Mask, decay_weights


class Technique(NamedTuple):
    """A row of the table."""

    keyword: str  # of `compose`; the value None leaves the technique out
    factory: Callable[..., optax.GradientTransformation | Stage]
    argument: str  # the argument of the factory that takes the keyword's value
    equation: str
    others: Mapping[str, str] = {}  # further keywords of `compose` -> arguments of the factory
    off: Mapping[str, float] = {}  # keywords -> the values at which it is the identity
    trial: float | None = None  # a first value for `ablate` to try
    records: tuple[str, ...] = ()  # the names of its metrics
    rounding: int = 0  # the number of its key for rounding; 0: it stores no arrays of floats

    def arguments(self) -> dict[str, str]:
        """Keywords of `compose` -> arguments of the factory."""
        return {self.keyword: self.argument, **self.others}

    def ranges(self) -> dict[str, Range]:
        """The ranges of its numeric keywords."""
        ranges = ranges_of(self.factory)
        return {name: ranges[arg] for name, arg in self.arguments().items() if arg in ranges}

    def default(self, keyword: str) -> Any:
        """The default of a keyword; None for the keyword that puts the technique in."""
        parameters = inspect.signature(self.factory).parameters
        return None if keyword == self.keyword else parameters[self.others[keyword]].default

    def is_in(self, given: Keywords) -> bool:
        """Whether these keywords put the technique into a chain."""
        value = given.get(self.keyword)
        return value is not None and value is not False

    def companions(self) -> list[str]:
        """The keywords that do nothing without the technique."""
        return [name for name in self.others if name not in SHARED]

    def stage(self, given: Keywords) -> Stage:
        """The technique with these keywords, inside the boundary of `compose`."""
        if self.rounding and given.get("state_dtype") is not None:
            given = {**given, "key": sub_key(given.get("key", 0), self.rounding)}
        arguments = {
            argument: given[keyword]
            for keyword, argument in self.arguments().items()
            if given.get(keyword) is not None
        }
        stage = stage_of(self.factory(**arguments))
        if self.rounding and "state_dtype" not in self.others:
            kept = storage("state_dtype", given.get("state_dtype"), given.get("key", 0))
            return stored(stage, kept)
        return stage


def _core(core: optax.GradientTransformation) -> Stage:
    stage = core_stage(core)
    return stage if stage.metrics is not None else stage._replace(metrics=moment_norms)


def _plateau(plateau: optax.GradientTransformation) -> Stage:
    stage = stage_of(plateau, "plateau")
    return stage if stage.metrics is not None else stage._replace(metrics=scale_of)


SHARED = ("key", "fan_in_axes", "state_dtype")  # keywords that several rows use

# fmt: off
TECHNIQUES = (
    Technique("clip_norm", clip_by_global_norm, "limit", "g ← g · min(1, c/‖g‖)",
              off={"clip_norm": jnp.inf}, trial=1.0),
    Technique("centralize", centralize, "strength", "g ← g − s · mean over the fan-in of g",
              {"fan_in_axes": "fan_in_axes"}, off={"centralize": 0.0}, trial=1.0),
    Technique("core", _core, "core", "d ← core(g)",
              records=("first_moment_norm", "second_moment_norm"), rounding=1),
    Technique("noise", inject_noise, "scale", "d ← d + σ ξ, fresh at every step",
              {"key": "key", "sampler": "sampler", "relative_noise": "relative"},
              off={"noise": 0.0}, trial=0.1, records=("noise_scale",)),
    Technique("clip_value", clip_by_value, "limit", "d ← clip(d, −c, c)",
              off={"clip_value": jnp.inf}, trial=1.0, records=("clip_fraction",)),
    Technique("learning_rate", descend, "learning_rate", "u ← −η d"),
    Technique("momentum", heavy_ball, "decay", "v ← μ v + (1 − dampening) u; u ← v",
              {"dampening": "dampening"}, off={"momentum": 0.0, "dampening": 0.0}, trial=0.5,
              records=("momentum_norm",), rounding=2),
    Technique("weight_decay", decay_weights, "rate", "u ← u − η λ θ, kernels only",
              {"cautious_decay": "cautious", "decay_floor": "floor", "decay_mask": "mask",
               "fan_in_axes": "fan_in_axes"},
              off={"weight_decay": 0.0}, trial=0.1, records=("weight_decay",)),
    Technique("layer_multipliers", scale_by_layer, "multipliers", "u ← m(path) u",
              off={"layer_multipliers": 1.0}),
    Technique("plateau", _plateau, "plateau", "u ← s u; s falls when `value` stops improving",
              records=("plateau_scale",)),
    Technique("sync_period", lookahead, "sync_period",
              "every k steps φ ← φ + α (θ + u − φ), u ← φ − θ",
              {"slow_step_size": "slow_step_size", "slow_momentum": "slow_momentum",
               "state_dtype": "state_dtype", "key": "key"},
              off={"slow_step_size": 1.0, "slow_momentum": 0.0}, records=("slow_distance",),
              rounding=3),
    Technique("average_start", average_weights, "start", "A ← running mean (or EMA) of θ + u",
              {"average_period": "period", "average_decay": "decay",
               "state_dtype": "state_dtype", "key": "key"},
              off={"average_start": jnp.inf}, records=("averaged_count",), rounding=4),
)
# fmt: on
"""The pipeline: the stages of `compose` in their order."""

AROUND = {
    "state_dtype": "core, momentum, lookahead and averaging stored in bfloat16, rounded at random",
    "skip_nonfinite": "a step with a NaN or infinite gradient changes nothing but a counter",
    "skip_spikes": "likewise a step whose gradient norm is above this times the last 64's median",
    "record_metrics": "scalars for `metrics`, at every step (True) or every n-th",
}
"""The keywords of `compose` that concern the whole chain."""

KEYWORDS: dict[str, Any] = {
    **{
        keyword: row.default(keyword)
        for row in TECHNIQUES
        if row.keyword not in ("core", "learning_rate")
        for keyword in row.arguments()
    },
    "state_dtype": None,
    "skip_nonfinite": False,
    "skip_spikes": None,
    "record_metrics": False,
}
"""The default of every keyword of `compose` after `core` and `learning_rate`."""

RANGES = {keyword: allowed for row in TECHNIQUES for keyword, allowed in row.ranges().items()}
"""The range of every numeric keyword."""


class _Shared(TypedDict, total=False):
    clip_norm: Hyperparameter | None
    """Limit on the global norm of the gradients: `clip_by_global_norm`. Off: inf."""
    fan_in_axes: FanInRule | None
    """The rule that says which leaves are kernels. None: `amac_jax.fan_in_axes`."""
    noise: Hyperparameter | None
    """Standard deviation of noise on the core's output: `inject_noise`. Off: 0."""
    key: Key
    """An integer seed or a JAX key, for the noise and for the rounding of `state_dtype`."""
    sampler: str | Sampler
    """"fast", "gaussian", "threefry" or a function (key, count, like) -> noise."""
    relative_noise: bool
    """Whether `noise` is in units of the root mean square of each leaf."""
    momentum: Hyperparameter | None
    """Decay of the heavy-ball momentum of updates: `heavy_ball`. Off: 0, with `dampening` 0."""
    cautious_decay: Hyperparameter | None
    """Share of its decay that a weight is spared where its update does not shrink it. Off: 0."""
    decay_mask: Mask | None
    """The leaves that decay. None: kernels; True: every leaf."""
    layer_multipliers: Multipliers | None
    """Factors of whole updates, by path: `scale_by_layer`. Off: 1."""
    plateau: optax.GradientTransformation | None
    """A scaling of whole updates: `reduce_on_plateau()`. `update` then needs `value=loss`."""
    slow_momentum: Hyperparameter | None
    """Decay of Nesterov's momentum on the steps of the slow weights. Off: None or 0."""
    average_decay: Hyperparameter | None
    """Decay of a moving average of the weights. Off: None or 1, the plain mean."""
    state_dtype: DTypeLike | None
    """"bfloat16" stores state in it, rounded stochastically. Off: None."""
    skip_nonfinite: bool
    """Whether a step with a NaN or infinite gradient changes nothing but a counter."""
    skip_spikes: Hyperparameter | None
    """Factor of the usual norm of the gradients above which a step is skipped. Off: inf."""
    record_metrics: Hyperparameter | bool
    """Whether to record scalars for `amac_jax.metrics`; a number n: at every n-th step."""


class UndampedTechniques(_Shared, total=False):
    """The `Techniques` of an optimizer that has a `dampening` of its own."""

    centralize: Hyperparameter | None
    """Share of its mean over the fan-in that a gradient loses: `centralize`. True is 1. Off: 0."""
    clip_value: Hyperparameter | None
    """Limit on each element of the core's output: `clip_by_value`. Off: inf."""
    weight_decay: Hyperparameter | None
    """lambda: a step removes the share eta_t lambda_t of a weight: `decay_weights`. Off: 0."""
    decay_floor: Hyperparameter | None
    """Share of its first norm below which decay never takes a leaf. Off: None or 0."""
    sync_period: Hyperparameter | None
    """Steps between synchronizations with slow weights: `lookahead`."""
    slow_step_size: Hyperparameter
    """Share of the way to the fast weights that the slow weights go. Off: 1, without momentum."""
    average_start: Hyperparameter | None
    """The first step whose weights are averaged: `average_weights`. Off: inf."""
    average_period: Hyperparameter
    """Steps from one averaged weight to the next."""


class Techniques(UndampedTechniques, total=False):
    """The keywords that every optimizer takes; None leaves a technique out."""

    dampening: Hyperparameter
    """Share of an update that momentum leaves out."""


class AutoTechniques(_Shared, total=False):
    """The keywords of `amac`, which says what each "auto" stands for."""

    centralize: Hyperparameter | Literal["auto"] | None
    """Share of its mean over the fan-in that a gradient loses: `centralize`. Off: 0."""
    clip_value: Hyperparameter | Literal["auto"] | None
    """Limit on each element of the core's output: `clip_by_value`. Off: inf."""
    dampening: Hyperparameter | Literal["auto"]
    """Share of an update that momentum leaves out. "auto": the momentum."""
    weight_decay: Hyperparameter | Literal["auto"] | None
    """lambda, of `decay_weights`. Off: 0."""
    decay_floor: Hyperparameter | Literal["auto"] | None
    """Share of its first norm below which decay never takes a leaf. Off: None or 0."""
    sync_period: Hyperparameter | Literal["auto"] | None
    """Steps between synchronizations with slow weights: `lookahead`."""
    slow_step_size: Hyperparameter | Literal["auto"]
    """Share of the way to the fast weights that the slow weights go. Off: 1, without momentum."""
    average_start: Hyperparameter | Literal["auto"] | None
    """The first step whose weights are averaged. "auto": three quarters of the run."""
    average_period: Hyperparameter | Literal["auto"]
    """Steps from one averaged weight to the next."""
