"""Tools that are used on optimizers: experiments, test functions and pictures.

`ablate` measures the effect of each technique, and `lr_range_test` compares learning rates.
`landscapes` has functions on which optimizers are studied, and `plotting` draws results
(the extra `plot`). `datasets` has what the examples train on (the extra `examples`).
"""

from amac_jax.tools import datasets, landscapes, plotting
from amac_jax.tools._ablation import Ablation, Effect, ablate
from amac_jax.tools._range_test import RangeTest, lr_range_test

__all__ = [
    "Ablation", "Effect", "RangeTest", "ablate", "datasets", "landscapes", "lr_range_test",
    "plotting",
]  # fmt: skip
