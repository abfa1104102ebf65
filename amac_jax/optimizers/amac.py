"""AMaC: Adam with the techniques that measurements say are worth it."""

from __future__ import annotations

from typing import Any

import optax

from amac_jax.optimizers.classic import core
from amac_jax.optimizers.compose import check_named, compose, takes_techniques
from amac_jax.schedules import (
    Hyperparameter,
    Schedule,
    check,
    linear_anneal,
    product,
    quotient,
    warmup_cosine,
)

EVERY_TECHNIQUE: dict[str, float] = {
    "end_ratio": 0.0,
    "momentum": 0.9,
    "noise": 0.01,
    "clip_value": 1.0,
    "weight_decay": 0.1,
    "slow_step_size": 0.5,
}
"""Keywords of `amac` that put every technique of the published optimizer on."""


@takes_techniques
def amac(
    learning_rate: Hyperparameter,
    total_steps: Hyperparameter,
    *,
    warmup_steps: Hyperparameter | None = None,
    end_ratio: Hyperparameter = 0.3,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    momentum: Hyperparameter | None = None,
    dampening: Hyperparameter | None = None,
    centralize: Hyperparameter | None = True,
    noise: Hyperparameter | None = None,
    clip_value: Hyperparameter | None = 1.0,
    weight_decay: Hyperparameter | str | None = "auto",
    sync_period: Hyperparameter | None = 5,
    slow_step_size: Hyperparameter = 0.8,
    average_start: Hyperparameter | None = None,
    average_period: Hyperparameter = 5,
    key: Any = 0,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """AMaC: Adam with centralized gradients, weight decay, lookahead and averaged weights.

        g <- g - mean over the fan-in of g                              kernels only
        u <- -eta_t (m_hat / (sqrt(v_hat) + eps) + lambda theta)        decay on kernels only
        every k steps   phi <- phi + alpha (theta + u - phi),   u <- phi - theta
        from step `average_start`, every `average_period`   A <- running mean of theta + u

    with eta_t = `warmup_cosine(learning_rate, total_steps, warmup_steps, end)`, end =
    `end_ratio` times the learning rate: the rate stays up, so that the last quarter's weights
    differ, and their mean stands for what a schedule that ends at 0 would reach. **Evaluate with
    `averaged_params(opt_state, params)`**; the last weights are usually worse.

    With d = m_hat / (sqrt(v_hat) + eps), the techniques that are off by default come in as

        d <- clip(d + sigma_t xi, -c, c)                                `noise`, `clip_value`
        v <- mu v - (1 - dampening) eta_t d, in the place of -eta_t d   `momentum`

    with sigma_t falling in a straight line to 0 at `total_steps`. `**EVERY_TECHNIQUE` of this
    module puts all of them on. Each default has its reason in benchmarks/README.md, where every
    one was measured on eleven jobs.

    Args:
      learning_rate: the peak of eta_t, as large as for AdamW; >= 0.
      total_steps: the length of the run, in steps; > warmup_steps; may be traced.
      warmup_steps: in steps; None is a tenth of the run. Off: 0.
      end_ratio: the learning rate from `total_steps` on, in parts of the peak, in [0, 1]. Off: 1,
        a constant rate. At 0 averaging changes little.
      b1, b2, eps: of `adam`.
      momentum: mu, of `heavy_ball`. Off: None or 0.
      dampening: None is mu, so that the learning rate means what it means without momentum; at
        0 its effect is 1 / (1 - mu) times as large.
      centralize: strength, of `centralize`. Off: 0.
      noise: sigma at the start, in units of the learning rate, of `inject_noise`. Off: None or 0.
      clip_value: c, of `clip_by_value`. Off: None or inf.
      weight_decay: lambda, of `decay_weights`; a schedule is followed as it is. "auto" is
        3 / (learning_rate total_steps): a run's decay is then the same however long it is and
        at whatever rate; with the default schedule it alone would take a weight to exp(-1.9).
        Off: 0.
      sync_period, slow_step_size: k and alpha, of `lookahead`. Off: alpha = 1.
      average_start: in steps, of `average_weights`; None is three quarters of the run. Off: inf.
      average_period: in steps.
      key: an integer seed or a JAX key for the noise.
      **techniques: keywords of `compose`. None leaves out a technique that can be None there.

    Returns:
      A transformation, as `compose` returns it.

    Raises:
      ValueError: for an argument outside its range, or total_steps <= warmup_steps; from `init`,
        for complex parameters with `noise` or `clip_value`.

    For what differs from the published optimizer see `amac_reference`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = amac(5e-3, total_steps=1000, sync_period=None)  # everything but lookahead
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)

    Reference:
      Johnson, AMaC: Adaptive Momentum and Cosine Annealing, 2024,
      https://github.com/godsonj64/AMaC-Optimizer. For the product of rate, decay and steps as
      what matters: Wang and Aitchison, How to Set AdamW's Weight Decay as You Scale Model and
      Dataset Size, 2024, https://arxiv.org/abs/2405.13698.
    """
    check_named(learning_rate=learning_rate)
    check("end_ratio", end_ratio, "[0, 1]")
    warmup = product(total_steps, 0.1) if warmup_steps is None else warmup_steps
    end = product(learning_rate, end_ratio)
    if isinstance(weight_decay, str):
        if weight_decay != "auto":
            raise ValueError(f"weight_decay must be 'auto' or in [0, inf), got {weight_decay!r}")
        weight_decay = auto_weight_decay(learning_rate, total_steps)
    around = amac_techniques(
        total_steps,
        momentum=momentum,
        dampening=dampening,
        centralize=centralize,
        noise=noise,
        clip_value=clip_value,
        sync_period=sync_period,
        slow_step_size=slow_step_size,
        average_start=average_start,
        average_period=average_period,
    )
    return compose(
        core(optax.scale_by_adam, b1=b1, b2=b2, eps=eps),
        warmup_cosine(learning_rate, total_steps, warmup, end),
        key=key,
        weight_decay=weight_decay,
        **{**around, **techniques},
    )


def auto_weight_decay(learning_rate: Hyperparameter, total_steps: Hyperparameter) -> Schedule:
    """AMaC's own lambda, 3 / (eta T), 0 where that is infinite.

    Example:
      >>> round(float(auto_weight_decay(0.01, 1000)(0)), 3)
      0.3
    """
    return quotient(3.0, product(learning_rate, total_steps))


def amac_techniques(
    total_steps: Hyperparameter,
    *,
    momentum: Hyperparameter | None = None,
    dampening: Hyperparameter | None = None,
    centralize: Hyperparameter | None = True,
    noise: Hyperparameter | None = None,
    clip_value: Hyperparameter | None = 1.0,
    sync_period: Hyperparameter | None = 5,
    slow_step_size: Hyperparameter = 0.8,
    average_start: Hyperparameter | None = None,
    average_period: Hyperparameter = 5,
) -> dict[str, Any]:
    """What AMaC puts around its core, as keywords of `compose`; `amac` says what they are.

    Example:
      >>> tx = compose(optax.scale_by_lion(), 1e-4, **amac_techniques(1000))
    """
    check_named(noise=noise)
    around = {
        "momentum": momentum,
        "centralize": centralize,
        "noise": None if noise is None else linear_anneal(noise, total_steps),
        "clip_value": clip_value,
        "sync_period": sync_period,
        "slow_step_size": slow_step_size,
        "average_start": product(total_steps, 0.75) if average_start is None else average_start,
        "average_period": average_period,
    }
    if momentum is not None:
        around["dampening"] = momentum if dampening is None else dampening
    return around
