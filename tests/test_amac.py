"""What the automatic values of `amac` stand for, and what it puts around its cores."""

import ast
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from tests.helpers import assert_close, assert_same_bits, normals, train

RATE, TOTAL = 0.1, 20
PARAMS = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
MUON = {"core": "muon", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "end_ratio": 0.3}
AVERAGED = {"average_start": 0.75 * TOTAL, "average_period": 5}


def ends(tx: optax.GradientTransformation, steps: int = TOTAL) -> list[tuple[Any, Any]]:
    """Parameters and state after every step of a run."""
    return [*train(tx, PARAMS, normals(0, PARAMS, steps))]


@pytest.mark.parametrize(
    ("automatic", "given"),
    [
        ({}, {**MUON, **AVERAGED}),
        ({}, {"warmup_steps": TOTAL / 10}),
        ({}, {"weight_decay": 0.15, "decay_floor": 0.7}),
        ({"epochs": 15}, {"weight_decay": 0.5, "decay_floor": 0.7}),
        ({"epochs": 0.1}, {"weight_decay": 0.05, "decay_floor": 0.7}),
        ({"epochs": 1000}, {"weight_decay": 0.05 / RATE, "decay_floor": 0.7}),
        ({"momentum": 0.6}, {"momentum": 0.6, "dampening": 0.6}),
        ({"sync_period": 3}, {"sync_period": 3, "slow_step_size": 0.8}),
        (
            {"core": "adam"},
            {"core": "adam", "centralize": True, "clip_value": 1.0, "sync_period": 5},
        ),
    ],
)
def test_an_automatic_value_is_this_one(automatic, given):
    assert_same_bits(
        ends(amac_jax.amac(RATE, TOTAL, **given)), ends(amac_jax.amac(RATE, TOTAL, **automatic))
    )


@pytest.mark.parametrize("steps", [100, 1000, 30_000])
def test_the_automatic_rates_are_these(steps):
    """Of kernels, and of all other leaves, in the first step after the warm-up."""
    expected = {"muon": 0.015 * (1000 / steps) ** 0.5, "adam": 0.01 * (1000 / steps) ** (1 / 3)}
    for core, rate in expected.items():
        tx = amac_jax.amac("auto", steps, core=core, warmup_steps=None, weight_decay=None)
        updates, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
        np.testing.assert_allclose(amac_jax.learning_rate(state), rate, rtol=1e-3)
    tx = amac_jax.amac("auto", steps, warmup_steps=None, weight_decay=None)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = tx.update(ones, tx.init(ones), ones)
    np.testing.assert_allclose(updates["bias"], -expected["adam"], rtol=1e-3)


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
    tx = amac_jax.amac(RATE, TOTAL, core="adam", b1=0.8, b2=0.99, eps=1e-3, **named)
    for (ours, _), (written, _) in zip(ends(tx), ends(chain), strict=True):
        np.testing.assert_allclose(ours["kernel"], written["kernel"], rtol=1e-6)
        np.testing.assert_allclose(ours["bias"], written["bias"], rtol=1e-6, atol=1e-7)


def test_around_muon_it_is_decay_and_averaging():
    chain = amac_jax.compose(
        amac_jax.scale_by_orthogonal(
            0.8, others=optax.scale_by_adam(b2=0.99, eps=1e-3),
            others_multiplier=0.01 * (1000 / TOTAL) ** (1 / 3) / (0.015 * (1000 / TOTAL) ** 0.5),
        ),
        amac_jax.warmup_cosine(RATE, TOTAL, TOTAL / 10, end=0.3 * RATE),
        weight_decay=0.2,
        **AVERAGED,
    )  # fmt: skip
    tx = amac_jax.amac(RATE, TOTAL, b1=0.8, b2=0.99, eps=1e-3, weight_decay=0.2)
    for (ours, _), (written, _) in zip(ends(tx), ends(chain), strict=True):
        assert_close(ours, written)


def test_a_core_of_ones_own_has_decay_averaging_and_the_schedule_around_it():
    chain = amac_jax.compose(
        optax.scale_by_lion(),
        amac_jax.warmup_cosine(RATE, TOTAL, TOTAL / 10, end=0.3 * RATE),
        weight_decay=0.15,
        decay_floor=0.7,
        **AVERAGED,
    )
    ours = amac_jax.amac(RATE, TOTAL, core=optax.scale_by_lion())
    assert_close([params for params, _ in ends(ours)], [params for params, _ in ends(chain)])
    assert not {"b1=", "b2=", "eps="} & {*re.findall(r"\w+=", repr(ours))}


def test_a_core_of_ones_own_goes_with_injected_hyperparameters():
    """`optax.inject_hyperparams` hands over the defaults of b1, b2 and eps too."""
    core = optax.scale_by_lion()
    injected = optax.inject_hyperparams(amac_jax.amac)(RATE, TOTAL, core=core)
    plain = amac_jax.amac(RATE, TOTAL, core=core)
    assert_close([params for params, _ in ends(injected)], [params for params, _ in ends(plain)])


