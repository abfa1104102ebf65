"""Lookahead: slow weights that follow the fast ones every few steps."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Landing, Observation, Stage, Step, technique
from amac_jax._core.draws.keys import Key
from amac_jax._core.hyperparameters import Hyperparameter, next_count
from amac_jax._core.leaves import copied, each_leaf, wide_dtype, zeros_like
from amac_jax._core.measures import Measure, Norm
from amac_jax._core.ranges import COUNT, DECAY, UNIT
from amac_jax._core.storage import storage
from amac_jax._core.xla import opaque_zero


class LookaheadState(NamedTuple):
    """The slow weights, the momentum of their steps, and the key for the rounding of both."""

    slow: Tree  # the parameters' shapes, in at least float32 or `state_dtype`
    momentum: Tree  # like `slow`; None without a `slow_momentum`
    key: jax.Array | None  # (2,) uint32: key data; None without a `state_dtype`


@technique(sync_period=COUNT, slow_step_size=UNIT, slow_momentum=DECAY)
def lookahead(
    sync_period: Hyperparameter = 5,
    slow_step_size: Hyperparameter = 0.5,
    *,
    slow_momentum: Hyperparameter | None = None,
    state_dtype: DTypeLike | None = None,
    key: Key = 0,
) -> Stage:
    """Every k steps the slow weights step towards the fast ones, which restart from there.

    With theta the parameters, u the update that arrives and phi the slow weights, which begin as
    the parameters, every k-th step does

        phi <- phi + alpha (theta + u - phi);   u <- phi - theta

    Every other step passes u unchanged.

    With `slow_momentum` mu, Nesterov's momentum carries the steps of the slow weights on. The
    velocity v begins as 0, and every k-th step does

        Delta = theta + u - phi;   v <- mu v + Delta
        phi <- phi + alpha (Delta + mu v);   u <- phi - theta

    Place it after everything that changes updates, because it decides where the parameters land.

    Args:
      sync_period: k, in steps, whole, >= 1.
      slow_step_size: alpha, dimensionless, in [0, 1]. Off: 1, with `slow_momentum` None or 0. At
        0 the weights return to where they began, and v decays.
      slow_momentum: mu, dimensionless, in [0, 1). A constant Delta is amplified to
        alpha Delta / (1 - mu). Off: None, without a buffer, or 0.
      state_dtype: "bfloat16" stores the slow weights and v in bfloat16, rounded stochastically
        when they are written. The parameters still land on the unrounded phi. The next
        synchronization starts from the rounded phi, and no bias accumulates. Scalars stay wide.
        Off: None or "float32".
      key: an integer seed or a JAX key, typed or raw, for this rounding.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given.
      State: `CountedState` around `LookaheadState`. The slow weights are stored as the parameters
      that `optax.apply_updates` makes of theta and u, in their own dtype, and then in at least
      float32. The step after a synchronization therefore starts from them bit for bit, also where
      bfloat16 and float16 round the update and the sum.

    Raises:
      ValueError: for a period < 1 or not whole, a step size outside [0, 1], a momentum outside
        [0, 1), or NaN; for a momentum in a 16-bit array; for another `state_dtype`; for `update`
        without `params`.

    Differs from Optax:
      `optax.lookahead` wraps the optimizer and doubles the parameters into `LookaheadParams`.
      This one is an element of a chain and leaves the parameters as they are. Optax's does not
      have `slow_momentum`.

    Example:
      >>> import optax
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
      https://arxiv.org/abs/1907.08610. For `slow_momentum`: Kallusky et al., SNOO: Step-K
      Nesterov Outer Optimizer, 2025, https://arxiv.org/abs/2510.15830.
    """
    kept = storage("state_dtype", state_dtype, key)

    def init(params: Tree) -> LookaheadState:
        momentum = None if slow_momentum is None else kept.first(zeros_like(params))
        return LookaheadState(kept.first(copied(params)), momentum, kept.key_data())

    def update(updates: Tree, state: LookaheadState, params: Tree, step: Step):
        due = step.counts(is_due(step))
        alpha, mu = step.slow_step_size, step.slow_momentum
        remainder = 1.0 - alpha

        def landed(u: Array, p: Array, slow: Array, remainder: Array) -> Array:
            return jnp.where(due, towards_slow(u, p, slow, remainder), u)

        def carried(u: Array, p: Array, slow: Array, v: Array, alpha, remainder, mu) -> Array:
            further = alpha * mu * (mu * v + (p + u - slow))
            return jnp.where(due, towards_slow(u, p, slow, remainder) + further, u)

        # Reading `slow` at every step costs less than a conditional: its operand `updates` would
        # first have to be written to memory. A conditional does the writing, because its operands,
        # the slow weights, their momentum and the new parameters, are in memory anyway.
        if slow_momentum is None:
            updates = each_leaf(landed, updates, params, state.slow, remainder=remainder)
        else:
            updates = each_leaf(
                carried, updates, params, state.slow, state.momentum,
                alpha=alpha, remainder=remainder, mu=mu,
            )  # fmt: skip

        return updates, state

    def lands(state: LookaheadState, step: Step) -> Landing:
        alpha, mu = step.slow_step_size, step.slow_momentum

        def write(old: dict[str, Tree], landing: Tree) -> dict[str, Tree]:
            slow, momentum = old["slow"], old["momentum"]
            landing = jax.tree.map(lambda s, x: x.astype(wide_dtype(s.dtype)), slow, landing)
            if momentum is not None:
                momentum = each_leaf(
                    velocity, kept.loaded(momentum), kept.loaded(slow), landing, alpha=alpha, mu=mu
                )
                # Never true, but XLA cannot know this and writes v before phi. It would else keep a
                # copy of the slow weights, from which v is computed.
                never = opaque_zero(step.count) < 0
                landing = jax.tree.map(lambda x, v: jnp.where(never, v, x), landing, momentum)
            slow, momentum = kept.stored((landing, momentum), state.key, step.count)
            return {"slow": slow, "momentum": momentum}

        stored = {"slow": state.slow, "momentum": state.momentum}
        return Landing(step.counts(is_due(step)), stored, write)

    return Stage(update, init, needs_params=True, metrics=slow_distance, lands=lands)


def is_due(step: Step) -> Array:
    """Whether the slow weights step at this step."""
    return next_count(step.count) % step.sync_period == 0


def towards_slow(update: Array, param: Array, slow: Array, remainder: Array) -> Array:
    """phi + alpha (theta + u - phi) - theta, in a form that is exactly u at alpha = 1."""
    return update + remainder * (slow - (param + update))


def velocity(v: Array, slow: Array, landing: Array, alpha: Array, mu: Array) -> Array:
    """mu v + Delta, with Delta from the slow weights before and after: u is not in memory.

    They have moved by alpha (Delta + mu (mu v + Delta)). At alpha = 0 they have not, and Delta,
    which they do not show, counts as 0.
    """
    moved = (landing - slow) / jnp.where(alpha == 0, jnp.ones_like(alpha), alpha)
    delta = (moved - mu * mu * v) / (1.0 + mu)
    return mu * v + jnp.where(alpha == 0, jnp.zeros_like(delta), delta)


def slow_distance(seen: Observation) -> dict[str, Measure]:
    """slow_distance: ||theta + u - phi||, between the new fast weights and the slow weights.

    At a synchronization it is 0. Otherwise the slow weights are those from before the step, which
    the step reads anyway.
    """
    due = is_due(seen.step)

    def distance(slow: Array, landing: Array) -> Array:
        return jnp.where(due, jnp.zeros_like(slow), landing - slow)

    landing = seen.step.landing(seen.params, seen.after)
    return {"slow_distance": Norm(each_leaf(distance, seen.previous.slow, landing))}
