"""Search the hyperparameters of an Equinox network in one call, and draw what was found.

    python examples/equinox_sweep.py     # 40 seconds on one CPU core: 97.3 %; not tuned, 96.0 %
    python examples/equinox_sweep.py --trials 16 --no-halving

`sweep` trains all trials side by side in vmapped programs, one for each choice of clipping, and
drops the worse half at a quarter and again at half of the run. It chooses by validation data. The
best trial and Optax's AdamW with its defaults are then trained with three new seeds, and read the
test data."""

from functools import partial
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import tyro

import amac_jax
from amac_jax import datasets

BATCH, SEEDS = 32, 3


def as_input(images):
    return jnp.asarray(images, jnp.float32).reshape(len(images), -1) / 127.5 - 1


def make(size, key):
    """The arrays of a new network are its parameters; the rest of it is the same for all."""
    network = eqx.nn.MLP(size, 10, width_size=64, depth=2, key=key)
    return eqx.partition(network, eqx.is_inexact_array)


def main(
    *,
    seed: int = 0,
    optimizer: Literal["sweep", "optax"] = "sweep",
    trials: int = 32,
    epochs: int = 20,
    halving: bool = True,
    out: Path | None = Path("runs/equinox_sweep"),
) -> dict[str, float]:
    """Searches AdamW's hyperparameters for a network that reads digits of 8 x 8 pixels.

    Args:
        seed: of the points of the search, of initial weights and of the order of data.
        optimizer: sweep, or Optax's AdamW with its defaults alone.
        trials: points of the search, each run with two seeds.
        epochs: passes over the training data.
        halving: whether the worse half of the trials is dropped twice on the way.
        out: folder for the picture.
    """
    if trials < 4 or epochs < 1:
        raise SystemExit("--trials must be at least 4, and --epochs at least 1")
    data = datasets.load("digits")
    x, y = as_input(data.train_images), jnp.asarray(data.train_labels)
    size = x.shape[1]
    held_out, count = (x[-237:], y[-237:]), len(x) - 237  # to choose by
    steps = epochs * (count // BATCH)
    network = make(size, jax.random.key(0))[1]

    def logits(params, x):
        return jax.vmap(eqx.combine(params, network))(x)

    def loss(params, batch):
        x, y = batch
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

    def batch(key):
        chosen = jax.random.randint(key, (BATCH,), 0, count)
        return x[chosen], y[chosen]

    def params(key):
        return make(size, key)[0]

    def adamw(learning_rate, weight_decay, clip_norm):
        rate = amac_jax.warmup_cosine(learning_rate, steps, 0.1 * steps)
        return amac_jax.adamw(rate, weight_decay=weight_decay, clip_norm=clip_norm)

    @partial(jax.jit, static_argnums=0)
    def accuracy(tx, key):
        def step(carry, key):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, batch(key)), state, params)
            return (optax.apply_updates(params, updates), state), None

        weights = params(key)
        keys = jax.random.split(jax.random.fold_in(key, 1), steps)
        (weights, _), _ = jax.lax.scan(step, (weights, tx.init(weights)), keys)
        x, y = as_input(data.test_images), data.test_labels
        return 100 * jnp.mean(jnp.argmax(logits(weights, x), axis=-1) == y)

    def mean_accuracy(tx):
        keys = jax.random.split(jax.random.key(seed + 1), SEEDS)
        return float(jnp.mean(jnp.stack([accuracy(tx, key) for key in keys])))

    result = {"optax": mean_accuracy(optax.adamw(1e-3))}
    print(f"test accuracy of optax.adamw(1e-3), {SEEDS} seeds: {result['optax']:.2f} %")
    if optimizer == "optax":
        return result
    result["default"] = mean_accuracy(adamw(1e-3, 1e-2, None))
    print(f"test accuracy with warm-up and cosine, {SEEDS} seeds: {result['default']:.2f} %")

    found = amac_jax.sweep(
        loss, params, batch, adamw,
        space={
            "learning_rate": (1e-4, 1e-1, "log"),
            "weight_decay": (1e-3, 1.0, "log"),
            "clip_norm": [None, 1.0],
        },
        trials=trials, steps=steps, halving=halving, key=seed,
        score_fn=lambda params: loss(params, held_out),
    )  # fmt: skip
    print(found)
    result |= {"sweep": mean_accuracy(adamw(**found.best)), "steps": float(found.total_steps)}
    print(f"test accuracy of the best trial, {SEEDS} seeds: {result['sweep']:.2f} %")
    print(f"steps of the search: {found.total_steps} of {2 * trials * steps}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        figure = amac_jax.plotting.plot_sweep(found, "AdamW on digits", "validation loss in nats")
        figure.savefig(out / "sweep.png", dpi=110)
        print(f"picture: {out / 'sweep.png'}")
    return result


if __name__ == "__main__":
    tyro.cli(main)
