"""`skip_spikes` against a plain loop in NumPy; skipped steps to the bit; a run that it saves."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from amac_jax import skip_spikes
from amac_jax.optimizers import EVERY_TECHNIQUE
from tests.helpers import assert_close, assert_same_bits, mixed_tree, train
from tests.table import CASES, ONE_OF_EACH_FACTORY


def decisions(
    norms: list[float], factor: float, window: int, patience: float
) -> tuple[list[bool], list[int]]:
    """Which steps are taken, and the spikes in a row after each: the docstring, in plain Python."""
    remembered: list[float] = []
    in_a_row, taken, rows = 0, [], []
    for norm in norms:
        recent = remembered[-window:]
        usual = np.median(recent) if len(recent) == window else 0.0
        spike = bool(usual > 0 and norm > factor * usual)
        take = bool(np.isfinite(norm)) and (not spike or in_a_row >= patience)
        if factor == np.inf:
            take, spike = True, False
        if take and np.isfinite(norm):
            remembered = [norm] * 100 if spike else [*remembered, norm]
        if take:
            in_a_row = 0
        elif np.isfinite(norm):
            in_a_row += 1
        taken.append(take)
        rows.append(in_a_row)
    return taken, rows


def noisy_norms(seed: int, steps: int) -> list[float]:
    """Norms that differ from step to step, with spikes, bad steps, and two levels that stay."""
    rng = np.random.default_rng(seed)
    norms = rng.lognormal(0.0, 0.4, steps)
    norms[rng.random(steps) < 0.1] *= 30.0
    norms[steps // 2 :] *= 20.0
    norms[-steps // 5 :] *= 0.01
    norms[rng.random(steps) < 0.05] = np.nan
    norms[rng.random(steps) < 0.03] = np.inf
    return [float(np.float32(norm)) for norm in norms]


def ran(tx: Any, norms: list[float], form: str = "scan") -> tuple[Any, Any]:
    """The updates and the states of all steps, for one parameter whose gradients these are."""

    def step(state: Any, norm: jax.Array) -> Any:
        updates, state = tx.update({"w": norm[None]}, state, params)
        return state, (updates["w"][0], state)

    params, gradients = {"w": jnp.zeros(1)}, jnp.asarray(norms, jnp.float32)
    if form == "scan":
        return jax.jit(lambda state: jax.lax.scan(step, state, gradients)[1])(tx.init(params))
    state, seen = tx.init(params), []
    for gradient in gradients:
        state, out = (jax.jit(step) if form == "jit" else step)(state, gradient)
        seen.append(out)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *seen)


@pytest.mark.parametrize(
    ("factor", "window", "patience"),
    [
        (3.0, 5, 4), (3.0, 4, 4), (1.5, 1, 2), (3.0, 8, np.inf), (2.0, 3, 0), (5.0, 64, 20),
        (10.0, 100, 3), (np.inf, 4, 4), (1.01, 2, 2.5),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(2))
def test_equals_the_plain_loop(factor, window, patience, seed):
    norms = noisy_norms(seed, 300)
    updates, states = ran(
        skip_spikes(optax.sgd(1.0), factor, window=window, patience=patience), norms
    )
    taken, rows = decisions(norms, factor, window, patience)
    expected = np.where(taken, -np.asarray(norms, np.float32), np.float32(-0.0))
    np.testing.assert_array_equal(updates, expected)
    assert np.all(np.signbit(updates[~np.isnan(updates)]))  # 0 added to a parameter of -0 is not -0
    np.testing.assert_array_equal(states.taken, np.cumsum(taken))
    np.testing.assert_array_equal(states.skipped, np.cumsum(np.logical_not(taken)))
    np.testing.assert_array_equal(states.in_a_row, rows)
    if factor < 10.0 and window < 64:
        assert 10 < int(states.skipped[-1]) < 290


def pick(trees: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], trees)


@pytest.mark.parametrize("form", ["jit", "eager"])
def test_jit_and_scan_and_neither_are_the_same(form):
    norms = noisy_norms(0, 40)
    tx = skip_spikes(optax.sgd(1.0), 3.0, window=5, patience=4)
    assert_same_bits(ran(tx, norms, form), ran(tx, norms))


def test_vmap_over_its_hyperparameters_is_the_runs():
    norms = noisy_norms(0, 60)
    rows = [(3.0, 5, 4.0), (1.5, 1, 2.0), (np.inf, 4, 4.0), (2.0, 3, np.inf)]
    settings = [np.asarray(column) for column in zip(*rows, strict=True)]

    def run(factor, window, patience):
        return ran(skip_spikes(optax.sgd(1.0), factor, window=window, patience=patience), norms)

    together = jax.vmap(run)(*settings)
    for index, row in enumerate(rows):
        alone = run(row[0], int(row[1]), row[2])
        assert_same_bits(pick(together, index), alone)


def test_a_schedule_is_a_function_of_the_steps_taken():
    """Off for the first 4 steps taken, then on."""
    tx = skip_spikes(optax.sgd(1.0), lambda count: jnp.where(count < 4, jnp.inf, 1.5), window=2)
    _, states = ran(tx, [1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0])
    assert states.skipped.tolist() == [0, 0, 0, 0, 1, 2, 2]


def test_without_patience_a_new_level_would_end_training():
    norms = [1.0] * 10 + [50.0] * 30
    for patience, skipped in ((5, 5), (np.inf, 30)):
        tx = skip_spikes(optax.sgd(1.0), 10.0, window=4, patience=patience)
        _, states = ran(tx, norms)
        assert int(states.skipped[-1]) == skipped


def test_the_new_level_guards_at_once():
    tx = skip_spikes(optax.sgd(1.0), 10.0, window=4, patience=2)
    _, states = ran(tx, [1.0] * 5 + [50.0] * 3 + [5000.0, 60.0])
    assert states.skipped.tolist() == [0] * 5 + [1, 2, 2, 3, 3]


def test_gradients_of_zero_are_not_what_is_usual():
    tx = skip_spikes(optax.sgd(1.0), 2.0, window=2)
    _, states = ran(tx, [0.0] * 4 + [1.0] * 4 + [5.0])
    assert states.skipped.tolist() == [0] * 8 + [1]


def test_the_norm_is_of_all_leaves_and_of_the_gradient_as_it_arrives():
    """Float16 included, whose squares overflow, and before the optimizer clips."""
    tx = skip_spikes(amac_jax.sgd(1.0, clip_norm=1e-3), 2.0, window=1)
    params = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2), jnp.float16)}
    gradient = jax.tree.map(lambda leaf: jnp.full_like(leaf, 300.0), params)
    _, state = tx.update(gradient, tx.init(params), params)
    assert float(state.norms[-1]) == pytest.approx(300.0 * np.sqrt(7), rel=1e-6)


# --- Skipped steps --------------------------------------------------------------------------------


@functools.cache
def stepper(name: str) -> tuple[Any, Any]:
    """Two are needed before it judges, and the mixed tree's norms are within a factor of 3."""
    tx = skip_spikes(CASES[name].build(), 3.0, window=2)

    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return tx, step


