"""A training run on images as one function of its seed, for `jit` and `vmap`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import amac_jax
from examples.mnist.models import MLP, as_input

BATCH_SIZE = 64


def accuracies(data, optimizer: Callable[[int], optax.GradientTransformation], seed, *, epochs):
    """Test accuracy of the last weights and of the averaged ones, in percent.

    Args:
      data: training images and labels, test images and labels.
      optimizer: for a number of steps, with average weights.
      seed: of initial weights and order of images; may be traced.
      epochs: passes over the training images; each leaves out what does not fill a batch.
    """
    images, labels, test_images, test_labels = data
    steps = len(images) // BATCH_SIZE
    model = MLP()
    init_key, order_key = jax.random.split(jax.random.key(seed))
    params = model.init(init_key, as_input(images[:1]))["params"]
    tx = optimizer(epochs * steps)

    def logits(params, images) -> Any:
        return model.apply({"params": params}, as_input(images))

    def step(carry, batch):
        params, state = carry
        x, y = images[batch], labels[batch]

        def loss_of(params):
            losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)
            return jnp.mean(losses)

        updates, state = tx.update(jax.grad(loss_of)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, key):
        order = jax.random.permutation(key, len(images))[: steps * BATCH_SIZE]
        return jax.lax.scan(step, carry, order.reshape(steps, BATCH_SIZE))

    (params, state), _ = jax.lax.scan(
        epoch, (params, tx.init(params)), jax.random.split(order_key, epochs)
    )

    def accuracy(params):
        guesses = jnp.argmax(logits(params, test_images), axis=-1)
        return 100 * jnp.mean(guesses == test_labels)

    return accuracy(params), accuracy(amac_jax.averaged_params(state, params))
