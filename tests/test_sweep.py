"""`sweep` on a parabola, where every score is known, and the losses that all three tools take."""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import amac_jax
from amac_jax.tools import _runs, _space, _sweep, ablate, lr_range_test, sweep
from amac_jax.tools.plotting import plot_sweep

ROOT = Path(__file__).parents[1]
CURVATURE, STEPS = 4.0, 12
BATCHES = jnp.ones(3)
RATES = {"learning_rate": (1e-3, 1.0, "log")}


def parabola(w, scale):
    return scale * CURVATURE * w**2 / 2


def size(w):
    return jnp.abs(w)


def search(loss=parabola, optimizer=optax.sgd, batches=BATCHES, params=1.0, **changes):
    settings = {"space": RATES, "trials": 8, "seeds": 1, "steps": STEPS, "score_fn": size}
    return sweep(loss, jnp.float32(params), batches, optimizer, **{**settings, **changes})


def test_every_score_is_that_of_the_equation_and_the_best_is_the_least():
    """w_t = (1 - eta a)^t."""
    found = search(trials=16)
    rates = np.array([trial["learning_rate"] for trial in found.trials])
    expected = np.abs(1 - rates * CURVATURE) ** STEPS
    np.testing.assert_allclose(found.scores[:, 0], expected, rtol=1e-4, atol=1e-7)
    assert found.ranking.tolist() == np.argsort(found.scores[:, 0], kind="stable").tolist()
    assert found.best == found.trials[int(np.argmin(expected))]
    assert type(found.best["learning_rate"]) is float
    optax.sgd(**found.best)
    assert set(found.steps) == {STEPS}
    upside_down = search(trials=16, higher_is_better=True)
    assert upside_down.best == found.trials[int(np.argmax(expected))]


