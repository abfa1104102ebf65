"""The same train step in Linen, NNX, Equinox, Haiku and plain JAX: only the optimizer changes."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import amac_jax
from amac_jax.optimizers import EVERY_TECHNIQUE
from tests.helpers import SOAK

STEPS = 160
RATE = 0.08  # large, because the default decay of `amac` is 3 / (rate x steps)
OPTIMIZERS = {
    "optax.adamw": lambda: optax.adamw(RATE),
    "adamw": lambda: amac_jax.adamw(RATE),
    "amac": lambda: amac_jax.amac(RATE, total_steps=STEPS),
    "amac, everything": lambda: amac_jax.amac(
        RATE,
        total_steps=STEPS,
        **EVERY_TECHNIQUE,
        clip_norm=1.0,
        skip_nonfinite=True,
        record_metrics=True,
    ),
}


X = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
Y = np.sin(X @ np.arange(1, 5, dtype=np.float32)[:, None] / 4)


def square(prediction):
    return jnp.mean((prediction - Y) ** 2)


def linen(tx):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(nn.tanh(nn.Dense(16)(x)))

    model = Network()
    params = jax.jit(model.init)(jax.random.key(0), X)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    @jax.jit
    def step(state):
        def loss_of(params):
            return square(state.apply_fn({"params": params}, X))

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        return state.apply_gradients(grads=gradients), loss

    losses = []
    for _ in range(STEPS):
        state, loss = step(state)
        losses.append(float(loss))
    return losses, state


def nnx_module(tx):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(4, 16, rngs=rngs)
            self.last = nnx.Linear(16, 1, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.tanh(self.first(x)))

    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda model: square(model(X)))(model)
        optimizer.update(model, gradients)
        return loss

    return [float(step(model, optimizer)) for _ in range(STEPS)], optimizer


def equinox(tx):
    model = eqx.nn.MLP(4, 1, 16, 1, jnp.tanh, key=jax.random.key(0))
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        loss, gradients = eqx.filter_value_and_grad(lambda m: square(jax.vmap(m)(X)))(model)
        updates, state = tx.update(gradients, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, loss

    losses = []
    for _ in range(STEPS):
        model, state, loss = step(model, state)
        losses.append(float(loss))
    return losses, state


def haiku(tx):
    network = hk.without_apply_rng(
        hk.transform(lambda x: hk.nets.MLP([16, 1], activation=jnp.tanh)(x))
    )
    return plain(tx, jax.jit(network.init)(jax.random.key(0), X), network.apply)


def plain_dict(tx):
    keys = jax.random.split(jax.random.key(0))
    params = {
        "hidden": {"w": jax.random.normal(keys[0], (4, 16)) / 2, "b": jnp.zeros(16)},
        "out": {"w": jax.random.normal(keys[1], (16, 1)) / 4, "b": jnp.zeros(1)},
    }

    def apply(params, x):
        hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
        return hidden @ params["out"]["w"] + params["out"]["b"]

    return plain(tx, params, apply)


def plain(tx, params, apply):
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        loss, gradients = jax.value_and_grad(lambda params: square(apply(params, X)))(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for _ in range(STEPS):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return losses, state


@pytest.mark.parametrize("framework", [linen, nnx_module, equinox, haiku, plain_dict])
@pytest.mark.parametrize("name", OPTIMIZERS if SOAK else [n for n in OPTIMIZERS if n != "adamw"])
def test_only_the_optimizer_changes(framework, name):
    losses, state = framework(OPTIMIZERS[name]())
    assert losses[-1] < 0.3 * losses[0]
    if name.startswith("amac"):
        average = amac_jax.averaged_params(state)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(average))
    if name == "amac, everything":
        assert float(amac_jax.metrics(state)["averaged_count"]) == 9  # steps 120, 125, ... 160
