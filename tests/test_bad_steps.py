"""Gradients that are NaN, infinite, overflowed or all zero, at random steps, into every factory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from amac_jax import skip_nonfinite
from amac_jax.optimizers import EVERY_TECHNIQUE
from tests.helpers import SOAK, array, assert_same_bits, mixed_tree
from tests.table import CASES, ONE_OF_EACH_FACTORY, jitted_step

SEEDS = range(20 if SOAK else 1)
every_case = pytest.mark.parametrize("name", CASES)
every_factory = pytest.mark.parametrize("name", CASES if SOAK else ONE_OF_EACH_FACTORY)

LEAVES = ["dense/kernel", "dense/bias", "embed/embedding", "temperature"]
with np.errstate(over="ignore"):
    OVERFLOWED = np.float16(300) * np.float16(300)
POISONS = [np.float16(np.nan), np.float16(np.inf), np.float16(-np.inf), OVERFLOWED]
# The second moments of all units, in one array; tests/test_muon.py looks at its parts.
OF_ALL_KERNELS = {"muon": {"1/inner/stages/0/nu"}}
PLACES = [*([leaf] for leaf in LEAVES), LEAVES]
# A Newton step solves one system for all parameters, so that one NaN is in all of them. Sophia's
# estimate comes from an objective, here of all parameters, which is NaN after a bad step.
ONE_SYSTEM = ("newton", "newton minimal residual", "newton Lanczos")
READS_OBJECTIVE = (*ONE_SYSTEM, "sophia")


def gradient(seed: int) -> Any:
    return mixed_tree(1000 + seed)


def changed(tree: Any, places: list[str], function: Any) -> Any:
    """The tree with `function` of its leaves at these places."""

    def leafwise(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return function(leaf) if name in places else leaf

    return jax.tree_util.tree_map_with_path(leafwise, tree)


def poisoned(tree: Any, places: list[str], value: np.float16) -> Any:
    """With the first element of each of these leaves replaced."""

    def leafwise(leaf):
        changed = np.array(leaf)
        changed.flat[0] = value.astype(leaf.dtype)
        return jax.device_put(changed)

    return changed(tree, places, leafwise)


def non_finite(tree: Any) -> set[str]:
    """The parameters which, or whose part of an optimizer's state, are not all finite."""
    names = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact) or np.all(np.isfinite(np.asarray(leaf))):
            continue
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "/metrics/" not in f"/{name}":  # which tell of the bad step
            names.add(next((leaf for leaf in LEAVES if f"/{name}".endswith(f"/{leaf}")), name))
    return names


def plain(name: str) -> tuple[optax.GradientTransformation, Any]:
    return CASES[name].build(), lambda *run: jitted_step(name)(*run)[:2]


def stepper(tx: optax.GradientTransformation) -> Any:
    tx = optax.with_extra_args_support(tx)

    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return step


@every_case
def test_a_bad_step_changes_nothing_but_the_counter(name):
    """At random places among good ones; the run ends as the one that never saw them."""
    tx = skip_nonfinite(CASES[name].build())
    step = stepper(tx)
    bad_steps = [(places, value) for places in PLACES for value in POISONS]
    for seed in SEEDS:
        params = mixed_tree(seed)
        params["dense"]["bias"] = array([-0.0, *np.asarray(params["dense"]["bias"])[1:]], "float32")
        params, state = undisturbed = params, tx.init(params)
        skipped = 0
        order = np.random.default_rng(seed).permutation(len(bad_steps) + 6)
        for place, index in enumerate(order):
            good = gradient(place)
            if index >= len(bad_steps):
                params, state = step(params, state, good)
                undisturbed = step(*undisturbed, good)
                continue
            before = params, state.inner_state
            params, state = step(params, state, poisoned(good, *bad_steps[index]))
            skipped += 1
            assert_same_bits((params, state.inner_state), before)
            assert int(state.total_notfinite) == skipped
        assert int(undisturbed[1].total_notfinite) == 0
        assert_same_bits((params, state.inner_state), (undisturbed[0], undisturbed[1].inner_state))
        with pytest.raises(AssertionError):  # the good steps did something
            assert_same_bits(params, mixed_tree(seed))


