"""The optimizers that `compare.py` compares, each a function of the same four hyperparameters."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import optax
import optax.contrib
from scipy.stats import qmc

import amac_jax
from benchmarks.workloads import Length


class Settings(NamedTuple):
    """Numbers or traced arrays, all ()."""

    learning_rate: Any  # its peak
    weight_decay: Any  # decoupled: a step removes learning rate x weight decay of a kernel
    one_minus_b1: Any  # of the first moment or of the momentum
    warmup_share: Any  # of the steps


class Contender(NamedTuple):
    build: Callable[[Settings, Length, Any], Any]  # (settings, length, key) -> optimizer
    default: Callable[[Length], Settings]
    low: Settings  # the search space: uniform in the share, in the logarithm of all others
    high: Settings
    evaluate: Callable[[Any, Any], Any]  # (state, parameters) -> the weights to evaluate


def trials(contender: Contender, count: int) -> list[Settings]:
    """Quasi-random points of the search space; the same of the unit cube for every contender."""
    points = qmc.Halton(len(Settings._fields), scramble=True, rng=0).random(count)
    *low, share_low = contender.low
    *high, share_high = contender.high
    values = np.exp(np.log(low) + points[:, :-1] * np.log(np.divide(high, low)))
    shares = share_low + points[:, -1:] * (share_high - share_low)
    return [Settings(*map(float, row)) for row in np.hstack([values, shares])]


def warmup_cosine(settings: Settings, length: Length, end: float = 0.0):
    rate, steps = settings.learning_rate, length.steps
    return amac_jax.warmup_cosine(rate, steps, settings.warmup_share * steps, end=end * rate)


def classic(factory: Callable[..., Any], **techniques: Any):
    """One of ours with b1, decay of kernels, warm-up and a cosine to zero."""

    def build(settings: Settings, length: Length, key: Any):
        return factory(
            warmup_cosine(settings, length),
            b1=1 - settings.one_minus_b1,
            weight_decay=settings.weight_decay,
            **techniques,
        )

    return build


def nesterov(settings: Settings, length: Length, key: Any):
    return amac_jax.nesterov(
        warmup_cosine(settings, length),
        decay=1 - settings.one_minus_b1,
        weight_decay=settings.weight_decay,
    )


def averaged_adamw(decay_share: float | None):
    """AdamW with AMaC's end of the schedule and its averaging, or a moving average."""

    def build(settings: Settings, length: Length, key: Any):
        averaging: dict[str, Any] = {"average_start": AVERAGE_FROM * length.steps}
        if decay_share is not None:
            decay = 1 - 1 / (decay_share * length.steps)
            averaging = {"average_start": 1, "average_decay": decay}
        return amac_jax.adamw(
            warmup_cosine(settings, length, END),
            b1=1 - settings.one_minus_b1,
            weight_decay=settings.weight_decay,
            **averaging,
        )

    return build


def muon(settings: Settings, length: Length, key: Any):
    """Muon for matrices and AdamW for the rest, its rate made comparable with AdamW's."""
    return optax.contrib.muon(
        warmup_cosine(settings, length),
        beta=1 - settings.one_minus_b1,
        adam_b1=1 - settings.one_minus_b1,
        weight_decay=settings.weight_decay,
        weight_decay_mask=amac_jax.kernel_mask,
        consistent_rms=0.2,
    )


def schedule_free(settings: Settings, length: Length, key: Any):
    warmup_steps = settings.warmup_share * length.steps

    def rate(count):  # constant after the warm-up; the schedule-free average anneals instead
        return amac_jax.warmup(settings.learning_rate, warmup_steps)(count)

    base = optax.chain(
        optax.scale_by_rms(0.999, eps=1e-8, eps_in_sqrt=False, bias_correction=True),
        amac_jax.decay_weights(0.0),
        optax.scale_by_learning_rate(rate),
        amac_jax.decay_weights(lambda count: rate(count) * settings.weight_decay),
    )
    return optax.contrib.schedule_free(base, rate, b1=1 - settings.one_minus_b1)


def layout_muon(settings: Settings, length: Length, key: Any):
    """The same for every kernel, convolutions and those of attention too, and no other leaf."""
    return amac_jax.muon(
        warmup_cosine(settings, length),
        b1=1 - settings.one_minus_b1,
        others=optax.scale_by_adam(1 - settings.one_minus_b1),
        weight_decay=settings.weight_decay,
    )


def amac(core: Literal["muon", "adam"]):
    """AMaC; its rate and its decay are in units of the values that "auto" stands for."""

    def build(settings: Settings, length: Length, key: Any):
        values = automatic(core, length)
        return amac_jax.amac(
            settings.learning_rate * values["learning_rate"],
            length.steps,
            core=core,
            epochs=length.passes,
            b1=1 - settings.one_minus_b1,
            weight_decay=settings.weight_decay * values["weight_decay"],
            decay_floor=values["decay_floor"],
            warmup_steps=settings.warmup_share * length.steps,
            key=key,
        )

    return build


def automatic(core: Literal["muon", "adam"], length: Length) -> Mapping[str, Any]:
    """What `amac` makes of the number of steps and of passes alone."""
    tx = amac_jax.amac("auto", length.steps, core=core, epochs=length.passes)
    return tx.resolved


def last_weights(state: Any, params: Any) -> Any:
    return params


def schedule_free_weights(state: Any, params: Any) -> Any:
    return optax.contrib.schedule_free_eval_params(state, params)


END, AVERAGE_FROM = 0.3, 0.75  # of AMaC's defaults, see `amac_jax.amac`
AUTO_LOW, AUTO_HIGH = Settings(1 / 3, 1 / 4, 0.03, 0.0), Settings(3.0, 4.0, 0.3, 0.3)
ADAM = Settings(5e-3, 0.1, 0.1, 0.1), Settings(1e-3, 1e-2, 0.02, 0.0), Settings(0.1, 1.0, 0.4, 0.3)


def space(rate: float = 1.0):
    """Adam's defaults and space with rates times `rate`, and decays that keep their product."""
    default, low, high = (
        settings._replace(
            learning_rate=settings.learning_rate * rate,
            weight_decay=settings.weight_decay / rate,
        )
        for settings in ADAM
    )
    return (lambda length: default), low, high


def around_auto():
    """AMaC's defaults, and a space around them."""
    default = Settings(1.0, 1.0, 0.1, 0.1)
    return (lambda length: default), AUTO_LOW, AUTO_HIGH


CONTENDERS = {
    "amac": Contender(amac("muon"), *around_auto(), amac_jax.averaged_params),
    "amac-adam": Contender(amac("adam"), *around_auto(), amac_jax.averaged_params),
    "adamw": Contender(classic(amac_jax.adamw), *space(), last_weights),
    "adamw+swa": Contender(averaged_adamw(None), *space(), amac_jax.averaged_params),
    "adamw+ema": Contender(averaged_adamw(0.1), *space(), amac_jax.averaged_params),
    "nadamw": Contender(classic(amac_jax.nadam), *space(), last_weights),
    "radam": Contender(classic(amac_jax.radam), *space(), last_weights),
    "adabelief": Contender(classic(amac_jax.adabelief), *space(), last_weights),
    "schedule-free": Contender(schedule_free, *space(), schedule_free_weights),
    "muon": Contender(muon, *space(), last_weights),
    "layout-muon": Contender(layout_muon, *space(), last_weights),
    "lion": Contender(classic(amac_jax.lion, b2=0.99), *space(0.1), last_weights),
    "sgd": Contender(nesterov, *space(3.0), last_weights),
}
