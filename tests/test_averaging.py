"""`average_weights` against the mean of the snapshots in NumPy."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from amac_jax import average_weights, averaged_params, sgd
from tests.helpers import apply, assert_close, assert_same_bits, float64, normals, train

LIKE = {"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(3, np.float32)}
RATE = 0.1


def weights_of_sgd(params, gradients):
    weights = []
    for gradient in gradients:
        params = jax.tree.map(lambda p, g: p - RATE * g, float64(params), float64(gradient))
        weights.append(params)
    return weights


def taken(start, period, steps):
    """The steps whose weights are averaged, counted from 1."""
    return [t for t in range(1, steps + 1) if t >= start and (t - start) % period == 0]


def mean(trees):
    return jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *trees)


@functools.cache  # `train` compiles a transformation once
def averaging(start, period):
    return optax.chain(optax.sgd(RATE), average_weights(start, period))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("start", [0, 1, 4, 11, 12, jnp.inf])
@pytest.mark.parametrize("period", [1, 3])
def test_is_the_mean_of_the_snapshots_after_every_step(seed, start, period):
    init, *gradients = normals(seed, LIKE, 12)
    weights = weights_of_sgd(init, gradients)
    for t, (params, state) in enumerate(train(averaging(start, period), init, gradients), 1):
        assert_close(params, weights[t - 1])
        due = taken(start, period, t)
        assert int(state[-1].inner.averaged) == len(due)
        assert_close(averaged_params(state), mean([weights[t - 1] for t in due]) if due else init)
        assert_close(averaged_params(state, params), averaged_params(state) if due else params)


def test_a_fraction_of_a_run_is_rounded_up_to_the_next_step():
    init, *gradients = normals(0, LIKE, 11)
    tx = average_weights(7.5, 2)  # three quarters of 10 steps
    averaged = [int(state.inner.averaged) for _, state in train(tx, init, gradients)]
    assert averaged == [0, 0, 0, 0, 0, 0, 0, 1, 1, 2]


def test_hyperparameters_may_be_schedules():
    init, *gradients = normals(0, LIKE, 11)
    tx = average_weights(lambda count: 3.0, lambda count: 2 + 0 * count, decay=lambda count: 0.5)
    fixed = average_weights(3, 2, decay=0.5)
    (*_, (_, state)), (*_, (_, expected)) = (train(t, init, gradients) for t in (tx, fixed))
    assert_same_bits(state, expected)
    assert int(state.inner.averaged) == 4


@functools.cache
def decaying(decay, through_compose):
    if through_compose:
        return sgd(RATE, average_start=5, average_period=2, average_decay=decay)
    return optax.chain(optax.sgd(RATE), average_weights(5, 2, decay=decay))


@pytest.mark.parametrize("through_compose", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_decay_is_a_mean_at_first_and_a_moving_average_then(seed, decay, through_compose):
    init, *gradients = normals(seed, LIKE, 40)
    weights = weights_of_sgd(init, gradients)
    tx = decaying(decay, through_compose)
    average, n = float64(init), 0
    for t, (_, state) in enumerate(train(tx, init, gradients), 1):
        if t in taken(5, 2, t):
            n += 1
            share = max(1 / n, 1 - decay)
            average = jax.tree.map(lambda a, w, s=share: a + s * (w - a), average, weights[t - 1])
        assert_close(averaged_params(state), average)
    assert n == 18


def test_thousand_bfloat16_weights_are_averaged_in_float32():
    noise = np.random.default_rng(0).standard_normal((1000, 5))
    drift = np.linspace(1.0, 2.0, 1000)[:, None]
    weights = (drift + 0.01 * noise).astype(jnp.bfloat16)
    tx = average_weights()

    def ours(state, params):
        return tx.update(jnp.zeros_like(params), state, params)[1], None

    def in_bfloat16(carry, params):
        n, average = carry
        return (n + 1, average + ((params - average) / n).astype(jnp.bfloat16)), None

    @jax.jit
    def averages(weights):
        state: Any = jax.lax.scan(ours, tx.init(weights[0]), weights)[0]
        (_, stalled), _ = jax.lax.scan(in_bfloat16, (1, weights[0]), weights)
        return state.inner.average, stalled

    exact = float64(weights).mean(axis=0)
    average, stalled = averages(weights)
    assert average.dtype == jnp.float32
    assert np.max(np.abs(float64(average) - exact)) < 1e-3
    assert np.min(np.abs(float64(stalled) - exact)) > 0.1


@pytest.mark.parametrize(
    ("of_params", "asked_for", "kept"),
    [
        ("bfloat16", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "float32"),
        ("float64", "float32", "float64"),
        ("float32", "float64", "float64"),
    ],
)
def test_the_accumulator_has_at_least_the_precision_of_the_parameters(of_params, asked_for, kept):
    with jax.enable_x64(True):

        @jax.jit
        def averages(params):
            _, state = apply(average_weights(dtype=asked_for), params, params)
            return state.inner.average, averaged_params(state, params)

        params = np.full(3, 1 / 3, of_params)
        average, as_params = averages(params)
        assert average.dtype == kept
        assert_same_bits(average, params.astype(kept) + params.astype(kept))
        assert_same_bits(as_params, params + params)


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("inside", [True, False])
def test_inside_multi_steps_it_counts_optimizer_steps_and_beside_it_micro_batches(inside):
    init, *gradients = normals(0, LIKE, 13)
    average = average_weights(start=2)
    if inside:
        tx = optax.MultiSteps(optax.chain(optax.sgd(RATE), average), 3).gradient_transformation()
    else:
        steps = optax.MultiSteps(optax.sgd(RATE), 3).gradient_transformation()
        tx = optax.chain(steps, average)
    weights = [init, *weights_of_sgd(init, [mean(gradients[i : i + 3]) for i in range(0, 12, 3)])]
    *_, (params, state) = train(tx, init, gradients)
    assert_close(params, weights[-1])
    if inside:
        assert_close(averaged_params(state), mean(weights[2:]))
    else:  # after micro-batches 2, ..., 12
        assert_close(averaged_params(state), mean(float64([weights[i // 3] for i in range(2, 13)])))


def test_updates_pass_bit_for_bit():
    params, updates = normals(0, LIKE, 2)
    passed, _ = jax.jit(lambda *given: apply(average_weights(), *given))(updates, params)
    assert_same_bits(passed, updates)


# --- Beside nnx.EMA -------------------------------------------------------------------------------


class Net(nnx.Module):
    def __init__(self, dtype: Any) -> None:
        self.kernel = nnx.Param(jnp.array([1.0, -1.0, 0.5], dtype))


def with_ema(
    decay: float, dtype: Any, steps: int, update: Callable[[int, jax.Array], jax.Array]
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Our average, the average of Flax, and the weights after every step, all in float64."""
    model = Net(dtype)
    ema = nnx.EMA(model, decay=decay)
    tx = optax.chain(optax.sgd(1.0), average_weights(start=1, decay=decay))
    optimizer, passed = nnx.Optimizer(model, tx, wrt=nnx.Param), []
    for step in range(steps):
        moved = functools.partial(update, step)
        gradient = jax.tree.map(lambda p, moved=moved: -moved(p), nnx.state(model, nnx.Param))
        optimizer.update(model, gradient)
        ema.update(model)
        passed.append(np.asarray(model.kernel.get_value(), np.float64))
    ours = averaged_params(optimizer)["kernel"]
    return np.asarray(ours, np.float64), np.asarray(ema.params["kernel"], np.float64), passed


