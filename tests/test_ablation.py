"""`ablate` against runs written out by hand, and on techniques that must or cannot help."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import amac_jax
from amac_jax.tools import _ablation, ablate
from amac_jax.tools._ablation import TECHNIQUES, effects_of

X = np.random.default_rng(0).normal(size=(6, 8, 3)).astype(np.float32)
TARGET = np.float32([[1.0, -2.0], [0.5, 0.0], [2.0, 1.0]])
KERNEL = {"kernel": np.ones((3, 2), np.float32)}
START = {**KERNEL, "bias": np.zeros(2, np.float32)}
STEPS, RATE = 12, 0.05


def loss(params, x):
    bias = params.get("bias", 0.0)
    return jnp.mean((x @ params["kernel"] + bias - x @ TARGET.astype(x.dtype)) ** 2)


def score(params):
    kernel = params["kernel"]
    return jnp.sum((kernel - TARGET.astype(kernel.dtype)) ** 2)


def run_by_hand(tx, weights, dtype="float32"):
    """Whole passes over the batches in their order: with one batch there is but one order."""

    @jax.jit
    def run():
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, X[0].astype(dtype)), state, params)
            return (optax.apply_updates(params, updates), state), None

        start = jax.tree.map(lambda x: jnp.asarray(x, dtype), START)
        (params, state), _ = jax.lax.scan(step, (start, tx.init(start)), length=STEPS)
        return score(weights(state, params))

    return float(run())


def averaged(state, params):
    return amac_jax.averaged_params(state, params)


def last(state, params):
    return params


def variants(dtype="float32", **arguments):
    """The scores of every variant, with one batch for all steps."""
    start, x = jax.tree.map(lambda x: x.astype(dtype), (START, X[:1]))
    return ablate(loss, start, x, steps=STEPS, score_fn=score, seeds=2, **arguments).scores


def assert_scores(scores, expected, dtype="float32", rtol=2e-5):
    """With one batch there is one order, and without noise nothing is random."""
    assert scores.keys() == expected.keys()
    for name, (tx, weights) in expected.items():
        value = run_by_hand(tx, weights, dtype)
        np.testing.assert_allclose(scores[name], value, rtol=rtol, err_msg=name)


def test_each_variant_around_adam_is_the_optimizer_that_its_name_says():
    def amac(**changes):
        return amac_jax.amac(RATE, STEPS, core="adam", **changes)

    def adam(rate=RATE, **changes):
        return amac_jax.adam(rate, **changes)

    cosine = amac_jax.warmup_cosine(RATE, STEPS, 0, end=0.3 * RATE)
    warmup = amac_jax.warmup_cosine(RATE, STEPS, 1.2, end=RATE)
    decay = {"weight_decay": 0.15, "decay_floor": 0.7}
    outer = {"slow_step_size": 0.7, "slow_momentum": 0.5}
    expected = {
        "amac": (amac(), averaged),
        "adam": (adam(), last),
        "amac without average_start": (amac(), last),
        "adam with average_start": (adam(average_start=9, average_period=5), averaged),
        "amac without sync_period": (amac(sync_period=None), averaged),
        "adam with sync_period": (adam(sync_period=5, slow_step_size=0.8), last),
        "amac with slow_momentum": (amac(**outer), averaged),
        "adam with slow_momentum": (adam(sync_period=5, **outer), last),
        "amac with momentum": (amac(momentum=0.5), averaged),
        "adam with momentum": (adam(momentum=0.5, dampening=0.5), last),
        "amac without weight_decay": (amac(weight_decay=None), averaged),
        "adam with weight_decay": (adam(**decay), last),
        "amac with cautious_decay": (amac(cautious_decay=True), averaged),
        "adam with cautious_decay": (adam(**decay, cautious_decay=True), last),
        "amac without warmup_steps": (amac(warmup_steps=0), averaged),
        "adam with warmup_steps": (adam(warmup), last),
        "amac without end_ratio": (amac(end_ratio=1.0), averaged),
        "adam with end_ratio": (adam(cosine), last),
    }
    names = tuple(name.removeprefix("adam with ") for name in expected if "adam with" in name)
    assert_scores(variants(learning_rate=RATE, core="adam", techniques=names), expected)


def test_each_variant_around_muon_is_the_optimizer_that_its_name_says():
    """All is automatic here; a weight decay of 15 / 30 is more than 0.05 / eta."""
    peak = 0.015 * (1000 / STEPS) ** 0.5
    c = 0.01 * (1000 / STEPS) ** (1 / 3) / peak
    decay = {"weight_decay": 0.05 / peak, "decay_floor": 0.7}
    outer = {"sync_period": 5, "slow_step_size": 0.7, "slow_momentum": 0.5}

    def amac(**changes):
        return amac_jax.amac("auto", STEPS, epochs=15, **changes)

    def muon(**changes):
        settings = {"b1": 0.9, "others_multiplier": c, "weight_decay": None}
        return amac_jax.muon(peak, **{**settings, **changes})

    expected = {
        "amac": (amac(), averaged),
        "muon": (muon(), last),
        "amac with centralize": (amac(centralize=True), averaged),
        "muon with centralize": (muon(centralize=True), last),
        "amac with sync_period": (amac(sync_period=5), averaged),
        "muon with sync_period": (muon(sync_period=5, slow_step_size=0.8), last),
        "amac with slow_momentum": (amac(**outer), averaged),
        "muon with slow_momentum": (muon(**outer), last),
        "amac without weight_decay": (amac(weight_decay=None), averaged),
        "muon with weight_decay": (muon(**decay), last),
        "amac with cautious_decay": (amac(cautious_decay=True), averaged),
        "muon with cautious_decay": (muon(**decay, cautious_decay=True), last),
    }
    names = tuple(name.removeprefix("muon with ") for name in expected if "muon with" in name)
    # Muon magnifies what float32 rounds off a small singular value.
    with jax.enable_x64(True):
        scores = variants("float64", epochs=15, techniques=names)
        assert_scores(scores, expected, "float64", 1e-6)


def test_a_core_of_your_own_is_called_core():
    core = optax.scale_by_rms()
    centralized = amac_jax.amac(RATE, STEPS, core=core, centralize=True)
    expected = {
        "amac": (amac_jax.amac(RATE, STEPS, core=core), averaged),
        "core": (amac_jax.compose(core, RATE), last),
        "amac with centralize": (centralized, averaged),
        "core with centralize": (amac_jax.compose(core, RATE, centralize=True), last),
    }
    assert_scores(variants(learning_rate=RATE, core=core, techniques=("centralize",)), expected)


def test_a_technique_that_is_off_is_off_with_all_of_its_keywords():
    settings = {"slow_momentum": 0.5, "momentum": 0.5, "dampening": 0.25}
    without = {"sync_period": None, "slow_momentum": None}

    def amac(**changes):
        return amac_jax.amac(RATE, STEPS, core="adam", **{**settings, **changes})

    outer = {"sync_period": 5, "slow_step_size": 0.8, "slow_momentum": 0.5}
    expected = {
        "amac": (amac(), averaged),
        "adam": (amac_jax.adam(RATE), last),
        "amac without sync_period": (amac(**without), averaged),
        "adam with sync_period": (amac_jax.adam(RATE, **outer), last),
        "amac without slow_momentum": (amac(slow_momentum=None), averaged),
        "adam with slow_momentum": (amac_jax.adam(RATE, **outer), last),
        "amac without momentum": (amac(momentum=None, dampening="auto"), averaged),
        "adam with momentum": (amac_jax.adam(RATE, momentum=0.5, dampening=0.25), last),
    }
    names = ("sync_period", "slow_momentum", "momentum")
    found = variants(learning_rate=RATE, core="adam", techniques=names, **settings)
    assert_scores(found, expected)


def test_a_technique_that_is_neither_named_nor_in_amac_has_no_state(monkeypatch):
    seen = []

    def recording(*args, **settings):
        seen.append(settings)
        return amac_jax.amac(*args, **settings)

    recording.defaults = amac_jax.amac.defaults  # pyright: ignore[reportFunctionMemberAccess]
    monkeypatch.setattr(_ablation, "amac", recording)
    variants(techniques=("average_start",))
    traced = {name for name, value in seen[-1].items() if isinstance(value, jax.core.Tracer)}
    assert traced == {"average_start", "weight_decay", "warmup_steps", "end_ratio", "key"}
    assert seen[-1]["sync_period"] is None


@pytest.mark.parametrize("core", ["muon", "adam", "core"])
def test_effects_are_paired_differences_with_students_interval(core):
    rows = {"amac": [1.0, 1.0, 1.0], "amac with noise": [0.0, 1.0, 0.5]}
    rows |= {core: [1.0, 2.0, 4.0], f"{core} with noise": [2.0, 2.5, 6.0]}
    for sign, higher in ((1, True), (-1, False)):
        alone, amac = effects_of(rows, higher_is_better=higher)
        assert (alone.technique, alone.around, amac.around) == ("noise", core, "amac")
        assert alone.mean == pytest.approx(sign * 3.5 / 3)
        assert amac.mean == pytest.approx(sign * -0.5)
        test = stats.ttest_rel(rows[f"{core} with noise"], rows[core])
        low, high = test.confidence_interval(0.95)
        assert alone.p == pytest.approx(test.pvalue)
        assert alone.half_width == pytest.approx((high - low) / 2)


def test_what_cannot_matter_has_no_effect_and_what_must_help_does():
    """A vector has no fan-in; the mean of noisy weights is nearer the middle than the last ones."""

    def noisy(w, noise):
        return jnp.sum(w**2) / 2 + jnp.vdot(w, noise)

    found = ablate(
        noisy,
        lambda key: 3 * jax.random.normal(key, (20,)),
        lambda key: jax.random.normal(key, (20,)),
        learning_rate=0.2,
        steps=1500,
        score_fn=lambda w: jnp.sum(w**2),
        seeds=6,
        techniques=("centralize", "weight_decay", "average_start"),
        width=5,
    )
    effects = {(e.technique, e.around): e for e in found.effects}
    for around in ("muon", "amac"):
        for technique in ("centralize", "weight_decay"):
            effect = effects[technique, around]
            assert (effect.mean, effect.half_width, effect.p) == (0.0, 0.0, 1.0)
        assert (
            effects["average_start", around].mean > effects["average_start", around].half_width > 0
        )
    scores = found.scores["amac"]
    assert len(set(scores.tolist())) == 6  # each seed begins elsewhere and meets other noise
    assert not found.failed
    text = str(found).splitlines()
    means = [f"{np.mean(found.scores[name]):.4g}" for name in ("muon", "amac")]
    assert text[0].startswith("mean score: muon {}, amac {};".format(*means))
    assert text[1].split() == ["technique", "added", "to", "muon", "p", "in", "amac", "p"]
    assert [line.split("  ")[0] for line in text[2:]] == [
        "centralize",
        "weight_decay",
        "average_start",
    ]


def test_settings_are_the_values_at_which_techniques_are_on():
    same = {"sync_period": 2, "slow_step_size": 0.3, "b1": 0.5}
    found = variants(learning_rate=RATE, core="adam", techniques=("sync_period",), **same)
    value = run_by_hand(amac_jax.amac(RATE, STEPS, core="adam", **same), averaged)
    np.testing.assert_allclose(found["amac"], value, rtol=2e-5)
    value = run_by_hand(amac_jax.adam(RATE, **same), last)
    np.testing.assert_allclose(found["adam with sync_period"], value, rtol=2e-5)


def test_without_a_score_it_is_the_loss_over_all_batches_once_through():
    found = ablate(loss, KERNEL, X, learning_rate=0.0001, seeds=2, techniques=("average_start",))
    at_start = np.mean([loss(KERNEL, x) for x in X])
    np.testing.assert_allclose(found.scores["muon"], at_start, rtol=0.01)
    assert np.all(found.scores["muon"] < at_start)


def test_a_model_that_can_be_called_is_parameters():
    model = eqx.nn.Linear(3, 2, key=jax.random.key(0))

    def loss(model, x):
        return jnp.mean((jax.vmap(model)(x) - x @ TARGET.astype(x.dtype)) ** 2)

    found = ablate(loss, model, X, learning_rate=1e-6, seeds=2, techniques=("noise",))
    at_start = np.mean([loss(model, x) for x in X])
    np.testing.assert_allclose(found.scores["muon"], at_start, rtol=1e-3)


def test_a_run_without_a_finite_score_counts_as_the_worst():
    same = {"learning_rate": 0.08, "steps": 18, "seeds": 3, "techniques": ("sync_period",)}
    everything = ablate(loss, KERNEL, X, score_fn=score, **same).scores
    limit = np.median(np.concatenate(list(everything.values())))

    def score_or_nan(params):
        return jnp.where(score(params) > limit, jnp.nan, score(params))

    found = ablate(loss, KERNEL, X, score_fn=score_or_nan, **same)
    expected = {name: int(np.sum(row > limit)) for name, row in everything.items()}
    assert found.failed == {name: count for name, count in expected.items() if count}
    worst = max(row[row <= limit].max(initial=0) for row in everything.values())
    for name, row in everything.items():
        np.testing.assert_allclose(found.scores[name], np.minimum(row, worst), rtol=1e-6)
    with pytest.raises(ValueError, match="score_fn must be finite for some run"):
        ablate(loss, KERNEL, X, score_fn=lambda params: jnp.nan, seeds=2, techniques=("noise",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"techniques": "noise"}, "techniques must be a tuple of names, got 'noise'"),
        ({"higher_is_better": True}, "higher_is_better needs a score_fn"),
        ({"techniques": ()}, r"techniques must have a name, such as 'clip_norm', got \(\)"),
        ({"techniques": ("lookahed",)}, "techniques must be among clip_norm.*'lookahed'"),
        ({"seeds": 1}, r"seeds must be a whole number in \[2, inf\), got 1"),
        ({"steps": 0}, r"steps must be a whole number in \[1, inf\), got 0"),
        ({"width": 2.5}, r"width must be a whole number in \[1, inf\), got 2.5"),
        ({"learning_rate": -1.0}, r"learning_rate must be in \(0, inf\)"),
        ({"learning_rate": "fast"}, "learning_rate must be 'auto' or a number, got 'fast'"),
        ({"core": optax.scale_by_rms()}, "learning_rate must be a number with a core of your"),
        ({"core": "lion"}, "core must be 'muon', 'adam' or a transformation, got 'lion'"),
        ({"weight_decay": lambda count: 0.1}, "weight_decay must be a number, which can be"),
        ({"batches": {"x": X, "y": X[:3]}}, "batches must be arrays with one first axis"),
        ({"batches": lambda key: X[0]}, "steps must be given where batches is a function"),
        ({"batches": lambda key: X[0], "steps": 3}, "score_fn must be given where batches"),
        ({"loss_fn": lambda params, x: x}, "loss_fn must return a scalar, got shape"),
    ],
)
def test_bad_input_is_refused_in_a_line(changes, message):
    arguments = {"loss_fn": loss, "params": START, "batches": X, **changes}
    with pytest.raises(ValueError, match=message) as error:
        ablate(**arguments)
    assert "\n" not in str(error.value)


def test_every_technique_of_amac_has_a_switch():
    assert {"clip_norm", "centralize", "noise", "clip_value", "momentum"} <= TECHNIQUES.keys()
    assert {"weight_decay", "cautious_decay", "sync_period", "slow_momentum"} <= TECHNIQUES.keys()
    assert {"average_start", "warmup_steps", "end_ratio"} <= TECHNIQUES.keys()
    assert TECHNIQUES.keys() <= inspect.signature(amac_jax.amac).parameters.keys()