def multiplied(gradient: Any, by: float) -> Any:
    return jax.tree.map(lambda leaf: leaf * np.asarray(by, leaf.dtype), gradient)


@pytest.mark.parametrize("name", ONE_OF_EACH_FACTORY)
def test_a_skipped_step_changes_nothing_but_counters(name):
    """Spikes and NaN between good steps; the run ends as the one that never saw them."""
    tx, step = stepper(name)
    params = mixed_tree(0)
    params["dense"]["bias"] = params["dense"]["bias"].at[0].set(-0.0)
    params, state = undisturbed = params, tx.init(params)
    for index in range(5):
        good = mixed_tree(1000 + index)
        if index >= 2:
            for skipped, by in enumerate((100.0, -30.0, np.nan, 1000.0), start=4 * (index - 2) + 1):
                before = params, state
                params, state = step(params, state, multiplied(good, by))
                assert int(state.skipped) == skipped
                same = {"skipped": before[1].skipped, "in_a_row": before[1].in_a_row}
                assert_same_bits((params, state._replace(**same)), before)
        params, state = step(params, state, good)
        undisturbed = step(*undisturbed, good)
    assert int(undisturbed[1].skipped) == 0
    same = {"skipped": undisturbed[1].skipped}
    assert_same_bits((params, state._replace(**same)), undisturbed)
    with pytest.raises(AssertionError):  # the good steps did something
        assert_same_bits(params, mixed_tree(0))


