"""State in bfloat16, rounded stochastically: moments and momentum in half the memory."""

from __future__ import annotations

import optax
from jax.typing import DTypeLike

from amac_jax._core.boundary import described, stage_of, transformation
from amac_jax._core.draws.keys import Key
from amac_jax._core.storage import storage, stored


def store_state_in(
    tx: optax.GradientTransformation, dtype: DTypeLike | None, *, key: Key = 0
) -> optax.GradientTransformationExtraArgs:
    """Runs any transformation in float32 on a state that is stored in bfloat16.

        u, S <- tx(g, S in float32);   S <- a or b, the neighbours of S in bfloat16 (a <= S <= b),
        b with probability (S - a) / (b - a)

    The expectation of the rounded number is S. Rounded to nearest, a moving average with decay
    0.999 never moves: its increments are below half a unit of bfloat16's 8 bits, and each is
    lost. Rounded stochastically, some of the increments become a whole unit.

    The random bits are a function of key, step, leaf and position alone. They come from the
    counter generator of `inject_noise` and are independent of its noise.

    A stored number is right to 1 part in 256 at best, and a slow average wanders around the true
    average. After 1,000 steps with decay 0.999, Adam's second moment is off by 0.4 % root mean
    square where gradients are constant and by 2.6 % where they are normal, with a bias below
    0.1 %.

    It wraps a transformation that keeps moments: an optimizer, a core, `heavy_ball`. Around
    `lookahead` and `average_weights` it would touch every leaf at every step: use their argument
    `state_dtype` instead.

    Args:
      tx: any Optax transformation.
      dtype: "bfloat16". Off: None or "float32", which is `tx` itself.
      key: an integer seed or a JAX key, typed or raw. Two wrapped transformations that do the
        same with the same key round alike: give each its own key.

    Returns:
      A transformation whose updates are the updates of `tx` for the rounded state, computed in at
      least float32, with the shapes and dtypes it is given.
      State: `CountedState` around `StoredState`. Arrays of floats take 2 bytes an element,
      whatever they took before. Scalars, integers and keys are as in the state of `tx`.

    Raises:
      ValueError: for any other dtype, or a `tx` that is not a transformation.

    Differs from Optax:
      `optax.scale_by_adam(mu_dtype=...)` rounds the first moment to nearest. It keeps the second
      moment, which would stall, in the dtype of the parameters.

    When not to use:
      The state must be exact (`optax.scale_by_lbfgs`, line searches).
      The state is a maximum, which keeps the upward errors (`amsgrad`, `adamax`).
      There is memory enough: the random bits cost time.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = store_state_in(optax.adam(0.1), "bfloat16")
      >>> params = jnp.ones(3)
      >>> state = tx.init(params)
      >>> updates, state = tx.update(jnp.ones(3), state, params)
      >>> updates.dtype.name, state.inner.inner[0].nu.dtype.name
      ('float32', 'bfloat16')

    Reference:
      Gupta et al., Deep Learning with Limited Numerical Precision, 2015,
      https://arxiv.org/abs/1502.02551.
    """
    stage, kept = stage_of(tx), storage("dtype", dtype, key)
    if kept.dtype is None:
        return optax.with_extra_args_support(tx)
    return transformation(
        stored(stage, kept), described("store_state_in", {"tx": tx, "dtype": dtype})
    )
