"""Settings that are a good first try for a kind of model, each a `compose` call to copy."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Unpack

import optax

from amac_jax._core.aliases import Keywords
from amac_jax._core.hyperparameters import Hyperparameter, product
from amac_jax._core.ranges import COUNT, DECAY, NON_NEGATIVE, check, checked
from amac_jax.kernels import fan_in_axes, kernel_mask
from amac_jax.optimizers._amac import amac_techniques
from amac_jax.optimizers._compose import compose
from amac_jax.optimizers._keywords import core_of, takes_techniques
from amac_jax.schedules import cosine, piecewise_constant, warmup_cosine
from amac_jax.techniques import Techniques


class Pair(NamedTuple):
    """The two optimizers of an adversarial pair."""

    generator: optax.GradientTransformationExtraArgs
    discriminator: optax.GradientTransformationExtraArgs


@takes_techniques(weight_decay=1e-4)
@checked(total_steps=COUNT, learning_rate=NON_NEGATIVE)
def cnn(
    total_steps: Hyperparameter,
    learning_rate: Hyperparameter = 0.1,
    *,
    schedule: str = "cosine",
    amac: bool = False,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """Convolutional networks: SGD with Nesterov momentum 0.9, L2, and a falling rate.

        v <- 0.9 v + (g + lambda theta);   theta <- theta - eta_t (g + lambda theta + 0.9 v)

    lambda theta is on kernels only. It is the L2 penalty that belongs to these settings, and
    momentum carries it along. It is not the decoupled decay of AdamW.

    Args:
      total_steps: the length of the run, in steps, >= 1.
      learning_rate: the first rate, for batches of 256; >= 0.
      schedule: "cosine" falls to 0. "step" multiplies the rate by 0.1 after a half and after three
        quarters of the run.
      amac: whether to put AMaC's techniques around the same core.
      weight_decay: lambda, >= 0. Off: 0.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it.

    Raises:
      ValueError: for an argument outside its range, or an unknown schedule.

    Example:
      >>> tx = cnn(total_steps=1000, schedule="step")

    Reference:
      He et al., Deep Residual Learning, 2016, https://arxiv.org/abs/1512.03385, for the rate, the
      penalty and the steps; Loshchilov and Hutter, SGDR, 2017, https://arxiv.org/abs/1608.03983,
      for Nesterov's momentum and the cosine.
    """
    if schedule == "cosine":
        rate = cosine(learning_rate, total_steps)
    elif schedule == "step":
        rate = piecewise_constant(
            [product(learning_rate, share) for share in (1.0, 0.1, 0.01)],
            [product(total_steps, 0.5), product(total_steps, 0.75)],
        )
    else:
        raise ValueError(f"schedule must be one of 'cosine', 'step', got {schedule!r}")
    rule = techniques.get("fan_in_axes") or fan_in_axes
    mask, penalty = techniques.pop("decay_mask", None), techniques.pop("weight_decay", None)
    mask = partial(kernel_mask, rule=rule) if mask is None else mask
    stages = [optax.trace(0.9, nesterov=True)]
    if penalty is not None:
        check("weight_decay", penalty, NON_NEGATIVE)
        stages.insert(0, optax.add_decayed_weights(penalty, mask))  # pyright: ignore
    return compose(core_of(optax.chain, *stages), rate, **_around(amac, total_steps, techniques))


@takes_techniques(weight_decay=0.01, clip_norm=1.0)
@checked(total_steps=COUNT, learning_rate=NON_NEGATIVE)
def transformer(
    total_steps: Hyperparameter,
    learning_rate: Hyperparameter = 3e-4,
    *,
    amac: bool = False,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """Transformers: AdamW with clipped gradients, a warm-up for a tenth of the run, a cosine to 0.

    Args:
      total_steps: the length of the run, in steps, >= 1.
      learning_rate: the highest rate, 1e-4 for large models to 3e-4 for small ones; >= 0.
      amac: whether to put AMaC's techniques around the same core.
      weight_decay: lambda, of kernels, >= 0.
      clip_norm: limit on the gradients' norm, > 0.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it.

    Raises:
      ValueError: for an argument outside its range.

    Example:
      >>> tx = transformer(total_steps=10_000, learning_rate=1e-4, skip_nonfinite=True)

    Reference:
      Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019,
      https://arxiv.org/abs/1711.05101.
    """
    return compose(
        core_of(optax.scale_by_adam),
        warmup_cosine(learning_rate, total_steps, product(total_steps, 0.1)),
        **_around(amac, total_steps, techniques),
    )


@takes_techniques(clip_norm=1.0)
def rnn(
    total_steps: Hyperparameter | None = None,
    learning_rate: Hyperparameter = 1e-3,
    *,
    amac: bool = False,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """Recurrent networks: Adam at a constant rate, with the norm of the gradients clipped.

    Args:
      total_steps: the length of the run, in steps, >= 1; only AMaC's techniques need it.
      learning_rate: >= 0.
      amac: whether to put AMaC's techniques around the same core.
      clip_norm: limit on the gradients' norm, > 0; usually 1 to 5.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it.

    Raises:
      ValueError: for an argument outside its range, or `amac` without `total_steps`.

    Example:
      >>> tx = rnn(clip_norm=5.0)

    Reference:
      Pascanu et al., On the Difficulty of Training Recurrent Neural Networks, 2013,
      https://arxiv.org/abs/1211.5063.
    """
    return compose(
        core_of(optax.scale_by_adam),
        learning_rate,
        **_around(amac, total_steps, techniques),
    )


@takes_techniques()
@checked(b1=DECAY)
def gan(
    total_steps: Hyperparameter | None = None,
    learning_rate: Hyperparameter = 2e-4,
    *,
    b1: Hyperparameter = 0.5,
    amac: bool = False,
    **techniques: Unpack[Techniques],
) -> Pair:
    """Generative adversarial networks: Adam with little momentum, once for each network.

    Args:
      total_steps: the length of the run, in steps, >= 1; only AMaC's techniques need it.
      learning_rate: the rate of both optimizers, >= 0.
      b1: decay of the first moment, in [0, 1).
      amac: whether to put AMaC's techniques around the same core.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      Two transformations, as `compose` returns them: (generator, discriminator). Unless a `key` is
      given, the first has key 0 and the second key 1.

    Raises:
      ValueError: for an argument outside its range, or `amac` without `total_steps`.

    Example:
      >>> generator_tx, discriminator_tx = gan()

    Reference:
      Radford et al., Unsupervised Representation Learning with Deep Convolutional Generative
      Adversarial Networks, 2016, https://arxiv.org/abs/1511.06434.
    """

    def optimizer(key: int) -> optax.GradientTransformationExtraArgs:
        return compose(
            core_of(optax.scale_by_adam, b1=b1),
            learning_rate,
            **_around(amac, total_steps, {"key": key, **techniques}),
        )

    return Pair(generator=optimizer(0), discriminator=optimizer(1))


@takes_techniques()
def rl(
    total_steps: Hyperparameter | None = None,
    learning_rate: Hyperparameter = 3e-4,
    *,
    amac: bool = False,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """Reinforcement learning: Adam at a constant rate.

    `clip_norm=0.5` is usual for policy gradients.

    Args:
      total_steps: the length of the run, in steps, >= 1; only AMaC's techniques need it.
      learning_rate: >= 0.
      amac: whether to put AMaC's techniques around the same core.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it.

    Raises:
      ValueError: for an argument outside its range, or `amac` without `total_steps`.

    Example:
      >>> tx = rl(clip_norm=0.5)

    Reference:
      Haarnoja et al., Soft Actor-Critic, 2018, https://arxiv.org/abs/1801.01290.
    """
    return compose(
        core_of(optax.scale_by_adam), learning_rate, **_around(amac, total_steps, techniques)
    )


def _around(amac: bool, total_steps: Hyperparameter | None, techniques: Keywords) -> dict[str, Any]:
    """The techniques given, and AMaC's beside them if they are asked for."""
    if total_steps is not None:
        check("total_steps", total_steps, COUNT)  # a learning rate in its place is not whole
    if not amac:
        return dict(techniques)
    if total_steps is None:
        raise ValueError("total_steps must be a whole number in [1, inf) with amac=True, got None")
    return amac_techniques(total_steps, **techniques)
