"""Fine-tune a network: layer-wise rates, and frozen layers that have no optimizer state.

    python examples/finetune.py    # RESULT TIME

A network learns the digits 0 to 4. Then it learns 5 to 9 from 100 images, with a head of its own.
Its first layer and its old head are frozen. The layers between them move the less the lower they
are, at a small rate, so that the old head still reads most of what it had learnt. AdamW, with the
same layers frozen, is tried at five rates; the best is the one that reads the new digits best.
"""

from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

import amac_jax
from amac_jax import datasets

ADAMW_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
OLD, NEW = "old_head", "new_head"


class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = images.reshape(len(images), -1) / 127.5 - 1.0
        for name in ("layer0", "layer1", "layer2"):
            x = nn.relu(nn.Dense(64, name=name)(x))
        return {head: nn.Dense(5, name=head)(x) for head in (OLD, NEW)}


def amac(rate, steps: int):
    """With 0.64, 0.8 and 1 times the rate, from the lowest of these layers to the highest."""
    multipliers = amac_jax.layerwise_decay(0.8, ["layer1", "layer2", NEW])
    return amac_jax.amac(rate, steps, layer_multipliers=multipliers)


def adamw(rate, steps: int):
    return optax.adamw(amac_jax.warmup_cosine(rate, steps, steps // 10), weight_decay=0.01)


def freezing(tx):
    """`tx` for all but the first layer and the old head, which stay as they are."""
    return optax.partition(
        {"train": tx, "freeze": optax.set_to_zero()},
        amac_jax.by_path({"layer0": "freeze", OLD: "freeze"}, default="train"),
    )


@partial(jax.jit, static_argnames=("optimizer", "head", "steps"))
def train(optimizer, rate, params, images, labels, head: str, steps: int, key):
    """Batches of 32 images, drawn at random. Returns the weights and the optimizer's state."""
    tx = optimizer(rate, steps)
    if head == NEW:
        tx = freezing(tx)

    def step(carry, key):
        params, state = carry
        batch = jax.random.randint(key, (32,), 0, len(images))

        def loss_of(params):
            logits = Net().apply({"params": params}, images[batch])[head]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

        updates, state = tx.update(jax.grad(loss_of)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, steps))[0]


@partial(jax.jit, static_argnames="head")
def accuracy(params, images, labels, head: str):
    """In percent."""
    guesses = Net().apply({"params": params}, images)[head].argmax(axis=-1)
    return 100 * jnp.mean(guesses == labels)


def main(
    *,
    seed: int = 0,
    seeds: int = 3,
    shots: int = 100,
    steps: int = 300,
    rate: float = 0.01,
    out: Path | None = Path("runs/finetune"),
) -> dict[str, float]:
    """Tune a network on new digits, and see what is left of the old ones.

    Args:
        seed: the first of the seeds, of the initial weights and of the images that are held out.
        seeds: how many there are.
        shots: images of new digits to learn from.
        steps: of fine-tuning.
        rate: AMaC's learning rate.
        out: the folder of the picture; None draws nothing.
    """
    data = datasets.load("digits")
    images = np.concatenate([data.train_images, data.test_images])
    labels = np.concatenate([data.train_labels, data.test_labels])
    runs = {"AMaC": (amac, rate)} | {f"AdamW at {r:g}": (adamw, r) for r in ADAMW_RATES}
    scores = {name: [] for name in ("before", *runs)}  # (new, old) for each seed
    moved = 0
    for number in tqdm(range(seed, seed + seeds), unit="seed", disable=None):
        order = np.random.default_rng(number).permutation(len(images))
        old, new = order[labels[order] < 5], order[labels[order] >= 5]
        init_key, old_key, new_key = jax.random.split(jax.random.key(number), 3)
        learnt = images[old[:600]], labels[old[:600]], OLD
        to_learn = images[new[:shots]], labels[new[:shots]] - 5, NEW
        new_test = images[new[shots:]], labels[new[shots:]] - 5, NEW
        old_test = images[old[600:]], labels[old[600:]], OLD

        initial = Net().init(init_key, images[:1])["params"]
        first, _ = train(adamw, 3e-3, initial, *learnt, 600, old_key)
        scores["before"].append((accuracy(first, *new_test), accuracy(first, *old_test)))
        for name, (optimizer, its_rate) in runs.items():
            params, state = train(optimizer, its_rate, first, *to_learn, steps, new_key)
            if optimizer is amac:
                params = amac_jax.averaged_params(state, params)
                amac_state = state
            scores[name].append((accuracy(params, *new_test), accuracy(params, *old_test)))
            for layer in "layer0", OLD:  # to the bit
                moved += not jax.tree.all(jax.tree.map(np.array_equal, params[layer], first[layer]))

    means = {name: np.mean(pairs, axis=0) for name, pairs in scores.items()}
    best = max(list(runs)[1:], key=lambda name: means[name][0])
    gains = np.subtract(scores["AMaC"], scores[best])
    spread = gains.std(axis=0, ddof=min(seeds - 1, 1))
    for name in "before", best, "AMaC":
        print(f"{name}: new digits {means[name][0]:.2f} %, old digits {means[name][1]:.2f} %")
    mean = gains.mean(axis=0)
    print(f"AMaC's gain, new digits: {mean[0]:+.2f} +- {spread[0]:.2f} points")
    print(f"AMaC's gain, old digits: {mean[1]:+.2f} +- {spread[1]:.2f} points")
    print(f"frozen layers that moved, or differ from their averages: {moved}")
    whole = jax.eval_shape(amac(rate, steps).init, first)
    print(f"optimizer state: {size(amac_state):,} numbers, without freezing {size(whole):,}")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        draw(means).savefig(out / "finetune.png", dpi=150)
        print(f"picture: {out / 'finetune.png'}")
    return {
        "new": means["AMaC"][0],
        "old": means["AMaC"][1],
        "new, AdamW": means[best][0],
        "old, AdamW": means[best][1],
        "moved": moved,
        "state": size(amac_state),
        "state without freezing": size(whole),
    }


def size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def draw(means: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="accuracy on the old digits, %", ylabel="accuracy on the new digits, %")
    path = [means[f"AdamW at {rate:g}"] for rate in ADAMW_RATES]
    axes.plot(*np.transpose(path)[::-1], "o-", color="#0072b2", label="AdamW, five rates")
    for rate, (new, old) in zip(ADAMW_RATES, path, strict=True):
        axes.annotate(f"{rate:g}", (old, new), (5, -12), textcoords="offset points")
    axes.plot(*means["AMaC"][::-1], "*", color="#d55e00", markersize=14, label="AMaC")
    axes.axvline(means["before"][1], color="0.6", linestyle=":", label="before fine-tuning")
    axes.legend(loc="lower left")
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    tyro.cli(main)
