"""PPO, a technique switched on in mid-run, and a run that goes on to the bit, in short form."""

import jax
import pytest
from flax import nnx

from examples import resume, switch_technique


def test_ppo_learns_to_balance_the_pole(monkeypatch):
    pytest.importorskip("gymnax")  # the extra `rl`
    from examples import ppo

    monkeypatch.setattr(ppo, "SEEDS", 2)
    with jax.numpy_dtype_promotion("standard"):  # as gymnax needs it
        found = ppo.main(steps=24_576, out=None)
    assert found["mean return"] > 200  # of 500


@pytest.fixture(scope="module")
def switched():
    return [switch_technique.main(seed=seed) for seed in range(4)]


def test_a_technique_is_switched_on_without_a_trace(switched):
    for found in switched:
        assert 0 < found["averaging from step"] < 3000
        assert found["traces"] == 1
        assert found["traces after a Python float"] == 2


def test_the_technique_that_was_switched_on_has_an_effect(switched):
    averaged, last = (
        sum(found[f"error of the {weights} weights"] for found in switched)
        for weights in ("averaged", "last")
    )
    assert averaged < 0.7 * last  # they are equal where averaging stays off


def test_a_run_goes_on_to_the_bit():
    found = resume.main()
    assert found["identical"] == found["arrays"] > 20


def test_a_run_without_its_optimizer_state_is_another(monkeypatch):
    merge = nnx.merge

    def forgetful(graphdef, state):
        model, _ = merge(graphdef, state)
        return model, resume.build(0)[1]

    monkeypatch.setattr(resume.nnx, "merge", forgetful)
    found = resume.main()
    assert found["identical"] < found["arrays"]
