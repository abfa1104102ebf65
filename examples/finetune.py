"""Fine-tune a network: layer-wise rates, and frozen layers that have no optimizer state.

    python examples/finetune.py   # 20 seconds on one CPU core; means of 6 seeds

A network learns the digits 0 to 4, then 5 to 9 from 100 images, with a head of their own. Its first
layer and its old head are frozen. In AMaC the layers between move the less the lower they are, so
that the old head still reads; AdamW has one rate. At the best of five for the test images, AMaC has
94.0 % of the new digits right, AdamW 92.2 %; of new and old digits on average 93.5 % and 93.3 %.
"""

from functools import partial
from pathlib import Path
from typing import Any

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

OLD, NEW, SEEDS = "old_head", "new_head", 6


class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = images.reshape(len(images), -1) / 127.5 - 1.0
        for name in ("layer0", "layer1", "layer2"):
            x = nn.relu(nn.Dense(64, name=name)(x))
        return {head: nn.Dense(5, name=head)(x) for head in (OLD, NEW)}


def amac(rate, steps: int, epochs: float):
    """With 0.64, 0.8 and 1 times the rate in `layer1`, `layer2` and the new head."""
    multipliers = amac_jax.layerwise_decay(0.8, ["layer1", "layer2", NEW])
    return amac_jax.amac(rate, steps, epochs=epochs, layer_multipliers=multipliers)


def adamw(rate, steps: int, epochs: float):
    return optax.adamw(amac_jax.warmup_cosine(rate, steps, steps // 10), weight_decay=0.01)


RATES = {amac: (0.003, 0.006, 0.012, 0.04, 0.12), adamw: (0.001, 0.003, 0.01, 0.03, 0.1)}


def freezing(tx):
    """`tx` for all but the first layer and the old head, which stay as they are."""
    return optax.partition(
        {"train": tx, "freeze": optax.set_to_zero()},
        amac_jax.by_path({"layer0": "freeze", OLD: "freeze"}, default="train"),
    )


@partial(jax.jit, static_argnames=("optimizer", "head", "steps"))
def train(optimizer, rate, params, images, labels, head: str, steps: int, key):
    """Batches of 32 images, drawn at random. Returns the weights and the optimizer's state."""
    tx = optimizer(rate, steps, epochs=steps * 32 / len(images))
    tx = freezing(tx) if head == NEW else tx

    def step(carry, key):
        params, state = carry
        batch = jax.random.randint(key, (32,), 0, len(images))

        def loss_of(params):
            out: Any = Net().apply({"params": params}, images[batch])
            return optax.softmax_cross_entropy_with_integer_labels(out[head], labels[batch]).mean()

        updates, state = tx.update(jax.grad(loss_of)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, steps))[0]


@partial(jax.jit, static_argnames="head")
def accuracy(params, images, labels, head: str):
    logits: Any = Net().apply({"params": params}, images)
    return 100 * jnp.mean(logits[head].argmax(axis=-1) == labels)


def main(*, seed: int = 0, out: Path | None = Path("runs/finetune")) -> dict[str, float]:
    """Tune a network on new digits, and see what is left of the old ones.

    Args:
        seed: the first of six, of the initial weights and of the images that are held out.
        out: the folder of the picture; None draws nothing.
    """
    data = datasets.load("digits")
    images = np.concatenate([data.train_images, data.test_images])
    labels = np.concatenate([data.train_labels, data.test_labels])
    runs = [(optimizer, rate) for optimizer, rates in RATES.items() for rate in rates]
    scores = {run: [] for run in ("before", *runs)}  # (new digits, old digits) of each seed
    moved = numbers = 0
    for number in tqdm(range(seed, seed + SEEDS), unit="seed", disable=None):
        order = np.random.default_rng(number).permutation(len(images))
        old, new = order[labels[order] < 5], order[labels[order] >= 5]
        learnt, old_test = ((images[i], labels[i], OLD) for i in (old[:600], old[600:]))
        to_learn, new_test = ((images[i], labels[i] - 5, NEW) for i in (new[:100], new[100:]))
        init_key, old_key, new_key = jax.random.split(jax.random.key(number), 3)
        params = Net().init(init_key, images[:1])["params"]
        first, _ = train(adamw, 3e-3, params, *learnt, 600, old_key)
        scores["before"].append((accuracy(first, *new_test), accuracy(first, *old_test)))
        for optimizer, rate in runs:
            params, state = train(optimizer, rate, first, *to_learn, 300, new_key)
            if optimizer is amac:
                params = amac_jax.averaged_params(state, params)
                numbers = sum(leaf.size for leaf in jax.tree.leaves(state))
            scores[optimizer, rate] += [(accuracy(params, *new_test), accuracy(params, *old_test))]
            for layer in "layer0", OLD:
                same = jax.tree.map(np.array_equal, params[layer], first[layer])
                moved += jax.tree.leaves(same).count(False)
    means = {run: np.mean(pairs, axis=0) for run, pairs in scores.items()}
    found: dict[str, float] = {"moved": moved, "numbers": numbers}
    for label, share in ("new digits", (1.0, 0.0)), ("new and old digits", (0.5, 0.5)):
        for optimizer, rates in RATES.items():  # each at its best of five rates
            best = max(rates, key=lambda rate: means[optimizer, rate] @ share)
            found[f"{label}, {optimizer.__name__}"] = value = float(means[optimizer, best] @ share)
            print(f"{label}, {optimizer.__name__} at {best:g}: {value:.2f} %")
    print(f"frozen leaves that moved, or differ from their averages: {moved}")
    print(f"numbers in AMaC's state: {numbers}")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        draw(means).savefig(out / "finetune.png", dpi=150)
        print(f"picture: {out / 'finetune.png'}")
    return found


def draw(means: dict[Any, np.ndarray]) -> Figure:
    axes = (figure := Figure(figsize=(6, 4), layout="constrained")).subplots()
    axes.set(xlabel="accuracy on the old digits, %", ylabel="accuracy on the new digits, %")
    for (optimizer, rates), color in zip(RATES.items(), ("#d55e00", "#0072b2"), strict=True):
        path = [means[optimizer, rate] for rate in rates]
        axes.plot(*np.transpose(path)[::-1], "o-", color=color, label=optimizer.__name__)
        ha, va = ("left", "bottom") if optimizer is amac else ("right", "top")
        for rate, (new, old) in zip(rates, path, strict=True):
            axes.annotate(f" {rate:g} ", (old, new), color=color, ha=ha, va=va)
    axes.axvline(means["before"][1], color="0.6", linestyle=":", label="before tuning")
    axes.margins(0.1)
    axes.legend(title="learning rates of")
    return figure


if __name__ == "__main__":
    tyro.cli(main)