def test_without_a_score_it_is_the_loss_of_the_last_quarter():
    found = search(score_fn=None)
    factor = 1 - np.array([trial["learning_rate"] for trial in found.trials]) * CURVATURE
    expected = np.mean([CURVATURE / 2 * factor ** (2 * t) for t in range(9, 12)], axis=0)
    np.testing.assert_allclose(found.scores[:, 0], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("trials", [4, 7, 16])
def test_halving_finds_the_same_best_in_half_of_the_steps(trials):
    whole, halved = search(trials=trials), search(trials=trials, halving=True)
    assert halved.best == whole.best
    assert whole.total_steps == trials * STEPS
    assert halved.total_steps <= whole.total_steps / 2
    kept = [trials, trials // 2, trials // 4]
    assert [int(np.sum(halved.steps >= stop)) for stop in (3, 6, 12)] == kept
    full = halved.steps == STEPS
    np.testing.assert_allclose(halved.scores[full], whole.scores[full], rtol=1e-6)
    assert np.all(np.diff(halved.steps[halved.ranking]) <= 0)  # those that were dropped come last
    rates = np.array([trial["learning_rate"] for trial in halved.trials])
    for stop in (3, 6):
        dropped = halved.steps == stop
        expected = np.abs(1 - rates[dropped] * CURVATURE) ** stop
        np.testing.assert_allclose(halved.scores[dropped, 0], expected, rtol=1e-4)


def test_with_halving_the_loss_is_of_the_last_quarter_of_the_steps_so_far():
    found = search(score_fn=None, halving=True, steps=32)
    for stop in (8, 16, 32):
        for trial, score in zip(found.trials, found.scores[:, 0], strict=True):
            if found.steps[found.trials.index(trial)] == stop:
                factor = 1 - trial["learning_rate"] * CURVATURE
                times = range(stop - stop // 4, stop)
                expected = np.mean([CURVATURE / 2 * factor ** (2 * t) for t in times])
                assert score == pytest.approx(expected, rel=1e-4, abs=1e-7)


def traces_of(**changes):
    traces = 0

    def counted(w, scale):
        nonlocal traces
        traces += 1
        return parabola(w, scale)

    search(counted, **changes)
    return traces


def test_rungs_groups_and_trials_compile_nothing():
    once = traces_of()
    assert once > 0
    for changes in ({"trials": 40}, {"halving": True}, {"halving": True, "width": 3}, {"width": 1}):
        assert traces_of(**changes) == once


def test_each_combination_of_choices_is_a_program_of_its_own():
    built = []

    def factory(learning_rate, chain, limit):
        built.append((type(learning_rate), chain, limit))
        return {"sgd": optax.sgd, "adam": amac_jax.adam}[chain](learning_rate)

    space = {"chain": ["sgd", "adam"], **RATES, "limit": [None, (1, 2), "high"]}
    found = search(optimizer=factory, space=space, trials=13)
    counts = {}
    for trial in found.trials:
        assert [*trial] == [*space]
        counts[trial["chain"], trial["limit"]] = counts.get((trial["chain"], trial["limit"]), 0) + 1
    assert sorted(counts.values()) == [2, 2, 2, 2, 2, 3]
    traced = {(chain, limit) for kind, chain, limit in built if kind is not float}
    assert traced == counts.keys()
    for trial, score in zip(found.trials, found.scores[:, 0], strict=True):
        if trial["chain"] == "sgd":
            expected = abs(1 - trial["learning_rate"] * CURVATURE) ** STEPS
            assert score == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert found.best["chain"] == "sgd"
    only = search(optimizer=factory, space={"chain": ["sgd", "adam"], "limit": [1]}, trials=50,
                  learning_rate=0.2)  # fmt: skip
    assert only.trials == [{"chain": "sgd", "limit": 1}, {"chain": "adam", "limit": 1}]
    assert only.best == {"learning_rate": 0.2, **only.trials[only.ranking[0]]}


@pytest.mark.parametrize("seed", range(3))
def test_points_fill_their_ranges_for_each_combination_of_choices(seed):
    space = {
        "rate": (1e-3, 10.0, "log"), "decay": (-1.0, 1.0), "period": (2, 5),
        "doubling": (1, 7, "log"), "kind": ["a", "b"],
    }  # fmt: skip
    axes = _space.axes_of(space)
    points = _space.points_of(axes, 64, np.array([seed]))
    for kind in "ab":
        own = [point for point in points if point["kind"] == kind]
        assert len(own) == 32
        decades = np.log10([point["rate"] for point in own])
        assert np.histogram(decades, 4, (-3, 1))[0].min() >= 6  # 8 on average
        assert np.histogram([point["decay"] for point in own], 4, (-1, 1))[0].min() >= 6
        periods = [point["period"] for point in own]
        assert {type(period) for period in periods} == {int}
        assert [periods.count(whole) >= 4 for whole in (2, 3, 4, 5)] == [True] * 4
        assert {min(periods), max(periods)} == {2, 5}
        doubling = [point["doubling"] for point in own]
        assert doubling.count(1) >= 8  # ln 2 / ln 8 of 32 are 10.7
        assert set(doubling) <= set(range(1, 8))
    again = _space.points_of(axes, 64, np.array([seed]))
    assert again == points != _space.points_of(axes, 64, np.array([seed + 1]))


def test_a_whole_number_is_one_inside_the_optimizer_too():
    def factory(count):
        assert isinstance(count, int) or count.dtype == jnp.int32
        return optax.sgd(0.01 * jnp.asarray(count).astype(jnp.float32))

    found = search(optimizer=factory, space={"count": (1, 4)}, trials=12)
    expected = [abs(1 - 0.04 * trial["count"]) ** STEPS for trial in found.trials]
    np.testing.assert_allclose(found.scores[:, 0], expected, rtol=1e-4)


def test_a_trial_that_fails_is_last_never_best_and_shown():
    """Rates above 2 / a diverge; a score of NaN is worst whichever way is better."""

    def score_or_nan(w):
        return jnp.where(size(w) > 1, jnp.nan, size(w))

    for higher, halving in ((False, False), (True, False), (False, True)):
        found = search(
            space={"learning_rate": (1e-2, 10.0, "log")}, trials=12, seeds=2,
            score_fn=score_or_nan, higher_is_better=higher, halving=halving,
        )  # fmt: skip
        failed = np.array([trial["learning_rate"] > 2 / CURVATURE for trial in found.trials])
        assert 3 < failed.sum() < 9
        assert np.array_equal(failed, np.isnan(found.scores).all(axis=1))
        assert failed[found.ranking].tolist() == sorted(failed)
        assert np.isfinite(found.best["learning_rate"])
        assert str(found).count("2 of 2 failed") == failed.sum()
        plot_sweep(found)
    with pytest.raises(ValueError, match="not a single trial has a finite score at step 12"):
        search(score_fn=lambda w: jnp.nan)
    with pytest.raises(ValueError, match="not a single trial has a finite score at step 3"):
        search(score_fn=lambda w: jnp.nan, halving=True)


def test_one_failed_seed_fails_the_trial():
    def score(w):
        return jnp.where(w > 0, w, jnp.inf)

    found = sweep(
        lambda w, x: 0.0 * w + 0.0 * x, lambda key: jax.random.normal(key), BATCHES, optax.sgd,
        space={"learning_rate": [0.1]}, seeds=1, score_fn=score, key=first_key(positive=True),
    )  # fmt: skip
    assert np.isfinite(found.scores).all()
    with pytest.raises(ValueError, match="not a single trial"):
        sweep(
            lambda w, x: 0.0 * w + 0.0 * x, lambda key: jax.random.normal(key), BATCHES, optax.sgd,
            space={"learning_rate": [0.1]}, seeds=6, score_fn=score,
        )  # fmt: skip


def first_key(positive):
    """A seed of `sweep` whose first run begins above 0."""
    for seed in range(100):
        (key,) = jax.random.split(jax.random.key(seed), 1)
        if (float(jax.random.normal(_runs.Keys.of(key).make)) > 0) == positive:
            return seed
    raise AssertionError


def test_seeds_are_shared_by_all_trials():
    found = sweep(
        lambda w, x: 0.0 * w + 0.0 * x, lambda key: jax.random.normal(key), BATCHES, optax.sgd,
        space=RATES, trials=5, seeds=3, score_fn=lambda w: w, halving=False,
    )  # fmt: skip
    assert np.ptp(found.scores, axis=0).max() == 0
    assert len(set(found.scores[0])) == 3


def test_width_and_halving_do_not_change_a_run():
    data = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8, 3)), jnp.float32)

    def noisy(w, x):
        return jnp.mean((x @ w - 1.0) ** 2)

    def run(**changes):
        return sweep(
            noisy, lambda key: jax.random.normal(key, (3,)), data, amac_jax.adamw,
            **{"space": {**RATES, "clip_norm": [None, 1.0]}, "trials": 8, "steps": 9, **changes},
        )  # fmt: skip

    whole = run()
    for width in (1, 3, 100):
        np.testing.assert_allclose(run(width=width).scores, whole.scores, rtol=2e-6)
    halved = run(halving=True, width=3)
    full = halved.steps == 9
    np.testing.assert_allclose(halved.scores[full], whole.scores[full], rtol=2e-6)
    other = run(key=1)
    assert other.trials != whole.trials


