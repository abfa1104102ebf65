"""Train a CNN with BatchNorm and dropout in Flax NNX, and average its weights.

    python examples/cnn_nnx.py                     # 11 minutes on one CPU core: 99.53 %
    python examples/cnn_nnx.py --optimizer radam   # or adamw: 99.53 % too; recipe: 99.40 %

BatchNorm's running statistics belong to the live weights, and are of shifted images.
`amac_jax.recompute_batch_stats` measures statistics for the averaged weights, on a copy, so that
the live model could train on.
"""

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from matplotlib.figure import Figure
from tqdm import tqdm

import amac_jax
from amac_jax import datasets


class CNN(nnx.Module):
    def __init__(self, size: int, rngs: nnx.Rngs):
        channels = (1, 16, 16, 32, 32, 64)
        self.convs = nnx.List(nnx.Conv(*io, (3, 3), rngs=rngs) for io in pairwise(channels))
        self.norms = nnx.List(nnx.BatchNorm(io, momentum=0.9, rngs=rngs) for io in channels[1:])
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(64 * (-(-size // 8)) ** 2, 10, rngs=rngs)

    def __call__(self, images):
        x = images[..., None] / 127.5 - 1.0
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = nnx.relu(norm(conv(x)))
            if i in (1, 3, 4):
                x = nnx.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        return self.head(self.dropout(x.reshape(len(x), -1)))


def shifted(images, key):
    """Each image moved by up to 2 of 28 pixels along each axis."""
    most = max(images.shape[1] // 14, 1)
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most)))
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * most + 1)
    return jax.vmap(partial(jax.lax.dynamic_slice, slice_sizes=images.shape[1:]))(padded, corners)


@nnx.jit
def train_step(model: CNN, optimizer: nnx.Optimizer, images, labels, key):
    """Inside `scan`, XLA on a CPU is 20 times slower: each batch is a call of its own."""

    def loss_of(model):
        logits = model(shifted(images, key))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    optimizer.update(model, nnx.grad(loss_of)(model))


def batches_of(images):
    return (images[i : i + 500] for i in range(0, len(images), 500))


guesses_of = nnx.jit(lambda model, images: model(images).argmax(axis=-1))


def guesses(model: CNN, images) -> np.ndarray:
    copy = nnx.clone(model)  # the model itself stays in training mode
    copy.eval()
    return np.concatenate([guesses_of(copy, batch) for batch in batches_of(images)])


def averaged(model: CNN, optimizer: nnx.Optimizer, images) -> CNN:
    """A copy with the averaged weights, and BatchNorm statistics for them from some images."""
    copy = nnx.clone(model)
    nnx.update(copy, amac_jax.averaged_params(optimizer, nnx.state(model, nnx.Param)))
    amac_jax.recompute_batch_stats(copy, batches_of(images))
    return copy


def main(
    *,
    seed: int = 0,
    optimizer: Literal["amac", "recipe", "radam", "adamw"] = "amac",
    epochs: int = 5,
    dataset: Literal["mnist", "digits"] = "mnist",
    out: Path | None = Path("runs/cnn_nnx"),
) -> dict[str, float]:
    """Train a CNN on MNIST.

    Args:
        seed: of the weights, dropout, the order of the images and their shifts.
        optimizer: amac; SGD as `amac_jax.recipes.cnn` has it; RAdam; or Optax's AdamW.
        epochs: passes over the training images, in batches of 64.
        dataset: MNIST, or the 8x8 digits that scikit-learn ships.
        out: the folder of the picture; None draws nothing.
    """
    if epochs < 1:
        raise SystemExit(f"--epochs must be at least 1, got {epochs}")
    if out:
        out.mkdir(parents=True, exist_ok=True)
    data = datasets.load(dataset)
    total_steps = epochs * (len(data.train_images) // 64)
    rate = amac_jax.warmup_cosine(4e-3, total_steps, total_steps // 10)
    tx = {
        "amac": amac_jax.amac("auto", total_steps, epochs=epochs),
        "recipe": amac_jax.recipes.cnn(total_steps, 0.1 * 64 / 256),
        "radam": amac_jax.radam(amac_jax.cosine(3e-3, total_steps)),
        "adamw": optax.adamw(rate, weight_decay=0.1),
    }[optimizer]
    model = CNN(data.train_images.shape[1], nnx.Rngs(seed))
    state = nnx.Optimizer(model, tx, wrt=nnx.Param)
    key, random = jax.random.key(seed), np.random.default_rng(seed)
    order = [random.permutation(len(data.train_images)) for _ in range(epochs)]
    batches = np.concatenate(order)[: total_steps * 64].reshape(total_steps, 64)
    for batch in tqdm(batches, f"{data.name}, {optimizer}", unit="step", disable=None):
        key, shift_key = jax.random.split(key)
        train_step(model, state, data.train_images[batch], data.train_labels[batch], shift_key)

    models = {"last": model}
    if optimizer == "amac":
        models["averaged"] = averaged(model, state, data.train_images[:10_000])
    read = {name: guesses(each, data.test_images) for name, each in models.items()}
    found = {name: 100 * np.mean(read[name] == data.test_labels).item() for name in read}
    for name, accuracy in found.items():
        print(f"test accuracy, {name} weights: {accuracy:.2f} %")
    if out:
        draw(data, [*read.values()][-1]).savefig(out / "misread.png", dpi=150)
        print(f"picture: {out / 'misread.png'}")
    return found


def draw(data: datasets.Images, read: np.ndarray) -> Figure:
    wrong = np.flatnonzero(read != data.test_labels)
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    figure.suptitle(f"{len(wrong)} of {len(read):,} test images are misread: label, read as")
    for number, i in enumerate(wrong[:40], 1):
        panel = figure.add_subplot(5, 8, number, xticks=[], yticks=[])
        panel.imshow(data.test_images[i], cmap="gray_r")
        panel.set_title(f"{data.test_labels[i]}, {read[i]}", fontsize=9)
    return figure


if __name__ == "__main__":
    tyro.cli(main)
