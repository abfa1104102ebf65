"""Train a character transformer on tiny Shakespeare and let it write: Flax NNX, on any mesh.

    python examples/transformer.py
    JAX_NUM_CPU_DEVICES=8 python examples/transformer.py  # 4 share a batch, 2 share each kernel

5 to 7 minutes on one CPU core. Nats a character on the validation part, means of 3 seeds: 1.565,
with `recipe` 1.644, with `adamw` at a constant rate 1.716. A step has two micro-batches."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from matplotlib.figure import Figure
from tqdm import tqdm

import amac_jax
from amac_jax import datasets, recipes

WIDTH, HEADS, LAYERS, CONTEXT = 128, 4, 2, 64
CHUNK = 50  # steps in one dispatch, and in one point of the curve


class Block(nnx.Module):
    """Causal attention and an MLP; each device has some of the heads and of the hidden units."""

    def __init__(self, rngs: nnx.Rngs):
        def linear(inputs: int, outputs: int, axes: tuple[str | None, ...], scale: float):
            init = nnx.with_partitioning(nnx.initializers.normal(scale / inputs**0.5), axes)
            return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=init, rngs=rngs)

        units = [linear(WIDTH, WIDTH, (None, "model"), 1.0) for _ in range(3)]
        self.query, self.key, self.value = units
        self.out = linear(WIDTH, WIDTH, ("model", None), 0.3)
        self.up = linear(WIDTH, 4 * WIDTH, (None, "model"), 1.4)
        self.down = linear(4 * WIDTH, WIDTH, ("model", None), 0.3)
        self.norm1, self.norm2 = nnx.RMSNorm(WIDTH, rngs=rngs), nnx.RMSNorm(WIDTH, rngs=rngs)

    def __call__(self, x):
        y = self.norm1(x)
        heads = (*x.shape[:2], HEADS, -1)
        q, k, v = (layer(y).reshape(heads) for layer in (self.query, self.key, self.value))
        y = jax.nn.dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + self.out(y.reshape(x.shape))
        return x + self.down(jax.nn.relu(self.up(self.norm2(x))))


def rotate(x):
    """Turns pairs of numbers by angles in proportion to the position of the character."""
    a, b = jnp.split(x, 2, axis=-1)
    angles = jnp.arange(x.shape[1])[:, None] * 1000.0 ** -jnp.linspace(0.0, 1.0, a.shape[-1])
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def main(
    *,
    seed: int = 0,
    optimizer: Literal["amac", "recipe", "adamw"] = "amac",
    steps: int = 1000,
    batch_size: int = 64,
    accumulate: int = 2,
    out: Path | None = Path("runs/transformer"),
) -> dict[str, float]:
    """Trains on as many devices as there are, and prints a text that the model writes.

    Args:
      seed: of the initial weights, the batches and the text.
      optimizer: "amac"; "recipe", which is `recipes.transformer`; "adamw", which is Optax's.
      steps: the length of the run, in steps of the optimizer.
      batch_size: windows of the text in a step; a multiple of `accumulate`.
      accumulate: micro-batches in a step.
      out: the folder of the picture; None draws nothing.
    """
    if min(steps, batch_size, accumulate) < 1 or batch_size % accumulate:
        raise SystemExit("--batch-size must be a multiple of --accumulate, and --steps at least 1")
    if out:
        out.mkdir(parents=True, exist_ok=True)
    text = datasets.load_text()
    train, random = jnp.asarray(text.train), np.random.default_rng(seed)
    shape = steps, accumulate, batch_size // accumulate
    starts = random.integers(len(train) - CONTEXT, size=shape)
    rows = np.lib.stride_tricks.sliding_window_view(text.validation, CONTEXT + 1)[::CONTEXT]
    tx = {
        "amac": amac_jax.amac("auto", steps, epochs=starts.size * CONTEXT / len(train)),
        "recipe": recipes.transformer(steps, learning_rate=4e-3),
        "adamw": optax.adamw(1e-3),
    }[optimizer]
    tx = amac_jax.accumulate_gradients(tx, accumulate)
    mesh = Mesh(np.reshape(jax.devices(), (-1, 2 - jax.device_count() % 2)), ("data", "model"))
    with jax.set_mesh(mesh):  # NNX puts the parameters on it, and `tx.init` the state beside them
        rngs, characters = nnx.Rngs(seed), len(text.alphabet)
        embed, norm = nnx.Embed(characters, WIDTH, rngs=rngs), nnx.RMSNorm(WIDTH, rngs=rngs)
        head = nnx.Linear(WIDTH, characters, use_bias=False, rngs=rngs)
        model = nnx.Sequential(embed, *[Block(rngs) for _ in range(LAYERS)], norm, head)
        graph, params = nnx.split(model, nnx.Param)

        def loss_of(params, rows):
            logits: Any = nnx.merge(graph, params)(rows[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()

        def micro_step(carry, start):
            params, state = carry
            rows = train[start[:, None] + jnp.arange(CONTEXT + 1)]
            rows = jax.lax.with_sharding_constraint(rows, PartitionSpec("data"))
            loss, gradients = jax.value_and_grad(loss_of)(params, rows)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), loss

        train_on = jax.jit(partial(jax.lax.scan, micro_step), donate_argnums=0)

        @jax.jit
        def validate(params):
            return jax.lax.map(lambda row: loss_of(params, row[None]), rows, batch_size=64).mean()

        @jax.jit
        def write(params, key):
            def one_more(seen, key):
                logits: Any = nnx.merge(graph, params)(seen[None])
                character = jax.random.categorical(key, logits[0, -1] / 0.8)
                return jnp.append(seen[1:], character), character

            return jax.lax.scan(one_more, rows[0, :-1], jax.random.split(key, 500))[1]

        carry, curve = (params, tx.init(params)), []
        for part in tqdm(np.split(starts, range(CHUNK, steps, CHUNK)), disable=None):
            carry, losses = train_on(carry, np.concatenate(part))
            curve.append(float(losses.mean()))
        params = amac_jax.averaged_params(*carry[::-1]) if optimizer == "amac" else carry[0]
        loss = float(validate(params))
        print("".join(text.alphabet[i] for i in write(params, jax.random.key(seed))), end="\n\n")
    print(f"validation loss: {loss:.3f} nats a character")
    if out:
        axes = (figure := Figure((6, 4), layout="constrained")).subplots()
        axes.plot(CHUNK * (1 + np.arange(len(curve))), curve)
        axes.set(xlabel="steps", ylabel="training loss, nats a character")
        axes.set_title(f"{text.name}, {optimizer}: in the end {loss:.3f} on validation text")
        figure.savefig(out / "loss.png", dpi=150)
        print(f"picture: {out / 'loss.png'}")
    return {"validation loss": loss, "training loss": curve[-1]}


if __name__ == "__main__":
    tyro.cli(main)
