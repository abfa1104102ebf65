"""`accumulate_gradients` against the large batch, and against Optax's."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from amac_jax.optimizers import EVERY_TECHNIQUE
from amac_jax.wrappers import AccumulateGradientsState, accumulate_gradients
from tests.helpers import assert_close, assert_same_bits, float64, normals, train

LIKE = {"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(3, np.float32)}
STEPS = 4
EVERYTHING = {"sync_period": 2, "average_start": 2, "noise": 0.01, "centralize": True}
OPTIMIZERS = {
    "sgd": optax.sgd(0.05, momentum=0.9),
    "adam": optax.adam(0.05),
    "adamw with everything": amac_jax.adamw(
        amac_jax.warmup_cosine(0.1, 6, 2), weight_decay=0.1, **EVERYTHING
    ),
}


@jax.jit
def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    inputs, targets = batch
    return jnp.mean((inputs @ params["kernel"] + params["bias"] - targets) ** 2)


def least_squares(batch_size: int, batches: int, dtype: Any) -> Any:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((batches, batch_size, 4))
    targets = inputs @ rng.standard_normal((4, 3)) + rng.standard_normal((batches, batch_size, 3))
    return inputs.astype(dtype), targets.astype(dtype)


@functools.partial(jax.jit, static_argnums=0)
def fitted(tx: Any, params: Any, batches: Any) -> Any:
    """The parameters and the state at the end, and the parameters after each batch."""

    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, tx.init(params)), batches)


def micro(batches: Any, steps: int = STEPS) -> Any:
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[1] // steps, *x.shape[2:]), batches)


def after_each_step(history: Any, steps: int = STEPS) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[steps - 1 :: steps], history)


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_micro_batches_do_what_the_large_batch_does(name, dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        params = next(normals(0, jax.tree.map(lambda leaf: leaf.astype(dtype), LIKE)))
        batches, tx = least_squares(32, 6, dtype), OPTIMIZERS[name]
        (expected, plain), steps = fitted(tx, params, batches)
        tx = accumulate_gradients(tx, STEPS)
        (result, state), history = fitted(tx, params, micro(batches))
        assert_close(result, expected, tolerance)
        assert_close(after_each_step(history), steps, tolerance)
        assert_close(state.inner, plain, tolerance)
        assert (int(state.gathered), int(state.applied)) == (0, 6)
        # Something was learned, and the weights moved on the last of each four alone.
        assert loss(result, (batches[0][0], batches[1][0])) < loss(
            params, (batches[0][0], batches[1][0])
        )
        for leaf in jax.tree.leaves(history):
            moved = [bool(np.any(a != b)) for a, b in itertools.pairwise(np.asarray(leaf))]
            assert moved == ([False, False, False, True] * 6)[1:]


def test_averages_slow_weights_and_metrics_are_found_in_it():
    tx = amac_jax.adam(0.1, average_start=1, sync_period=2, record_metrics=True)
    params = next(normals(0, LIKE))
    batches = least_squares(32, 5, "float32")
    (_, plain), _ = fitted(tx, params, batches)
    (last, state), history = fitted(accumulate_gradients(tx, STEPS), params, micro(batches))
    steps = after_each_step(history)
    mean = jax.tree.map(lambda leaf: np.mean(float64(leaf), axis=0), steps)
    assert_close(amac_jax.averaged_params(state), mean)
    assert_close(amac_jax.averaged_params(state, last), mean)
    assert_close(amac_jax.slow_params(state), jax.tree.map(lambda leaf: leaf[3], steps))
    assert_close(amac_jax.metrics(state), amac_jax.metrics(plain))
    assert amac_jax.metrics(state)["averaged_count"] == 5


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("inner", [optax.sgd(0.1, momentum=0.9), optax.adam(0.1)])
@pytest.mark.parametrize("steps", [1, 3, lambda count: jnp.where(count < 2, 2, 3)])
def test_does_what_optax_multi_steps_does_for_a_plain_optimizer(inner, steps):
    params, *gradients = normals(0, LIKE, 14)
    theirs = optax.MultiSteps(inner, steps).gradient_transformation()
    ours = accumulate_gradients(inner, steps)
    pairs = zip(train(ours, params, gradients), train(theirs, params, gradients), strict=True)
    for (params, state), (expected, other) in pairs:
        assert_close(params, expected)
        assert_close(state.inner, other.inner_opt_state)
        assert int(state.gathered) == int(other.mini_step)
        assert int(state.applied) == int(other.gradient_step)


# --- When it applies ------------------------------------------------------------------------------


def updates_of(tx: optax.GradientTransformation, gradients: list[float]) -> list[float]:
    """The updates for these gradients of one number."""
    state, found, update = tx.init(jnp.array(0.0)), [], jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(jnp.array(gradient), state, jnp.array(0.0))
        found.append(float(updates))
    return found


def test_steps_may_be_a_schedule_of_the_steps_applied():
    tx = accumulate_gradients(optax.identity(), lambda count: jnp.array([1, 3, 2, 2])[count])
    updates = updates_of(tx, [5.0, 1.0, 2.0, 6.0, 4.0, 8.0, 1.0, 3.0])
    assert updates == [5.0, 0.0, 0.0, 3.0, 0.0, 6.0, 0.0, 2.0]


def test_fires_when_steps_falls_below_what_is_gathered():
    """With the mean of the three that are there."""
    tx = optax.inject_hyperparams(accumulate_gradients)(optax.identity(), 5)
    state = tx.init(jnp.array(0.0))
    update = jax.jit(tx.update)
    found = []
    for gradient, steps in [(1.0, 5), (2.0, 5), (6.0, 2), (4.0, 2), (8.0, 2)]:
        state.hyperparams["steps"] = jnp.asarray(steps, jnp.float32)
        updates, state = update(jnp.array(gradient), state, jnp.array(0.0))
        found.append(float(updates))
    assert found == [0.0, 0.0, 3.0, 0.0, 6.0]


def test_counts_and_mean_by_hand():
    tx = accumulate_gradients(optax.scale(-1.0), 3)
    params = jnp.array(0.0)
    seen = [
        (int(s.gathered), int(s.applied), float(s.mean))
        for _, s in train(tx, params, map(jnp.array, [3.0, 5.0, 1.0, 7.0]))
    ]
    assert seen == [(1, 0, 3.0), (2, 0, 4.0), (0, 1, 3.0), (1, 1, 7.0)]


def counting(calls: list[int]) -> optax.GradientTransformation:
    """Notes, each time that it really runs, how often it has run by its own state."""

    def update(updates, state, params=None):
        jax.debug.callback(lambda count: calls.append(int(count)), state)
        return updates, state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros([], jnp.int32), update)


@pytest.mark.parametrize("jit", [True, False])
def test_the_optimizer_runs_only_when_due(jit):
    calls: list[int] = []
    params, *gradients = normals(0, LIKE, 10)
    *_, (_, state) = train(accumulate_gradients(counting(calls), 3), params, gradients, jit=jit)
    jax.effects_barrier()
    assert calls == [0, 1, 2]
    assert int(state.inner) == 3


def test_is_compiled_to_a_branch_that_copies_nothing():
    params = {"kernel": jnp.zeros((300, 200))}
    tx = accumulate_gradients(optax.adam(0.1), 4)
    state = tx.init(params)
    lowered = jax.jit(tx.update, donate_argnums=(0, 1)).lower(params, state, params)
    compiled = str(lowered.compile().as_text())
    assert " conditional(" in compiled
    assert not [
        line for line in compiled.splitlines() if "f32[300,200]" in line and " copy(" in line
    ]
    outside = {str(e.primitive) for e in jax.make_jaxpr(tx.update)(params, state, params).eqns}
    assert "cond" in outside
    assert not outside & {"sqrt", "mul", "pow"}  # all of Adam is in the branch


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_step_is_the_optimizer_itself_bit_for_bit(name):
    """Without jit, which fuses and rounds as it likes."""
    tx = OPTIMIZERS[name]
    params, *gradients = normals(0, {"kernel": LIKE["kernel"]}, 3)
    plain = train(tx, params, gradients, jit=False)
    alone = train(accumulate_gradients(tx, 1), params, gradients, jit=False)
    for (expected, state), (result, one) in zip(plain, alone, strict=True):
        assert_same_bits(result, expected)
        assert_same_bits(one.inner, state)


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("one", [1, 1.0, jnp.array(1), jnp.array(1.0), lambda count: 1])
def test_one_step_in_any_form_is_the_optimizer_itself(one):
    params, *gradients = normals(0, LIKE, 5)
    plain = train(OPTIMIZERS["adam"], params, gradients)
    alone = train(accumulate_gradients(OPTIMIZERS["adam"], one), params, gradients)
    for (expected, _), (result, state) in zip(plain, alone, strict=True):
        assert_close(result, expected)
        assert int(state.gathered) == 0


def test_vmap_over_steps_is_a_sweep():
    params, *gradients = normals(0, LIKE, 13)
    gradients = jax.tree.map(lambda *leaves: np.stack(leaves), *gradients)

    def run(steps):
        tx = accumulate_gradients(optax.adam(0.1), steps)

        def step(carry, gradient):
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), gradients)[0]

    swept = jax.jit(jax.vmap(run))(jnp.array([1, 2, 5]))
    for index, steps in enumerate([1, 2, 5]):
        one = jax.tree.map(lambda leaf, i=index: np.asarray(leaf)[i], swept)
        assert_close(one, run(steps))
    assert list(swept[1].applied) == [12, 6, 2]


def after(tx: optax.GradientTransformation, gradients: list[Any], params: Any) -> Any:
    """The last updates and state, with parameters that do not move."""
    updates, state, update = None, tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
    return updates, state


# --- Precision ------------------------------------------------------------------------------------


def test_float16_gradients_whose_sum_is_too_large_for_float16():
    tx = accumulate_gradients(optax.identity(), 4)
    params = np.zeros(2, np.float16)
    gradients = [np.array([30000.0, g], np.float16) for g in (60000.0, -60000.0, 64.0, 192.0)]
    with np.errstate(over="ignore"):
        assert np.isinf(sum(gradients)[0])
    updates, _ = after(tx, gradients, params)
    assert_same_bits(updates, np.array([30000.0, 64.0], np.float16))


def test_thousand_bfloat16_gradients_are_averaged_in_float32():
    rng = np.random.default_rng(0)
    gradients = jnp.asarray(1.0 + 0.1 * rng.standard_normal((1000, 5)), jnp.bfloat16)
    tx = accumulate_gradients(optax.identity(), 1000)
    params = jnp.zeros(5, jnp.bfloat16)
    state: Any = jax.lax.scan(
        lambda state, g: (tx.update(g, state, params)[1], None), tx.init(params), gradients
    )[0]
    assert int(state.applied) == 1
    assert np.max(np.abs(float64(state.mean) - float64(gradients).mean(axis=0))) < 1e-5


INNER = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(optax.cosine_decay_schedule(0.1, 10)),
    "nadam": optax.nadam(0.1),
    "amsgrad": optax.amsgrad(0.1),
    "lion": optax.lion(0.1),
    "adafactor": optax.adafactor(0.1),
    "adabelief": optax.adabelief(0.1),
    "radam": optax.radam(0.1),
    "rmsprop": optax.rmsprop(0.1, centered=True),
    "lamb": optax.lamb(0.1),
    "novograd": optax.novograd(0.1),
    "noisy": optax.chain(optax.add_noise(0.1, 0.5, key=0), optax.sgd(0.1)),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "injected": optax.inject_hyperparams(optax.adam)(0.1),
    "finite": optax.apply_if_finite(optax.adam(0.1), 3),
    "masked": optax.masked(optax.adam(0.1), {"kernel": True, "bias": False}),
    "ours": amac_jax.amac(0.1, 10, **EVERY_TECHNIQUE),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("name", INNER)
def test_the_state_of_any_optimizer_keeps_its_form(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), LIKE)
        tx = accumulate_gradients(INNER[name], 2)
        before = jax.eval_shape(tx.init, params)
        updates, after = jax.eval_shape(tx.update, params, before, params)
        assert jax.tree.structure(before) == jax.tree.structure(after)
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            assert (old.shape, old.dtype) == (new.shape, new.dtype)
            if jnp.issubdtype(old.dtype, jnp.floating):
                assert jnp.finfo(old.dtype).bits >= 32
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}


def test_float32_gradients_of_bfloat16_parameters():
    params, gradient = np.ones(2, jnp.bfloat16), np.full(2, 1 / 3, np.float32)
    updates, _ = after(accumulate_gradients(optax.sgd(1.0), 2), [gradient] * 2, params)
    assert_same_bits(updates, -gradient)


# --- In company -----------------------------------------------------------------------------------


def test_the_extra_arguments_are_those_of_the_micro_batch_that_applies():
    def update(updates, state, params=None, *, value, **extra_args):
        return value * updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    tx = optax.chain(optax.identity(), accumulate_gradients(inner, 2))

    @jax.jit
    def step(state, value):
        return tx.update(jnp.array(2.0), state, None, value=value, unheard_of="text")

    state = tx.init(jnp.array(0.0))
    for value, expected in [(10.0, 0.0), (3.0, 6.0), (2.0, 0.0), (5.0, 10.0)]:
        updates, state = step(state, value)
        assert float(updates) == expected


def test_a_line_search_searches_along_the_mean():
    def objective(x):
        return jnp.sum(x**2)

    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)
    tx = accumulate_gradients(optax.chain(optax.scale(-4.0), search), 2)
    params = np.ones(2, np.float32)

    @jax.jit
    def step(state, params, noise):
        return tx.update(
            2 * params + noise,
            state,
            params,
            value=objective(params),
            grad=2 * params,
            value_fn=objective,
        )

    state: Any = tx.init(params)
    for noise in (0.1, -0.1):
        updates, state = step(state, params, noise)
    assert 0 < np.sum((params + np.asarray(updates)) ** 2) < np.sum(params**2)


def test_without_params():
    params, *gradients = normals(0, LIKE, 4)
    tx = accumulate_gradients(optax.adam(0.1), 2)
    state, update = tx.init(params), jax.jit(tx.update)
    other = state
    for gradient in gradients:
        updates, state = update(gradient, state)
        expected, other = update(gradient, other, params)
        assert_same_bits(updates, expected)


def test_clipping_before_it_sees_micro_batches_and_inside_it_the_mean():
    clip = optax.clip(1.0)
    before = optax.chain(clip, accumulate_gradients(optax.identity(), 2))
    inside = accumulate_gradients(clip, 2)
    assert updates_of(before, [4.0, 0.5]) == [0.0, 0.75]
    assert updates_of(inside, [4.0, 0.5]) == [0.0, 1.0]


def test_a_nan_spoils_its_window_and_no_other():
    tx = accumulate_gradients(optax.identity(), 2)
    updates = updates_of(tx, [np.nan, 1.0, 2.0, 4.0])
    np.testing.assert_array_equal(updates, [0.0, np.nan, 0.0, 3.0])


def test_apply_if_finite_around_it_leaves_out_one_micro_batch():
    tx = optax.apply_if_finite(accumulate_gradients(optax.identity(), 2), 9)
    assert updates_of(tx, [1.0, np.nan, 3.0, np.inf, 2.0, 4.0]) == [0.0, 0.0, 2.0, 0.0, 0.0, 3.0]


def test_apply_if_finite_inside_it_leaves_out_the_window():
    tx = accumulate_gradients(optax.apply_if_finite(optax.identity(), 9), 2)
    assert updates_of(tx, [1.0, np.nan, 3.0, 5.0]) == [0.0, 0.0, 0.0, 4.0]


OURS, PLAIN = accumulate_gradients(optax.adam(0.1), 3), optax.sgd(0.1)


@pytest.mark.parametrize("wrap", ["masked", "partition", "inject_hyperparams"])
def test_in_optax_wrappers(wrap):
    params, *gradients = normals(0, LIKE, 6)
    accumulated = {"kernel": True, "bias": wrap == "inject_hyperparams"}
    tx: Any = {
        "masked": optax.chain(
            optax.masked(OURS, {"kernel": True, "bias": False}),
            optax.masked(PLAIN, {"kernel": False, "bias": True}),
        ),
        "partition": optax.partition({True: OURS, False: PLAIN}, accumulated),  # pyright: ignore
        "inject_hyperparams": optax.inject_hyperparams(accumulate_gradients)(optax.adam(0.1), 3),
    }[wrap]
    for result, *alone in zip(
        *(train(each, params, gradients) for each in (tx, OURS, PLAIN)), strict=True
    ):
        for name, is_ours in accumulated.items():
            assert_close(result[0][name], alone[0 if is_ours else 1][0][name])


def test_parameters_and_state_can_be_donated_together():
    params, *gradients = normals(0, LIKE, 5)
    tx = accumulate_gradients(amac_jax.amac(0.1, 10, **EVERY_TECHNIQUE), 2)
    *_, (expected, _) = train(tx, params, gradients)

    @functools.partial(jax.jit, donate_argnums=(0, 1), keep_unused=True)
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, params)
    state = tx.init(params)
    for gradient in gradients:
        given = jax.tree.leaves((params, state))
        params, state = step(params, state, gradient)
        assert all(leaf.is_deleted() for leaf in given)
    assert_close(params, expected)


@pytest.mark.parametrize("params", [{}, {"a": None}, {"a": optax.MaskedNode(), "b": jnp.ones(2)}])
def test_any_tree(params):
    tx = accumulate_gradients(optax.adam(0.1), 2)
    *_, (after, state) = train(tx, params, [params] * 4)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    assert isinstance(state, AccumulateGradientsState)
    assert int(state.applied) == 2


@pytest.mark.parametrize("steps", [0, -1, 2.5, float("nan"), float("inf"), "x", None])
def test_steps_that_are_refused(steps):
    message = r"steps must be a whole number in \[1, inf\).*, got"
    with pytest.raises(ValueError, match=message):
        accumulate_gradients(optax.identity(), steps)
