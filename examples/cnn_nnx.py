"""Train a CNN with BatchNorm and dropout in Flax NNX, and average its weights.

    python examples/cnn_nnx.py                          # RESULT TIME
    python examples/cnn_nnx.py --optimizer sgd_recipe   # RESULT TIME
    python examples/cnn_nnx.py --optimizer radam        # RESULT TIME
    python examples/cnn_nnx.py --optimizer adamw        # RESULT TIME

Averaged weights give activations that no weights of the run gave, so that BatchNorm's running
statistics are wrong for them: `amac_jax.recompute_batch_stats` measures them anew. This happens on
a copy, and the live model trains on. Test accuracies are means of 3 seeds.
"""

import sys
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


class Block(nnx.Module):
    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.conv = nnx.Conv(inputs, outputs, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.conv(x)))


class CNN(nnx.Module):
    """Five convolutions, at full, half and quarter resolution."""

    def __init__(self, size: int, rngs: nnx.Rngs, width: int = 16):
        widths = (1, width, width, 2 * width, 2 * width, 4 * width)
        self.blocks = nnx.List([Block(*each, rngs) for each in pairwise(widths)])
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(4 * width * (-(-size // 8)) ** 2, 10, rngs=rngs)

    def __call__(self, images):
        x = images[..., None] / 127.5 - 1.0
        for i, block in enumerate(self.blocks):
            x = block(x)
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
    images = shifted(images, key)

    def loss_of(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


@nnx.jit
def guesses_of(model: CNN, images):
    return model(images).argmax(axis=-1)


def batches_of(images, size: int = 500):
    return (images[i : i + size] for i in range(0, len(images), size))


def guesses(model: CNN, images) -> np.ndarray:
    copy = nnx.clone(model)  # the model itself stays in training mode
    copy.eval()
    return np.concatenate([guesses_of(copy, batch) for batch in batches_of(images)])


def with_average(model: CNN, optimizer: nnx.Optimizer) -> CNN:
    """A copy with the averaged weights. Its BatchNorm statistics are those of the last weights."""
    copy = nnx.clone(model)
    nnx.update(copy, amac_jax.averaged_params(optimizer, nnx.state(model, nnx.Param)))
    return copy


def main(
    *,
    seed: int = 0,
    optimizer: Literal["amac", "sgd_recipe", "radam", "adamw"] = "amac",
    epochs: int = 5,
    batch_size: int = 64,
    dataset: Literal["mnist", "digits"] = "mnist",
    out: Path | None = Path("runs/cnn_nnx"),
) -> dict[str, float]:
    """Train a CNN on MNIST.

    Args:
        seed: of the weights, dropout, the order of the images and their shifts.
        optimizer: amac; SGD as `amac_jax.recipes.cnn` has it; RAdam; or Optax's AdamW.
        epochs: passes over the training images.
        batch_size: images in a step.
        dataset: MNIST, or the 8x8 digits that scikit-learn ships.
        out: the folder of the picture; None draws nothing.
    """
    data = datasets.load(dataset)
    steps = len(data.train_images) // batch_size  # in an epoch
    total_steps = epochs * steps
    if total_steps < 10:
        sys.exit(f"{total_steps} steps are too few: more --epochs or a smaller --batch-size")
    if optimizer == "amac":
        tx = amac_jax.amac("auto", total_steps, epochs=epochs)
    elif optimizer == "sgd_recipe":  # whose rate, 0.1, is for batches of 256
        tx = amac_jax.recipes.cnn(total_steps, 0.1 * batch_size / 256)
    elif optimizer == "radam":
        tx = amac_jax.radam(amac_jax.cosine(3e-3, total_steps))
    else:
        rate = optax.warmup_cosine_decay_schedule(0.0, 4e-3, total_steps // 10, total_steps)
        tx = optax.adamw(rate, weight_decay=0.1)
    model = CNN(data.train_images.shape[1], nnx.Rngs(seed))
    state = nnx.Optimizer(model, tx, wrt=nnx.Param)

    random, key = np.random.default_rng(seed), jax.random.key(seed)
    bar = tqdm(total=total_steps, desc=f"{data.name}, {optimizer}", unit="step", disable=None)
    for _ in range(epochs):
        order = random.permutation(len(data.train_images))[: steps * batch_size]
        for batch in order.reshape(steps, batch_size):
            key, shift_key = jax.random.split(key)
            images, labels = data.train_images[batch], data.train_labels[batch]
            loss = train_step(model, state, images, labels, shift_key)
            bar.update()
        right = guesses(model, data.test_images) == data.test_labels
        bar.set_postfix(loss=f"{loss:.4f}", test=f"{100 * right.mean():.2f} %")
    bar.close()

    models = {"last weights": model}
    if optimizer == "amac":
        models["averaged weights, stale statistics"] = with_average(model, state)
        best = models["averaged weights"] = with_average(model, state)
        amac_jax.recompute_batch_stats(best, batches_of(data.train_images[:10_000]))
    read = {name: guesses(each, data.test_images) for name, each in models.items()}
    found = {name: 100 * float(np.mean(read[name] == data.test_labels)) for name in read}
    for name, accuracy in found.items():
        print(f"test accuracy, {name}: {accuracy:.2f} %")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        draw(data, list(read.values())[-1]).savefig(out / "misread.png", dpi=150)
        print(f"picture: {out / 'misread.png'}")
    return found


def draw(data: datasets.Images, read: np.ndarray) -> Figure:
    """The test images that are misread, up to 40 of them."""
    wrong = np.flatnonzero(read != data.test_labels)
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    figure.suptitle(f"{len(wrong)} of {len(read):,} test images are misread: label, read as")
    for panel in (panels := list(figure.subplots(5, 8).flat)):
        panel.set_axis_off()
    for panel, i in zip(panels, wrong, strict=False):
        panel.imshow(data.test_images[i], cmap="gray_r")
        panel.set_title(f"{data.test_labels[i]}, {read[i]}", fontsize=9)
    return figure


if __name__ == "__main__":
    tyro.cli(main)
