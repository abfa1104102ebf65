"""State in bfloat16, rounded stochastically: moments and momentum in half the memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from amac_jax.keys import typed_key
from amac_jax.leaves import floats_only
from amac_jax.precision import at_least_float32, widen
from amac_jax.rounding import (
    is_narrowed,
    narrow,
    narrow_dtype,
    narrow_stochastically,
    rounding_key,
)
from amac_jax.schedules import next_count


class KeepStateInState(NamedTuple):
    """The number of updates made, a copy of the key, and the inner state, rounded."""

    count: jax.Array  # () int32
    key: jax.Array  # (2,) uint32: key data
    inner: optax.OptState  # arrays of floats in bfloat16, all else as the inner state has it


def keep_state_in(
    tx: optax.GradientTransformation, dtype: Any, *, key: Any = 0
) -> optax.GradientTransformationExtraArgs:
    """Runs any transformation in float32 on a state that is stored in bfloat16.

        u, S <- tx(g, S in float32);   S <- a or b, the neighbours of S in bfloat16 (a <= S <= b),
        b with probability (S - a) / (b - a)

    The expectation of the rounding is S. To nearest, a moving average with decay 0.999 never
    moves: its increments are below half a unit of bfloat16's 8 bits, and each is lost. Here one
    in so many is a whole unit. The random bits are a function of key, step, leaf and position
    alone, from the counter generator of `inject_noise`, and independent of its noise.

    It wraps what keeps moments: an optimizer, a core, `heavy_ball`. Around `lookahead` and
    `average_weights` it would touch every leaf at every step: give them `state_dtype`.

    Args:
      tx: any Optax transformation.
      dtype: "bfloat16". Off: None or "float32", `tx` itself.
      key: an integer seed or a JAX key, typed or raw. Two wrapped transformations that do the
        same with the same key round alike: give each its own.

    Returns:
      A transformation whose updates are those of `tx` for the rounded state, computed in at
      least float32, with the shapes and dtypes it is given.
      State: `KeepStateInState`; arrays of floats take 2 bytes an element, whatever they took
      before. Scalars, integers and keys are as in the state of `tx`.

    Raises:
      ValueError: for any other dtype, or a `tx` that is no transformation.

    `optax.scale_by_adam(mu_dtype=...)` rounds the first moment to nearest and keeps the second,
    which would stall, in the dtype of the parameters.

    A stored number is right to 1 part in 256 at best, and a slow average wanders around the true
    one: after 1,000 steps with decay 0.999 Adam's second moment is off by 0.4 % root mean square
    where gradients are constant, by 2.6 % where they are normal, with a bias below 0.1 %.
    Leave it out where state must be exact (`optax.scale_by_lbfgs`, line searches), where it is
    a maximum, which keeps the errors upwards (`amsgrad`, `adamax`), and where memory is no
    concern: the random bits cost time.

    Example:
      >>> tx = keep_state_in(optax.adam(0.1), "bfloat16")
      >>> params = jnp.ones(3)
      >>> state = tx.init(params)
      >>> updates, state = tx.update(jnp.ones(3), state, params)
      >>> updates.dtype.name, state.inner[0].nu.dtype.name
      ('float32', 'bfloat16')

    Reference:
      Gupta et al., Deep Learning with Limited Numerical Precision, 2015,
      https://arxiv.org/abs/1502.02551.
    """
    if not hasattr(tx, "update"):
        raise ValueError(f"tx must be a gradient transformation, got {tx!r}")
    narrowed = narrow_dtype("dtype", dtype)
    if narrowed is None:
        return optax.with_extra_args_support(tx)
    tx = at_least_float32(tx)

    def init(params: optax.Params) -> KeepStateInState:
        return KeepStateInState(
            count=jnp.zeros([], jnp.int32),
            key=rounding_key(key),
            inner=narrow(tx.init(params), narrowed),
        )

    def update(updates, state, params=None, **extra_args):
        inner = jax.tree.map(lambda x: widen(x) if is_narrowed(x) else x, state.inner)
        updates, inner = tx.update(updates, inner, params, **extra_args)
        # One random word an element, plus, modulo 2^16, a multiple of the golden ratio a step: the
        # bits of every step are uniform, and those of successive steps spread more evenly than
        # fresh ones, so that the errors that a moving average gathers largely cancel.
        never, golden = jnp.minimum(state.count, 0), state.count.astype(jnp.uint32) * 0x9E37
        random_key = typed_key(state.key, key)
        inner = narrow_stochastically(inner, narrowed, random_key, never, shift=golden)
        return updates, KeepStateInState(next_count(state.count), state.key, inner)

    return floats_only(optax.GradientTransformationExtraArgs(init, update))
