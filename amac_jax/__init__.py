"""Composable Optax gradient transformations, AMaC and the classic optimizers.

An optimizer is a core with techniques around it, each a keyword, each also a transformation:

    import amac_jax, optax
    tx = amac_jax.amac("auto", total_steps=10_000)                 # nothing to tune
    tx = amac_jax.adamw(1e-3, clip_norm=1.0, average_start=5000)   # AdamW and two of them
    tx = amac_jax.compose(optax.scale_by_lion(), 1e-4, sync_period=5)         # around any core
    tx = optax.chain(amac_jax.centralize(), optax.adam(1e-3), amac_jax.lookahead())  # your chain
    state = tx.init(params)                                        # as every optimizer of Optax
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    amac_jax.averaged_params(state, params), amac_jax.learning_rate(state)
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

# isort: off
from amac_jax.kernels import fan_in_axes, is_kernel, kernel_mask, stacked
from amac_jax.optimizers import (
    OPTIMIZERS, adabelief, adagrad, adam, adamax, adamw, amac, amac_reference, amsgrad, by_name,
    compose, lion, momentum, muon, nadam, nesterov, newton, radam, recipes, rmsprop,
    scale_by_adabelief, scale_by_amac, scale_by_newton, scale_by_orthogonal, scale_by_radam,
    scale_by_sophia, sgd, sophia,
)  # fmt: skip
from amac_jax.paths import by_path
from amac_jax.schedules import (
    constant, cosine, cosine_restarts, exponential_decay, inverse_power_decay, linear_anneal,
    noise_anneal, one_cycle, piecewise_constant, polynomial_decay, step_decay, warmup,
    warmup_cosine, warmup_stable_decay,
)  # fmt: skip
from amac_jax.state import averaged_params, learning_rate, metrics, slow_params
from amac_jax.techniques import (
    average_weights, centralize, clip_by_global_norm, clip_by_unit_norm, clip_by_value,
    decay_weights, heavy_ball, inject_noise, layerwise_decay, lookahead, reduce_on_plateau,
    scale_by_layer,
)  # fmt: skip
from amac_jax.wrappers import accumulate_gradients, skip_nonfinite, skip_spikes, store_state_in

if TYPE_CHECKING:
    from amac_jax import tools
    from amac_jax.batch_stats import recompute_batch_stats
    from amac_jax.tools import ablate, datasets, landscapes, lr_range_test, plotting, sweep

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022, by kind
    # AMaC, the pipeline, and AMaC as it was published
    "amac", "compose", "amac_reference",
    # Classic optimizers: (learning_rate, *, hyperparameters of their own, **techniques)
    "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "amsgrad", "adamax",
    "nadam", "radam", "adabelief", "lion", "muon", "sophia", "newton", "recipes",
    # By name, from a config
    "by_name", "OPTIMIZERS",
    # Cores, for `compose` or a chain
    "scale_by_amac", "scale_by_radam", "scale_by_adabelief", "scale_by_orthogonal",
    "scale_by_sophia", "scale_by_newton",
    # Techniques, for a chain, in the order of the pipeline
    "clip_by_global_norm", "clip_by_unit_norm", "centralize", "inject_noise", "clip_by_value",
    "heavy_ball", "decay_weights", "scale_by_layer", "layerwise_decay", "reduce_on_plateau",
    "lookahead", "average_weights",
    # Wrappers of whole optimizers
    "accumulate_gradients", "skip_nonfinite", "skip_spikes", "store_state_in",
    # Schedules
    "warmup_cosine", "cosine", "cosine_restarts", "one_cycle", "warmup_stable_decay", "warmup",
    "linear_anneal", "polynomial_decay", "inverse_power_decay", "exponential_decay",
    "step_decay", "piecewise_constant", "constant", "noise_anneal",
    # Reading a state
    "averaged_params", "slow_params", "learning_rate", "metrics", "recompute_batch_stats",
    # Which leaves are kernels, and values for leaves by their paths
    "fan_in_axes", "is_kernel", "kernel_mask", "stacked", "by_path",
    # Tools, which are used on optimizers
    "ablate", "lr_range_test", "sweep", "landscapes", "plotting", "datasets", "tools",
]  # fmt: skip

_ON_DEMAND = {
    "tools": "amac_jax.tools",
    "landscapes": "amac_jax.tools.landscapes",
    "plotting": "amac_jax.tools.plotting",
    "datasets": "amac_jax.tools.datasets",
    "ablate": "amac_jax.tools:ablate",
    "lr_range_test": "amac_jax.tools:lr_range_test",
    "sweep": "amac_jax.tools:sweep",
    "recompute_batch_stats": "amac_jax.batch_stats:recompute_batch_stats",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module 'amac_jax' has no attribute {name!r}")
    module, _, attribute = _ON_DEMAND[name].partition(":")
    try:
        found = import_module(module)
    except ImportError as error:
        if name == "recompute_batch_stats":  # Flax is an extra
            raise ImportError(f"{name} needs Flax: pip install 'amac_jax[flax]'") from error
        raise
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    has_flax = find_spec("flax") is not None
    return [name for name in __all__ if has_flax or name != "recompute_batch_stats"]
