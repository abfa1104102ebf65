"""Proximal policy optimization of CartPole: environment, learning and eight seeds in one jit.

    python examples/ppo.py                    # after pip install 'amac_jax[rl]'
    python examples/ppo.py --optimizer adam   # the chain that is usual for PPO

A minute. 24 runs of 100,000 steps end at 500 of 500, with `adam`, which differs in eps, at 488: one
of its runs fails. That is within the noise.
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import amac_jax

SEEDS, ENVS, HORIZON = 8, 8, 128  # runs, environments of a run, their steps between two updates
EPOCHS, BATCH = 4, 256  # passes over what was played, and rows of a gradient
DISCOUNT, SMOOTHING, CLIP = 0.99, 0.95, 0.2
LIMIT, EPISODES = 500, 64  # the longest episode, and the episodes that score a policy
env, env_params = gymnax.make("CartPole-v1")
ACTOR: Any = nn.Sequential([nn.Dense(64), nn.tanh, nn.Dense(64), nn.tanh, nn.Dense(2)])  # logits
CRITIC: Any = nn.Sequential([nn.Dense(64), nn.tanh, nn.Dense(64), nn.tanh, nn.Dense(1)])  # value


def reset(key, count):
    return jax.vmap(env.reset, (0, None))(jax.random.split(key, count), env_params)


def play(params, environments, key):
    """One step of every environment; an episode that ends is followed by the next."""
    observation, before = environments
    act_key, step_key = jax.random.split(key)
    action = jax.random.categorical(act_key, ACTOR.apply(params["actor"], observation))
    following, after, reward, terminated, truncated, info = jax.vmap(env.step, (0, 0, 0, None))(
        jax.random.split(step_key, len(action)), before, action, env_params
    )
    played = {"observation": observation, "action": action, "reward": reward}
    played |= {"terminated": terminated, "ended": terminated | truncated, "length": before.time + 1}
    played |= {"seen": info["final_observation"]}  # after the step and before the reset
    return (following, after), played


def cost_of(params, played):
    logits = ACTOR.apply(params["actor"], played["observation"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, played["action"])


def loss(params, batch):
    ratio = jnp.exp(batch["cost"] - cost_of(params, batch))  # new probability / old one
    gain = (batch["advantage"] - batch["advantage"].mean()) / (batch["advantage"].std() + 1e-8)
    surrogate = jnp.minimum(ratio * gain, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * gain)
    value = CRITIC.apply(params["critic"], batch["observation"])[..., 0]
    return jnp.mean(0.5 * (value - batch["target"]) ** 2 - surrogate)


def play_and_learn(tx, carry, key):
    params, state, environments = carry
    play_key, order_key = jax.random.split(key)
    keys = jax.random.split(play_key, HORIZON)
    environments, played = jax.lax.scan(partial(play, params), environments, keys)
    ended, length = played["ended"], played["length"]
    value = CRITIC.apply(params["critic"], played["observation"])[..., 0]
    value_seen = CRITIC.apply(params["critic"], played["seen"])[..., 0]
    # An episode that the time limit cuts would have gone on: its last state keeps its value.
    surprise = played["reward"] + DISCOUNT * value_seen * ~played["terminated"] - value

    def back(advantage, row):  # generalized advantage estimation
        advantage = row[0] + DISCOUNT * SMOOTHING * advantage * ~row[1]
        return advantage, advantage

    advantage = jax.lax.scan(back, jnp.zeros(ENVS), (surprise, ended), reverse=True)[1]
    played |= {"advantage": advantage, "target": advantage + value, "cost": cost_of(params, played)}
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), played)

    def update(carry, chosen):
        gradients = jax.grad(loss)(carry[0], jax.tree.map(lambda x: x[chosen], rows))
        updates, state = tx.update(gradients, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    order = jnp.argsort(jax.random.uniform(order_key, (EPOCHS, ENVS * HORIZON)))
    (params, state), _ = jax.lax.scan(update, (params, state), order.reshape(-1, BATCH))
    return (params, state, environments), jnp.array([jnp.sum(length * ended), jnp.sum(ended)])


def score(key, params):
    """Mean return of EPISODES whole episodes, with the actions drawn as in training."""
    reset_key, key = jax.random.split(key)
    environments, keys = reset(reset_key, EPISODES), jax.random.split(key, LIMIT)
    ended = jax.lax.scan(partial(play, params), environments, keys)[1]["ended"]
    return jnp.mean(jnp.sum(jnp.cumsum(ended, axis=0) == 0, axis=0) + 1.0)


def train(tx, rounds, key):
    keys, x = jax.random.split(key, 5), jnp.zeros(4)
    params = {"actor": ACTOR.init(keys[0], x), "critic": CRITIC.init(keys[1], x)}
    carry = params, tx.init(params), reset(keys[2], ENVS)
    rounds_keys = jax.random.split(keys[3], rounds)
    carry, ended = jax.lax.scan(partial(play_and_learn, tx), carry, rounds_keys)
    return score(keys[4], carry[0]), ended


def main(
    *, seed: int = 0, optimizer: Literal["recipe", "adam"] = "recipe",
    steps: int = 100_000, out: Path | None = Path("runs/ppo"),
) -> dict[str, float]:  # fmt: skip
    """Train eight policies side by side, and score each.

    Args:
        seed: of all runs' weights, actions and episodes.
        optimizer: recipe is `recipes.rl`; adam is Optax's chain that is usual for PPO.
        steps: of each run, counted over its 8 environments; at least 4096.
        out: the folder of the picture; None draws nothing.
    """
    if steps < 4 * ENVS * HORIZON:
        raise SystemExit(f"--steps must be at least {4 * ENVS * HORIZON}, got {steps}")
    rounds = steps // (ENVS * HORIZON)
    rate = optax.linear_schedule(2.5e-3, 0.0, rounds * EPOCHS * ENVS * HORIZON // BATCH)
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate, eps=1e-5))
    if optimizer == "recipe":
        tx = amac_jax.recipes.rl(learning_rate=rate, clip_norm=0.5)
    run = jax.jit(jax.vmap(partial(train, tx, rounds)))
    scores, ended = jax.device_get(run(jax.random.split(jax.random.key(seed), SEEDS)))
    found = {"mean return": scores.mean(), "lowest": scores.min(), "highest": scores.max()}
    print(*(f"{name}: {value:.1f} of {LIMIT}" for name, value in found.items()), sep="\n")
    if out is not None:
        # All environments end an episode in 4 rounds, which are 512 steps.
        four = np.lib.stride_tricks.sliding_window_view(ended, 4, axis=1).sum(axis=-1)
        x, y = np.arange(4, rounds + 1) * ENVS * HORIZON / 1000, four[..., 0] / four[..., 1]
        axes = (figure := Figure(figsize=(7, 4), layout="constrained")).subplots()
        axes.plot(x, y.T, color="0.7", linewidth=0.8)
        axes.plot(x, y.mean(axis=0), color="#0072b2", linewidth=2)
        axes.set(title=f"PPO on CartPole: {SEEDS} runs and their mean", ylim=(0, LIMIT + 20))
        axes.set(xlabel="thousand steps of a run", ylabel="return of the episodes that ended")
        out.mkdir(parents=True, exist_ok=True)
        figure.savefig(out / "curves.png", dpi=150)
        print(f"picture: {out / 'curves.png'}")
    return {name: float(value) for name, value in found.items()}


if __name__ == "__main__":
    tyro.cli(main)
