"""Metrics of every n-th step, and the sums that they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from amac_jax._core.measures import Norm, Share, taken
from amac_jax.optimizers import EVERY_TECHNIQUE
from tests.helpers import assert_close, assert_same_bits, normals, train

LIKE = {"dense": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}}


def build(**settings):
    return amac_jax.amac(0.1, 40, **EVERY_TECHNIQUE, clip_norm=1.0, average_start=2, **settings)


def recorded(tx, steps=13):
    params, *gradients = normals(0, LIKE, steps + 1)
    return [
        ({k: np.asarray(v) for k, v in amac_jax.metrics(state).items()}, after)
        for after, state in train(tx, params, gradients)
    ]


def test_every_nth_step_and_the_first_one_are_recorded_and_kept():
    every = recorded(build(record_metrics=True))
    for n in (1, 4, 5):
        for step, (found, _) in enumerate(recorded(build(record_metrics=n)), start=1):
            of = max(step // n * n, 1)
            assert_close(found, every[of - 1][0], 2e-6)
    assert every[3][0]["update_norm"] != every[4][0]["update_norm"]


def test_measuring_changes_no_parameter():
    plain = [after for _, after in recorded(build(record_metrics=True))]
    for n in (3, jnp.array(3), lambda count: 3):
        assert_close([after for _, after in recorded(build(record_metrics=n))], plain, 1e-6)


def test_the_period_may_be_traced():
    params, gradient = normals(0, LIKE, 2)

    def norm(n):
        tx = amac_jax.sgd(0.5, record_metrics=n)
        state = tx.init(params)
        for scale in (1.0, 2.0, 3.0):
            scaled = jax.tree.map(lambda g, s=scale: s * g, gradient)
            _, state = tx.update(scaled, state, params)
        return amac_jax.metrics(state)["grad_norm"]

    of_steps = jax.vmap(norm)(jnp.arange(1, 5))  # steps 3, 2, 3 and 1
    assert_close(of_steps / of_steps[-1], np.array([3.0, 2.0, 3.0, 1.0]))


def test_a_skipped_step_is_not_measured():
    params, good = normals(0, LIKE, 2)
    bad = jax.tree.map(lambda g: g * jnp.nan, good)
    tx = amac_jax.adam(0.1, record_metrics=2, skip_nonfinite=True)
    states = [state for _, state in train(tx, params, [good, bad, bad, good])]
    first, *skipped, last = map(amac_jax.metrics, states)
    for number, found in enumerate(skipped, start=1):
        assert float(found.pop("skipped_steps")) == number
        assert_same_bits(found, {k: v for k, v in first.items() if k != "skipped_steps"})
    assert float(last["param_norm"]) != float(first["param_norm"])  # the second step that counts


@pytest.mark.parametrize("period", [0, -1, 2.5, float("nan"), "always"])
def test_a_period_is_whole_and_positive(period):
    with pytest.raises(ValueError, match="record_metrics must be"):
        amac_jax.adam(0.1, record_metrics=period)


def test_metrics_at_any_period_need_params():
    tx = amac_jax.sgd(0.1, record_metrics=7)
    with pytest.raises(ValueError, match="record_metrics needs params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


@pytest.mark.parametrize("period", [1, 2])
def test_norms_of_millions_of_elements(period):
    """Added one after another in float32, the last of a million equal squares lose a part in 40."""
    params = {"w": jnp.full((1000, 1000), 0.1), "b": jnp.full(100_000, 0.1)}
    tx = amac_jax.sgd(0.5, record_metrics=period)
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    found = amac_jax.metrics(state)
    expected = 0.1 * 1_100_000**0.5
    for name, share in (("param_norm", 1.0), ("grad_norm", 1.0), ("update_norm", 0.5)):
        np.testing.assert_allclose(found[name], share * expected, rtol=1e-4)


@pytest.mark.parametrize("alone", [False, True])
def test_norms_and_shares_of_trees_with_holes(alone):
    trees = {
        "all": Norm({"a": jnp.array([3.0, 4.0]), "b": jnp.array([[12.0]])}),
        "masked": Norm({"a": optax.MaskedNode(), "b": jnp.array([[2.0]])}),
        "complex": Norm([jnp.array([3.0 + 4.0j])]),
        "low": Norm([jnp.full(70_000, 10.0, jnp.float16)]),
        "share": Share({"a": jnp.array([True, False]), "b": jnp.array([[True]])}),
        "nothing": Share({}),
        "number": jnp.array(7),
    }
    expected = {"all": 13.0, "masked": 2.0, "complex": 5.0, "low": 10 * 70_000**0.5}
    expected |= {"share": 2 / 3, "nothing": 0.0, "number": 7.0}
    found = taken(trees, alone=alone)
    np.testing.assert_allclose([found[k] for k in expected], [*expected.values()], rtol=1e-6)
    assert found["low"].dtype == found["complex"].dtype == jnp.float32
