"""Tools that are used on optimizers: experiments, test functions and pictures.

`ablate` measures the effect of each technique, `lr_range_test` compares learning rates, and `sweep`
searches the hyperparameters of an optimizer.
`landscapes` has functions on which optimizers are studied, and `plotting` draws results
(the extra `plot`). `datasets` has what the examples train on (the extra `examples`).
"""

from amac_jax.tools import datasets, landscapes, plotting
from amac_jax.tools._ablation import Ablation, Effect, ablate
from amac_jax.tools._range_test import RangeTest, lr_range_test
from amac_jax.tools._sweep import Sweep, sweep

__all__ = [
    "Ablation", "Effect", "RangeTest", "Sweep", "ablate", "datasets", "landscapes",
    "lr_range_test", "plotting", "sweep",
]  # fmt: skip