@pytest.mark.parametrize("off", [{"warmup_steps": 0}, {"warmup_steps": None}, {"end_ratio": 1}])
def test_off_values_pass_beside_a_schedule(off):
    schedule = optax.linear_schedule(0.3, 0.1, 7)
    ours, usual = (amac_jax.amac(schedule, TOTAL, **given) for given in (off, {}))
    assert_close([params for params, _ in ends(ours)], [params for params, _ in ends(usual)])


def test_a_schedule_is_followed_as_it_is():
    schedule = optax.linear_schedule(0.3, 0.1, 7)
    tx = amac_jax.amac(schedule, TOTAL)
    for count, (_, state) in enumerate(ends(tx, 9)):
        np.testing.assert_allclose(amac_jax.learning_rate(state), schedule(count), rtol=1e-6)


def test_the_automatic_decay_does_not_rise_where_the_rate_falls():
    """At a rate of 0.01 and less it is 0.8; at 0.3 it is 0.05 / 0.3."""
    tx = amac_jax.amac(optax.linear_schedule(0.3, 0.001, 10), TOTAL, epochs=50, record_metrics=True)
    decays = [float(amac_jax.metrics(state)["weight_decay"]) for _, state in ends(tx, 12)]
    np.testing.assert_allclose(decays[0], 0.05 / 0.3, rtol=1e-5)
    assert max(decays) <= 0.8 + 1e-6
    shares = [decay * rate for decay, rate in zip(decays, [0.3, *[0.0] * 11], strict=True)]
    assert max(shares) <= 0.05 + 1e-6


@pytest.mark.parametrize("steps", [2, 200, 2000])
@pytest.mark.parametrize("epochs", [None, 100])
def test_decay_alone_leaves_a_trained_network_its_weights(steps, epochs):
    """No gradient at all: kernels keep 0.7 of their norm, and a step takes 5 % at most."""
    tx = amac_jax.amac("auto", steps, epochs=epochs)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(zeros, state, params)
        share = -updates["kernel"] / params["kernel"]
        return (optax.apply_updates(params, updates), state), jnp.max(share)

    (params, _), shares = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), length=steps)
    assert np.max(shares) <= 0.05 + 1e-6
    ratio = jnp.linalg.norm(params["kernel"]) / jnp.linalg.norm(PARAMS["kernel"])
    assert 0.7 - 1e-5 <= ratio < 1
    assert epochs is None or steps == 2 or ratio < 0.7 + 1e-3  # the floor is what stops it
    assert_same_bits(params["bias"], PARAMS["bias"])


@pytest.mark.parametrize(
    "arguments",
    [{}, {"epochs": 8}, {"core": "adam"}, {"sync_period": 5}, {"average_start": None}],
)
def test_its_text_has_the_values_and_makes_it_again(arguments):
    tx = amac_jax.amac("auto", 1000, **arguments)
    call = ast.parse(repr(tx), mode="eval").body
    assert isinstance(call, ast.Call)
    written = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    assert "auto" not in written.values()
    assert written["learning_rate"] == (0.01 if arguments.get("core") == "adam" else 0.015)
    assert written["weight_decay"] == pytest.approx(8 / 30 if "epochs" in arguments else 0.15, 1e-5)
    assert repr(amac_jax.amac(**written)) == repr(tx)  # pyright: ignore[reportArgumentType]


def test_the_length_and_the_passes_may_be_traced():
    def after_three(steps, epochs):
        tx = amac_jax.amac("auto", steps, epochs=epochs)
        *_, (params, _) = train(tx, PARAMS, normals(0, PARAMS, 3), jit=False)
        return params

    traced = jax.vmap(after_three)(jnp.array([50.0, 400.0]), jnp.array([2.0, 90.0]))
    for i, numbers in enumerate([(50, 2), (400, 90)]):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], traced), after_three(*numbers))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"core": "sgd"}, "core must be 'muon', 'adam' or a transformation, got 'sgd'"),
        ({"core": 3}, "core must be 'muon', 'adam' or a transformation, got 3"),
        ({"epochs": 0}, r"epochs must be in \(0, inf\), got 0"),
        (
            {"learning_rate": "automatic"},
            r"learning_rate must be 'auto' or in \[0, inf\), a schedule or an array, got 'autom",
        ),
        ({"core": optax.scale_by_lion()}, "learning_rate must be a number or a schedule"),
        ({"core": optax.scale_by_lion(), "learning_rate": 0.1, "b1": 0.5}, "b1 must be given to"),
        (
            {"learning_rate": optax.constant_schedule(0.1), "warmup_steps": 3},
            "warmup_steps must be 'auto' or 0 with a schedule for the learning rate",
        ),
        ({"sync_period": "always"}, "sync_period must be 'auto' or a whole number in"),
        ({"slow_step_size": 0.5}, "slow_step_size needs sync_period"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        amac_jax.amac(**{"learning_rate": "auto", "total_steps": 100, **arguments})
