"""Proximal policy optimization of a cart that carries a pole, environment and all in JAX."""

import math
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


def cartpole(state, action):
    """A cart that carries a pole, pushed to the left (0) or to the right (1) for 0.02 seconds.

    Args:
      state: (4,), the cart's place and speed, the pole's angle and its speed; m, s, radians.

    Returns:
      The state after, and whether the cart has left the track or the pole has fallen.

    Reference:
      Barto, Sutton and Anderson, Neuronlike Adaptive Elements That Can Solve Difficult Learning
      Control Problems, 1983. Cart 1 kg, pole 0.1 kg, half of its length 0.5 m, force 10 N, without
      friction.
    """
    _, speed, angle, turn = state
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    push = (jnp.where(action == 1, 10.0, -10.0) + 0.05 * turn**2 * sine) / 1.1
    turning = (9.8 * sine - cosine * push) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    speeding = push - 0.05 * turning * cosine / 1.1
    after = state + 0.02 * jnp.stack([speed, speeding, turn, turning])
    return after, (jnp.abs(after[0]) > 2.4) | (jnp.abs(after[2]) > math.radians(12))


LONGEST = 500  # steps of an episode; each is a reward of 1
CARTS, HORIZON = 16, 64  # played side by side, and steps between two updates of the policy
PASSES, PARTS = 4, 4  # over what was played, and the batches of a pass
DISCOUNT, SMOOTHING, CLIP, ENTROPY = 0.99, 0.95, 0.2, 0.01
LAST = 4  # rounds whose policies are scored


class ActorCritic(nn.Module):
    """Two logits of the actions, and the value of the state."""

    @nn.compact
    def __call__(self, x):
        def head(outputs, scale):
            hidden = nn.tanh(nn.Dense(64)(nn.tanh(nn.Dense(64)(x))))
            return nn.Dense(outputs, kernel_init=nn.initializers.orthogonal(scale))(hidden)

        return head(2, 0.01), head(1, 1.0)[..., 0]


MODEL = ActorCritic()


def init(key):
    return MODEL.init(key, jnp.zeros((1, 4)))["params"]


def apply(params, state) -> Any:
    return MODEL.apply({"params": params}, state)


class Played(NamedTuple):
    """Of HORIZON steps of CARTS carts, (HORIZON, CARTS, ...); later flattened."""

    state: Any
    action: Any
    log_probability: Any
    value: Any
    ended: Any


def still(key, count: int):
    return jax.random.uniform(key, (count, 4), minval=-0.05, maxval=0.05)


def play(params, carry, key):
    """One step of every cart; those whose episode ends begin again."""
    state, age = carry
    act_key, still_key = jax.random.split(key)
    logits, value = apply(params, state)
    action = jax.random.categorical(act_key, logits)
    log_probability = log_probability_of(logits, action)
    after, lost = jax.vmap(cartpole)(state, action)
    ended = lost | (age + 1 >= LONGEST)
    carry = (
        jnp.where(ended[:, None], still(still_key, len(state)), after),
        jnp.where(ended, 0, age + 1),
    )
    return carry, Played(state, action, log_probability, value, ended)


def log_probability_of(logits, action):
    return -optax.softmax_cross_entropy_with_integer_labels(logits, action)


def advantages(played: Played, value_after):
    """Generalized advantage estimates: Schulman and others, 2015."""

    def back(carry, row):
        advantage, following = carry
        value, ended = row
        surprise = 1.0 + DISCOUNT * jnp.where(ended, 0.0, following) - value
        advantage = surprise + DISCOUNT * SMOOTHING * jnp.where(ended, 0.0, advantage)
        return (advantage, value), advantage

    zero = jnp.zeros_like(value_after)
    rows = (played.value, played.ended)
    return jax.lax.scan(back, (zero, value_after), rows, reverse=True)[1]


def ppo_loss(params, batch):
    """Schulman and others, Proximal Policy Optimization Algorithms, 2017, equation 9."""
    played, advantage = batch
    logits, value = apply(params, played.state)
    ratio = jnp.exp(log_probability_of(logits, played.action) - played.log_probability)
    scaled = (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)
    clipped = jnp.clip(ratio, 1 - CLIP, 1 + CLIP)
    gain = jnp.mean(jnp.minimum(ratio * scaled, clipped * scaled))
    error = jnp.mean((value - played.value - advantage) ** 2)
    logs = jax.nn.log_softmax(logits)
    entropy = -jnp.mean(jnp.sum(jnp.exp(logs) * logs, axis=-1))
    return -gain + 0.5 * error - ENTROPY * entropy


def mean_return(params, key):
    """Of 32 episodes from their beginning."""
    carry = still(key, 32), jnp.zeros(32, jnp.int32)
    _, played = jax.lax.scan(partial(play, params), carry, jax.random.split(key, LONGEST))
    lasted = jnp.sum(jnp.cumsum(played.ended, axis=0) == 0, axis=0)
    return jnp.mean(lasted + 1.0)


def train(params, tx, steps: int, key):
    """Returns of the last LAST policies, the last weights, and the optimizer's state.

    Args:
      params: to begin with, see `init`.
      tx: the optimizer.
      steps: updates of the weights, PASSES * PARTS for each round of playing.
      key: of everything random.
    """
    rounds = steps // (PASSES * PARTS)

    def update(weights, batch):
        params, state = weights
        updates, state = tx.update(jax.grad(ppo_loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    def play_and_learn(carry, key):
        weights, carts = carry
        play_key, order_key, score_key = jax.random.split(key, 3)
        step = partial(play, weights[0])
        carts, played = jax.lax.scan(step, carts, jax.random.split(play_key, HORIZON))
        both = played, advantages(played, apply(weights[0], carts[0])[1])
        flat = jax.tree.map(lambda x: x.reshape(HORIZON * CARTS, *x.shape[2:]), both)

        def part(weights, indices):
            return update(weights, jax.tree.map(lambda x: x[indices], flat))

        orders = jax.vmap(lambda key: jax.random.permutation(key, HORIZON * CARTS))(
            jax.random.split(order_key, PASSES)
        )
        weights, _ = jax.lax.scan(part, weights, orders.reshape(PASSES * PARTS, -1))
        return (weights, carts), score_key

    def and_score(carry, key):
        carry, score_key = play_and_learn(carry, key)
        return carry, mean_return(carry[0][0], score_key)

    keys = jax.random.split(key, rounds + 1)
    carts = still(keys[-1], CARTS), jnp.zeros(CARTS, jnp.int32)
    carry, _ = jax.lax.scan(play_and_learn, ((params, tx.init(params)), carts), keys[: -LAST - 1])
    ((params, state), _), returns = jax.lax.scan(and_score, carry, keys[-LAST - 1 : -1])
    return returns, params, state
