"""Every factory that the contract is run on, with values for each numeric hyperparameter."""

from collections.abc import Callable, Mapping
from functools import cache, partial, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import amac_jax
from amac_jax.optimizers import EVERY_TECHNIQUE


class Case(NamedTuple):
    factory: Callable[..., optax.GradientTransformationExtraArgs]
    numeric: Mapping[str, tuple[float, float]]  # two values each; the first is the one used
    fixed: Mapping[str, Any] = {}
    identity: Mapping[str, Any] | None = None  # arguments at which it changes nothing
    state_bits: int = 32  # of its smallest floating-point number

    def build(self, **changes: Any) -> optax.GradientTransformationExtraArgs:
        return self.factory(**{**self.arguments(), **changes})

    def arguments(self) -> dict[str, Any]:
        return {**{name: first for name, (first, _) in self.numeric.items()}, **self.fixed}


def supplied(factory: Callable[..., Any], **extra: Any) -> Callable[..., Any]:
    """The factory, its transformation given extra args with every update."""

    @wraps(factory)
    def build(*args, **kwargs):
        tx = factory(*args, **kwargs)

        def update(updates, state, params=None, **others):
            return tx.update(updates, state, params, **{**others, **extra})

        return optax.GradientTransformationExtraArgs(tx.init, update)

    return build


