"""One run of a factory in two halves, as both processes of test_resume.py take them."""

from typing import Any

import jax
import numpy as np
import optax

from tests.helpers import array
from tests.table import CASES

HALF, WHOLE = 10, 20


def tree(seed: int) -> Any:
    rng = np.random.default_rng(seed)

    def draw(dtype, *shape):
        return array(rng.normal(size=shape), dtype)

    # In two precisions, each with an axis for eight devices; counters are the scalars.
    return {"kernel": draw("bfloat16", 8, 3), "embedding": draw("float32", 5, 16)}


def begin(name: str) -> tuple[Any, Any]:
    """The jitted step of a case, and its parameters and state before the first."""
    tx = optax.with_extra_args_support(CASES[name].build())

    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = tree(0)
    return step, {"params": params, "state": tx.init(params)}


def advance(step: Any, run: Any, numbers: range) -> Any:
    params, state = run["params"], run["state"]
    for number in numbers:
        params, state = step(params, state, tree(1 + number))
    return {"params": params, "state": state}


def slug(name: str) -> str:
    return name.replace(" ", "_")
