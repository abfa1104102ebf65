"""Hyperparameters that change from step to step: functions of the number of updates made."""

# isort: off
from amac_jax._core.hyperparameters import Hyperparameter, Schedule
from amac_jax.schedules._composed import constant, piecewise_constant, warmup, warmup_stable_decay
from amac_jax.schedules._cosine import cosine, cosine_restarts, one_cycle, warmup_cosine
from amac_jax.schedules._decay import (
    exponential_decay, inverse_power_decay, linear_anneal, noise_anneal, polynomial_decay,
    step_decay,
)  # fmt: skip

__all__ = [
    "Hyperparameter", "Schedule", "constant", "cosine", "cosine_restarts", "exponential_decay",
    "inverse_power_decay", "linear_anneal", "noise_anneal", "one_cycle", "piecewise_constant",
    "polynomial_decay", "step_decay", "warmup", "warmup_cosine", "warmup_stable_decay",
]  # fmt: skip
