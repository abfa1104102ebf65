"""AMaC: Adam with every technique on."""

from __future__ import annotations

from typing import Any

import optax

from amac_jax.optimizers.classic import core
from amac_jax.optimizers.compose import check_named, compose, takes_techniques
from amac_jax.schedules import Hyperparameter, linear_anneal, product, warmup_cosine


@takes_techniques
def amac(
    learning_rate: Hyperparameter,
    total_steps: Hyperparameter,
    *,
    warmup_steps: Hyperparameter | None = None,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    momentum: Hyperparameter | None = 0.9,
    dampening: Hyperparameter | None = None,
    centralize: Hyperparameter | None = True,
    noise: Hyperparameter | None = 0.01,
    clip_value: Hyperparameter | None = 1.0,
    weight_decay: Hyperparameter | None = 0.1,
    sync_period: Hyperparameter | None = 5,
    slow_step_size: Hyperparameter = 0.5,
    average_start: Hyperparameter | None = None,
    average_period: Hyperparameter = 5,
    key: Any = 0,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """AMaC: Adam with centralized gradients, noise, clipping, momentum, decay, lookahead and SWA.

        g <- g - mean over the fan-in of g                              kernels only
        d <- clip(m_hat / (sqrt(v_hat) + eps) + sigma_t xi, -c, c)
        v <- mu v - (1 - dampening) eta_t d
        u <- v - eta_t lambda_t theta                                   kernels only
        every k steps   phi <- phi + alpha (theta + u - phi),   u <- phi - theta
        from step `average_start`, every `average_period`   A <- running mean of theta + u

    with eta_t = `warmup_cosine(learning_rate, total_steps, warmup_steps)`, and sigma_t and
    lambda_t falling in a straight line to 0 at `total_steps`. Evaluate with
    `averaged_params(opt_state, params)`.

    Args:
      learning_rate: the peak of eta_t, as large as for AdamW; >= 0.
      total_steps: the length of the run, in steps; > warmup_steps; may be traced.
      warmup_steps: in steps; None is a tenth of the run.
      b1, b2, eps: of `adam`.
      momentum: mu, of `heavy_ball`.
      dampening: None is mu, so that the learning rate means what it means without momentum; at
        0 its effect is 1 / (1 - mu) times as large.
      centralize: strength, of `centralize`.
      noise: sigma at the start, in units of the learning rate, of `inject_noise`.
      clip_value: c, of `clip_by_value`.
      weight_decay: lambda at the start, of `decay_weights`.
      sync_period, slow_step_size: k and alpha, of `lookahead`.
      average_start: in steps, of `average_weights`; None is three quarters of the run, inf never.
      average_period: in steps.
      key: an integer seed or a JAX key for the noise.
      **techniques: keywords of `compose`. None leaves out a technique that can be None there.

    Returns:
      A transformation, as `compose` returns it.

    Raises:
      ValueError: for an argument outside its range, or total_steps <= warmup_steps; from `init`,
        for complex parameters, unless `noise` and `clip_value` are None.

    For what differs from the published optimizer see `amac_reference`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = amac(4e-3, total_steps=1000, sync_period=None)  # everything but lookahead
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)

    Reference:
      Johnson, AMaC: Adaptive Momentum and Cosine Annealing, 2024,
      https://github.com/godsonj64/AMaC-Optimizer.
    """
    check_named(learning_rate=learning_rate, weight_decay=weight_decay)
    warmup = product(total_steps, 0.1) if warmup_steps is None else warmup_steps
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
        warmup_cosine(learning_rate, total_steps, warmup),
        key=key,
        weight_decay=None if weight_decay is None else linear_anneal(weight_decay, total_steps),
        **{**around, **techniques},
    )


def amac_techniques(
    total_steps: Hyperparameter,
    *,
    momentum: Hyperparameter | None = 0.9,
    dampening: Hyperparameter | None = None,
    centralize: Hyperparameter | None = True,
    noise: Hyperparameter | None = 0.01,
    clip_value: Hyperparameter | None = 1.0,
    sync_period: Hyperparameter | None = 5,
    slow_step_size: Hyperparameter = 0.5,
    average_start: Hyperparameter | None = None,
    average_period: Hyperparameter = 5,
) -> dict[str, Any]:
    """What AMaC puts around its core, as keywords of `compose`; `amac` says what they are.

    Example:
      >>> tx = compose(optax.scale_by_lion(), 1e-4, **amac_techniques(1000))
    """
    check_named(noise=noise)
    return {
        "momentum": momentum,
        "dampening": momentum if dampening is None else dampening,
        "centralize": centralize,
        "noise": None if noise is None else linear_anneal(noise, total_steps),
        "clip_value": clip_value,
        "sync_period": sync_period,
        "slow_step_size": slow_step_size,
        "average_start": product(total_steps, 0.75) if average_start is None else average_start,
        "average_period": average_period,
    }
