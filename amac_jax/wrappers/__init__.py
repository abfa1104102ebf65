"""Wrappers of a whole optimizer: accumulation, skipping, state in another dtype."""

from amac_jax._core.storage import StoredState
from amac_jax.wrappers._accumulation import AccumulateGradientsState, accumulate_gradients
from amac_jax.wrappers._skip_nonfinite import skip_nonfinite
from amac_jax.wrappers._skip_spikes import SkipSpikesState, skip_spikes
from amac_jax.wrappers._state_dtype import store_state_in

__all__ = [
    "AccumulateGradientsState", "SkipSpikesState", "StoredState", "accumulate_gradients",
    "skip_nonfinite", "skip_spikes", "store_state_in",
]  # fmt: skip
