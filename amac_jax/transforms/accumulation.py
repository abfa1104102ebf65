"""Gradient accumulation: several micro-batches to an optimizer step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from amac_jax.leaves import floats_only
from amac_jax.precision import at_least_float32, wide_zeros
from amac_jax.schedules import Hyperparameter, check, next_count, whole_value_at


class AccumulateGradientsState(NamedTuple):
    """The number of gradients in the mean, of steps applied, the mean, and the inner state."""

    gathered: jax.Array  # () int32, 0 after a step that applies
    applied: jax.Array  # () int32
    mean: optax.Updates  # the parameters' shapes, at least float32
    inner: optax.OptState


def accumulate_gradients(
    tx: optax.GradientTransformation, steps: Hyperparameter
) -> optax.GradientTransformationExtraArgs:
    """Hands an optimizer the mean of several gradients in a row, as if of one large batch.

    With g the n-th gradient since the last step that applied, k = `steps`:

        m <- m + (g - m) / n;   u <- tx(m) if n >= k, else 0

    The mean of k micro-batches of one size is the gradient of the batch they make up, to
    rounding, so the weights are those that it would give. As a running mean, m is complete after
    every micro-batch, whenever a schedule ends the window, and is never larger than the
    gradients, which a sum of them would be.

    It wraps a whole optimizer: what is inside, schedules, lookahead and averaging among it,
    runs on, counts and sees only steps that apply. What stands beside it in a chain sees every
    micro-batch: before it, clipping clips each one's gradient; after it, most updates are zero.

    Args:
      tx: the optimizer, any Optax transformation.
      steps: k, in micro-batches, >= 1. A schedule is a function of the number of steps applied;
        if it falls while gradients are gathered, the mean is over what is there. Off: 1, `tx` in
        at least float32. Pass schedules here: those that `optax.inject_hyperparams` is given
        count micro-batches.

    Returns:
      A transformation whose updates have the shapes and dtypes of the gradients, and are zero on
      steps that do not apply. State: `AccumulateGradientsState`. `tx` is handed means and
      parameters in at least float32, so its state is that of `tx` for such parameters, and the
      extra arguments (`value`, `value_fn`, ...) of the micro-batch that applies.

    Raises:
      ValueError: for a number of steps < 1, not whole or NaN.

    `optax.MultiSteps` runs the optimizer on every micro-batch and throws away what it does not
    need, takes float64 gradients' mean in float32, and rounds that of bfloat16 to bfloat16 before
    the optimizer sees it.

    A micro-batch with a NaN makes its whole window NaN: put `optax.apply_if_finite` around this
    to leave out that micro-batch alone. BatchNorm sees micro-batches, not the large batch, and
    micro-batches of different sizes count alike. It costs a copy of the parameters: where the
    large batch fits into memory, take it.

    Example:
      >>> tx = accumulate_gradients(optax.sgd(1.0), steps=2)
      >>> params = jnp.array(0.0)
      >>> state = tx.init(params)
      >>> for gradient in (1.0, 3.0, 5.0, 7.0):
      ...     updates, state = tx.update(jnp.array(gradient), state, params)
      ...     print(updates)
      0.0
      -2.0
      0.0
      -6.0
    """
    check("steps", steps, "[1, inf)", whole=True)
    always_due = isinstance(steps, int | float) and steps == 1
    inner_tx = at_least_float32(tx)

    def init(params: optax.Params) -> AccumulateGradientsState:
        return AccumulateGradientsState(
            gathered=jnp.zeros([], jnp.int32),
            applied=jnp.zeros([], jnp.int32),
            mean=wide_zeros(params),
            inner=inner_tx.init(params),
        )

    def update(updates, state, params=None, **extra_args):
        gathered = next_count(state.gathered)
        due = gathered >= whole_value_at(steps, state.applied)
        mean = jax.tree.map(lambda m, g: running_mean(m, g, gathered), state.mean, updates)

        def apply(mean, inner):
            new_updates, inner = inner_tx.update(mean, inner, params, **extra_args)
            return optax.tree.cast_like(new_updates, updates), inner

        def wait(mean, inner):  # zeros like the operand, which has its sharding in here
            return jax.tree.map(lambda m, u: jnp.zeros_like(m, u.dtype), mean, updates), inner

        if always_due:  # without `cond`, which compiles, and so rounds, otherwise than plain `tx`
            updates, inner = apply(mean, state.inner)
        else:
            # `wait` is the false branch: XLA copies every buffer if the branches are exchanged.
            updates, inner = jax.lax.cond(due, apply, wait, mean, state.inner)
        return updates, AccumulateGradientsState(
            gathered=jnp.where(due, 0, gathered),
            applied=jnp.where(due, next_count(state.applied), state.applied),
            mean=mean,
            inner=inner,
        )

    return floats_only(optax.GradientTransformationExtraArgs(init, update))


def running_mean(mean: jax.Array, gradient: jax.Array, n: jax.Array) -> jax.Array:
    """m + (g - m) / n. The first is g itself: what an earlier window left, even NaN, is gone."""
    g = gradient.astype(mean.dtype)
    return jnp.where(n == 1, g, mean + (g - mean) / n.astype(mean.dtype))