def bowl(params: Any) -> jax.Array:
    """An objective for any tree: convex, not separable, not quadratic, of its floats alone."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
    leaves = [
        leaf.astype(jnp.float32) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    quartic = sum((jnp.sum(0.5 * leaf**2 + 0.1 * leaf**4) for leaf in leaves), jnp.float32(0.0))
    return quartic + 0.1 * sum((jnp.sum(leaf) for leaf in leaves), jnp.float32(0.0)) ** 2


newton = supplied(amac_jax.newton, value_fn=bowl)

TECHNIQUES = {
    "clip_norm": (0.5, 2.0),
    "centralize": (1.0, 0.5),
    "noise": (0.1, 0.2),
    "clip_value": (1.0, 0.3),
    "momentum": (0.9, 0.5),
    "dampening": (0.9, 0.2),
    "weight_decay": (0.1, 0.3),
    "cautious_decay": (1.0, 0.5),
    "decay_floor": (0.5, 0.999),
    "layer_multipliers": (0.5, 2.0),
    "sync_period": (2, 3),
    "slow_step_size": (0.5, 0.3),
    "slow_momentum": (0.5, 0.9),
    "average_start": (2, 3),
    "average_period": (2, 1),
    "average_decay": (0.9, 0.5),
}
RATE = {"learning_rate": (0.1, 0.01)}
BETAS = {"b1": (0.9, 0.5), "b2": (0.99, 0.9), "eps": (1e-8, 1e-3)}
PUBLISHED = {
    "lr": (0.1, 0.01),
    "beta1": (0.9, 0.5),
    "beta2": (0.99, 0.9),
    "mu": (0.9, 0.5),
    "eps": (1e-8, 1e-3),
    "wd": (0.01, 0.1),
    "alpha": (0.5, 0.3),
    "k": (2, 3),
    "clip_value": (1.0, 0.5),
    "warmup_steps": (3, 2),
    "noise_factor": (0.01, 0.1),
}

# The classic optimizers: the contract is also run on each with every technique.
OPTIMIZERS = {
    "sgd": Case(amac_jax.sgd, RATE),
    "momentum": Case(amac_jax.momentum, {**RATE, "decay": (0.9, 0.5), "dampening": (0.5, 0.1)}),
    "nesterov": Case(amac_jax.nesterov, {**RATE, "decay": (0.9, 0.5)}),
    "adagrad": Case(amac_jax.adagrad, {**RATE, "eps": (1e-6, 0.1)}),
    "rmsprop": Case(amac_jax.rmsprop, {**RATE, "decay": (0.9, 0.5), "eps": (1e-8, 0.1)}),
    "adam": Case(amac_jax.adam, {**RATE, **BETAS}),
    "adamw": Case(amac_jax.adamw, {**RATE, **BETAS, "weight_decay": (0.1, 0.3)}),
    "amsgrad": Case(amac_jax.amsgrad, {**RATE, **BETAS}),
    "adamax": Case(amac_jax.adamax, {**RATE, **BETAS}),
    "nadam": Case(amac_jax.nadam, {**RATE, **BETAS}),
    "radam": Case(amac_jax.radam, {**RATE, **BETAS, "threshold": (4.0, 5.5)}),
    "adabelief": Case(amac_jax.adabelief, {**RATE, **BETAS}),
    "lion": Case(
        amac_jax.lion,
        {**RATE, "b1": (0.9, 0.5), "b2": (0.9, 0.2), "weight_decay": (0.1, 0.3)},
    ),
    "muon": Case(
        amac_jax.muon,
        {
            **RATE,
            "b1": (0.9, 0.5),
            "b2": (0.9, 0.5),
            "rms": (0.2, 0.5),
            "others_multiplier": (1.0, 0.3),
            "weight_decay": (0.1, 0.3),
        },
    ),
    "sophia": Case(
        supplied(amac_jax.sophia, value_fn=bowl),
        {
            **RATE,
            "b1": (0.9, 0.5),
            "b2": (0.9, 0.5),
            "gamma": (3.0, 10.0),
            "eps": (1e-3, 1.0),
            "update_interval": (2, 3),
            "weight_decay": (0.1, 0.3),
            "key": (1, 2),
        },
    ),
    "newton": Case(newton, {**RATE, "damping": (0.1, 2.0)}),
}

CASES = {
    "centralize": Case(amac_jax.centralize, {"strength": (1.0, 0.5)}, identity={"strength": 0.0}),
    "clip_by_value": Case(
        amac_jax.clip_by_value, {"limit": (0.3, 0.5)}, identity={"limit": jnp.inf}
    ),
    "clip_by_global_norm": Case(
        amac_jax.clip_by_global_norm, {"limit": (0.5, 1.0)}, identity={"limit": jnp.inf}
    ),
    "clip_by_unit_norm": Case(
        amac_jax.clip_by_unit_norm,
        {"ratio": (0.1, 0.2), "eps": (1e-3, 5.0)},
        identity={"ratio": jnp.inf},
    ),
    "inject_noise": Case(
        amac_jax.inject_noise, {"scale": (0.1, 0.2), "key": (1, 2)}, identity={"scale": 0.0}
    ),
    "inject_noise threefry": Case(
        amac_jax.inject_noise,
        {"scale": (0.1, 0.2), "key": (1, 2)},
        fixed={"sampler": "threefry", "relative": True},
        identity={"scale": 0.0},
    ),
    "heavy_ball": Case(
        amac_jax.heavy_ball,
        {"decay": (0.9, 0.5), "dampening": (0.5, 0.1)},
        identity={"decay": 0.0, "dampening": 0.0},
    ),
    "decay_weights": Case(
        amac_jax.decay_weights,
        {"rate": (0.01, 0.02), "cautious": (0.5, 1.0), "floor": (0.5, 0.9)},
        identity={"rate": 0.0},
    ),
    "lookahead": Case(
        amac_jax.lookahead,
        {"sync_period": (2, 3), "slow_step_size": (0.5, 0.3), "slow_momentum": (0.5, 0.9)},
        identity={"slow_step_size": 1.0, "slow_momentum": 0.0},
    ),
    "average_weights": Case(
        amac_jax.average_weights,
        {"start": (1, 2), "period": (2, 1), "decay": (0.9, 0.5)},
        identity={},
    ),
    "lookahead bfloat16": Case(
        amac_jax.lookahead,
        {
            "sync_period": (2, 3),
            "slow_step_size": (0.5, 0.3),
            "slow_momentum": (0.5, 0.9),
            "key": (1, 2),
        },
        fixed={"state_dtype": "bfloat16"},
        identity={"slow_step_size": 1.0, "slow_momentum": 0.0},
        state_bits=16,
    ),
    "average_weights bfloat16": Case(
        amac_jax.average_weights,
        {"start": (1, 2), "period": (2, 1), "decay": (0.9, 0.5), "key": (1, 2)},
        fixed={"state_dtype": "bfloat16"},
        identity={},
        state_bits=16,
    ),
    "store_state_in": Case(
        partial(amac_jax.store_state_in, optax.adam(0.1)),
        {"key": (1, 2)},
        fixed={"dtype": "bfloat16"},
        state_bits=16,
    ),
    "scale_by_layer": Case(
        amac_jax.scale_by_layer, {"multipliers": (0.5, 2.0)}, identity={"multipliers": 1.0}
    ),
    "reduce_on_plateau": Case(
        supplied(amac_jax.reduce_on_plateau, value=1.0),
        {
            "factor": (0.5, 0.1),
            "patience": (2, 3),
            "cooldown": (1, 3),
            "accumulation_size": (1, 2),
            "min_scale": (0.1, 0.4),
        },
        identity={"factor": 1.0},
    ),
    "accumulate_gradients": Case(
        partial(amac_jax.accumulate_gradients, optax.identity()),
        {"steps": (2, 3)},
        identity={"steps": 1},
    ),
    "accumulate_gradients amac": Case(
        partial(amac_jax.accumulate_gradients, amac_jax.amac(0.1, 20, **EVERY_TECHNIQUE)),
        {"steps": (2, 3)},
    ),
    "skip_spikes": Case(
        partial(amac_jax.skip_spikes, amac_jax.momentum(0.1)),
        {"factor": (1.1, 1.5), "window": (2, 1), "patience": (1, 0)},
    ),
    "compose": Case(
        partial(amac_jax.compose, optax.scale_by_rms()), {**RATE, **TECHNIQUES, "key": (1, 2)}
    ),
    **OPTIMIZERS,
    "newton minimal residual": Case(
        newton,
        {"damping": (0.1, 2.0), "max_iterations": (20, 2)},
        fixed={"learning_rate": 0.1, "matrix_free": True},
    ),
    "newton Lanczos": Case(
        newton,
        {"damping": (0.1, 2.0), "max_iterations": (20, 2)},
        fixed={"learning_rate": 0.1, "matrix_free": True, "saddle_free": True},
    ),
    "amac": Case(
        amac_jax.amac,
        {
            **RATE,
            "total_steps": (20, 12),
            "warmup_steps": (3, 2),
            "end_ratio": (0.3, 0.6),
            **BETAS,
            **{name: two for name, two in TECHNIQUES.items() if name != "average_decay"},
            "key": (1, 2),
        },
    ),
    "amac auto": Case(
        amac_jax.amac,
        {"total_steps": (60, 40), "epochs": (12.0, 3.0)},
        fixed={"learning_rate": "auto", "average_start": 2},
    ),
    "scale_by_amac": Case(
        amac_jax.scale_by_amac,
        {
            "total_steps": (20, 12),
            **BETAS,
            **{name: TECHNIQUES[name] for name in ("clip_norm", "centralize", "noise")},
            "clip_value": TECHNIQUES["clip_value"],
            "key": (1, 2),
        },
    ),
    "amac recorded": Case(
        amac_jax.amac,
        {**RATE, "total_steps": (6, 12)},
        fixed={**EVERY_TECHNIQUE, "record_metrics": True, "skip_nonfinite": True},
    ),
    "amac bfloat16": Case(
        amac_jax.amac,
        {**RATE, "total_steps": (6, 12), "key": (1, 2)},
        fixed={**EVERY_TECHNIQUE, "state_dtype": "bfloat16"},
        state_bits=16,
    ),
    "amac_reference 1": Case(amac_jax.amac_reference, PUBLISHED),
    "amac_reference 2": Case(
        amac_jax.amac_reference,
        {**PUBLISHED, "total_steps": (20, 12)},
        fixed={"record_metrics": True},
    ),
}


@cache
def jitted_step(name: str) -> Callable[..., Any]:
    """A case's step, which returns parameters, state and updates.

    Tests of one case run in one process, where they share what this has compiled.
    """
    tx = optax.with_extra_args_support(CASES[name].build())

    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, updates

    return step


ONE_OF_EACH_FACTORY = sorted(
    {case.factory: name for name, case in reversed(CASES.items())}.values()
)

# Each technique of `compose`: the keywords that put it in, and the value at which it is off.
OFF = {
    "clip_norm": {"clip_norm": jnp.inf},
    "centralize": {"centralize": 0.0},
    "noise": {"noise": 0.0},
    "clip_value": {"clip_value": jnp.inf},
    "momentum": {"momentum": 0.0, "dampening": 0.0},
    "weight_decay": {"weight_decay": 0.0},
    "layer_multipliers": {"layer_multipliers": 1.0},
    "sync_period": {"sync_period": 2, "slow_step_size": 1.0, "slow_momentum": 0.0},
    "average_start": {"average_start": jnp.inf},
}

# What means nothing without a technique, with values that would do something.
COMPANIONS = {
    "noise": {"sampler": "gaussian", "relative_noise": True},
    "momentum": {"dampening": 0.5},
    "weight_decay": {"cautious_decay": 0.5, "decay_floor": 0.5, "decay_mask": True},
    "sync_period": {"slow_step_size": 0.5, "slow_momentum": 0.5},
    "average_start": {"average_period": 2, "average_decay": 0.9},
}

# Each technique alone, as keywords of an optimizer.
ON = {
    "clip_norm": {"clip_norm": 0.5},
    "centralize": {"centralize": True},
    "noise": {"noise": 0.1},
    "clip_value": {"clip_value": 0.3},
    "momentum": {"momentum": 0.9, "dampening": 0.5},
    "weight_decay": {"weight_decay": 0.3},
    "layer_multipliers": {"layer_multipliers": {"dense/kernel": 0.5}},
    "plateau": {"plateau": supplied(amac_jax.reduce_on_plateau, value=1.0)(patience=1)},
    "sync_period": {"sync_period": 2, "slow_step_size": 0.5},
    "average_start": {"average_start": 2},
    "skip_nonfinite": {"skip_nonfinite": True},
    "skip_spikes": {"skip_spikes": 10.0},
    "record_metrics": {"record_metrics": True},
}
