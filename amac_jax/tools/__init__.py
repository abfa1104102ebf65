"""Tools that are used on optimizers: experiments, test functions and pictures.

`ablate` measures the effect of each technique, and `lr_range_test` compares learning rates.
`landscapes` has functions on which optimizers are studied, and `plotting` draws results
(the extra `plot`).
"""

from amac_jax.tools import landscapes, plotting
from amac_jax.tools._ablation import Ablation, Effect, ablate
from amac_jax.tools._range_test import RangeTest, lr_range_test

__all__ = [
    "Ablation", "Effect", "RangeTest", "ablate", "landscapes", "lr_range_test", "plotting",
]  # fmt: skip
