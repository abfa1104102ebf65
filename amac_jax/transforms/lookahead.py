"""Lookahead: slow weights that follow the fast ones every few steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from amac_jax.keys import typed_key
from amac_jax.leaves import floats_only
from amac_jax.precision import wide_copy, wide_dtype, widen, write_when
from amac_jax.rounding import narrow, narrow_dtype, narrow_stochastically, rounding_key
from amac_jax.schedules import Hyperparameter, check, next_count, value_at, whole_value_at


class LookaheadState(NamedTuple):
    """The number of updates made, the slow weights, and what rounds them."""

    count: jax.Array  # () int32
    slow: optax.Params  # the parameters' shapes, at least float32 or `state_dtype`
    key: Any = None  # with a `state_dtype` (2,) uint32: key data


def lookahead(
    sync_period: Hyperparameter = 5,
    slow_step_size: Hyperparameter = 0.5,
    *,
    state_dtype: Any = None,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Every k steps the slow weights step towards the fast ones, which restart from there.

    With theta the parameters, u the update that arrives and phi the slow weights, which begin
    as the parameters, every k-th step does

        phi <- phi + alpha (theta + u - phi);   u <- phi - theta

    and every other step passes u unchanged.

    Place it after everything that changes updates: it decides where the parameters land.

    Args:
      sync_period: k, in steps, >= 1.
      slow_step_size: alpha, dimensionless, in [0, 1]. Off: 1. At 0 the weights return to where
        they began.
      state_dtype: "bfloat16" keeps the slow weights in it, rounded stochastically when they are
        written. The parameters still land on phi itself: the next synchronisation starts from
        its rounding, and no bias accumulates. Scalars stay wide. Off: None or "float32".
      key: an integer seed or a JAX key, typed or raw, for that rounding.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given.
      State: `LookaheadState`. The slow weights are stored as theta + u comes out in at least
      float32, so that in float32 and float64 the step after a synchronisation starts from them
      bit for bit. In bfloat16 and float16 `optax.apply_updates` rounds twice, the update and
      the sum, so the parameters start within one unit in the last place of the slow weights, or
      of the update where that is larger. Each synchronisation measures the parameters anew:
      nothing accumulates.

    Raises:
      ValueError: for a period < 1 or not whole, a step size outside [0, 1], or NaN; for another
        `state_dtype`; for `update` without `params`.

    `optax.lookahead` wraps the optimizer and doubles the parameters into `LookaheadParams`; this
    one is an element of a chain and leaves parameters as they are.

    Example:
      >>> tx = optax.chain(optax.sgd(1.0), lookahead(sync_period=2, slow_step_size=0.5))
      >>> params = jnp.array(0.0)
      >>> state = tx.init(params)
      >>> for _ in range(4):
      ...     updates, state = tx.update(jnp.array(-1.0), state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params)
      1.0
      1.0
      2.0
      2.0

    Reference:
      Zhang et al., Lookahead Optimizer: k Steps Forward, 1 Step Back, 2019,
      https://arxiv.org/abs/1907.08610.
    """
    check("sync_period", sync_period, "[1, inf)", whole=True)
    check("slow_step_size", slow_step_size, "[0, 1]")
    narrowed = narrow_dtype("state_dtype", state_dtype)

    def init(params: optax.Params) -> LookaheadState:
        count, slow = jnp.zeros([], jnp.int32), wide_copy(params)
        if narrowed is None:
            return LookaheadState(count=count, slow=slow)
        return LookaheadState(count=count, slow=narrow(slow, narrowed), key=rounding_key(key))

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError("lookahead needs params: tx.update(updates, state, params)")
        remainder = 1.0 - value_at(slow_step_size, state.count)
        step = next_count(state.count)
        due = step % whole_value_at(sync_period, state.count) == 0

        def landing(u, p, s):
            return jnp.where(due, towards_slow(u, p, s, remainder), u)

        # Reading `slow` at every step costs less than a conditional, whose operand `updates` would
        # have to be written to memory before it. Writing is left to one: its operands, the slow
        # weights and the parameters to be, are in memory anyway.
        updates = jax.tree.map(landing, updates, params, state.slow)

        def land(slow, theta):
            slow = jax.tree.map(lambda s, t: t.astype(wide_dtype(s.dtype)), slow, theta)
            if narrowed is None:
                return slow
            return narrow_stochastically(slow, narrowed, typed_key(state.key, key), state.count)

        slow = write_when(due, land, state.slow, params, updates)
        return updates, LookaheadState(count=step, slow=slow, key=state.key)

    return floats_only(optax.GradientTransformationExtraArgs(init, update))


def towards_slow(
    update: jax.Array, param: jax.Array, slow: jax.Array, remainder: jax.Array
) -> jax.Array:
    """phi + alpha (theta + u - phi) - theta, in the form that is exactly u at alpha = 1."""
    u, p = widen(update), widen(param)
    return (u + remainder.astype(u.dtype) * (slow.astype(u.dtype) - (p + u))).astype(update.dtype)
