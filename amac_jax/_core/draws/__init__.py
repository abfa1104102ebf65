"""Noise of mean 0 and variance 1 as a function of key, step, leaf and position alone."""

from amac_jax._core.draws.counter import random_words
from amac_jax._core.draws.normal import Sampler, fast_normal, gaussian, sampler_named
from amac_jax._core.draws.threefry import UNROLLS_THREEFRY, threefry_normal

__all__ = [
    "UNROLLS_THREEFRY",
    "Sampler",
    "fast_normal",
    "gaussian",
    "random_words",
    "sampler_named",
    "threefry_normal",
]  # fmt: skip
