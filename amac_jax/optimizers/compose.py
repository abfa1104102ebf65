"""The pipeline: one core, and around it every technique in its one order."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import optax

from amac_jax.keys import sub_key
from amac_jax.layout import FanInRule, kernel_mask
from amac_jax.leaves import floats_only
from amac_jax.precision import at_least_float32
from amac_jax.rounding import narrow_dtype
from amac_jax.samplers import Sampler
from amac_jax.schedules import Hyperparameter, as_schedule, check, product
from amac_jax.transforms.averaging import average_weights
from amac_jax.transforms.centralization import centralize as centralize_gradients
from amac_jax.transforms.clipping import clip_by_global_norm, clip_by_value
from amac_jax.transforms.layerwise import Multipliers, scale_by_layer
from amac_jax.transforms.lookahead import lookahead
from amac_jax.transforms.low_precision import keep_state_in
from amac_jax.transforms.momentum import heavy_ball
from amac_jax.transforms.noise import inject_noise
from amac_jax.transforms.recording import recorded_chain
from amac_jax.transforms.skipping import skip_nonfinite as without_nonfinite_steps
from amac_jax.transforms.weight_decay import Mask, decay_weights


def compose(
    core: optax.GradientTransformation,
    learning_rate: Hyperparameter,
    *,
    clip_norm: Hyperparameter | None = None,
    centralize: Hyperparameter | None = None,
    fan_in_axes: FanInRule | None = None,
    noise: Hyperparameter | None = None,
    key: Any = 0,
    sampler: str | Sampler = "fast",
    relative_noise: bool = False,
    clip_value: Hyperparameter | None = None,
    momentum: Hyperparameter | None = None,
    dampening: Hyperparameter = 0.0,
    weight_decay: Hyperparameter | None = None,
    decay_mask: Mask | None = None,
    layer_scale: Multipliers | None = None,
    plateau: optax.GradientTransformation | None = None,
    sync_period: Hyperparameter | None = None,
    slow_step_size: Hyperparameter = 0.5,
    average_start: Hyperparameter | None = None,
    average_period: Hyperparameter = 1,
    average_decay: Hyperparameter | None = None,
    state_dtype: Any = None,
    skip_nonfinite: bool = False,
    record_metrics: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer: `core`, with the techniques that are asked for around it.

    g -> clip by global norm -> centralize -> core -> noise -> clip by value -> times -eta_t
      -> heavy ball -> weight decay -> layer scale -> plateau -> lookahead -> averaging -> u
    theta <- theta + u

    Everything is computed in at least float32. A technique left None is not in the chain; one
    at its off value is there, with its state, and is the identity.

    Args:
      core: any `optax.scale_by_*`, or `optax.identity()`.
      learning_rate: eta, >= 0.
      clip_norm: limit on the gradients' global norm, > 0. Off: inf. See `clip_by_global_norm`.
      centralize: strength in [0, 1]; True is 1. Off: 0. See `centralize`.
      fan_in_axes: the rule that says what a kernel is and which of its axes are fan-in, for
        `centralize` and for what decays; None is `amac_jax.fan_in_axes`.
      noise: standard deviation, in units of the learning rate. Off: 0. See `inject_noise`.
      key, sampler, relative_noise: `key`, `sampler` and `relative` of `inject_noise`; `key` is
        also that of the rounding with `state_dtype`, which draws other bits.
      clip_value: limit on each element of the core's output, > 0. Off: inf. See `clip_by_value`.
      momentum: in [0, 1). Off: 0, with `dampening` 0. See `heavy_ball`.
      dampening: in [0, 1]. See `heavy_ball`.
      weight_decay: lambda; a step removes eta_t lambda_t of a weight. Off: 0. See
        `decay_weights`.
      decay_mask: what decays; None is the kernels by `fan_in_axes`, True every leaf.
      layer_scale: multipliers of whole updates, decay included, by path. Off: 1. See
        `scale_by_layer`.
      plateau: a transformation that scales whole updates by what it is told of the run, such as
        `reduce_on_plateau()`; then `update` needs its extra arg, `value`.
      sync_period: in steps, >= 1. See `lookahead`.
      slow_step_size: in [0, 1]. Off: 1.
      average_start: the first step averaged. Off: inf. See `average_weights`.
      average_period: in steps, >= 1.
      average_decay: in [0, 1]; None is the plain mean.
      state_dtype: "bfloat16" keeps what the core, momentum, lookahead and averaging store in it,
        rounded stochastically: AMaC's state is then 8 bytes a parameter. Off: None or
        "float32". See `keep_state_in`.
      skip_nonfinite: whether a step with a NaN or infinite gradient changes nothing but a
        counter (`optax.apply_if_finite`, without its limit). Without it what is wrong stays in
        its leaf, except where a core reads them all.
      record_metrics: whether to record scalars for `amac_jax.metrics`.

    Returns:
      A transformation whose updates have the shapes and dtypes of the gradients; those of
      integers and bools among the parameters are 0, those of keys as they came. State: the tuple
      of the stages' states, inside `RecordState` and `optax.ApplyIfFiniteState` where those are
      asked for.

    Raises:
      ValueError: for a hyperparameter outside its range, or another `state_dtype`, with its
        name and value; from `init`, for complex parameters with `noise` or `clip_value`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> tx = compose(optax.scale_by_adam(), 0.1, centralize=True, sync_period=5)
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> gradients = jax.tree.map(jnp.ones_like, params)
      >>> updates, state = tx.update(gradients, state, params)
      >>> updates["bias"].round(3)
      Array([-0.1, -0.1], dtype=float32)
    """
    check_named(
        learning_rate=learning_rate,
        clip_norm=clip_norm,
        centralize=centralize,
        noise=noise,
        clip_value=clip_value,
        momentum=momentum,
        dampening=dampening if momentum is not None else None,
        weight_decay=weight_decay,
        layer_scale=layer_scale if isinstance(layer_scale, int | float) else None,
        sync_period=sync_period,
        slow_step_size=slow_step_size,
        average_start=average_start,
        average_period=average_period if average_start is not None else None,
        average_decay=average_decay,
    )
    for name, stage in (("core", core), ("plateau", plateau)):
        if stage is not None and not hasattr(stage, "update"):
            raise ValueError(f"{name} must be a gradient transformation, got {stage!r}")
    if learning_rate is None:
        raise ValueError("learning_rate must be in [0, inf), a schedule or an array, got None")
    narrowed = narrow_dtype("state_dtype", state_dtype)

    def own_key(stage: int) -> Any:  # so that no two stages round alike
        return 0 if narrowed is None else sub_key(key, stage)

    stages: dict[str, optax.GradientTransformation] = {}
    if clip_norm is not None:
        stages["clip_by_global_norm"] = clip_by_global_norm(clip_norm)
    if centralize is not None and centralize is not False:
        stages["centralize"] = centralize_gradients(centralize, fan_in_axes=fan_in_axes)
    stages["core"] = keep_state_in(core, narrowed, key=own_key(1))
    if noise is not None:
        stages["inject_noise"] = inject_noise(
            noise, key=key, relative=relative_noise, sampler=sampler
        )
    if clip_value is not None:
        stages["clip_by_value"] = clip_by_value(clip_value)
    stages["learning_rate"] = optax.scale_by_learning_rate(as_schedule(learning_rate))
    if momentum is not None:
        velocity = heavy_ball(momentum, dampening=dampening)
        stages["heavy_ball"] = keep_state_in(velocity, narrowed, key=own_key(2))
    if weight_decay is not None:
        mask = decay_mask_or_rule(decay_mask, fan_in_axes)
        stages["decay_weights"] = decay_weights(product(learning_rate, weight_decay), mask=mask)
    if layer_scale is not None:
        stages["scale_by_layer"] = scale_by_layer(layer_scale)
    if plateau is not None:
        stages["plateau"] = plateau
    if sync_period is not None:
        stages["lookahead"] = lookahead(
            sync_period, slow_step_size, state_dtype=narrowed, key=own_key(3)
        )
    if average_start is not None:
        stages["average_weights"] = average_weights(
            average_start,
            average_period,
            decay=average_decay,
            state_dtype=narrowed,
            key=own_key(4),
        )

    if record_metrics:
        hyperparameters = {
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "noise_scale": noise,
        }
        recorded = {name: value for name, value in hyperparameters.items() if value is not None}
        tx = at_least_float32(recorded_chain(stages, recorded))
    else:
        tx = at_least_float32(optax.chain(*stages.values()))
    if skip_nonfinite:
        tx = without_nonfinite_steps(tx)
    return floats_only(tx)


