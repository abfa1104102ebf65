"""`benchmarks/stage_order.py`: the order it compares with is that of `compose`."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from scipy import stats

import amac_jax
from benchmarks import stage_order
from benchmarks.stage_order import COMPOSED, ORDERS, SETTINGS, chained, p_value, report
from benchmarks.statistics_of_runs import interval
from tests.helpers import assert_close, normals

LIKE = {"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(3, np.float32)}
STEPS = 40


def ends(tx: optax.GradientTransformation) -> tuple:
    """The last weights and the averaged ones."""

    @jax.jit
    def run(params, gradients):
        def step(carry, gradient):
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), gradients)
        return params, amac_jax.averaged_params(state, params)

    every_step = jax.tree.map(lambda leaf: np.zeros((STEPS, *leaf.shape), np.float32), LIKE)
    return run(next(normals(0, LIKE)), next(normals(1, every_step)))


@functools.cache
def composed_ends() -> tuple:
    return ends(chained(COMPOSED, STEPS, 3))


def test_its_own_order_is_that_of_compose():
    settings = dict(SETTINGS)
    rate = settings.pop("learning_rate")
    end = settings.pop("end_ratio") * rate
    settings["noise"] = amac_jax.linear_anneal(settings["noise"], STEPS)
    composed = amac_jax.compose(
        optax.scale_by_adam(), amac_jax.warmup_cosine(rate, STEPS, STEPS // 10, end=end),
        centralize=True, dampening=settings["momentum"], sync_period=5, key=3,
        average_start=0.75 * STEPS, average_period=5, **settings,
    )  # fmt: skip
    assert_close(composed_ends(), ends(composed))


@pytest.mark.parametrize("name", ORDERS)
def test_another_order_holds_the_same_stages_and_is_another_optimizer(name):
    assert sorted(ORDERS[name]) == sorted(COMPOSED)
    assert ORDERS[name] != COMPOSED
    with pytest.raises(AssertionError):
        assert_close(ends(chained(ORDERS[name], STEPS, 3)), composed_ends())


def test_the_table_shows_paired_differences_and_marks_those_that_stay_significant():
    rng = np.random.default_rng(0)
    base = rng.normal(90.0, 3.0, 8)
    gains = 1 + 0.1 * rng.normal(size=8)
    found = {"digits": {"compose": base, **{name: base.copy() for name in ORDERS}}}
    better, worse, *_ = ORDERS
    found["digits"][better] = base + gains
    found["digits"][worse] = base - rng.normal(0.2, 1.0, 8)
    rows = dict(zip(ORDERS, report(found).splitlines()[2:], strict=True))
    middle, half = interval(gains.tolist())
    assert rows[better] == f"| {better} | **{middle:+.2g} ± {half:.2g}** |"
    assert "**" not in rows[worse]
    assert rows["clip before noise"] == "| clip before noise | +0 ± 0 |"


def test_its_p_is_that_of_the_paired_t_test():
    differences = np.array([0.3, -0.1, 0.5, 0.2])
    assert p_value(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert p_value(np.zeros(4)) == 1.0


def test_scores_are_those_of_the_workload_positive_where_better(monkeypatch):
    """On a job where less is better, against one run that is not vmapped."""
    job = dataclasses.replace(stage_order.WORKLOADS["rosenbrock-20"], steps=200)
    assert job.sign == -1
    monkeypatch.setitem(stage_order.WORKLOADS, "rosenbrock-20", job)
    scores = stage_order.scores("rosenbrock-20", COMPOSED, seeds=3, width=2)
    assert scores.shape == (3,)
    assert len(set(scores.tolist())) == 3

    def one(seed):
        made, tx = job.make(), chained(COMPOSED, job.steps, seed)
        run = stage_order.train(job, made, made.splits, tx, amac_jax.averaged_params, seed)
        return run.curve[-1]

    np.testing.assert_allclose(scores[1], -jax.jit(one)(2001), rtol=1e-4)
