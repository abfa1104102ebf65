"""Fit a noisy sine with AMaC in Flax NNX: a few seconds on a CPU.

    python examples/nnx.py

It prints the squared error of the last weights, 0.0010, and of the averaged ones, 0.0007."""

import jax
import jax.numpy as jnp
from flax import nnx

import amac_jax

key = jax.random.key(0)
x = jnp.linspace(-3.0, 3.0, 256)[:, None]
y = jnp.sin(x) + 0.1 * jax.random.normal(key, x.shape)
model = nnx.Sequential(
    nnx.Linear(1, 64, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(64, 1, rngs=nnx.Rngs(1))
)
# Every technique is a keyword: None leaves it out, as `average_start=None` would the average.
tx = amac_jax.amac("auto", total_steps=2000, weight_decay=0.01)
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
def step(carry, key):
    model, optimizer = carry
    batch = jax.random.randint(key, (32,), 0, len(x))
    gradients = nnx.grad(lambda model: jnp.mean((model(x[batch]) - y[batch]) ** 2))(model)
    optimizer.update(model, gradients)
    return model, optimizer


def error(model):
    return jnp.mean((model(x) - jnp.sin(x)) ** 2)


model, optimizer = step((model, optimizer), jax.random.split(key, 2000))
print(f"last weights: {error(model):.5f}")
nnx.update(model, amac_jax.averaged_params(optimizer, nnx.state(model, nnx.Param)))
print(f"averaged weights: {error(model):.5f}")
