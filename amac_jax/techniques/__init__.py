"""The techniques in the order of the pipeline, one transformation each, and their table."""

# isort: off
from amac_jax.techniques._averaging import AverageWeightsState, average_weights
from amac_jax.techniques._centralization import centralize
from amac_jax.techniques._clipping import clip_by_global_norm, clip_by_unit_norm, clip_by_value
from amac_jax.techniques._heavy_ball import HeavyBallState, heavy_ball
from amac_jax.techniques._layerwise import layerwise_decay, scale_by_layer
from amac_jax.techniques._lookahead import LookaheadState, lookahead
from amac_jax.techniques._noise import InjectNoiseState, inject_noise
from amac_jax.techniques._plateau import ReduceOnPlateauState, reduce_on_plateau
from amac_jax.techniques._table import (
    AROUND, KEYWORDS, RANGES, TECHNIQUES, AutoTechniques, Technique, Techniques, UndampedTechniques,
)  # fmt: skip
from amac_jax.techniques._weight_decay import DecayWeightsState, decay_weights

__all__ = [  # noqa: RUF022, by kind
    "clip_by_global_norm", "clip_by_unit_norm", "centralize", "inject_noise", "clip_by_value",
    "heavy_ball", "decay_weights", "scale_by_layer", "layerwise_decay", "reduce_on_plateau",
    "lookahead", "average_weights", "AROUND", "KEYWORDS", "RANGES",
    "TECHNIQUES", "AutoTechniques", "Technique", "Techniques", "UndampedTechniques",
    "AverageWeightsState", "DecayWeightsState", "HeavyBallState", "InjectNoiseState",
    "LookaheadState", "ReduceOnPlateauState",
]  # fmt: skip
