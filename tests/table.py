"""Every factory that the contract is run on, with values for each numeric hyperparameter."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

import amac_jax


class Case(NamedTuple):
    factory: Callable[..., optax.GradientTransformationExtraArgs]
    numeric: Mapping[str, tuple[float, float]]  # two values each; the first is the one used
    fixed: Mapping[str, Any] = {}
    identity: Mapping[str, Any] | None = None  # arguments at which it changes nothing

    def build(self, **changes: Any) -> optax.GradientTransformationExtraArgs:
        return self.factory(**{**self.arguments(), **changes})

    def arguments(self) -> dict[str, Any]:
        return {**{name: first for name, (first, _) in self.numeric.items()}, **self.fixed}


TECHNIQUES = {
    "clip_norm": (0.5, 2.0),
    "centralize": (1.0, 0.5),
    "noise": (0.1, 0.2),
    "clip_value": (1.0, 0.3),
    "momentum": (0.9, 0.5),
    "dampening": (0.9, 0.2),
    "weight_decay": (0.1, 0.3),
    "sync_period": (2, 3),
    "slow_step_size": (0.5, 0.3),
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
    "decay_weights": Case(amac_jax.decay_weights, {"rate": (0.1, 0.2)}, identity={"rate": 0.0}),
    "lookahead": Case(
        amac_jax.lookahead,
        {"sync_period": (2, 3), "slow_step_size": (0.5, 0.3)},
        identity={"slow_step_size": 1.0},
    ),
    "average_weights": Case(
        amac_jax.average_weights,
        {"start": (1, 2), "period": (2, 1), "decay": (0.9, 0.5)},
        identity={},
    ),
    "compose": Case(
        partial(amac_jax.compose, optax.scale_by_rms()), {**RATE, **TECHNIQUES, "key": (1, 2)}
    ),
    "sgd": Case(amac_jax.sgd, RATE),
    "adam": Case(amac_jax.adam, {**RATE, **BETAS}),
    "adamw": Case(amac_jax.adamw, {**RATE, **BETAS, "weight_decay": (0.1, 0.3)}),
    "amac": Case(
        amac_jax.amac,
        {
            **RATE,
            "total_steps": (20, 12),
            "warmup_steps": (3, 2),
            **BETAS,
            **{name: two for name, two in TECHNIQUES.items() if name != "average_decay"},
            "key": (1, 2),
        },
    ),
    "amac recorded": Case(
        amac_jax.amac,
        {**RATE, "total_steps": (6, 12)},
        fixed={"record_metrics": True, "skip_nonfinite": True},
    ),
    "amac_reference 1": Case(amac_jax.amac_reference, PUBLISHED),
    "amac_reference 2": Case(
        amac_jax.amac_reference,
        {**PUBLISHED, "total_steps": (20, 12)},
        fixed={"record_metrics": True},
    ),
}

# Each technique of `compose`: the keywords that put it in, and the value at which it is off.
OFF = {
    "clip_norm": {"clip_norm": jnp.inf},
    "centralize": {"centralize": 0.0},
    "noise": {"noise": 0.0},
    "clip_value": {"clip_value": jnp.inf},
    "momentum": {"momentum": 0.0, "dampening": 0.0},
    "weight_decay": {"weight_decay": 0.0},
    "sync_period": {"sync_period": 2, "slow_step_size": 1.0},
    "average_start": {"average_start": jnp.inf},
}
