"""`lookahead` against the paper's algorithm in NumPy, against Optax's, and in every wrapper."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from amac_jax import (
    amac,
    average_weights,
    clip_by_global_norm,
    heavy_ball,
    lookahead,
    slow_params,
)
from amac_jax._core.boundary import stage_of, transformation
from amac_jax._core.chain import chain
from amac_jax.optimizers import EVERY_TECHNIQUE
from tests.helpers import assert_close, assert_same_bits, float64, normals, train

LIKE = {"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(3, np.float32)}
RATE = 0.1


def test_stages_of_one_chain_land_where_they_stand():
    """Not on the updates that a later stage makes, as elements of `optax.chain` do not either."""
    parts = [
        average_weights(1), lookahead(2), clip_by_global_norm(0.1), average_weights(2),
        heavy_ball(0.9), lookahead(3),
    ]  # fmt: skip
    one = transformation(chain([stage_of(part) for part in parts], 1.0))
    params, *gradients = normals(0, LIKE, 8)
    ends = [train(tx, params, gradients) for tx in (one, optax.chain(*parts))]
    for (ours, state), (theirs, states) in zip(*ends, strict=True):
        assert_close(ours, theirs, 1e-6)
        for mine, its in zip(state.inner.stages, states, strict=True):
            assert_close(mine, its.inner, 1e-6)


def zhang(params: Any, gradients: list[Any], k: int, alpha: float) -> list[Any]:
    """Algorithm 1 of Zhang et al., 2019, around gradient descent: the fast weights after each step.

    After the k-th step of an inner loop they are where the next one starts, at the slow weights.
    """
    slow, history = float64(params), []
    remaining = iter(float64(gradients))
    while True:
        fast = slow
        for _ in range(k):
            gradient = next(remaining, None)
            if gradient is None:
                return history
            fast = jax.tree.map(lambda p, g: p - RATE * g, fast, gradient)
            history.append(fast)
        slow = jax.tree.map(lambda s, f: s + alpha * (f - s), slow, fast)
        history[-1] = slow


def sgd_with_lookahead(k: int = 3, alpha: float = 0.5) -> optax.GradientTransformationExtraArgs:
    return optax.chain(optax.sgd(RATE), lookahead(k, alpha))


def stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


@functools.cache
def weights_and_slow(k: int, alpha: float) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The parameters after each step and the slow weights after the last, in one program."""
    tx = sgd_with_lookahead(k, alpha)

    def step(carry: Any, gradient: Any) -> tuple[Any, Any]:
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    @jax.jit
    def run(params: Any, gradients: Any) -> tuple[Any, Any]:
        (_, state), path = jax.lax.scan(step, (params, tx.init(params)), gradients)
        return path, slow_params(state)

    return run


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_equals_the_algorithm(seed, k, alpha):
    params, *gradients = normals(seed, LIKE, 14)
    expected = zhang(params, gradients, k, alpha)
    path, slow = weights_and_slow(k, alpha)(params, stacked(gradients))
    assert_close(path, stacked(expected))
    last = len(gradients) // k * k
    assert_close(slow, expected[last - 1])


