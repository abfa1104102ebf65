"""The optimizers that `short_runs.py` runs: AdamW at seven rates, and AMaC as it comes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import amac_jax
from benchmarks.contenders import last_weights
from benchmarks.short_jobs import Evaluate, ShortJob


class Variant(NamedTuple):
    build: Callable[[ShortJob, Any], Any]  # (job, rate) -> optimizer
    evaluate: Evaluate
    rate: float | None = None  # None where AMaC chooses it


def adamw(job: ShortJob, rate: Any):
    schedule = amac_jax.warmup_cosine(rate, job.steps, 0.1 * job.steps, end=0.0)
    return optax.adamw(schedule, weight_decay=0.01, mask=amac_jax.kernel_mask)


def amac(job: ShortJob, rate: Any):
    return amac_jax.amac(rate, job.steps)


def automatic(job: ShortJob, rate: None, **core: Any):
    make: Any = amac_jax.amac
    return make("auto", job.steps, epochs=job.epochs, **core)


def automatic_adam(job: ShortJob, rate: None):
    return automatic(job, rate, core="adam")


ADAMW = {
    f"adamw-{rate:g}": Variant(adamw, last_weights, rate)
    for rate in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
}
AMAC = {
    "amac": Variant(automatic, amac_jax.averaged_params),
    "amac-adam": Variant(automatic_adam, amac_jax.averaged_params),
    **{
        f"amac-{rate:g}": Variant(amac, amac_jax.averaged_params, rate)
        for rate in (2.5e-4, 5e-4, 1e-3)
    },
}
VARIANTS = {**ADAMW, **AMAC}