SHARDED = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
jax.config.update("jax_platforms", "cpu")
import jax.numpy as jnp
import numpy as np
import amac_jax
from amac_jax.tools import _runs

seen = set()
def spy(runs, steps, mean=_runs.mean_losses):
    seen.add(len(runs.total.sharding.device_set))
    seen.add(len(runs.params.sharding.device_set))
    return mean(runs, steps)
_runs.mean_losses = spy
from amac_jax.tools import _sweep
_sweep.mean_losses = spy
x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8, 3)), jnp.float32)
def loss(w, x, key):
    return jnp.mean((x @ w - 1.0) ** 2 * jax.random.uniform(key, (8,)))
make = lambda key: jax.random.normal(key, (3,))
found = amac_jax.sweep(loss, make, x, amac_jax.adamw, space={"learning_rate": (1e-3, 1.0, "log")},
                       trials=7, seeds=2, steps=8, halving=True)
ablated = amac_jax.ablate(loss, make, x, seeds=3, techniques=("sync_period",), learning_rate=0.1)
tested = amac_jax.lr_range_test(loss, make, x, number=5, steps=8)
print(json.dumps([found.scores.tolist(), [row.tolist() for row in ablated.scores.values()],
                  tested.losses.tolist(), tested.start, sorted(seen)]))
