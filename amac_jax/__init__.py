"""Composable Optax gradient transformations, AMaC and the classic optimizers."""

from typing import TYPE_CHECKING

from amac_jax import landscapes as landscapes
from amac_jax.ablation import ablate as ablate
from amac_jax.inspection import averaged_params as averaged_params
from amac_jax.inspection import metrics as metrics
from amac_jax.inspection import slow_params as slow_params
from amac_jax.layout import fan_in_axes as fan_in_axes
from amac_jax.layout import is_kernel as is_kernel
from amac_jax.layout import kernel_mask as kernel_mask
from amac_jax.layout import stacked as stacked
from amac_jax.optimizers import recipes as recipes
from amac_jax.optimizers.amac import amac as amac
from amac_jax.optimizers.amac_reference import amac_reference as amac_reference
from amac_jax.optimizers.classic import adabelief as adabelief
from amac_jax.optimizers.classic import adagrad as adagrad
from amac_jax.optimizers.classic import adam as adam
from amac_jax.optimizers.classic import adamax as adamax
from amac_jax.optimizers.classic import adamw as adamw
from amac_jax.optimizers.classic import amsgrad as amsgrad
from amac_jax.optimizers.classic import lion as lion
from amac_jax.optimizers.classic import momentum as momentum
from amac_jax.optimizers.classic import nadam as nadam
from amac_jax.optimizers.classic import nesterov as nesterov
from amac_jax.optimizers.classic import newton as newton
from amac_jax.optimizers.classic import radam as radam
from amac_jax.optimizers.classic import rmsprop as rmsprop
from amac_jax.optimizers.classic import sgd as sgd
from amac_jax.optimizers.classic import sophia as sophia
from amac_jax.optimizers.compose import compose as compose
from amac_jax.range_test import lr_range_test as lr_range_test
from amac_jax.schedules import constant as constant
from amac_jax.schedules import cosine as cosine
from amac_jax.schedules import cosine_restarts as cosine_restarts
from amac_jax.schedules import exponential_decay as exponential_decay
from amac_jax.schedules import linear_anneal as linear_anneal
from amac_jax.schedules import noise_anneal as noise_anneal
from amac_jax.schedules import one_cycle as one_cycle
from amac_jax.schedules import piecewise_constant as piecewise_constant
from amac_jax.schedules import polynomial_decay as polynomial_decay
from amac_jax.schedules import step_decay as step_decay
from amac_jax.schedules import warmup as warmup
from amac_jax.schedules import warmup_cosine as warmup_cosine
from amac_jax.schedules import warmup_stable_decay as warmup_stable_decay
from amac_jax.transforms.accumulation import accumulate_gradients as accumulate_gradients
from amac_jax.transforms.averaging import average_weights as average_weights
from amac_jax.transforms.centralization import centralize as centralize
from amac_jax.transforms.clipping import clip_by_global_norm as clip_by_global_norm
from amac_jax.transforms.clipping import clip_by_unit_norm as clip_by_unit_norm
from amac_jax.transforms.clipping import clip_by_value as clip_by_value
from amac_jax.transforms.layerwise import layerwise_decay as layerwise_decay
from amac_jax.transforms.layerwise import scale_by_layer as scale_by_layer
from amac_jax.transforms.lookahead import lookahead as lookahead
from amac_jax.transforms.low_precision import keep_state_in as keep_state_in
from amac_jax.transforms.momentum import heavy_ball as heavy_ball
from amac_jax.transforms.noise import inject_noise as inject_noise
from amac_jax.transforms.plateau import reduce_on_plateau as reduce_on_plateau
from amac_jax.transforms.weight_decay import decay_weights as decay_weights

if TYPE_CHECKING:
    from amac_jax.batch_stats import recompute_batch_stats as recompute_batch_stats

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "recompute_batch_stats":  # on demand: Flax is an extra
        try:
            from amac_jax.batch_stats import recompute_batch_stats
        except ImportError as error:
            raise ImportError(f"{name} needs Flax: pip install 'amac_jax[flax]'") from error
        return recompute_batch_stats
    raise AttributeError(f"module 'amac_jax' has no attribute {name!r}")
