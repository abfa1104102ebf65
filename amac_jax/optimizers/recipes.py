"""Settings that are a good first try for a kind of model, each a `compose` call to copy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from amac_jax.layout import kernel_mask
from amac_jax.optimizers.amac import amac_techniques
from amac_jax.optimizers.classic import core
from amac_jax.optimizers.compose import compose, decay_mask_or_rule, takes_techniques
from amac_jax.schedules import (
    Hyperparameter,
    check,
    cosine,
    piecewise_constant,
    product,
    warmup_cosine,
)


class Pair(NamedTuple):
    """The two optimizers of an adversarial pair."""

    generator: optax.GradientTransformationExtraArgs
    discriminator: optax.GradientTransformationExtraArgs


@takes_techniques
def cnn(
    total_steps: Hyperparameter,
    learning_rate: Hyperparameter = 0.1,
    *,
    weight_decay: Hyperparameter = 1e-4,
    schedule: str = "cosine",
    amac: bool = False,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """Convolutional networks: SGD with Nesterov momentum 0.9, L2, and a falling rate.

        v <- 0.9 v + (g + lambda theta);   theta <- theta - eta_t (g + lambda theta + 0.9 v)

    with lambda theta on kernels only: the L2 penalty that these settings come with, which
    momentum carries along, not the decoupled decay of AdamW.

    Args:
      total_steps: the length of the run, in steps, >= 1.
      learning_rate: the first, for batches of 256; >= 0.
      weight_decay: lambda, >= 0.
      schedule: "cosine", to 0, or "step", times 0.1 after a half and after three quarters.
      amac: whether to put AMaC's techniques around the same core.
      **techniques: keywords of `compose`.

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
    check("learning_rate", learning_rate, "[0, inf)")
    check("weight_decay", weight_decay, "[0, inf)")
    if schedule == "cosine":
        rate = cosine(learning_rate, total_steps)
    elif schedule == "step":
        rate = piecewise_constant(
            [product(learning_rate, share) for share in (1.0, 0.1, 0.01)],
            [product(total_steps, 0.5), product(total_steps, 0.75)],
        )
    else:
        raise ValueError(f"schedule must be one of 'cosine', 'step', got {schedule!r}")
    mask = decay_mask_or_rule(techniques.get("decay_mask"), techniques.get("fan_in_axes"))
    decayed = optax.add_decayed_weights(
        weight_decay,  # pyright: ignore[reportArgumentType]
        mask=kernel_mask if mask is None else mask,
    )
    momentum = optax.chain(decayed, optax.trace(0.9, nesterov=True))
    return compose(momentum, rate, **_around(amac, total_steps, techniques))


@takes_techniques
def transformer(
    total_steps: Hyperparameter,
    learning_rate: Hyperparameter = 3e-4,
    *,
    weight_decay: Hyperparameter | None = 0.01,
    clip_norm: Hyperparameter | None = 1.0,
    amac: bool = False,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """Transformers: AdamW, a tenth of the run warming up, then half a cosine to 0, clipped.

    Args:
      total_steps: the length of the run, in steps, >= 1.
      learning_rate: the highest: 1e-4 for large models to 3e-4 for small ones; >= 0.
      weight_decay: lambda, of kernels, >= 0.
      clip_norm: limit on the gradients' norm, > 0.
      amac: whether to put AMaC's techniques around the same core.
      **techniques: keywords of `compose`.

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
    check("learning_rate", learning_rate, "[0, inf)")
    return compose(
        optax.scale_by_adam(),
        warmup_cosine(learning_rate, total_steps, product(total_steps, 0.1)),
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        **_around(amac, total_steps, techniques),
    )


@takes_techniques
def rnn(
    total_steps: Hyperparameter | None = None,
    learning_rate: Hyperparameter = 1e-3,
    *,
    clip_norm: Hyperparameter | None = 1.0,
    amac: bool = False,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """Recurrent networks: Adam at a constant rate, the gradients' norm clipped.

    Args:
      total_steps: the length of the run, in steps, >= 1; only AMaC's techniques need it.
      learning_rate: >= 0.
      clip_norm: limit on the gradients' norm, > 0; usually 1 to 5.
      amac: whether to put AMaC's techniques around the same core.
      **techniques: keywords of `compose`.

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
        optax.scale_by_adam(),
        learning_rate,
        clip_norm=clip_norm,
        **_around(amac, total_steps, techniques),
    )