"""


def test_8_devices_do_what_one_does():
    one, eight = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", SHARDED, count], capture_output=True, check=True, cwd=ROOT
            ).stdout
        )
        for count in ("1", "8")
    )
    assert (one.pop(), eight.pop()) == ([1], [8])
    for left, right in zip(one, eight, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5)


def test_the_bar_counts_every_step_and_is_silent_where_nobody_looks(monkeypatch, capsys):
    told = []

    @contextmanager
    def progress(name, total):
        told.append(total)
        yield lambda steps: told.append(-steps)

    def learn(w, x):
        return jnp.mean((w - x) ** 2)

    monkeypatch.setattr(_sweep, "progress", progress)
    for changes in ({}, {"halving": True}, {"width": 3}):
        told.clear()
        assert told == [] and search(**changes).total_steps == told[0]  # noqa: PT018
        assert sum(told) == 0
    monkeypatch.undo()
    monkeypatch.setattr(_runs, "progress", progress)
    told.clear()
    lr_range_test(learn, jnp.zeros(2), jnp.ones((4, 2)), number=3, steps=8)
    ablate(learn, jnp.zeros(2), jnp.ones((4, 2)), seeds=2, techniques=("noise",))
    assert [total for total in told if total > 0] == [3 * 8, 2 * 4 * 4]
    assert sum(told) == 0
    monkeypatch.undo()
    search()
    monkeypatch.setitem(sys.modules, "tqdm", None)
    search()
    assert capsys.readouterr() == ("", "")


def test_the_table_has_the_best_first_with_its_spread():
    data = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)
    found = sweep(
        lambda w, x: jnp.mean((w - x) ** 2), lambda key: jax.random.normal(key), data, optax.sgd,
        space={"learning_rate": (0.01, 0.1), "momentum": [None, 0.5]}, trials=4, seeds=3, steps=4,
        halving=True,
    )  # fmt: skip
    lines = str(found).splitlines()
    assert lines[0] == "4 trials of 3 seeds, mean ± standard deviation; lower is better"
    assert lines[1].split() == ["score", "learning_rate", "momentum"]
    best = found.scores[found.ranking[0]]
    assert lines[2].split() == [
        f"{best.mean():.4g}", "±", f"{best.std(ddof=1):.2g}",
        f"{found.best['learning_rate']:.4g}", str(found.best["momentum"]),
    ]  # fmt: skip
    assert [line.partition("dropped at ")[2] for line in lines[2:]] == [
        "", "step 2", "step 1", "step 1"
    ]  # fmt: skip


def test_the_picture_has_a_panel_for_each_axis_and_one_best(tmp_path):
    space = {**RATES, "momentum": [0.0, 0.5], "nesterov": [True, False]}
    found = search(space=space, halving=True, seeds=2)
    figure = plot_sweep(found, "title", "size of w")
    drawn = [axes for axes in figure.axes if axes.get_visible() and axes.get_xlabel()]
    assert [axes.get_xlabel() for axes in drawn] == [*space]
    assert drawn[0].get_xscale() == "log"
    assert drawn[0].get_ylabel() == "size of w"
    assert [tick.get_text() for tick in drawn[1].get_xticklabels()] == ["0", "0.5"]
    stars = [line for line in drawn[0].lines if line.get_marker() == "*"]
    (star,) = stars
    assert star.get_xdata() == [found.best["learning_rate"]]
    figure.savefig(tmp_path / "sweep.png")


def test_schedules_as_choices_are_told_apart():
    schedules = [optax.constant_schedule(rate) for rate in (0.5, 0.1)] + [amac_jax.cosine(0.5, 8)]
    found = search(space={"learning_rate": schedules}, seeds=1)
    names = ["constant_schedule #1", "constant_schedule #2", "cosine"]
    assert found.space["learning_rate"].names == names
    rows = str(found).splitlines()[2:]
    assert sorted(row.split(maxsplit=1)[1] for row in rows) == names
    (panel,) = plot_sweep(found).axes
    assert [tick.get_text() for tick in panel.get_xticklabels()] == names
    (star,) = (line for line in panel.lines if line.get_marker() == "*")
    assert star.get_xdata() == [schedules.index(found.best["learning_rate"])]


def test_failed_trials_are_drawn_at_the_edge_and_the_others_where_they_are():
    space = {"learning_rate": [0.1, 0.2, 0.3, 1e30]}
    found = search(lambda w, x: (w - x) ** 2, amac_jax.sgd, params=0.0, space=space, steps=10)
    (panel,) = plot_sweep(found).axes
    (crosses,) = (line for line in panel.lines if line.get_marker() == "x")
    assert len(crosses.get_xdata()) == int(np.sum(~np.isfinite(found.scores).all(axis=1))) == 1
    assert crosses.get_ydata() == [0.97]
    assert crosses.get_transform() == panel.get_xaxis_transform()
    dots = [line for line in panel.lines if line.get_marker() == "o"]
    heights = {y for line in dots for y in np.asarray(line.get_ydata())}
    assert heights == {*found.scores[np.isfinite(found.scores)]}


def test_values_of_the_averaged_weights_are_scored():
    """Constant gradients of 1: w_t = -eta t, and the mean over steps 9 .. 12 is -10.5 eta."""
    found = search(
        lambda w, x: w * x, amac_jax.sgd, params=0.0, space={"learning_rate": (0.1, 1.0)},
        average_start=9, score_fn=lambda w: w,
    )  # fmt: skip
    expected = [-10.5 * trial["learning_rate"] for trial in found.trials]
    np.testing.assert_allclose(found.scores[:, 0], expected, rtol=1e-5)
    assert found.best["average_start"] == 9


def test_each_seed_has_noise_of_its_own():
    def run(**changes):
        return search(
            lambda w, x: 0.0 * w * x, amac_jax.sgd, params=0.0, seeds=2, trials=2, noise=1.0,
            space={"learning_rate": [0.1, 0.2]}, score_fn=lambda w: w, **changes,
        ).scores  # fmt: skip

    scores = run()
    np.testing.assert_allclose(scores[1], 2 * scores[0], rtol=1e-5)
    assert scores[0, 0] != scores[0, 1]
    fixed = run(key=3)
    assert fixed[0, 0] != scores[0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {}}, "space must have an axis, such as"),
        ({"space": [0.1, 0.2]}, "space must be a mapping, such as"),
        (
            {"space": {**RATES, "steps": (10, 20)}},
            r"does not take 'steps' \(steps=... of sweep itself has one value for all trials\)",
        ),
        (
            {"space": {"learning_rate": (-1.0, 1.0)}, "optimizer": amac_jax.sgd},
            r"^space\['learning_rate'\] has what is refused: learning_rate must be in \[0, inf\)",
        ),
        ({"space": {"learning_rate": (1.0, 0.1)}}, "must have low < high, got"),
        ({"space": {"learning_rate": (0.1, 0.1)}}, r"must have low < high.*one value: \[0.1\]"),
        ({"space": {"learning_rate": (0.0, 0.1, "log")}}, 'must have low > 0 with "log"'),
        ({"space": {"learning_rate": (0.1, 0.2, "lin")}}, 'may have "log" as third item'),
        ({"space": {"learning_rate": (0.1, float("inf"))}}, "must be between two finite numbers"),
        (
            {"space": {"learning_rate": ("a", "b")}},
            "must be between two finite numbers.*are a list",
        ),
        ({"space": {"learning_rate": []}}, "must have at least one choice"),
        ({"space": {"learning_rate": 0.1}}, "a fixed value is a keyword of sweep itself"),
        (
            {"space": {"learning_rate": (0, 1)}},
            r"has the whole numbers 0 and 1 alone.*between them are \(0.0, 1.0\)",
        ),
        ({"higher_is_better": True, "score_fn": None}, "higher_is_better needs a score_fn"),
        ({"batches": [(BATCHES, BATCHES)]}, r"got a list of batches; jax.tree.map\(.* stacks it"),
        ({"space": {"learning_rate": (0.1,)}}, r"must be \(low, high\)"),
        ({"space": {"rate": (0.1, 0.2)}}, "does not take 'rate'.*it takes learning_rate, momentum"),
        ({"momentun": 0.9}, r"'momentun' \(did you mean 'momentum'\?\)"),
        ({"space": {"momentum": (0.1, 0.9)}}, "sgd needs learning_rate: put it into the space"),
        ({"learning_rate": 0.1}, "learning_rate is in the space and among the settings"),
        ({"optimizer": optax.sgd(0.1)}, "amac_jax.adamw without its brackets, got a transformat"),
        ({"optimizer": "sgd"}, "must be a function that makes a transformation.*'sgd'"),
        ({"optimizer": lambda learning_rate: 3}, "optimizer must make a transformation"),
        ({"optimizer": amac_jax.sgd, "momentum": 1.5}, r"^momentum must be in \[0, 1\), got 1.5"),
        (
            {"space": {**RATES, "nesterov": (0.0, 1.0)}, "momentum": 0.9},
            r"nesterov cannot be a range.*give a list of choices: space={\"nesterov\": \[",
        ),
        (
            {
                "optimizer": lambda learning_rate, n: optax.sgd(sum([learning_rate] * n)),
                "space": {**RATES, "n": (1, 4)},
            },
            "^n cannot be a range: the optimizer needs a Python number",
        ),
        ({"trials": 0}, r"trials must be a whole number in \[1, inf\), got 0"),
        ({"trials": 3, "halving": True}, r"trials must be a whole number in \[4, inf\) with halv"),
        ({"trials": 2.5}, "trials must be a whole number"),
        ({"trials": 1, "space": {**RATES, "momentum": [None, 0.5]}}, "trials must be at least 2"),
        ({"seeds": 0}, r"seeds must be a whole number in \[1, inf\), got 0"),
        ({"steps": True}, "steps must be a whole number"),
        ({"width": 0}, r"width must be a whole number in \[1, inf\), got 0"),
        ({"halving": True, "space": {"learning_rate": [0.1]}}, "halving needs 4 trials, got 1"),
        ({"batches": lambda key: 1.0, "steps": None}, "steps must be given where batches is a"),
        ({"batches": {"x": BATCHES, "y": 1.0}}, "batches must be arrays with one first axis"),
        ({"score_fn": lambda w: jnp.ones(2)}, r"score_fn must return a scalar, got shape \(2,\)"),
        ({"score_fn": lambda w: (w, w)}, "score_fn must return a scalar, got a tuple of 2 arrays"),
        (
            {"score_fn": lambda w, x: w},
            r"score_fn must take \(params\), got a function of \(w, x\)",
        ),
        ({"score_fn": lambda w: float(w)}, "score_fn must compute with jax.numpy.*Concretization"),
        ({"score_fn": lambda w: np.exp(w)}, "score_fn must compute with jax.numpy.*TracerArray"),
        ({"score_fn": "loss"}, r"score_fn must be a function of \(params\), got 'loss'"),
        ({"loss": lambda w, x: jnp.ones(2)}, r"loss_fn must return a scalar, got shape \(2,\)"),
        ({"loss": lambda w, x: (w, x)}, "got a tuple of 2 arrays; has_aux=True takes"),
        ({"has_aux": True}, r"must return \(loss, aux\) with has_aux=True, got shape \(\)"),
        ({"loss": lambda w: w}, r"must take \(params, batch\) or .* got a function of \(w\)"),
        ({"loss": lambda w, s, x, k: w}, "model_state=... brings the state of BatchNorm"),
        ({"loss": 3}, "loss_fn must be a function"),
        ({"loss": lambda w, x: jnp.int32(1)}, "must return a real floating-point number"),
        (
            {"loss": lambda w, s, x: w, "model_state": 1.0},
            r"must return \(loss, model_state\) with model_state, got shape",
        ),
        (
            {"loss": lambda w, s, x: (w, s), "model_state": 1.0, "has_aux": True},
            r"must return \(loss, \(model_state, aux\)\).*got \(loss, shape",
        ),
        (
            {"loss": lambda w, s, x: (w, {"a": s}), "model_state": 1.0},
            "a model_state in the structure of the one it gets",
        ),
        (
            {"loss": lambda w, s, x: (w, jnp.ones(2)), "model_state": 1.0},
            "must keep the shapes and dtypes of model_state",
        ),
    ],
)
def test_bad_input_is_refused_in_a_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        search(**changes)
    assert "\n" not in str(error.value)


def test_an_error_of_the_loss_stays_what_it_is():
    def wrong(w, x):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        search(wrong)


# The losses that all three tools take.


def through_all(loss_fn, params, batches, score_fn, steps=8, **contract):
    """The scores of a sweep and of an ablation, (runs,), and the losses of a range test."""
    found = sweep(
        loss_fn, params, batches, amac_jax.sgd, space={"learning_rate": [0.01]}, seeds=2,
        steps=steps, score_fn=score_fn, average_start=steps // 2, **contract,
    )  # fmt: skip
    effects = ablate(
        loss_fn, params, batches, core=optax.identity(), learning_rate=0.01, seeds=2, steps=steps,
        score_fn=score_fn, techniques=("average_start",), **contract,
    )  # fmt: skip
    tested = lr_range_test(
        loss_fn, params, batches, optimizer=optax.sgd, number=2, steps=steps, **contract
    )
    return found.scores[0], effects.scores, tested


def test_keys_are_fresh_at_every_step_and_for_every_seed_and_the_same_for_all_trials():
    def loss(w, state, batch, key):
        number, draws = state
        draw = jax.random.uniform(key)
        return draw + 0.0 * w, (number + 1, draws.at[number].set(draw))

    state = (jnp.int32(0), jnp.zeros(8))

    def total_if_distinct(w, state):
        draws = jnp.sort(state[1])
        return jnp.where(jnp.all(jnp.diff(draws) > 0) & (draws[0] > 0), jnp.sum(draws), jnp.nan)

    found = sweep(
        loss, jnp.float32(0), BATCHES, optax.sgd, space=RATES, trials=3, seeds=2, steps=8,
        score_fn=total_if_distinct, model_state=state,
    )  # fmt: skip
    assert np.isfinite(found.scores).all()
    assert np.ptp(found.scores, axis=0).max() == 0
    assert found.scores[0, 0] != found.scores[0, 1]
    tested = lr_range_test(loss, jnp.float32(0), BATCHES, number=3, steps=8, model_state=state)
    assert np.ptp(tested.losses) == 0
    assert tested.losses[0] == pytest.approx(tested.start, rel=1e-6)  # the same keys


def test_a_key_may_be_a_keyword():
    def loss(w, batch, *, key=None):
        assert key is not None
        return 0.0 * w + 0.0 * batch + jax.random.uniform(key)

    assert np.isfinite(lr_range_test(loss, jnp.float32(0), BATCHES, number=2, steps=4).losses).all()


def test_what_is_beside_the_loss_is_left_alone():
    def loss(w, batch):
        return jnp.mean((w - batch) ** 2), {"anything": (w, "text", None)[0]}

    swept, ablated, tested = through_all(loss, jnp.float32(0), BATCHES, size, has_aux=True)
    plain = through_all(lambda w, batch: loss(w, batch)[0], jnp.float32(0), BATCHES, size)
    np.testing.assert_array_equal(swept, plain[0])
    for name, row in plain[1].items():
        np.testing.assert_array_equal(ablated[name], row)
    np.testing.assert_array_equal(tested.losses, plain[2].losses)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("has_aux", [False, True])
def test_the_statistics_of_averaged_weights_are_their_own(momentum, has_aux):
    """The statistic of a batch is w itself, so that of averaged weights must be their average."""

    def loss_fn(w, state, batch):
        new = {
            "mean": momentum * state["mean"] + (1 - momentum) * jnp.stack([w, 2 * w]) * batch,
            "count": state["count"] + 1,
            "fixed": state["fixed"],
        }
        return w * batch, ((new, w) if has_aux else new)

    def deviation(w, state):  # from w and 2 w, in units of w
        return jnp.max(jnp.abs(state["mean"] / jnp.array([1.0, 2.0]) / w - 1)) + state["fixed"]

    state = {"mean": jnp.array([5.0, -7.0]), "count": jnp.int32(0), "fixed": jnp.float32(0)}
    params = jnp.float32(1)
    swept, ablated, tested = through_all(
        loss_fn, params, BATCHES, deviation, model_state=state, has_aux=has_aux
    )
    assert swept.max() < 1e-4
    assert ablated["core with average_start"].max() < 1e-4
    assert np.isfinite(tested.losses).all()
    live = search(
        loss_fn, params=1.0, has_aux=has_aux, model_state=state, score_fn=deviation, steps=8,
        space={"learning_rate": [0.01]},
    ).scores  # fmt: skip
    assert live.min() > 0.01  # without averages they are as training leaves them, of earlier w


IMAGES = np.random.default_rng(0).normal(size=(4, 8, 6, 6, 1)).astype(np.float32)
LABELS = (IMAGES.mean(axis=(2, 3, 4)) > 0).astype(np.int32)
IMAGES += 2 * LABELS[..., None, None, None]


class CNN(nn.Module):
    """A convolution, BatchNorm, dropout."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), strides=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x.mean(axis=(1, 2)))
        return nn.Dense(2)(x)