_RANGES = {  # of every numeric keyword, under the name that users pass it by
    "learning_rate": "[0, inf)",
    "clip_norm": "(0, inf]",
    "centralize": "[0, 1]",
    "noise": "[0, inf)",
    "clip_value": "(0, inf]",
    "momentum": "[0, 1)",
    "dampening": "[0, 1]",
    "weight_decay": "[0, inf)",
    "layer_scale": "[0, inf)",
    "sync_period": "[1, inf)",
    "slow_step_size": "[0, 1]",
    "average_start": "[0, inf]",
    "average_period": "[1, inf)",
    "average_decay": "[0, 1]",
}


def check_named(**values: Any) -> None:
    """Refuses numbers outside the ranges of `compose`'s keywords; None is a technique left out."""
    for name, value in values.items():
        if value is not None:
            check(name, value, _RANGES[name], whole=name in ("sync_period", "average_period"))


def decay_mask_or_rule(decay_mask: Mask | None, fan_in_axes: FanInRule | None) -> Mask | None:
    """What decays: the mask, or without one the kernels by the rule, or without that by ours."""
    if decay_mask is None and fan_in_axes is not None:
        return partial(kernel_mask, rule=fan_in_axes)
    return decay_mask


Factory = TypeVar("Factory", bound=Callable[..., Any])


def takes_techniques(factory: Factory) -> Factory:
    """Lets a factory's signature show the techniques that its `**techniques` stands for.

    `help` then lists them, and `optax.inject_hyperparams`, which reads signatures and cannot
    see through `**`, can inject them.
    """
    own = inspect.signature(factory).parameters
    named = [p for p in own.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    added = [
        p
        for name, p in inspect.signature(compose).parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY and name not in own
    ]
    factory.__signature__ = inspect.Signature(named + added)  # pyright: ignore[reportFunctionMemberAccess]
    return factory
