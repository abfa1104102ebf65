"""Interrupt a Flax NNX run, go on from its Orbax checkpoint, and end with the same bits.

    python examples/resume.py   # 9 seconds on 2 CPU cores: "identical: 28 of 28 arrays"

`train` goes on from the latest checkpoint in its folder, in this process or in another."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tyro
from flax import nnx

import amac_jax


def build(seed: int):
    rngs = nnx.Rngs(seed)
    hidden = nnx.Linear(8, 64, rngs=rngs), nnx.relu, nnx.Dropout(0.1, rngs=rngs)
    model = nnx.Sequential(*hidden, nnx.Linear(64, 1, rngs=rngs))
    tx = amac_jax.adamw(1e-3, clip_norm=1.0, noise=0.01, sync_period=7, average_start=20)
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, key):
    x = jax.random.normal(key, (64, 8))  # your batch: a function of the seed and the step
    y = jnp.sin(x.sum(axis=1, keepdims=True))
    optimizer.update(model, nnx.grad(lambda model: jnp.mean((model(x) - y) ** 2))(model))


def train(folder: Path, seed: int, stop: int):
    with ocp.CheckpointManager(folder.resolve()) as manager:  # leaving waits for the last save
        model, optimizer = build(seed)
        if start := manager.latest_step() or 0:  # a restore needs shapes and types alone
            graphdef, state = nnx.split(nnx.eval_shape(lambda: build(seed)))
            state = manager.restore(start, args=ocp.args.StandardRestore(state))
            model, optimizer = nnx.merge(graphdef, state)
        for number in range(start, stop):
            step(model, optimizer, jax.random.fold_in(jax.random.key(seed + 1), number))
            if (number + 1) % 25 == 0:  # weights, optimizer, dropout's key; in the background
                manager.save(number + 1, args=ocp.args.StandardSave(nnx.state((model, optimizer))))
    return nnx.state((model, optimizer))


def main(*, seed: int = 0) -> dict[str, float]:
    """A run stops after step 133 and goes on from the checkpoint of step 125, to step 200."""
    with tempfile.TemporaryDirectory() as folder:
        whole = train(Path(folder, "undisturbed"), seed, 200)
        train(Path(folder, "interrupted"), seed, 133)  # as if it were killed here
        resumed = train(Path(folder, "interrupted"), seed, 200)
    same = jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), whole, resumed))
    print(f"identical: {sum(same)} of {len(same)} arrays")
    return {"identical": sum(same), "arrays": len(same)}


if __name__ == "__main__":
    tyro.cli(main)
