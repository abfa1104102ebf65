"""A training step, an epoch as one jitted scan of it, and tests of last and averaged weights."""

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

import amac_jax
from examples.mnist.augmentation import random_affine
from examples.mnist.models import as_input


class TrainState(train_state.TrainState):
    batch_stats: Any


def train_step(state: TrainState, images, labels, weight, key, *, augment: bool = False):
    """Returns the state and the batch's loss, number of correct guesses and optimizer metrics.

    The key is the epoch's, of dropout and, with `augment`, of what `random_affine` changes.
    """
    key = jax.random.fold_in(key, state.step)
    x = as_input(random_affine(images, jax.random.fold_in(key, 1)) if augment else images)

    def loss_of(params):
        logits, changed = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = jnp.sum((jnp.argmax(logits, -1) == labels) * weight)
        return jnp.sum(losses * weight) / jnp.sum(weight), (correct, changed)

    (loss, (correct, changed)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    state = state.apply_gradients(
        grads=grads, batch_stats=changed.get("batch_stats", state.batch_stats)
    )
    return state, (loss, correct, amac_jax.metrics(state.opt_state))


def train_epoch(state: TrainState, images, labels, key, *, batch_size: int, augment: bool = False):
    """One pass in random order. Returns the state, the epoch's totals and each step's metrics."""
    steps = math.ceil(len(images) / batch_size)
    order_key, step_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(images))
    # The last batch is filled up with other images, of weight 0: they only count in BatchNorm.
    order = jnp.pad(order, (0, steps * batch_size - len(images)), mode="wrap")
    order = order.reshape(steps, batch_size)
    weight = (jnp.arange(order.size) < len(images)).astype(jnp.float32).reshape(order.shape)

    def step(state, batch):
        indices, weight = batch
        x, y = images[indices], labels[indices]
        return train_step(state, x, y, weight, step_key, augment=augment)

    state, (losses, correct, metrics) = jax.lax.scan(step, state, (order, weight))
    return state, jnp.mean(losses), 100 * jnp.sum(correct) / len(images), metrics


def accuracy(apply_fn, variables, images, labels):
    """In percent."""

    def is_correct(example):
        image, label = example
        return jnp.argmax(apply_fn(variables, as_input(image[None]))[0]) == label

    return 100 * jnp.mean(jax.lax.map(is_correct, (images, labels), batch_size=500))


def variables_of(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def tested(state: TrainState, images, labels) -> dict[str, jax.Array]:
    """The accuracy of the last and, unless BatchNorm needs new statistics, the averaged weights."""
    weights = {"test_accuracy": variables_of(state)}
    if has_average(state) and not state.batch_stats:
        averaged = amac_jax.averaged_params(state.opt_state, state.params)
        weights["averaged_test_accuracy"] = variables_of(state) | {"params": averaged}
    return {
        name: accuracy(state.apply_fn, variables, images, labels)
        for name, variables in weights.items()
    }


@partial(jax.jit, static_argnames=("batch_size", "augment"), donate_argnames="state")
def run_epoch(state: TrainState, images, labels, test_images, test_labels, key, **options):
    """`train_epoch`, which the options are for, and `tested`: one program."""
    state, loss, trained, metrics = train_epoch(state, images, labels, key, **options)
    row = {"loss": loss, "train_accuracy": trained, **tested(state, test_images, test_labels)}
    return state, row, metrics


batch_stats_accuracy = jax.jit(accuracy, static_argnames="apply_fn")


def averaged_variables(model: nn.Module, state: TrainState, images) -> dict[str, Any]:
    """The averaged weights, and BatchNorm statistics for them from 10,000 training images."""
    variables = variables_of(state)
    variables["params"] = amac_jax.averaged_params(state.opt_state, state.params)
    batches = (as_input(images[i : i + 500]) for i in range(0, min(len(images), 10_000), 500))
    variables["batch_stats"] = amac_jax.recompute_batch_stats(model, batches, variables, train=True)
    return variables


def has_average(state: TrainState) -> bool:
    try:
        amac_jax.averaged_params(state.opt_state)
    except ValueError:
        return False
    return True


def initial_state(model: nn.Module, tx, key, images) -> TrainState:
    def create(key) -> TrainState:
        variables = model.init(key, as_input(images[:1]))
        return TrainState.create(
            apply_fn=model.apply,
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            tx=tx,
        )

    return jax.jit(create)(key)


def keep_compiled_programs() -> None:
    """In JAX's persistent cache, so that the next run of the same job compiles nothing."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # JAX reads it; empty is none
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if cache.is_absolute():
        jax.config.update("jax_compilation_cache_dir", str(cache / "amac_jax" / "compiled"))
