"""Nine jobs that are short, or that go on from trained weights, to test an optimizer's defaults on.

    python -m benchmarks.short_jobs      # what they are

Six of them end long before the loss does: a recurrent classifier that sits at chance for a while, a
variational autoencoder, reinforcement learning, and an MLP of 100, 200 and 400 steps. Three
fine-tune: their weights have been trained with AdamW on one task and go on with another. An
optimizer that shrinks weights too fast loses on the first what it has not yet learnt, and on the
second what had been learnt before.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import amac_jax
from benchmarks import ppo_cartpole
from benchmarks.workloads import USUAL as MLP
from benchmarks.workloads import Splits, Transformer, image_job, mnist, text_job, text_splits

Evaluate = Callable[[Any, Any], Any]  # (optimizer state, parameters) -> the weights to evaluate
Figures = dict[str, Any]  # name -> (); "score" is what counts


class Task(NamedTuple):
    """What a job does, as functions to `jit` and `vmap`; `data` are arguments, not constants."""

    data: Any
    start: Callable[[Any, Any], Any]  # (data, seed) -> the weights that training begins with
    run: Callable[[Any, Any, Any, Evaluate, Any], Figures]  # (data, start, tx, evaluate, seed)


@dataclass(frozen=True, eq=False)
class ShortJob:
    title: str
    steps: int  # updates of the weights
    metric: str
    sign: int  # 1 where more is better, -1 where less is
    worst: float  # what a run counts as whose score is not finite
    build: Callable[["ShortJob"], Task]
    images: float = math.inf  # or characters: how many there are; inf where all are fresh
    batch: int = 64  # how many of them a step sees
    pretraining: int = 0  # steps, with `pretrainer`

    @property
    def epochs(self) -> float | None:
        """Passes over the data, None where all data are fresh."""
        return None if math.isinf(self.images) else self.steps * self.batch / self.images

    def make(self) -> Task:
        return self.build(self)


def descend(batch, loss, steps: int, data, params, tx, key):
    """The weights and the optimizer's state after `steps` batches.

    Args:
      batch: (key, data) -> a batch.
      loss: (parameters, batch) -> ().
    """

    def step(carry, count):
        params, state = carry
        drawn = batch(jax.random.fold_in(key, count), data)
        updates, state = tx.update(jax.grad(loss)(params, drawn), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
    return params, state


def keys(seed):
    """One for the weights to begin with, one for the run."""
    return jax.random.split(jax.random.key(seed))


def trained(job: ShortJob, init, batch, loss, score, data) -> Task:
    """A run from `init`, or from what `pretrainer` makes, scored at its end.

    Args:
      init: (key, data) -> parameters.
      score: (parameters, data) -> (), on data that the run has not seen.
    """

    def start(data, seed):
        return init(keys(seed)[0], data)

    def run(data, first, tx, evaluate, seed):
        params, state = descend(batch, loss, job.steps, data, first, tx, keys(seed)[1])
        figures = {
            "score": score(evaluate(state, params), data),
            "last weights": score(params, data),
        }
        if job.pretraining:
            figures["kernels"] = smallest_ratio(first, params)
        return figures

    return Task(data, start, run)


def pretrainer(job: ShortJob, init, batch, loss):
    """(key, data) -> weights trained with AdamW, always in the same way."""
    rate = amac_jax.warmup_cosine(3e-3, job.pretraining, job.pretraining // 10, end=0.0)
    tx = optax.adamw(rate, weight_decay=0.01, mask=amac_jax.kernel_mask)

    def begin(key, data):
        init_key, data_key = jax.random.split(key)
        params, _ = descend(batch, loss, job.pretraining, data, init(init_key), tx, data_key)
        return params

    return begin


def smallest_ratio(before, after):
    """The least of norm of kernel after / norm of kernel before, over all kernels."""
    kernels = jax.tree.leaves(amac_jax.kernel_mask(before))
    pairs = zip(kernels, jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    norm = jnp.linalg.norm
    return jnp.min(
        jnp.stack([norm(b.ravel()) / norm(a.ravel()) for kernel, a, b in pairs if kernel])
    )


# A recurrent classifier


class Recurrent(nn.Module):
    """Two logits from the last state of a GRU."""

    @nn.compact
    def __call__(self, x):
        states: Any = nn.RNN(nn.GRUCell(32))(x)
        return nn.Dense(2)(states[:, -1])


LENGTH = 10


def marked_bits(key, count: int):
    """Sequences of random bits and marks on two of them; the class is whether those two differ.

    Neither bit alone says anything of the class, so that the loss stays at log 2 until both count.

    Returns:
      (count, LENGTH, 2), bits as -1 and 1, marks as 0 and 1; and the classes, (count,).
    """
    bit_key, mark_key = jax.random.split(key)
    bits = jax.random.bernoulli(bit_key, shape=(count, LENGTH))
    places = jax.random.uniform(mark_key, (count, LENGTH))
    marks = places >= jnp.sort(places)[:, -2:-1]
    labels = jnp.sum(bits & marks, axis=1) % 2
    return jnp.stack([2.0 * bits - 1.0, 1.0 * marks], axis=-1), labels


def recurrent(job: ShortJob) -> Task:
    model = Recurrent()

    def loss(params, batch):
        x, y = batch
        logits: Any = model.apply({"params": params}, x)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    def score(params, held_out):
        x, y = held_out
        logits: Any = model.apply({"params": params}, x)
        return 100 * jnp.mean(jnp.argmax(logits, axis=-1) == y)

    def init(key, data):
        return model.init(key, jnp.zeros((1, LENGTH, 2)))["params"]

    held_out = jax.device_get(marked_bits(jax.random.key(-1), 1000))
    return trained(job, init, lambda key, data: marked_bits(key, job.batch), loss, score, held_out)


# A variational autoencoder

LATENT = 8


class VAE(nn.Module):
    """Logits of the pixels, and mean and logarithm of the deviation of the latent variables."""

    @nn.compact
    def __call__(self, x, noise):
        hidden = nn.relu(nn.Dense(128)(x))
        mean, log_deviation = jnp.split(nn.Dense(2 * LATENT)(hidden), 2, axis=-1)
        latent = mean + jnp.exp(log_deviation) * noise
        logits = nn.Dense(x.shape[-1])(nn.relu(nn.Dense(128)(latent)))
        return logits, mean, log_deviation


def vae(job: ShortJob) -> Task:
    """Kingma and Welling, Auto-Encoding Variational Bayes, 2013, on images of two colours."""
    model = VAE()

    def loss(params, batch):  # the negative evidence lower bound, with one sample
        images, noise = batch
        x = (images > 127).reshape(len(images), -1).astype(jnp.float32)
        outputs: Any = model.apply({"params": params}, x, noise)
        logits, mean, log_deviation = outputs
        pixels = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, x), axis=-1)
        divergence = jnp.exp(2 * log_deviation) + mean**2 - 1 - 2 * log_deviation
        return jnp.mean(pixels + 0.5 * jnp.sum(divergence, axis=-1))

    def with_noise(key, images):
        return images, jax.random.normal(key, (len(images), LATENT))

    def batch(key, data):
        chosen, noise = jax.random.split(key)
        indices = jax.random.randint(chosen, (job.batch,), 0, len(data.train))
        return with_noise(noise, data.train[indices])

    def score(params, data):
        return loss(params, with_noise(jax.random.key(-1), data.validation))

    def init(key, data):
        return model.init(key, jnp.zeros((1, 14 * 14)), jnp.zeros((1, LATENT)))["params"]

    train, held_out = images(0, int(job.images))[0], images(*HELD_OUT)[0]
    return trained(job, init, batch, loss, score, Splits(train, held_out, None))


# MNIST at 14 x 14 pixels; the test images are left to `compare.py`

HELD_OUT = 50_000, 55_000  # of the training images in the order of `workloads.mnist`
FEW = 20_000, 25_000  # where those few are taken from that fine-tuning sees


def images(first: int, last: int):
    data = mnist()
    return data.train_images[first:last], data.train_labels[first:last]


def mlp(job: ShortJob) -> Task:
    data = Splits(images(0, int(job.images)), images(*HELD_OUT), None)
    whole = image_job(MLP, data, job.batch)

    def batch(key, data):
        return whole.batch(key, data.train)

    def score(params, data):
        return whole.loss(params, data.validation)

    return trained(job, lambda key, data: whole.init(key), batch, whole.loss, score, data)


# Fine-tuning


class Both(NamedTuple):
    first: Any  # to train on beforehand
    then: Splits  # to fine-tune on, and to score with


def fine_tuned_images(job: ShortJob, first, then, held_out) -> Task:
    data = Both(first, Splits(then, held_out, None))
    before = image_job(MLP, Splits(first, None, None), 64)
    after = image_job(MLP, data.then, job.batch)

    def batch(key, data):
        return after.batch(key, data.then.train)

    def score(params, data):
        return after.score(params, data.then.train, data.then.validation)

    begin = pretrainer(
        job, before.init, lambda key, data: before.batch(key, data.first), before.loss
    )
    return trained(job, begin, batch, after.loss, score, data)


def rotated(job: ShortJob) -> Task:
    def turned(part):
        return np.rot90(part[0], axes=(1, 2)).copy(), part[1]

    few = tuple(array[: int(job.images)] for array in images(*FEW))
    return fine_tuned_images(job, images(0, 10_000), turned(few), turned(images(*HELD_OUT)))


def classes(job: ShortJob) -> Task:
    def chosen(part, low, high):
        mask = (part[1] >= low) & (part[1] <= high)
        return part[0][mask], part[1][mask]

    few = tuple(array[: int(job.images)] for array in chosen(images(*FEW), 5, 9))
    first, held_out = chosen(images(0, 10_000), 0, 4), chosen(images(*HELD_OUT), 5, 9)
    return fine_tuned_images(job, first, few, held_out)


WINDOW, ROWS = 32, 8  # characters that the transformer sees, and rows in a batch


def upper_case(text: np.ndarray) -> np.ndarray:
    """Of numbers of `workloads.shakespeare`, where A to Z are 13 to 38 and a to z 39 to 64."""
    return np.where(text >= 39, text - 26, text).astype(np.uint8)


def text(job: ShortJob) -> Task:
    whole = text_job(Transformer, ROWS, WINDOW)
    splits = text_splits(WINDOW)
    half = len(splits.train) // 2
    later = Splits(upper_case(splits.train[half:]), upper_case(splits.validation), None)

    def rows(key, characters):
        begin = jax.random.randint(key, (ROWS, 1), 0, len(characters) - WINDOW)
        return characters[begin + jnp.arange(WINDOW + 1)]

    begin = pretrainer(job, whole.init, lambda key, data: rows(key, data.first), whole.loss)
    return trained(
        job,
        begin,
        lambda key, data: rows(key, data.then.train),
        whole.loss,
        lambda params, data: whole.loss(params, data.then.validation),
        Both(splits.train[:half], later),
    )


# Reinforcement learning


def ppo(job: ShortJob) -> Task:
    """The policy acts with the current weights, so that these are the ones scored."""

    def start(data, seed):
        return ppo_cartpole.init(keys(seed)[0])

    def run(data, first, tx, evaluate, seed):
        returns, params, state = ppo_cartpole.train(first, tx, job.steps, keys(seed)[1])
        averaged = evaluate(state, params)
        return {
            "score": jnp.mean(returns),
            "averaged weights": ppo_cartpole.mean_return(averaged, jax.random.key(seed)),
        }

    return Task((), start, run)


CHANCE = math.log(10) + 1
JOBS = {
    "recurrent": ShortJob(
        "GRU of 32 units: do two marked bits of 10 differ? 500 fresh batches",
        500, "accuracy, %", 1, 0.0, recurrent,
    ),
    "vae": ShortJob(
        "variational autoencoder, 8 latent variables; 10,000 MNIST images",
        600, "nats", -1, 200.0, vae, images=10_000,
    ),
    "ppo": ShortJob(
        "proximal policy optimization of a cart with a pole, 20,480 steps played",
        320, "return", 1, 0.0, ppo,
    ),
    **{
        f"mlp-{steps}": ShortJob(
            f"MLP, {steps} steps; 10,000 MNIST images",
            steps, "nats", -1, CHANCE, mlp, images=10_000,
        )
        for steps in (100, 200, 400)
    },
    "finetune-rotated": ShortJob(
        "MLP trained on MNIST, then 500 images turned by 90°",
        300, "accuracy, %", 1, 0.0, rotated, images=500, batch=32, pretraining=1000,
    ),
    "finetune-classes": ShortJob(
        "MLP trained on the digits 0 to 4, then 250 images of 5 to 9",
        200, "accuracy, %", 1, 0.0, classes, images=250, batch=32, pretraining=500,
    ),
    "finetune-text": ShortJob(
        "transformer trained on half of tiny Shakespeare, then the other half in upper case",
        200, "nats", -1, math.log(65) + 1, text, images=501_927, batch=ROWS * WINDOW,
        pretraining=600,
    ),
}  # fmt: skip


def main() -> None:
    for name, job in JOBS.items():
        passes = "fresh data" if job.epochs is None else f"{job.epochs:.3g} passes"
        print(f"{name:18s}{job.steps:4d} steps  {passes:14s}{job.metric:13s}{job.title}")


if __name__ == "__main__":
    main()