def kallusky(
    params: Any, gradients: list[Any], k: int, alpha: float, mu: float
) -> tuple[list[Any], Any]:
    """SNOO (Kallusky et al., 2025) around gradient descent: fast weights, and the velocity at last.

    Its pseudo-gradient is phi - theta, and its buffer the velocity with the other sign.
    """
    slow = fast = float64(params)
    velocity, history = jax.tree.map(np.zeros_like, slow), []
    for t, gradient in enumerate(float64(gradients), 1):
        fast = jax.tree.map(lambda p, g: p - RATE * g, fast, gradient)
        if t % k == 0:
            delta = jax.tree.map(np.subtract, fast, slow)
            velocity = jax.tree.map(lambda v, d: mu * v + d, velocity, delta)
            slow = jax.tree.map(lambda s, d, v: s + alpha * (d + mu * v), slow, delta, velocity)
            fast = slow
        history.append(fast)
    return history, velocity


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("k", "alpha", "mu"),
    [(1, 0.5, 0.9), (2, 0.8, 0.5), (3, 0.3, 0.9), (5, 1.0, 0.8), (2, 0.0, 0.9)],
)
def test_with_momentum_equals_nesterovs_outer_step(seed, k, alpha, mu):
    params, *gradients = normals(seed, LIKE, 24)
    expected, velocity = kallusky(params, gradients, k, alpha, mu)
    tx = optax.chain(optax.sgd(RATE), lookahead(k, alpha, slow_momentum=mu))
    steps = list(train(tx, params, gradients))
    assert_close([after for after, _ in steps], expected, 1e-5)
    state = steps[-1][1]
    assert_close(slow_params(state), expected[len(gradients) // k * k - 1], 1e-5)
    if alpha > 0:  # at 0 the slow weights do not show Delta, which counts as 0
        assert_close(state[-1].inner.momentum, velocity, 1e-5)


def test_a_constant_update_is_amplified_by_the_momentum():
    """Every synchronization of two steps of 1 moves the slow weights by 0.5 * 2 / (1 - 0.75)."""
    tx = optax.chain(optax.sgd(1.0), lookahead(2, 0.5, slow_momentum=0.75))
    *_, (before, _), _, (after, _) = train(tx, jnp.zeros(1), [-jnp.ones(1)] * 200)
    np.testing.assert_allclose(after - before, [4.0], rtol=1e-5)


def test_without_momentum_or_at_0_it_is_plain_lookahead_bit_for_bit():
    """Without jit, which fuses and rounds as it likes."""
    params, *gradients = normals(0, LIKE, 9)
    plain = optax.chain(optax.sgd(RATE), lookahead(2, 0.7))
    at_0 = optax.chain(optax.sgd(RATE), lookahead(2, 0.7, slow_momentum=0.0))
    runs = [list(train(tx, params, gradients, jit=False)) for tx in (plain, at_0)]
    assert runs[0][-1][1][-1].inner.momentum is None
    assert_same_bits(*([after for after, _ in run] for run in runs))
    assert_same_bits(*(slow_params(run[-1][1]) for run in runs))


def test_a_momentum_in_16_bits_is_refused():
    with pytest.raises(ValueError, match="slow_momentum must be in at least float32, got bfloat16"):
        lookahead(slow_momentum=jnp.array(0.9, jnp.bfloat16))


@pytest.mark.parametrize("jit", [False, True])
def test_at_a_synchronisation_with_momentum_the_next_step_starts_from_the_slow_weights(jit):
    params, *gradients = normals(0, LIKE, 6)
    tx = optax.chain(optax.sgd(RATE), lookahead(3, 0.5, slow_momentum=0.9))
    for t, (after, state) in enumerate(train(tx, params, gradients, jit=jit), 1):
        if t % 3 == 0:
            assert_same_bits(after, slow_params(state))


def test_momentum_may_be_a_schedule_or_swept():
    params, *gradients = normals(1, LIKE, 8)

    def path(mu):
        tx = optax.chain(optax.sgd(RATE), lookahead(2, 0.5, slow_momentum=mu))
        return [after for after, _ in train(tx, params, gradients, jit=False)]

    swept = jax.jit(jax.vmap(path))(np.float32([0.0, 0.9]))
    for index, mu in enumerate((0.0, 0.9)):
        expected, _ = kallusky(params, gradients, 2, 0.5, mu)
        assert_close(jax.tree.map(lambda leaf, i=index: leaf[i], swept), expected, 1e-5)
    # Read at synchronizations alone, the counts 1, 3, 5 and 7.
    scheduled = jax.jit(lambda: path(lambda count: jnp.where(count % 2 == 1, 0.9, 0.1)))()
    assert_close(scheduled, kallusky(params, gradients, 2, 0.5, 0.9)[0], 1e-5)


def test_momentum_in_bfloat16_is_the_velocity_rounded():
    params, *gradients = normals(2, LIKE, 6)
    tx = optax.chain(optax.sgd(RATE), lookahead(3, 0.5, slow_momentum=0.9, state_dtype="bfloat16"))
    states = [state[-1].inner for _, state in train(tx, params, gradients)]
    slow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    fast = jax.tree.map(lambda p, *g: p - RATE * sum(g), *float64((params, *gradients[:3])))
    delta = jax.tree.map(np.subtract, fast, float64(slow))
    for ours, exact in zip(
        jax.tree.leaves(states[2].momentum), jax.tree.leaves(delta), strict=True
    ):
        assert ours.dtype == jnp.bfloat16
        gap = np.abs(float64(ours) - exact)
        assert np.max(gap) > 0
        assert np.all(gap <= 2.0**-7 * np.abs(exact) + 1e-6)
    for t in (0, 1, 3, 4):  # between synchronizations nothing is written
        assert_same_bits(states[t], (states[2] if t > 2 else tx.init(params)[-1].inner))


@functools.partial(jax.jit, static_argnums=0)
def take_step(tx: Any, gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("inner", [optax.sgd(0.1, momentum=0.9), optax.adam(0.1)])
def test_takes_the_steps_of_optax_lookahead_on_a_quadratic(inner):
    start = next(normals(0, LIKE))
    curvature = jax.tree.map(np.abs, next(normals(1, LIKE)))
    ours, theirs = optax.chain(inner, lookahead(4, 0.5)), optax.lookahead(inner, 4, 0.5)
    gradient = jax.jit(lambda params: jax.tree.map(jnp.multiply, curvature, params))
    params, pair = start, optax.LookaheadParams.init_synced(start)
    state, pair_state = ours.init(params), theirs.init(pair)  # pyright: ignore
    for _ in range(30):
        params, state = take_step(ours, gradient(params), state, params)
        pair, pair_state = take_step(theirs, gradient(pair.fast), pair_state, pair)
        assert_close(params, pair.fast)
        assert_close(slow_params(state), pair.slow)


@jax.jit
def distance_in_ulps(params: Any, state: Any, update: Any) -> jax.Array:
    """Of the parameters from the slow weights, in units of the larger of these and the update."""

    def distance(p: jax.Array, s: jax.Array, u: jax.Array) -> jax.Array:
        larger = jnp.maximum(jnp.abs(s), jnp.abs(u.astype(s.dtype)))
        _, exponent = jnp.frexp(larger)
        ulp = jnp.ldexp(jnp.asarray(jnp.finfo(p.dtype).eps, s.dtype), exponent - 1)
        return jnp.max(jnp.abs(p.astype(s.dtype) - s) / ulp)

    trees = params, slow_params(state), update
    return jnp.max(jnp.stack(jax.tree.leaves(jax.tree.map(distance, *trees))))


CHAINS = {
    "chain": optax.chain(optax.sgd(0.1), lookahead(3)),
    "amac": amac(0.1, total_steps=100, **EVERY_TECHNIQUE, warmup_steps=1, sync_period=3),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize(("chain", "jit"), [("chain", True), ("chain", False), ("amac", True)])
def test_at_a_synchronisation_parameters_are_the_slow_weights(chain, jit, dtype):
    exact = dtype in ("float32", "float64")
    with jax.enable_x64(dtype == "float64"):
        # Of one shape, for which the operations without jit are compiled once.
        like = dict.fromkeys(LIKE, np.zeros((4, 3), dtype))
        before, *gradients = normals(0, like, 22 if jit else 7)
        for t, (params, state) in enumerate(train(CHAINS[chain], before, gradients, jit=jit), 1):
            slow = slow_params(state)
            if t % 3 != 0:
                assert np.any(np.asarray(slow["kernel"]) != np.asarray(params["kernel"]))
            elif exact:
                assert_same_bits(params, slow)
            else:
                assert slow["kernel"].dtype == jnp.float32
                update = jax.tree.map(np.subtract, *jax.device_get((params, before)))
                assert distance_in_ulps(params, state, update) <= 1
            before = params


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_10000_noisy_steps_do_not_part_them(dtype):
    # Centralization would keep the means as they are, and decay pull the weights from the target.
    settings = {"weight_decay": None, "centralize": None, "noise": 0.01, "momentum": 0.9}
    tx = amac(0.02, 10_000, core="adam", warmup_steps=10, **settings)
    target = np.linspace(-3.0, 3.0, 24, dtype=np.float32).reshape(6, 4)

    def step(carry, key):
        params, state = carry
        noise = jax.random.normal(key, target.shape)
        gradients = (params.astype(jnp.float32) - target + noise).astype(dtype)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), distance_in_ulps(params, state, updates)

    @jax.jit
    def run(params):
        keys = jax.random.split(jax.random.key(0, impl="rbg"), 10_000)
        return jax.lax.scan(step, (params, tx.init(params)), keys)

    (params, _), distances = run(np.ones(target.shape, dtype))
    distances = np.asarray(distances)
    assert np.mean(np.abs(float64(params) - target)) < 0.3  # it has learned something
    between, synchronised = distances[:-1:5], distances[4::5]
    assert np.mean(between > 0) > 0.9
    assert np.all(synchronised <= (0 if dtype == "float32" else 1))


# --- In other people's wrappers -------------------------------------------------------------------

START, *GRADIENTS = normals(3, LIKE, 8)
EXPECTED = zhang(START, GRADIENTS, 3, 0.5)
PLAIN = zhang(START, GRADIENTS, 1, 1.0)


def test_in_a_linen_train_state():
    state = TrainState.create(apply_fn=lambda: None, params=START, tx=sgd_with_lookahead())
    step = jax.jit(lambda state, gradient: state.apply_gradients(grads=gradient))
    for gradient, expected in zip(GRADIENTS, EXPECTED, strict=True):
        state = step(state, gradient)
        assert_close(state.params, expected)
    assert_close(slow_params(state), EXPECTED[5])


def test_in_an_nnx_optimizer():
    model = nnx.jit(lambda: nnx.Linear(4, 3, rngs=nnx.Rngs(0)))()
    nnx.update(model, START)
    optimizer = nnx.Optimizer(model, sgd_with_lookahead(), wrt=nnx.Param)
    step = nnx.jit(lambda model, optimizer, gradient: optimizer.update(model, gradient))
    for gradient, expected in zip(GRADIENTS, EXPECTED, strict=True):
        as_state = nnx.state(model, nnx.Param)
        nnx.replace_by_pure_dict(as_state, gradient)
        step(model, optimizer, as_state)
        assert_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), expected)


def test_in_optax_partition():
    labels = {"kernel": "looking ahead", "bias": "plain"}
    tx = optax.partition({"looking ahead": sgd_with_lookahead(), "plain": optax.sgd(RATE)}, labels)
    for t, (params, _) in enumerate(train(tx, START, GRADIENTS)):
        assert_close(params, {"kernel": EXPECTED[t]["kernel"], "bias": PLAIN[t]["bias"]})


def test_in_optax_masked():
    tx = optax.chain(optax.sgd(RATE), optax.masked(lookahead(3), {"kernel": False, "bias": True}))
    for t, (params, _) in enumerate(train(tx, START, GRADIENTS)):
        assert_close(params, {"kernel": PLAIN[t]["kernel"], "bias": EXPECTED[t]["bias"]})


@pytest.mark.usefixtures("promoting")
def test_in_optax_multi_steps_it_counts_optimizer_steps():
    tx = optax.MultiSteps(sgd_with_lookahead(), every_k_schedule=2).gradient_transformation()
    halves = [
        jax.tree.map(lambda g, factor=factor: np.asarray(g) * factor, gradient)
        for gradient in GRADIENTS
        for factor in np.array([0.5, 1.5], np.float32)
    ]
    for micro, (params, _) in enumerate(train(tx, START, halves), 1):
        assert_close(params, EXPECTED[micro // 2 - 1] if micro > 1 else START)


def test_extra_args_pass_through():
    tx = optax.chain(lookahead(2), optax.scale_by_backtracking_linesearch(max_backtracking_steps=2))

    def loss(x):
        return jnp.sum(x**2)

    @jax.jit
    def losses(params):
        updates: Any = tx.update(
            -params, tx.init(params), params, value=loss(params), grad=2 * params, value_fn=loss
        )[0]
        return loss(params + updates), loss(params)

    after, before = losses(np.ones(2, np.float32))
    assert float(after) < float(before)


@pytest.mark.parametrize("mu", [None, 0.9])
def test_the_synchronisation_is_compiled_to_a_branch(mu):
    params = {"kernel": jnp.zeros((300, 200))}
    tx = lookahead(5, slow_momentum=mu)
    lowered = jax.jit(tx.update).lower(params, tx.init(params), params)
    compiled = str(lowered.compile().as_text())
    assert " conditional(" in compiled
    assert "select(f32[300,200]" not in compiled.replace(" ", "")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a gate on XLA's CPU program")
def test_momentum_is_written_in_place():
    """Of the slow weights, which it is computed from, no copy is kept."""
    params = {"kernel": jnp.zeros((300, 200))}
    tx = optax.chain(optax.sgd(RATE), lookahead(5, slow_momentum=0.9))

    def step(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params), params)
    # XLA makes other loops in the tests' fast compilation; users get these.
    memory: Any = lowered.compile({"xla_cpu_use_fusion_emitters": True}).memory_analysis()
    assert memory.temp_size_in_bytes < params["kernel"].nbytes / 2
