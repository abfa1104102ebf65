"""`reduce_on_plateau` against the rule in plain Python and against Optax's own."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from amac_jax import reduce_on_plateau
from tests.helpers import assert_close, assert_same_bits, normals

LIKE = {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}
NUMBERS = {
    "factor": 0.5,
    "patience": 3,
    "rtol": 0.01,
    "atol": 0.02,
    "cooldown": 2,
    "accumulation_size": 2,
    "min_scale": 0.1,
}


def rule(
    values: Any,
    factor: float = 0.1,
    patience: int = 10,
    mode: str = "min",
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_scale: float = 0.0,
) -> list[float]:
    """The scale of every step."""
    scale, best, stagnant, pause = 1.0, None, 0, 0
    collected, scales = [], []
    for value in values:
        collected.append(float(value))
        if len(collected) == accumulation_size:
            mean, collected = sum(collected) / accumulation_size, []
            if best is None:
                improved = math.isfinite(mean)
            else:
                margin = rtol * abs(best) + atol
                improved = mean < best - margin if mode == "min" else mean > best + margin
            best = mean if improved else best
            if pause > 0:
                pause, stagnant = pause - 1, 0
            else:
                stagnant = 0 if improved else stagnant + 1
            if stagnant == patience:
                scale, stagnant, pause = max(scale * factor, min_scale), 0, cooldown
        scales.append(scale)
    return scales


def scales(tx: optax.GradientTransformationExtraArgs, values: Any) -> Any:
    """The scale of every step, seen in an update of 1."""

    def step(state, value):
        update, state = tx.update(jnp.array(1.0), state, value=value)
        return state, update

    return jax.lax.scan(step, tx.init(jnp.array(1.0)), jnp.asarray(values, jnp.float32))[1]


@functools.cache
def scales_of_many(**numbers: Any) -> Any:
    """Compiled once, for the runs of every seed."""
    tx = reduce_on_plateau(**numbers)
    return jax.jit(jax.vmap(lambda values: scales(tx, values)))


def metric(seed: int, steps: int = 200) -> np.ndarray:
    """A noisy fall that flattens, from above zero to below it."""
    noise = np.random.default_rng(seed).normal(size=steps)
    return (2 * np.exp(-np.arange(steps) / 30) - 1 + 0.1 * noise).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"patience": 1, "factor": 0.9},
        {"patience": 4, "cooldown": 5, "factor": 0.5},
        {"patience": 3, "factor": 0.5, "min_scale": 0.2},
        {"patience": 3, "accumulation_size": 4, "rtol": 0.0},
        {"patience": 2, "rtol": 0.1, "atol": 0.05, "factor": 0.8, "cooldown": 1},
        NUMBERS,
    ],
)
def test_equals_the_rule(seed, mode, numbers):
    runs = np.stack([metric(seed), metric(seed) - 5, -metric(seed)])
    found = scales_of_many(mode=mode, **numbers)(runs)
    expected = [rule(values, mode=mode, **numbers) for values in runs]
    assert np.all(np.min(expected, axis=1) < 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("numbers", "values", "expected"),
    [
        # It fires at the second value in a row that is no better, and counts anew.
        ({"patience": 2}, [3, 2, 2, 2, 2, 2], [1, 1, 1, 0.5, 0.5, 0.25]),
        ({"patience": 2}, [3, 3, 2, 2, 1, 1], [1, 1, 1, 1, 1, 1]),
        ({"patience": 1}, [-1, -1, -2, -1, -3], [1, 0.5, 0.5, 0.25, 0.25]),
        ({"patience": 1, "mode": "max"}, [1, 1, 2, 1, 3], [1, 0.5, 0.5, 0.25, 0.25]),
        ({"patience": 1, "mode": "max"}, [-2, -2, -1, -3, 0], [1, 0.5, 0.5, 0.25, 0.25]),
        # Two values are not counted, but 1 is remembered among them.
        ({"patience": 1, "cooldown": 2}, [2, 2, 1, 3, 1, 1], [1, 0.5, 0.5, 0.5, 0.25, 0.25]),
        ({"patience": 1, "atol": 1.0}, [9, 8, 7, 7], [1, 0.5, 0.5, 0.25]),
        ({"patience": 1, "rtol": 0.5}, [8, 4, 3, 1.5], [1, 0.5, 0.5, 0.25]),
        ({"patience": 1, "min_scale": 0.3}, [1, 1, 1, 1], [1, 0.5, 0.3, 0.3]),
        # Means of two: 2, 1.5, 1.5.
        ({"patience": 1, "accumulation_size": 2}, [3, 1, 3, 0, 1, 2], [1, 1, 1, 1, 1, 0.5]),
        # The first value counts even if it is no improvement on inf.
        ({"patience": 2}, [math.nan, 1, math.nan, math.nan, 1], [1, 1, 1, 0.5, 0.5]),
        ({"patience": 2}, [math.inf, math.inf, 1, 1], [1, 0.5, 0.5, 0.5]),
        ({"patience": 2}, [1, -math.inf, -math.inf, 0], [1, 1, 1, 0.5]),
        ({"patience": 1, "atol": 1.0, "rtol": 0.0}, [-1e9, -1e9], [1, 0.5]),
    ],
)
def test_by_hand(numbers, values, expected):
    found = scales(reduce_on_plateau(**{"factor": 0.5, "rtol": 0.0, **numbers}), values)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@functools.cache
def scales_of_optax(**numbers: Any) -> Any:
    tx = optax.contrib.reduce_on_plateau(**numbers)
    return jax.jit(jax.vmap(lambda values: scales(tx, values)))


@pytest.mark.parametrize("seed", range(3))
def test_on_positive_losses_it_is_optax_on_negative_ones_it_is_right(seed):
    numbers = {**NUMBERS, "rtol": 0.05, "accumulation_size": 1}
    losses, stagnant = metric(seed) + 2, np.full(200, -5.0, np.float32)
    runs = np.stack([losses, stagnant])
    ours, ours_stagnant = np.asarray(scales_of_many(**numbers)(runs))
    with jax.numpy_dtype_promotion("standard"):
        theirs, theirs_stagnant = np.asarray(scales_of_optax(**numbers)(runs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert theirs_stagnant[-1] == 1.0
    np.testing.assert_allclose(ours_stagnant, rule(stagnant, **numbers), rtol=1e-6)
    assert ours_stagnant[-1] < 1.0


def run(numbers: dict[str, Any], values: Any, updates: Any) -> Any:
    tx = reduce_on_plateau(**numbers)

    def step(state, value):
        scaled, state = tx.update(updates, state, value=value)
        return state, scaled

    return jax.lax.scan(step, tx.init(updates), values)


def test_loop_jit_scan_and_vmap_are_the_same():
    updates = next(normals(0, LIKE))
    values = np.stack([metric(0, 100), metric(1, 100)])
    tx = reduce_on_plateau(**NUMBERS)
    state, step = tx.init(LIKE), jax.jit(tx.update)
    for value in values[0]:
        before = state
        found, state = step(updates, before, LIKE, value=value)
        eagerly, _ = tx.update(updates, before, None, value=float(value), step=3)
        assert_close(found, eagerly)
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, before)
        assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, before)
    assert step._cache_size() == 1
    assert int(state.count) == 100
    assert float(state.inner.scale) < 1

    scanned = run(NUMBERS, values[0], updates)
    assert_close(scanned[0], state)
    together = jax.vmap(lambda values: run(NUMBERS, values, updates))(jnp.asarray(values))
    assert_close(jax.tree.map(lambda leaf: np.asarray(leaf)[0], together), scanned)


@pytest.mark.parametrize("argument", NUMBERS)
def test_every_number_may_be_swept_or_a_schedule(argument):
    values, updates = jnp.asarray(metric(2)), jnp.asarray(np.float32(1))
    base = {**NUMBERS, "factor": 0.3}
    two = np.array([base[argument], {"rtol": 0.5, "atol": 0.5, "cooldown": 9}.get(argument, 1.0)])

    def with_number(number):
        return run({**base, argument: number}, values, updates)[1]

    @jax.jit
    def with_schedule(number):
        return with_number(lambda count: number)

    swept = np.asarray(jax.jit(jax.vmap(with_number))(two))
    for number, row in zip(two, swept, strict=True):
        np.testing.assert_allclose(row, with_schedule(number), rtol=1e-6)
    assert not np.array_equal(*swept)


def test_schedules_are_read_at_the_count_of_updates():
    factors = jnp.array([1.0, 0.5, 0.25, 1.0])
    tx = reduce_on_plateau(lambda count: factors[count], patience=1)
    np.testing.assert_allclose(scales(tx, [1, 1, 1, 1]), [1, 0.5, 0.125, 0.125])


def test_a_lowest_scale_that_rises_does_not_raise_the_scale():
    tx = reduce_on_plateau(0.5, 1, min_scale=lambda count: jnp.where(count < 2, 0.0, 0.9))
    np.testing.assert_allclose(scales(tx, [1, 1, 1, 1]), [1, 0.5, 0.5, 0.5])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_off_is_the_identity_in_every_bit(dtype):
    tx = reduce_on_plateau(factor=1.0, patience=1)
    like = jax.tree.map(lambda leaf: leaf.astype(dtype), LIKE)
    state = tx.init(like)
    for updates in normals(3, like, 4):
        found, state = tx.update(updates, state, value=1.0)
        assert_same_bits(found, updates)


def test_low_precision_is_scaled_in_float32():
    tx = reduce_on_plateau(factor=0.1, patience=1)
    updates = jnp.arange(1, 200, dtype=jnp.bfloat16)
    _, state = tx.update(updates, tx.init(updates), value=jnp.bfloat16(1.0))
    found, state = tx.update(updates, state, value=jnp.bfloat16(1.0))
    assert_same_bits(found, (np.float32(0.1) * updates.astype(jnp.float32)).astype(jnp.bfloat16))
    assert state.inner.scale.dtype == state.inner.best.dtype == jnp.float32


def test_float64_updates_stay_float64_and_the_state_keeps_its_dtypes():
    with jax.enable_x64(True):
        updates = np.array([1.0, 2.0])
        tx = reduce_on_plateau(**NUMBERS)
        state = jax.jit(tx.init)(updates)
        found, later = jax.jit(tx.update)(updates, state, value=np.float64(1))
        assert_same_bits(found, updates)
        assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, later)


def test_in_a_chain_with_inject_hyperparams():
    @optax.inject_hyperparams
    def chain(rate, factor, patience):
        return optax.chain(optax.sgd(rate), reduce_on_plateau(factor, patience, mode="max"))

    tx = chain(rate=2.0, factor=0.5, patience=2)
    params = jnp.array(0.0)
    state, found = tx.init(params), []
    for accuracy in (0.5, 0.5, 0.5, 0.6):
        updates, state = tx.update(jnp.array(1.0), state, params, value=accuracy)
        found.append(float(updates))
    assert found == [-2.0, -2.0, -1.0, -1.0]

    tx = optax.inject_hyperparams(reduce_on_plateau)(**NUMBERS, mode="max")
    _, state = tx.update(params, tx.init(params), params, value=0.5)
    assert set(state.hyperparams) == set(NUMBERS)


def test_counts_stop_at_the_largest_int32():
    tx = reduce_on_plateau()
    largest = jnp.int32(2**31 - 1)
    _, state = tx.update(jnp.ones(()), tx.init(())._replace(count=largest), value=1.0)
    assert int(state.count) == largest


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reduce_on_plateau(0.0), r"factor must be in \(0, 1\].* got 0.0"),
        (lambda: reduce_on_plateau(1.5), r"factor must be in \(0, 1\].* got 1.5"),
        (lambda: reduce_on_plateau(patience=0), r"patience .*whole .*\[1, inf\).* got 0"),
        (lambda: reduce_on_plateau(patience=2.5), r"patience .*whole .*\[1, inf\).* got 2.5"),
        (lambda: reduce_on_plateau(mode="low"), r"mode must be one of 'min', 'max', got 'low'"),
        (lambda: reduce_on_plateau(rtol=-1.0), r"rtol must be in \[0, inf\).* got -1.0"),
        (lambda: reduce_on_plateau(atol=math.nan), r"atol must be in \[0, inf\).* got nan"),
        (lambda: reduce_on_plateau(cooldown=-1), r"cooldown .*whole .*\[0, inf\).* got -1"),
        (lambda: reduce_on_plateau(accumulation_size=0), r"accumulation_size .*whole.* got 0"),
        (lambda: reduce_on_plateau(min_scale=1.5), r"min_scale must be in \[0, 1\].* got 1.5"),
        (lambda: scales(reduce_on_plateau(), np.ones((3, 2))),
         r"value must be a scalar, got an array of shape \(2,\)"),
    ],
)  # fmt: skip
def test_errors_name_argument_range_and_value(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_update_without_a_value_says_how_to_hand_it_over():
    tx = reduce_on_plateau()
    for chain in (tx, optax.chain(optax.sgd(0.1), tx)):
        with pytest.raises(ValueError, match=r"needs value: tx.update\(.*, value=loss\)"):
            chain.update(LIKE, chain.init(LIKE), LIKE)


@pytest.mark.parametrize("of", [reduce_on_plateau, optax.contrib.reduce_on_plateau])
def test_its_scale_is_recorded_whosever_it_is(of):
    tx = amac_jax.sgd(0.1, plateau=of(factor=0.5, patience=1), record_metrics=True)
    state, update = tx.init(LIKE), jax.jit(tx.update)
    scales = []
    for loss in (3.0, 3.0, 2.0, 2.0):
        _, state = update(LIKE, state, LIKE, value=loss)
        scales.append(float(amac_jax.metrics(state)["plateau_scale"]))
    assert scales == [1.0, 0.5, 0.5, 0.25]


def test_in_the_pipeline_it_scales_the_decay_too_and_lookahead_sees_it():
    """Like a smaller learning rate: theta + u is what is averaged, u what has been scaled."""
    plateau = reduce_on_plateau(0.5, patience=1)
    tx = amac_jax.sgd(
        0.1,
        weight_decay=0.5,
        decay_mask=True,
        plateau=plateau,
        average_start=1,
        record_metrics=True,
    )
    params, update = jnp.array([2.0]), jax.jit(tx.update)
    state, scale, expected, weights = tx.init(params), 1.0, 2.0, []
    for loss in (3.0, 3.0, 2.0, 2.0):
        updates, state = update(jnp.array([1.0]), state, params, value=loss)
        params = optax.apply_updates(params, updates)
        scale = scale * (0.5 if len(weights) in (1, 3) else 1.0)
        expected = expected - scale * 0.1 * (1.0 + 0.5 * expected)
        weights.append(expected)
        np.testing.assert_allclose(params, expected, rtol=1e-6)
        np.testing.assert_allclose(amac_jax.metrics(state)["plateau_scale"], scale)
    np.testing.assert_allclose(amac_jax.averaged_params(state), np.mean(weights), rtol=1e-6)
