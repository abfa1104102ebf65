"""Interrupt a Flax NNX run, go on from its Orbax checkpoint, and end with the same bits.

    python examples/resume.py

TIME. RESULT.

`train` goes on from the latest checkpoint in its folder, in this process or in another."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tyro
from flax import nnx

import amac_jax


def build(seed: int):
    rngs = nnx.Rngs(seed)
    model = nnx.Sequential(
        *(nnx.Linear(8, 64, rngs=rngs), nnx.relu, nnx.Dropout(0.1, rngs=rngs)),
        nnx.Linear(64, 1, rngs=rngs),
    )
    tx = amac_jax.adamw(1e-3, clip_norm=1.0, noise=0.01, sync_period=7, average_start=20)
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, key):
    x = jax.random.normal(key, (64, 8))  # your batch: a function of the seed and the step
    y = jnp.sin(x.sum(axis=1, keepdims=True))
    gradients = nnx.grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
    optimizer.update(model, gradients)


def train(folder: Path, seed: int, stop: int):
    with ocp.CheckpointManager(folder.resolve()) as manager:  # leaving waits for the last save
        if (start := manager.latest_step() or 0) == 0:
            model, optimizer = build(seed)
        else:  # shapes and types alone: nothing is computed that the checkpoint has
            graphdef, state = nnx.split(nnx.eval_shape(lambda: build(seed)))
            state = manager.restore(start, args=ocp.args.StandardRestore(state))
            model, optimizer = nnx.merge(graphdef, state)
        print(f"{folder.name}: from step {start} to step {stop}")
        for number in range(start, stop):
            step(model, optimizer, jax.random.fold_in(jax.random.key(seed), number))
            if (number + 1) % 50 == 0:  # weights, optimizer, dropout's key; while training goes on
                state = nnx.state((model, optimizer))
                manager.save(number + 1, args=ocp.args.StandardSave(state))
    return nnx.state((model, optimizer))


def bits(leaf) -> bytes:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()


def main(*, seed: int = 0, steps: int = 200) -> dict[str, float]:
    """Args:
    seed: of weights, batches, dropout and noise.
    steps: length of the run; it is interrupted after two thirds, and saved every 50 steps.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole = train(Path(folder, "undisturbed"), seed, steps)
        train(Path(folder, "interrupted"), seed, 2 * steps // 3)  # as if it were killed here
        resumed = train(Path(folder, "interrupted"), seed, steps)
    same = [
        bits(a) == bits(b) for a, b in zip(*map(jax.tree.leaves, (whole, resumed)), strict=True)
    ]
    print(f"identical: {sum(same)} of {len(same)} arrays")
    return {"identical": sum(same), "arrays": len(same)}


if __name__ == "__main__":
    tyro.cli(main)
