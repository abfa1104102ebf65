"""Fit a noisy sine with an Optax chain of your own: no Flax, a few seconds on a CPU.

    python examples/quickstart.py

It prints the squared error of the last and of the averaged weights, both near 0.0016."""

import jax
import jax.numpy as jnp
import optax

import amac_jax

key, noise_key, w_key = jax.random.split(jax.random.key(0), 3)
x = jnp.linspace(-3.0, 3.0, 256)[:, None]
y = jnp.sin(x) + 0.1 * jax.random.normal(noise_key, x.shape)
params = {"w1": jax.random.normal(w_key, (1, 64)), "b1": jnp.zeros(64), "w2": jnp.zeros((64, 1))}
tx = optax.chain(
    amac_jax.centralize(),  # gradients of mean zero for every unit
    optax.scale_by_adam(),
    optax.scale_by_learning_rate(amac_jax.warmup_cosine(0.02, total_steps=2000, warmup_steps=200)),
    amac_jax.lookahead(sync_period=5),  # slow weights, every 5 steps
    amac_jax.average_weights(start=1500),  # stochastic weight averaging
)


def predict(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"]


def step(carry, key):
    params, state = carry
    batch = jax.random.randint(key, (32,), 0, len(x))
    gradients = jax.grad(lambda p: jnp.mean((predict(p, x[batch]) - y[batch]) ** 2))(params)
    updates, state = tx.update(gradients, state, params)
    return (optax.apply_updates(params, updates), state), None


(params, state), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, 2000))
for name, weights in ("last", params), ("averaged", amac_jax.averaged_params(state, params)):
    print(f"{name} weights: {jnp.mean((predict(weights, x) - jnp.sin(x)) ** 2):.5f}")