def wave(step: int, p: jax.Array) -> jax.Array:
    return jnp.full_like(p, np.sin(step))


@pytest.mark.parametrize("decay", [0.5, 0.8])
def test_ends_where_nnx_ema_does_when_both_have_forgotten_the_start(decay, promoting):
    ours, flax, _ = with_ema(decay, jnp.float32, 80, wave)
    np.testing.assert_allclose(ours, flax, rtol=1e-5, atol=1e-6)


def test_at_first_it_is_the_mean_where_nnx_ema_is_still_at_the_start(promoting):
    """0.99 keeps 0.99^20 = 82 % of the weights before the first step; the mean keeps nothing."""
    ours, flax, passed = with_ema(0.99, jnp.float32, 20, lambda step, p: jnp.full_like(p, 1.0))
    np.testing.assert_allclose(ours, np.mean(passed, axis=0), rtol=1e-6)
    start = np.array([1.0, -1.0, 0.5])
    expected = start.copy()
    for weights in passed:
        expected = 0.99 * expected + 0.01 * weights
    np.testing.assert_allclose(flax, expected, rtol=1e-5)
    assert np.all(ours - start > 5 * (flax - start))


def test_bfloat16_weights_are_averaged_where_nnx_ema_stands_still(promoting):
    """The weights jump once by 1/16; a thousandth of it is far below bfloat16's 1/128 at 1."""

    def jump(step: int, p: jax.Array) -> jax.Array:
        return jnp.full_like(p, 0.0625 if step == 0 else 0.0)

    ours, flax, passed = with_ema(0.999, jnp.bfloat16, 100, jump)
    np.testing.assert_allclose(ours, passed[-1], rtol=1e-6)
    np.testing.assert_array_equal(flax, [1.0, -1.0, 0.5])  # where it began