def test_compose_skips_with_it():
    tx = amac_jax.amac(0.1, total_steps=20, **EVERY_TECHNIQUE, skip_nonfinite=True)
    params = {"w": jnp.array([1.0, -0.0])}
    state = tx.init(params)
    updates, after = jax.jit(tx.update)({"w": jnp.array([jnp.nan, 1.0])}, state, params)
    assert_same_bits(optax.apply_updates(params, updates), params)
    assert_same_bits(after.inner_state, state.inner_state)
    assert int(after.total_notfinite) == 1


@every_case
def test_without_skipping_only_the_affected_leaf_becomes_non_finite(name):
    tx, step = plain(name)
    for seed in SEEDS:
        start = mixed_tree(seed)
        start = start, tx.init(start)
        for index in range(2):
            start = step(*start, gradient(index))
        for value in POISONS:
            for leaf in LEAVES:
                affected = set(LEAVES) if name in ONE_SYSTEM else {leaf}
                if leaf.endswith("kernel"):
                    affected |= OF_ALL_KERNELS.get(name, set())
                run = step(*start, poisoned(gradient(2), [leaf], value))
                assert non_finite(run) <= affected
                if name in READS_OBJECTIVE:
                    continue
                for index in range(3, 6):  # nor later, when it is averaged or synchronised
                    run = step(*run, gradient(index))
                assert non_finite(run) <= affected


@every_case
def test_zero_gradients_are_steps_like_others(name):
    tx, step = plain(name)
    for places in PLACES:
        for before in (0, 2):
            params = mixed_tree(0)
            run = params, tx.init(params)
            for index in range(before):
                run = step(*run, gradient(index))
            for index in range(3):
                run = step(*run, changed(gradient(10 + index), places, np.zeros_like))
            assert non_finite(run) == set()


@every_case
def test_the_largest_float16_gradients_overflow_nothing(name):
    tx, step = plain(name)
    params = mixed_tree(0)
    state = tx.init(params)
    for _ in range(3):  # always from the same parameters, which would soon be out of range too
        _, state = step(params, state, jax.tree.map(lambda leaf: np.full_like(leaf, 6e4), params))
        assert non_finite(state) == set()


def test_a_float16_gradient_clips_to_its_limit():
    """70,000 tens: their norm, 2,646, is in float16's range, the sum of their squares is not."""
    gradients = {"kernel": jnp.full((700, 100), 10.0, jnp.float16)}
    for tx in (amac_jax.clip_by_global_norm(1.0), amac_jax.sgd(1.0, clip_norm=1.0)):
        updates, _ = jax.jit(tx.update)(gradients, tx.init(gradients), gradients)
        assert updates["kernel"].dtype == jnp.float16
        norm = np.linalg.norm(np.asarray(updates["kernel"], np.float64))
        assert abs(norm - 1.0) < 2**-11  # half a unit of float16's eleven bits


@every_factory
def test_inject_hyperparams_with_bfloat16_parameters_is_the_plain_one(name):
    case = CASES[name]
    inject = optax.inject_hyperparams(case.factory, hyperparam_dtype=jnp.float32)
    injected = inject(**case.arguments())
    ends = []
    for tx, step in (plain(name), (injected, stepper(injected))):
        params, *updates = (
            {"kernel": array(np.random.default_rng(seed).normal(size=(8, 8)), "bfloat16")}
            for seed in range(4)
        )
        run = params, tx.init(params)
        for update in updates:
            run = step(*run, update)
        assert non_finite(run) == set()
        ends.append(np.concatenate([np.float32(leaf).ravel() for leaf in jax.tree.leaves(run[0])]))
    # A traced hyperparameter is another program, a bit of float32 away, which may round a
    # parameter to the other neighbour in bfloat16.
    plainly, injected = ends
    np.testing.assert_allclose(injected, plainly, rtol=2**-7, atol=1e-6)
    assert np.mean(injected == plainly) > 0.9


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_decay_of_16_bits_is_refused_by_name(dtype):
    """In bfloat16 0.999 is 1, and the second moment's bias correction 0 / 0."""
    with pytest.raises(ValueError, match=f"b2 must be in at least float32, got {dtype}, in which"):
        amac_jax.adam(0.1, b2=jnp.asarray(0.999, dtype))
    with pytest.raises(ValueError, match=f"average_decay must be in at least float32, got {dtype}"):
        amac_jax.adam(0.1, average_start=1, average_decay=jnp.asarray(0.999, dtype))
    params = {"w": jnp.ones(3, dtype)}
    tx = optax.inject_hyperparams(amac_jax.adam)(0.1)
    with pytest.raises(ValueError, match="takes hyperparam_dtype"):
        tx.init(params)