@takes_techniques
def gan(
    total_steps: Hyperparameter | None = None,
    learning_rate: Hyperparameter = 2e-4,
    *,
    b1: Hyperparameter = 0.5,
    amac: bool = False,
    **techniques: Any,
) -> Pair:
    """Generative adversarial networks: Adam with little momentum, once for each network.

    Args:
      total_steps: the length of the run, in steps, >= 1; only AMaC's techniques need it.
      learning_rate: of both, >= 0.
      b1: decay of the first moment, in [0, 1).
      amac: whether to put AMaC's techniques around the same core.
      **techniques: keywords of `compose`.

    Returns:
      Two transformations, as `compose` returns them: (generator, discriminator).

    Raises:
      ValueError: for an argument outside its range, or `amac` without `total_steps`.

    Example:
      >>> generator_tx, discriminator_tx = gan()

    Reference:
      Radford et al., Unsupervised Representation Learning with Deep Convolutional Generative
      Adversarial Networks, 2016, https://arxiv.org/abs/1511.06434.
    """

    def optimizer(key: Any) -> optax.GradientTransformationExtraArgs:
        return compose(
            core(optax.scale_by_adam, b1=b1),
            learning_rate,
            **_around(amac, total_steps, {"key": key, **techniques}),
        )

    return Pair(generator=optimizer(0), discriminator=optimizer(1))


@takes_techniques
def rl(
    total_steps: Hyperparameter | None = None,
    learning_rate: Hyperparameter = 3e-4,
    *,
    amac: bool = False,
    **techniques: Any,
) -> optax.GradientTransformationExtraArgs:
    """Reinforcement learning: Adam at a constant rate.

    Args:
      total_steps: the length of the run, in steps, >= 1; only AMaC's techniques need it.
      learning_rate: >= 0.
      amac: whether to put AMaC's techniques around the same core.
      **techniques: keywords of `compose`; `clip_norm=0.5` is usual for policy gradients.

    Returns:
      A transformation, as `compose` returns it.

    Raises:
      ValueError: for an argument outside its range, or `amac` without `total_steps`.

    Example:
      >>> tx = rl(clip_norm=0.5)

    Reference:
      Haarnoja et al., Soft Actor-Critic, 2018, https://arxiv.org/abs/1801.01290.
    """
    return compose(optax.scale_by_adam(), learning_rate, **_around(amac, total_steps, techniques))


RECIPES: dict[str, Callable[..., Any]] = {
    "cnn": cnn,
    "gan": gan,
    "rl": rl,
    "rnn": rnn,
    "transformer": transformer,
}


def named(name: str) -> Callable[..., Any]:
    """The recipe of a name, as a program's option gives it.

    Args:
      name: one of "cnn", "gan", "rl", "rnn", "transformer".

    Returns:
      The function; its first argument is `total_steps`.

    Raises:
      ValueError: for an unknown name.

    Example:
      >>> tx = named("transformer")(total_steps=1000)
      >>> named("vgg")
      Traceback (most recent call last):
      ValueError: recipe must be one of 'cnn', 'gan', 'rl', 'rnn', 'transformer', got 'vgg'
    """
    if name not in RECIPES:
        names = ", ".join(map(repr, RECIPES))
        raise ValueError(f"recipe must be one of {names}, got {name!r}")
    return RECIPES[name]


def _around(amac: bool, total_steps: Any, techniques: dict[str, Any]) -> dict[str, Any]:
    if total_steps is not None:
        check("total_steps", total_steps, "[1, inf)")  # a learning rate in its place is below
    if not amac:
        return techniques
    if total_steps is None:
        raise ValueError("total_steps must be in [1, inf) with amac=True, got None")
    known = set(inspect.signature(amac_techniques).parameters) & set(techniques)
    around = amac_techniques(total_steps, **{name: techniques[name] for name in known})
    return {**{k: v for k, v in techniques.items() if k not in known}, **around}