@pytest.mark.parametrize("beside", [False, True])
def test_as_a_keyword_it_is_around_the_whole_chain(beside):
    """With and without `skip_nonfinite`, whose counter then stays at 0."""
    settings: dict[str, Any] = {**EVERY_TECHNIQUE, "record_metrics": True, "skip_nonfinite": beside}
    plain = amac_jax.amac(0.1, 80, **settings)
    params = {"kernel": jnp.ones((4, 3))}
    gradient = jax.tree.map(jnp.ones_like, params)
    runs = [
        [*train(tx, params, [gradient] * 65 + [spike] + [gradient] * 2)]
        for tx in (amac_jax.amac(0.1, 80, **settings, skip_spikes=5.0), skip_spikes(plain, 5.0))
        for spike in (multiplied(gradient, 100.0), multiplied(gradient, np.inf))
    ]
    first = runs[0]
    for run in runs:
        assert_same_bits(run[65][0], run[64][0])
        assert_close(run[-1][0], first[-1][0])
        metrics = amac_jax.metrics(run[-1][1])
        assert metrics["skipped_steps"] == 1.0
        assert metrics["grad_norm"] == pytest.approx(np.sqrt(12.0))
    assert not np.array_equal(first[-1][0]["kernel"], first[65][0]["kernel"])


def test_without_a_limit_it_is_not_there_at_all():
    """At inf not even a NaN is skipped; None leaves it out."""
    gradients = [{"w": jnp.array([value])} for value in (1.0, 1e9, np.nan)]
    plain, off = (amac_jax.adam(0.1, skip_spikes=factor) for factor in (None, np.inf))
    assert not isinstance(plain.init({"w": jnp.ones(1)}), type(off.init({"w": jnp.ones(1)})))
    runs = [[p for p, _ in train(tx, {"w": jnp.ones(1)}, gradients)] for tx in (plain, off)]
    assert np.isnan(runs[1][2]["w"][0])
    assert_close(*(run[:2] for run in runs), 1e-5)


def test_inject_hyperparams_switches_it_on():
    tx = optax.inject_hyperparams(amac_jax.sgd)(1.0, skip_spikes=np.inf)
    params = {"w": jnp.zeros(1)}
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(64):
        _, state = update({"w": jnp.ones(1)}, state, params)
    for factor, expected in ((np.inf, -100.0), (10.0, -0.0)):
        state.hyperparams["skip_spikes"] = jnp.asarray(factor, jnp.float32)
        updates, state = update({"w": jnp.full(1, 100.0)}, state, params)
        assert float(updates["w"][0]) == expected


# --- What it is for -------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "momentum"])
def test_a_run_with_spikes_ends_as_one_without(optimizer):
    """Least squares; every 50th batch has a target that is 10,000 times too large."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 16, 4)).astype(np.float32)
    y = x @ np.array([1.0, -2.0, 0.5, 0.5], np.float32) + 0.1 * rng.normal(size=(300, 16)).astype(
        np.float32
    )
    broken = y.copy()
    broken[99::50] = 1e4
    build = getattr(amac_jax, optimizer)
    rate = {"sgd": 0.1, "adam": 0.02, "momentum": 0.02}[optimizer]

    def error(y: np.ndarray, **keywords: Any) -> float:
        tx = build(rate, **keywords)

        def step(carry, batch):
            params, state = carry
            x, y = batch
            gradient = jax.grad(lambda w: jnp.mean((x @ w - y) ** 2))(params)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = jnp.zeros(4)
        (w, _), _ = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), (x, y)))()
        return float(jnp.linalg.norm(w - jnp.array([1.0, -2.0, 0.5, 0.5])))

    clean, hurt, saved = error(y), error(broken), error(broken, skip_spikes=20.0)
    print(f"{optimizer}: clean {clean:.4f}, with spikes {hurt:.4f}, skipped {saved:.4f}")
    assert clean < 0.03
    assert saved < 0.03
    assert hurt > 0.15


# --- Refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"factor": 1.0}, "factor must be in (1, inf], got 1.0"),
        ({"factor": float("nan")}, "factor must be in (1, inf], got nan"),
        ({"factor": None}, "factor must be in (1, inf], a schedule or an array, got None"),
        ({"window": 0}, "window must be a whole number in [1, 100], got 0"),
        ({"window": 101}, "window must be a whole number in [1, 100], got 101"),
        ({"window": 2.5}, "window must be a whole number in [1, 100], got 2.5"),
        ({"patience": -1}, "patience must be in [0, inf], got -1"),
    ],
)
def test_what_is_refused(keywords, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        skip_spikes(optax.sgd(1.0), **{"factor": 2.0, **keywords})


def test_the_keyword_is_refused_by_its_name():
    with pytest.raises(ValueError, match=re.escape("skip_spikes must be in (1, inf], got 0.5")):
        amac_jax.sgd(1.0, skip_spikes=0.5)
    with pytest.raises(ValueError, match=re.escape("in (1, inf], got False; off is inf")):
        amac_jax.sgd(1.0, skip_spikes=False)
