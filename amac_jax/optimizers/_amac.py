"""AMaC: Adam with the techniques that measurements say are worth it."""

from __future__ import annotations

from typing import Any, Literal, Unpack

import optax

from amac_jax._core.hyperparameters import Hyperparameter, is_number, product, quotient
from amac_jax._core.ranges import COUNT, DECAY, NON_NEGATIVE, UNIT, check, checked
from amac_jax.optimizers._compose import compose
from amac_jax.optimizers._keywords import core_of, takes_techniques, with_defaults
from amac_jax.schedules import linear_anneal, warmup_cosine
from amac_jax.techniques import RANGES, AutoTechniques

AROUND_THE_CORE: dict[str, Any] = {
    "centralize": True,
    "clip_value": 1.0,
    "dampening": "auto",
    "sync_period": 5,
    "slow_step_size": 0.8,
    "average_start": "auto",
    "average_period": 5,
}
"""The techniques that AMaC puts around its core by default, as keywords of `amac`."""

AUTO_SHARES = {"warmup_steps": 0.1, "average_start": 0.75}
"""The values of "auto", as shares of the run. Weight decay has `auto_weight_decay`."""

EVERY_TECHNIQUE: dict[str, float] = {
    "end_ratio": 0.0,
    "momentum": 0.9,
    "noise": 0.01,
    "clip_value": 1.0,
    "weight_decay": 0.1,
    "slow_step_size": 0.5,
}
"""Keywords of `amac` that switch on every technique of the published optimizer."""


@takes_techniques(weight_decay="auto", **AROUND_THE_CORE)
@checked(
    learning_rate=NON_NEGATIVE, total_steps=COUNT, end_ratio=UNIT, b1=DECAY, b2=DECAY,
    eps=NON_NEGATIVE,
)  # fmt: skip
def amac(
    learning_rate: Hyperparameter,
    total_steps: Hyperparameter,
    *,
    warmup_steps: Hyperparameter | Literal["auto"] | None = "auto",
    end_ratio: Hyperparameter = 0.3,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    **techniques: Unpack[AutoTechniques],
) -> optax.GradientTransformationExtraArgs:
    """AMaC: Adam with centralized gradients, weight decay, lookahead and averaged weights.

        g <- g - mean over the fan-in of g                              kernels only
        u <- -eta_t (m_hat / (sqrt(v_hat) + eps) + lambda theta)        decay on kernels only
        every k steps   phi <- phi + alpha (theta + u - phi),   u <- phi - theta
        from step `average_start`, every `average_period`   A <- running mean of theta + u

    The learning rate eta_t is `warmup_cosine(learning_rate, total_steps, warmup_steps, end)`, and
    end is `end_ratio` times the learning rate. The rate stays up, so that the weights of the last
    quarter differ. Their mean stands for the weights that a schedule with end 0 would reach.
    **Evaluate with `averaged_params(opt_state, params)`**: the last weights are usually worse.

    Three more techniques act on d = m_hat / (sqrt(v_hat) + eps). `clip_value` is on by default,
    `noise` and `momentum` are off:

        d <- clip(d + sigma_t xi, -c, c)                                `noise`, `clip_value`
        v <- mu v - (1 - dampening) eta_t d, in the place of -eta_t d   `momentum`

    sigma_t falls in a straight line to 0 at `total_steps`. `amac_jax.optimizers.EVERY_TECHNIQUE`
    has the keywords that switch every technique on. benchmarks/README.md gives the reason for each
    default: every one was measured on eleven jobs. The defaults of the techniques are in
    `AROUND_THE_CORE`, beside `amac`. `amac_reference` lists what differs from the published
    optimizer.

    Args:
      learning_rate: the peak of eta_t, as large as for AdamW; >= 0.
      total_steps: the length of the run, in steps, whole, > warmup_steps; may be traced.
      warmup_steps: in steps. "auto" is a tenth of the run. Off: None or 0.
      end_ratio: the learning rate from `total_steps` on, as a share of the peak, in [0, 1]. Off: 1,
        a constant rate. At 0 averaging changes little.
      b1, b2, eps: as in `adam`.
      momentum: mu; see `heavy_ball`. Off: None or 0.
      dampening: "auto" is mu: the learning rate then has the same meaning as without momentum. At
        0 its effect is 1 / (1 - mu) times as large.
      centralize: the strength; see `centralize`. Off: None or 0.
      noise: sigma at the start, in units of the learning rate; see `inject_noise`. Off: None or 0.
      clip_value: c; see `clip_by_value`. Off: None or inf.
      weight_decay: lambda; see `decay_weights`. A schedule is followed as it is. "auto" is
        3 / (learning_rate total_steps): the decay of a whole run is then the same for every length
        and rate. With the default schedule this decay alone takes a weight to exp(-1.9) of itself.
        Off: None or 0.
      sync_period, slow_step_size: k and alpha; see `lookahead`. Off: k = None or alpha = 1.
      average_start: in steps, up to `total_steps`; see `average_weights`. "auto" is three quarters
        of the run. Off: None, with no buffer for an average, or inf.
      average_period: in steps.
      key: an integer seed or a JAX key, for noise and for rounding.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, record_metrics.

    Returns:
      A transformation, as `compose` returns it. The core is `optax.scale_by_adam`.

    Raises:
      ValueError: for an argument outside its range, for total_steps <= warmup_steps, or for
        average_start > total_steps; from `init`, for complex parameters with `noise` or
        `clip_value`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = amac(5e-3, total_steps=1000, sync_period=None)  # everything but lookahead
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)

    Reference:
      Johnson, AMaC: Adaptive Momentum and Cosine Annealing, 2024,
      https://github.com/godsonj64/AMaC-Optimizer. For the product of rate, decay and steps as the
      quantity that matters: Wang and Aitchison, How to Set AdamW's Weight Decay as You Scale Model
      and Dataset Size, 2024, https://arxiv.org/abs/2405.13698.
    """
    warmup = _auto("warmup_steps", warmup_steps, product(total_steps, AUTO_SHARES["warmup_steps"]))
    rate = warmup_cosine(
        learning_rate,
        total_steps,
        0 if warmup is None else warmup,
        product(learning_rate, end_ratio),
    )
    decay = auto_weight_decay(learning_rate, total_steps)
    around = amac_techniques(total_steps, **techniques)
    around["weight_decay"] = _auto("weight_decay", around.get("weight_decay"), decay)
    return compose(core_of(optax.scale_by_adam, b1=b1, b2=b2, eps=eps), rate, **around)


