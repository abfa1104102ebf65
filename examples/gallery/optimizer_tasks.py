"""Three small tasks to compare optimizers on, and the loop that trains on any of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from amac_jax.tools import datasets

Points = tuple[np.ndarray, np.ndarray]  # inputs (n, features), and labels or values (n,)


class Problem(NamedTuple):
    """What a seed makes of a task; with every seed's, arrays have one axis more in front."""

    params: Any
    train: Points
    choose: Points  # the rate is chosen on these
    report: Points
    batches: np.ndarray  # (steps, batch size) indices into `train`
    seed: Any


@dataclass(frozen=True, eq=False)  # hashed by identity, as a static argument must be
class Task:
    title: str
    make: Callable[[int, int], Problem]  # of a seed and a number of steps
    loss: Callable[[Any, Points], jax.Array]
    has_accuracy: bool
    every: int  # steps from one measurement to the next, if that divides their number
    target: float  # a loss, for counting the steps to it
    newton: dict[str, Any]


def squared_error(params, points):
    x, y = points
    return jnp.mean((x @ params["weights"] - y) ** 2) / 2


def network(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def cross_entropy(params, points):
    x, y = points
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(network(params, x), y))


def initial_network(random: np.random.Generator, *sizes: int):
    def layer(inputs, outputs):
        kernel = random.normal(size=(inputs, outputs)) / math.sqrt(inputs)
        return {"kernel": kernel.astype("f4"), "bias": np.zeros(outputs, "f4")}

    return {"hidden": layer(*sizes[:2]), "out": layer(*sizes[1:])}


def regression(seed: int, steps: int) -> Problem:
    """Least squares with features in units of their own, from 0.1 to 3 of the same thing."""
    random = np.random.default_rng(seed)
    units = np.logspace(-1, 0.5, 10)
    x = random.normal(size=(200, 10)) * units
    y = x @ (random.normal(size=10) / units) + 0.5 * random.normal(size=200)
    # By how much a loss is above the lowest is the error against the exact solution's outputs;
    # the difference of two losses would round to 0 long before.
    exact = x @ np.linalg.lstsq(x, y)[0]
    x, y, exact = (array.astype("f4") for array in (x, y, exact))
    # A vector is no kernel: nothing decays or centralizes it away from the solution.
    params = {"weights": np.zeros(10, "f4")}
    batches = np.broadcast_to(np.arange(200), (steps, 200))
    return Problem(params, (x, y), (x, exact), (x, exact), batches, seed)


def spirals(seed: int, steps: int) -> Problem:
    """Two classes along two spirals that wind around each other."""
    random = np.random.default_rng(seed)

    def points(count: int) -> Points:
        labels = random.integers(2, size=count).astype("i4")
        radius = random.uniform(0.5, 2.0, size=count)
        angle = 1.3 * np.pi * radius + np.pi * labels
        x = radius * np.stack([np.cos(angle), np.sin(angle)])
        return (x.T + 0.1 * random.normal(size=(count, 2))).astype("f4"), labels

    params = initial_network(random, 2, 32, 2)
    batches = np.broadcast_to(np.arange(200), (steps, 200))
    return Problem(params, points(200), points(300), points(300), batches, seed)


def digits(seed: int, steps: int) -> Problem:
    """The 8 x 8 images of handwritten digits that scikit-learn ships."""
    random = np.random.default_rng(seed)
    data = datasets.load("digits")
    images, test_images = (
        part.reshape(-1, 64).astype("f4") / 127.5 - 1.0
        for part in (data.train_images, data.test_images)
    )
    order = random.permutation(len(images))
    held_out, train = order[:300], order[300:]
    return Problem(
        params=initial_network(random, 64, 32, 10),
        train=(images[train], data.train_labels[train]),
        choose=(images[held_out], data.train_labels[held_out]),
        report=(test_images, data.test_labels),
        batches=random.integers(len(train), size=(steps, 64)),
        seed=seed,
    )


# A network's Hessian is indefinite, and that of a batch uncertain: saddle_free, for Newton's own
# step is attracted by saddle points; damping, or the step along flat directions is far too long.
# Four Hessian-vector products a step, without the matrix, are a rough inverse and enough.
ON_NETWORKS = {"damping": 0.3, "saddle_free": True, "matrix_free": True, "max_iterations": 4}
TASKS = {
    "regression": Task(
        "Least squares, loss above the exact solution's", regression, squared_error,
        has_accuracy=False, every=1, target=1e-3, newton={},
    ),
    "classification": Task(
        "Two spirals, loss on test points", spirals, cross_entropy,
        has_accuracy=True, every=5, target=0.1, newton=ON_NETWORKS,
    ),
    "digits": Task(
        "Handwritten digits, loss on test images", digits, cross_entropy,
        has_accuracy=True, every=10, target=0.2, newton=ON_NETWORKS,
    ),
}  # fmt: skip


def train(tx, loss, carry, batches):
    """A step of `tx` for each batch: (weights, state) in the end, and (loss, weights) of each."""
    tx = optax.with_extra_args_support(tx)

    def step(carry, batch):
        params, state = carry

        def value_fn(params):  # of the weights alone, as sophia and newton need it
            return loss(params, batch)

        value, gradients = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(gradients, state, params, value_fn=value_fn)
        params = optax.apply_updates(params, updates)
        return (params, state), (value, params)

    return jax.lax.scan(step, carry, batches)
