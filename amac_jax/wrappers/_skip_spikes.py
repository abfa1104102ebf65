"""Skipping of steps whose gradient is many times larger than usual."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Transformation, described, held
from amac_jax._core.hyperparameters import (
    Hyperparameter,
    as_float,
    float_value_at,
    next_count,
    whole_value_at,
)
from amac_jax._core.leaves import enter, global_norm
from amac_jax._core.ranges import ABOVE_ONE, START, Range, checked

LONGEST = 100
"""The most norms that are remembered."""


class SkipSpikesState(NamedTuple):
    """How many steps were taken and skipped, the norms of those taken, and the inner state."""

    taken: jax.Array  # () int32
    skipped: jax.Array  # () int32, those with a NaN or an infinity among them
    in_a_row: jax.Array  # () int32: the spikes skipped since the last step taken
    norms: jax.Array  # (100,) float32: of the last steps taken, the newest last; -1: not known
    inner: Tree


@checked(factor=ABOVE_ONE, window=Range(1, LONGEST, whole=True), patience=START)
def skip_spikes(
    tx: optax.GradientTransformation,
    factor: Hyperparameter,
    *,
    window: Hyperparameter = 64,
    patience: Hyperparameter = 20,
) -> optax.GradientTransformationExtraArgs:
    """Skips every step whose gradient is many times larger than usual: it changes only counters.

    With n = ||g|| over all leaves, as the gradients arrive, and m the median of the norms of the
    last `window` steps taken, a step is a spike, and skipped, if

        n > factor m

    A step with a NaN or an infinite norm is skipped too. Until `window` norms are known, every
    other step is taken. Norms of skipped steps are not remembered, so that a spike does not raise
    the bar for the next one. After `patience` spikes in a row the level has changed: the next
    finite step is taken, and from then on its norm is the usual one.

    The median does not move for a few odd steps, and follows a norm that falls or rises slowly.
    One spike that passes raises the mean and the deviation of norms, which others use, for a whole
    window. Where norms hardly differ, their deviation is near 0, and every step would be a spike.

    Place it around a whole optimizer, outside its clipping. Clipping bounds a spike and steps along
    it; this does not step. It costs 100 numbers, a sort of them, and the norm, which clipping
    computes anyway.

    Args:
      tx: any Optax transformation.
      factor: dimensionless, > 1. Off: inf, at which nothing is skipped, not even NaN. It should be
        far above what n / m reaches in a healthy run, which is more in small batches: on the
        bundled digits, learnt by heart, 0.1 % of Adam's steps were above 10 m with batches of 64,
        and 6 % with batches of 8.
      window: in steps taken, whole, in [1, 100].
      patience: in steps, >= 0. Off: inf, with which all steps are skipped after a level has risen
        for good.

    Returns:
      A transformation whose updates are the updates of `tx`, or for a skipped step -0, which leaves
      even a weight of -0 as it is, with the shapes and dtypes it is given. State:
      `SkipSpikesState`, whose `skipped` counts the skipped steps; so does "skipped_steps" of
      `amac_jax.metrics`. Schedules are functions of `taken`.

    Raises:
      ValueError: for a factor that is not above 1, a window that is not a whole number in [1, 100],
        or a negative patience, or NaN.

    Differs from others:
      OLMo-core, levanter and MaxText skip a step whose loss or gradient norm is above the mean of
      the last steps by several standard deviations, in the first two by 6 of the last 128. Here
      the loss is not looked at.

    When not to use:
      Where gradients are rare and large by nature: a reward that comes once in a hundred steps
      gives such gradients, and they are what is to be learnt.

    Example:
      >>> tx = skip_spikes(optax.sgd(1.0), factor=3.0, window=2)
      >>> params = jnp.zeros(1)
      >>> state = tx.init(params)
      >>> for gradient in (1.0, 1.5, 100.0, 2.0):
      ...     updates, state = tx.update(jnp.array([gradient]), state, params)
      ...     print(updates, state.skipped)
      [-1.] 0
      [-1.5] 0
      [-0.] 1
      [-2.] 1

    Reference:
      OLMo et al., 2 OLMo 2 Furious, 2024, https://arxiv.org/abs/2501.00656, on spikes of gradients.
    """
    begin, step = held(tx)

    def init(params: Tree) -> SkipSpikesState:
        taken, skipped, in_a_row = (jnp.zeros([], jnp.int32) for _ in range(3))  # to be donated
        norms = jnp.full(LONGEST, -1.0, jnp.float32)
        return SkipSpikesState(taken, skipped, in_a_row, norms, begin(params))

    def update(
        updates: Tree, state: SkipSpikesState, params: Tree = None, **extra_args: Any
    ) -> tuple[Tree, SkipSpikesState]:
        inside = enter(updates, params, extra_args)
        bound = float_value_at(factor, state.taken).astype(jnp.float32)
        norm = global_norm(inside.updates).astype(jnp.float32)
        usual = usual_norm(state.norms, whole_value_at(window, state.taken))
        is_finite, is_spike = jnp.isfinite(norm), norm > bound * usual
        gives_in = as_float(state.in_a_row) >= float_value_at(patience, state.taken)
        is_off = bound == jnp.inf
        takes = is_off | (is_finite & (~is_spike | gives_in))
        new, inner = step(inside, state.inner, takes, state.taken)
        level = jnp.where(
            is_spike & ~is_off,
            jnp.full_like(state.norms, norm),
            jnp.concatenate([state.norms[1:], norm[None]]),
        )
        return new, SkipSpikesState(
            taken=jnp.where(takes, next_count(state.taken), state.taken),
            skipped=jnp.where(takes, state.skipped, next_count(state.skipped)),
            in_a_row=jnp.where(
                takes, 0, jnp.where(is_finite, next_count(state.in_a_row), state.in_a_row)
            ),
            norms=jnp.where(takes & is_finite, level, state.norms),
            inner=inner,
        )

    arguments = {"tx": tx, "factor": factor, "window": window, "patience": patience}
    return Transformation(init, update, description=described("skip_spikes", arguments))


def usual_norm(norms: jax.Array, window: jax.Array) -> jax.Array:
    """The median of the last `window` norms, or inf where fewer are known or the median is 0."""
    is_recent = jnp.arange(LONGEST) >= LONGEST - window
    recent = jnp.where(is_recent & (norms >= 0), norms, jnp.inf)
    in_order = jnp.sort(recent)
    median = (in_order[(window - 1) // 2] + in_order[window // 2]) / 2
    is_known = jnp.isfinite(in_order[window - 1]) & (median > 0)
    return jnp.where(is_known, median, jnp.inf)
