"""Decoupled weight decay, on kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from amac_jax.layout import kernel_mask
from amac_jax.leaves import floats_only
from amac_jax.precision import map_wide
from amac_jax.schedules import Hyperparameter, check, next_count, value_at

Mask = Any | Callable[[Any], Any]
"""A tree of bools, a prefix of one, or a function of the parameters that returns either."""


class DecayWeightsState(NamedTuple):
    """The number of updates made."""

    count: jax.Array  # () int32


def decay_weights(
    rate: Hyperparameter, *, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Shrinks the weights themselves, whatever the gradient's scaling.

        u <- u - r theta      for the leaves in the mask

    Place it after the learning rate and the momentum: it sees updates that will be added to
    the parameters, and its rate is the share of a weight that a step removes. `compose` passes
    learning rate times weight decay for it, which makes it AdamW's.

    Args:
      rate: r, the share removed at a step; >= 0. Off: 0.
      mask: which leaves decay: a tree of bools, a prefix of one (True is every leaf), or a
        function of the parameters. None is `amac_jax.kernel_mask`: kernels only.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given.
      State: `DecayWeightsState` inside `optax.MaskedState`.

    Raises:
      ValueError: for a negative or NaN rate; for `update` without `params`.

    `optax.add_decayed_weights` adds the decay before the learning rate, and to every leaf unless
    it is told otherwise.

    Example:
      >>> tx = decay_weights(0.1)
      >>> params = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
      >>> tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[0]
      {'bias': Array([0.], dtype=float32), 'kernel': Array([[-0.1],
           [-0.1]], dtype=float32)}

    Reference:
      Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019,
      https://arxiv.org/abs/1711.05101.
    """
    check("rate", rate, "[0, inf)")

    def init(params: optax.Params) -> DecayWeightsState:
        return DecayWeightsState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError("decay_weights needs params: tx.update(updates, state, params)")
        r = value_at(rate, state.count)
        updates = map_wide(lambda u, p: u - r.astype(u.dtype) * p.astype(u.dtype), updates, params)
        return updates, DecayWeightsState(count=next_count(state.count))

    decay = optax.GradientTransformationExtraArgs(init, update)
    rule = kernel_mask if mask is None else mask
    # Not as a plain function: those Optimistix turns into pytrees, which `masked` takes for masks.
    rule = partial(rule) if isinstance(rule, FunctionType) else rule
    return floats_only(optax.masked(decay, rule))
