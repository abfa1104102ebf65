"""What the automatic values of `amac` stand for, and what it puts around its core."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from tests.helpers import assert_same_bits, normals, train

RATE, TOTAL = 0.1, 20
PARAMS = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}


def ends(tx: optax.GradientTransformation, steps: int = TOTAL) -> list[tuple[Any, Any]]:
    """Parameters and state after every step of a run."""
    return [*train(tx, PARAMS, normals(0, PARAMS, steps))]


@pytest.mark.parametrize(
    ("automatic", "given"),
    [
        ({}, {"warmup_steps": TOTAL / 10}),
        ({}, {"weight_decay": 3 / (RATE * TOTAL)}),
        ({}, {"average_start": 0.75 * TOTAL}),
        ({"momentum": 0.6}, {"momentum": 0.6, "dampening": 0.6}),
        ({}, {"dampening": None}),
    ],
)
def test_an_automatic_value_is_this_one(automatic, given):
    assert_same_bits(
        ends(amac_jax.amac(RATE, TOTAL, **given)), ends(amac_jax.amac(RATE, TOTAL, **automatic))
    )


def test_it_is_its_chain_written_out():
    """Every technique by its name, around Adam's core, at the warm-up cosine's rate."""
    chain = amac_jax.compose(
        optax.scale_by_adam(b1=0.8, b2=0.99, eps=1e-3),
        amac_jax.warmup_cosine(RATE, TOTAL, TOTAL / 10, end=0.3 * RATE),
        clip_norm=1.0,
        centralize=True,
        noise=amac_jax.linear_anneal(0.1, TOTAL),
        clip_value=1.0,
        momentum=0.9,
        dampening=0.9,
        weight_decay=0.1,
        sync_period=5,
        slow_step_size=0.8,
        average_start=0.75 * TOTAL,
        average_period=5,
    )
    named = {"clip_norm": 1.0, "noise": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    tx = amac_jax.amac(RATE, TOTAL, b1=0.8, b2=0.99, eps=1e-3, **named)
    for (ours, _), (written, _) in zip(ends(tx), ends(chain), strict=True):
        np.testing.assert_allclose(ours["kernel"], written["kernel"], rtol=1e-6)
        np.testing.assert_allclose(ours["bias"], written["bias"], rtol=1e-6, atol=1e-7)
