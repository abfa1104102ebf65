"""Gradient accumulation: several micro-batches for one optimizer step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Step, Transformation, described, foreign
from amac_jax._core.hyperparameters import Hyperparameter, is_number, next_count, whole_value_at
from amac_jax._core.leaves import enter, in_dtypes_of, trained_only, widen, zeros_like
from amac_jax._core.ranges import COUNT, checked
from amac_jax._core.xla import only_when


class AccumulateGradientsState(NamedTuple):
    """The number of gradients in the mean and of steps applied, the mean, and the inner state."""

    gathered: jax.Array  # () int32; 0 after a step that applies
    applied: jax.Array  # () int32
    mean: Tree  # the parameters' shapes, in at least float32
    inner: Tree


@checked(steps=COUNT)
def accumulate_gradients(
    tx: optax.GradientTransformation, steps: Hyperparameter
) -> optax.GradientTransformationExtraArgs:
    """Hands an optimizer the mean of several gradients in a row, as if from one large batch.

    With g the n-th gradient since the last step that applied, and k = `steps`:

        m <- m + (g - m) / n;   u <- tx(m) if n >= k, else 0

    The mean of k micro-batches of one size is, up to rounding, the gradient of the batch they
    make up, so the weights are the same as with this batch. Because m is a running mean, it is
    complete after every micro-batch, whenever a schedule ends the window. It is never larger than
    the gradients, whereas their sum would be.

    It wraps a whole optimizer. Everything inside, schedules, lookahead and averaging included,
    runs, counts and sees only steps that apply. A stage beside it in a chain sees every
    micro-batch: clipping before it clips each gradient, and after it most updates are zero.

    A micro-batch with a NaN makes its whole window NaN. To leave out this micro-batch alone, put
    `optax.apply_if_finite` around this wrapper.

    Args:
      tx: the optimizer, any Optax transformation.
      steps: k, in micro-batches, whole, >= 1. A schedule is a function of the number of steps
        applied. If it falls while gradients are gathered, the mean is over the gradients
        gathered so far. Pass schedules here: a schedule passed to `optax.inject_hyperparams`
        counts micro-batches. Off: 1, which is `tx` in at least float32.

    Returns:
      A transformation whose updates have the shapes and dtypes of the gradients, and are zero on
      steps that do not apply. `tx` is handed means and parameters in at least float32, so its
      state is the state of `tx` for such parameters. It is handed the extra args (`value`,
      `value_fn`, ...) of the micro-batch that applies. State: `AccumulateGradientsState`.

    Raises:
      ValueError: for a number of steps < 1, not whole or NaN.

    Differs from Optax:
      `optax.MultiSteps` runs the optimizer on every micro-batch and throws away the results that
      it does not need. It takes the mean of float64 gradients in float32. It rounds the mean of
      bfloat16 gradients to bfloat16 before the optimizer sees it.

    When not to use:
      The large batch fits into memory: accumulation costs a copy of the parameters.
      BatchNorm sees micro-batches, not the large batch.
      Micro-batches differ in size: they count alike.

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
    always_due = is_number(steps) and steps == 1
    stage = foreign(tx)

    def init(params: Tree) -> AccumulateGradientsState:
        wide = widen(trained_only(params))
        return AccumulateGradientsState(
            gathered=jnp.zeros([], jnp.int32),
            applied=jnp.zeros([], jnp.int32),
            mean=zeros_like(wide),
            inner=tx.init(wide),
        )

    def update(
        updates: Tree,
        state: AccumulateGradientsState,
        params: Tree = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AccumulateGradientsState]:
        inside = enter(updates, params, extra_args)
        gathered = next_count(state.gathered)
        due = gathered >= whole_value_at(steps, state.applied)
        mean = jax.tree.map(lambda m, g: running_mean(m, g, gathered), state.mean, inside.updates)

        def apply(kept: tuple[Tree, Tree], mean: Tree) -> tuple[Tree, Tree]:
            inner = kept[1]
            step = Step.into(inside, state.applied)
            new, after = stage.update(mean, inner, inside.params, step)
            return optax.tree.cast_like(new, mean), in_dtypes_of(inner, after)

        kept = jax.tree.map(jnp.zeros_like, mean), state.inner
        if always_due:  # a conditional would be compiled, and so rounded, otherwise than plain `tx`
            new, inner = apply(kept, mean)
        else:
            new, inner = only_when(due, apply, kept, mean)
        return inside.leave(new), AccumulateGradientsState(
            gathered=jnp.where(due, 0, gathered),
            applied=jnp.where(due, next_count(state.applied), state.applied),
            mean=mean,
            inner=inner,
        )

    arguments = {"tx": tx, "steps": steps}
    return Transformation(init, update, description=described("accumulate_gradients", arguments))


def running_mean(mean: jax.Array, gradient: jax.Array, n: jax.Array) -> jax.Array:
    """m + (g - m) / n.

    For n = 1 it is g itself, so that nothing of an earlier window stays, not even a NaN.
    """
    g = gradient.astype(mean.dtype)
    return jnp.where(n == 1, g, mean + (g - mean) / n.astype(mean.dtype))