def linen():
    model = CNN()

    def loss(params, stats, batch, key):
        x, y = batch
        output, new = model.apply(
            {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"],
            rngs={"dropout": key},
        )  # fmt: skip
        value = optax.softmax_cross_entropy_with_integer_labels(output, y).mean()
        return value, (new["batch_stats"], output)

    def score(params, stats):
        logits = model.apply({"params": params, "batch_stats": stats}, IMAGES[0], train=False)
        return jnp.mean(jnp.argmax(logits, axis=-1) == LABELS[0])

    def variables(key):
        return model.init(key, IMAGES[0], train=False)

    return (
        loss, score, lambda key: variables(key)["params"],
        {"model_state": lambda key: variables(key)["batch_stats"], "has_aux": True},
    )  # fmt: skip


class Network(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).mean(axis=(1, 2))
        return self.head(self.dropout(x))


def nnx_model():
    """Its state holds the statistics and the keys of dropout."""
    graphdef, _, _ = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)

    def loss(params, state, batch):
        model = nnx.merge(graphdef, params, state)
        model.train()
        value = optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1]).mean()
        return value, nnx.split(model, nnx.Param, ...)[2]

    def score(params, state):
        model = nnx.merge(graphdef, params, state)
        model.eval()
        return jnp.mean(jnp.argmax(model(IMAGES[0]), axis=-1) == LABELS[0])

    def part(number):
        return lambda key: nnx.split(Network(nnx.Rngs(key)), nnx.Param, ...)[number]

    return loss, score, part(1), {"model_state": part(2)}


@pytest.mark.parametrize("make", [linen, nnx_model])
def test_a_network_with_batch_norm_and_dropout_goes_through_all_tools(make, promoting):
    loss, score, params, contract = make()
    data = (IMAGES, LABELS)
    found = sweep(
        loss, params, data, amac_jax.adamw, steps=12, trials=4, halving=True,
        space={"learning_rate": (1e-2, 0.3, "log"), "average_start": [9]},
        score_fn=score, higher_is_better=True, **contract,
    )  # fmt: skip
    assert found.scores[found.ranking[0]].mean() >= 0.9
    effects = ablate(
        loss, params, data, steps=12, learning_rate=0.1, core="adam", seeds=2,
        techniques=("average_start",), score_fn=score, higher_is_better=True, **contract,
    )  # fmt: skip
    assert effects.scores["amac"].mean() >= 0.8
    tested = lr_range_test(loss, params, data, number=3, low=1e-3, high=0.3, steps=12, **contract)
    assert 0.005 < tested.suggestion <= 0.3
