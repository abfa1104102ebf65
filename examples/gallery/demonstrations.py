"""Every schedule drawn, clipping saving a run, accumulation equal to the large batch."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

import amac_jax
from amac_jax.tools.plotting import plot_schedule
from examples.gallery.optimizer_tasks import cross_entropy, spirals, train


def clipping_demo(rate: float = 0.02, steps: int = 500) -> tuple[dict[str, Any], Figure]:
    """A linear recurrent net learns to repeat the first of ten inputs, with and without clipping.

    Its gradient holds powers of its matrix: one step that is too long makes the next far longer.
    """
    random = np.random.default_rng(0)
    params = {
        "recurrent": (0.7 * np.linalg.qr(random.normal(size=(8, 8)))[0]).astype("f4"),
        "input": random.normal(size=8).astype("f4"),
        "output": random.normal(size=8).astype("f4"),
    }
    inputs = random.normal(size=(10, 100)).astype("f4")  # of 100 sequences

    def loss(params, _):
        def advance(hidden, x):
            return hidden @ params["recurrent"] + x[:, None] * params["input"], None

        hidden, _ = jax.lax.scan(advance, jnp.zeros((100, 8)), inputs)
        return jnp.mean((hidden @ params["output"] - inputs[0]) ** 2)

    @partial(jax.jit, static_argnames="tx")
    def losses(tx):
        return train(tx, loss, (params, tx.init(params)), jnp.arange(steps))[1][0]

    plain, clipped = (
        np.asarray(losses(amac_jax.sgd(rate, clip_norm=limit))) for limit in (None, 1.0)
    )
    exploded = None if np.isfinite(plain).all() else int(np.argmin(np.isfinite(plain))) + 1
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    numbers = np.arange(1, steps + 1)
    label = f"sgd({rate:g})" + (f": not finite from step {exploded} on" if exploded else "")
    axes.plot(numbers, plain, color="C3", marker=".", label=label)
    axes.plot(numbers, clipped, color="C0", label=f"sgd({rate:g}, clip_norm=1.0)")
    axes.set(xscale="log", yscale="log", xlabel="step", ylabel="loss")
    axes.set(title="A recurrent net, with and without clipping", ylim=(clipped.min() / 2, 1e6))
    axes.legend()
    found = {
        "learning_rate": rate,
        "exploded_at_step": exploded,
        "first_loss": float(plain[0]),
        "last_loss": {"sgd": float(plain[-1]), "sgd, clip_norm=1.0": float(clipped[-1])},
    }
    return found, figure


def accumulation_demo(steps: int = 100) -> tuple[dict[str, Any], Figure]:
    """Four micro-batches of 16 to a step, against one batch of 64 of the same points."""
    problem = jax.tree.map(jnp.asarray, spirals(0, steps))
    chosen = np.random.default_rng(0).integers(200, size=(steps, 64))

    def loss(params, indices):
        return cross_entropy(params, jax.tree.map(lambda array: array[indices], problem.train))

    @partial(jax.jit, static_argnames="tx")
    def trained(tx, batches):
        """Each step's loss on all points, and weights."""
        _, (_, weights) = train(tx, loss, (problem.params, tx.init(problem.params)), batches)
        return jax.vmap(cross_entropy, in_axes=(0, None))(weights, problem.train), weights

    tx = amac_jax.momentum(0.1)
    losses, weights = trained(tx, chosen)
    accumulated = trained(amac_jax.accumulate_gradients(tx, 4), chosen.reshape(-1, 16))
    small_losses, small_weights = jax.tree.map(lambda leaf: leaf[3::4], accumulated)  # each fourth
    differences = jax.tree.map(
        lambda a, b: jnp.abs(a - b).reshape(steps, -1).max(axis=1), weights, small_weights
    )
    difference = np.max(jax.tree.leaves(differences), axis=0)

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    above, below = figure.subplots(1, 2)
    numbers = np.arange(1, steps + 1)
    above.plot(numbers, losses, linewidth=5, alpha=0.3, label="batches of 64")
    above.plot(numbers, small_losses, label="4 micro-batches of 16")
    above.set(xlabel="step", ylabel="loss", title="Two spirals, momentum(0.1)")
    above.legend()
    below.plot(numbers, np.where(difference > 0, difference, np.nan), marker=".", linewidth=0.8)
    below.set(xlabel="step", yscale="log", title="Largest difference of the weights")
    below.set_ylim(1e-9, max(1e-5, 10 * difference.max()))
    return {"largest_difference": float(difference.max())}, figure


def schedules_figure(steps: int = 100) -> Figure:
    """Every schedule of the library, and what a plateau of the loss makes of a constant rate."""
    plateau = amac_jax.reduce_on_plateau(0.5, patience=10)

    def scale(state, loss):  # of an update of 1
        update, state = plateau.update(jnp.ones([]), state, value=loss)
        return state, update

    losses = np.maximum(1.0 - 0.02 * np.arange(steps), 0.4)  # no better from step 31 on
    scales = np.asarray(jax.lax.scan(scale, plateau.init(jnp.ones([])), losses)[1])
    schedules = {
        "constant": amac_jax.constant(1.0),
        "step_decay": amac_jax.step_decay(1.0, factor=0.5, period=25),
        "exponential_decay, factor=0.97": amac_jax.exponential_decay(1.0, factor=0.97),
        "exponential_decay, rate=0.01": amac_jax.exponential_decay(1.0, rate=0.01),
        "inverse_power_decay": amac_jax.inverse_power_decay(1.0),
        "polynomial_decay, power=2": amac_jax.polynomial_decay(1.0, steps, power=2.0),
        "piecewise_constant": amac_jax.piecewise_constant([1.0, 0.3, 0.1], [50, 80]),
        "linear_anneal": amac_jax.linear_anneal(1.0, steps),
        "noise_anneal": amac_jax.noise_anneal(1.0),
        "cosine": amac_jax.cosine(1.0, steps),
        "cosine_restarts, multiplier=2": amac_jax.cosine_restarts(1.0, 15, multiplier=2.0),
        "warmup_cosine": amac_jax.warmup_cosine(1.0, steps, warmup_steps=10),
        "warmup(exponential_decay)": amac_jax.warmup(
            amac_jax.exponential_decay(1.0, factor=0.97), warmup_steps=10
        ),
        "one_cycle": amac_jax.one_cycle(1.0, steps),
        # With Optax's shares of the peak at both ends, this is its one-cycle.
        'one_cycle, rise=0.3, shape="cosine"': amac_jax.one_cycle(
            1.0, steps, rise=0.3, start=1 / 25, end=1 / 25e4, shape="cosine"
        ),
        "warmup_stable_decay": amac_jax.warmup_stable_decay(1.0, steps, 10, decay_steps=20),
        "reduce_on_plateau, loss flat after 30": lambda count: scales[count],
    }
    with rc_context({"axes.titlesize": "medium"}):
        return plot_schedule(*schedules.values(), steps=steps, labels=list(schedules))
