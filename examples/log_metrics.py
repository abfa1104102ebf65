"""Write an optimizer's metrics to a CSV file and to TensorBoard while it trains.

    python examples/log_metrics.py
    tensorboard --logdir runs/log_metrics    # if TensorBoard is installed

It takes 8 seconds and writes 100 rows of 14 metrics. `record_metrics=10` records at steps 1, 10,
20, ..., and other steps cost nothing. The metrics are arrays in the optimizer's state, so they
leave a jitted step with it. Other trackers take them as these do, as a dictionary of numbers.
"""

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import tyro
from tensorboardX import SummaryWriter
from tqdm import trange

import amac_jax


def predict(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"]


def main(*, steps: int = 1000, every: int = 10, out: Path = Path("runs/log_metrics")) -> None:
    """Fit a noisy sine and log the optimizer's metrics.

    Args:
        steps: of the optimizer, with 32 points each.
        every: steps from one row to the next.
        out: the folder of metrics.csv and of TensorBoard's event file.
    """
    if not 1 <= every <= steps:
        raise SystemExit(f"--every must be from 1 to --steps, got {every} and {steps}")
    out.mkdir(parents=True, exist_ok=True)
    key, noise_key, weights_key = jax.random.split(jax.random.key(0), 3)
    x = jnp.linspace(-3.0, 3.0, 256)[:, None]
    y = jnp.sin(x) + 0.1 * jax.random.normal(noise_key, x.shape)
    w1 = jax.random.normal(weights_key, (1, 64))
    params = {"w1": w1, "b1": jnp.zeros(64), "w2": jnp.zeros((64, 1))}
    tx = amac_jax.amac("auto", steps, core="adam", momentum=0.5, noise=0.1, record_metrics=every)

    @jax.jit
    def step(params, state, key):
        chosen = jax.random.randint(key, (32,), 0, len(x))
        loss, gradients = jax.value_and_grad(
            lambda params: jnp.mean((predict(params, x[chosen]) - y[chosen]) ** 2)
        )(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    state = tx.init(params)
    columns = ["step", "loss", *amac_jax.metrics(state)]
    with open(out / "metrics.csv", "w", newline="") as file, SummaryWriter(str(out)) as board:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        for count in trange(1, steps + 1, disable=None):
            params, state, loss = step(params, state, jax.random.fold_in(key, count))
            if count % every == 0:  # only here does Python wait for the numbers
                row = {"loss": loss, **amac_jax.metrics(state)}
                row = {name: value.item() for name, value in row.items()}
                table.writerow({"step": count, **row})
                for name, value in row.items():
                    board.add_scalar(name, value, count)
    print(f"metrics: {len(columns) - 1} at {steps // every} steps")
    print(f"table: {out / 'metrics.csv'}")


if __name__ == "__main__":
    tyro.cli(main)