def auto_weight_decay(learning_rate: Hyperparameter, total_steps: Hyperparameter) -> Hyperparameter:
    """The lambda of AMaC, 3 / (eta T); 0 where eta T is 0.

    Example:
      >>> round(auto_weight_decay(0.01, 1000), 3)
      0.3
    """
    return quotient(3.0, product(learning_rate, total_steps))


def amac_techniques(
    total_steps: Hyperparameter, **techniques: Unpack[AutoTechniques]
) -> dict[str, Any]:
    """The techniques that AMaC puts around its core, as keywords of `compose`.

    Args:
      total_steps: the length of the run, in steps.
      **techniques: keywords of `amac`, which explains them. A weight decay passes as it is: "auto"
        needs the learning rate, which only `amac` knows.

    Example:
      >>> from amac_jax import compose
      >>> tx = compose(optax.scale_by_lion(), 1e-4, **amac_techniques(1000))
    """
    around = with_defaults(AROUND_THE_CORE, techniques)
    if around.get("noise") is not None:
        check("noise", around["noise"], RANGES["noise"])
        around["noise"] = linear_anneal(around["noise"], total_steps)
    around["dampening"] = _auto("dampening", around.get("dampening"), around.get("momentum"))
    auto_start = product(total_steps, AUTO_SHARES["average_start"])
    start = _auto("average_start", around["average_start"], auto_start)
    if is_number(start) and is_number(total_steps) and total_steps < start < float("inf"):
        raise ValueError(
            f"average_start must be at most total_steps, {total_steps!r}, or inf, got {start!r}"
        )
    return {**around, "average_start": start}


def _auto(name: str, value: Any, derived: Hyperparameter | None) -> Any:
    if isinstance(value, str) and value != "auto":
        raise ValueError(
            f"{name} must be 'auto' or {RANGES.get(name, NON_NEGATIVE)}, got {value!r}"
        )
    return derived if isinstance(value, str) else value
