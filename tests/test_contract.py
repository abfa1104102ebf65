"""One contract for every factory: what an Optax transformation must do wherever it is put."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from tests.helpers import SOAK
from tests.table import (
    CASES,
    COMPANIONS,
    OFF,
    ON,
    ONE_OF_EACH_FACTORY,
    OPTIMIZERS,
    TECHNIQUES,
    Case,
)

STEPS = 6
# float16 is in a tree with the others in test_trees.py too, float64 in Optax's own float64_test.
PRECISIONS = ["float32", "bfloat16", *(["float16", "float64"] if SOAK else [])]
every_case = pytest.mark.parametrize("name", CASES)
# The eight others, the dearest, are in test_trees, test_bad_steps, test_sharding and test_resume.
SOME = CASES if SOAK else ONE_OF_EACH_FACTORY
every_factory = pytest.mark.parametrize("name", SOME)


def tree(seed: int, dtype: Any = jnp.float32) -> Any:
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    return {
        "dense": {"kernel": draw(4, 3), "bias": draw(3)},
        "embed": {"embedding": draw(5, 2)},
        "temperature": draw(),
    }


def gradients(dtype: Any = jnp.float32) -> list[Any]:
    return [tree(100 + step, dtype) for step in range(STEPS)]


def step_of(tx: optax.GradientTransformation) -> Any:
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, updates

    chex.clear_trace_counter()
    return jax.jit(chex.assert_max_traces(step, n=1))


def train(
    tx: optax.GradientTransformation, params: Any, grads: list[Any], step: Any = None
) -> tuple[Any, Any, list[Any]]:
    """The parameters and the state after a step a gradient, and each step's updates."""
    step = step or step_of(tx)
    state, history = tx.init(params), []
    for gradient in grads:
        params, state, updates = step(params, state, gradient)
        history.append(updates)
    return params, state, history


@functools.cache
def jitted(name: str) -> tuple[optax.GradientTransformation, Any]:
    """A case and its step in float32, compiled once for all tests."""
    tx = CASES[name].build()
    return tx, step_of(tx)


@functools.cache
def jitted_loop(name: str) -> tuple[Any, Any, list[Any]]:
    tx, step = jitted(name)
    return train(tx, tree(0), gradients(), step)


def plainly(name: str) -> Any:
    """The parameters that the other forms of a case are compared with."""
    return jitted_loop(name)[0]


@functools.cache
def plainly_on_a_part(name: str) -> Any:
    part = [{"dense": gradient["dense"]} for gradient in gradients()]
    return train(CASES[name].build(), {"dense": tree(0)["dense"]}, part)[0]


def stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def pick(trees: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], trees)


def assert_close(one: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    chex.assert_trees_all_close(one, other, rtol=rtol, atol=atol)


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@every_factory
def test_jit_changes_nothing_and_traces_once(name):
    tx, params, history = CASES[name].build(), tree(0), jitted_loop(name)[2]
    state = tx.init(params)
    for gradient, updates in zip(gradients()[:2], history, strict=False):
        unjitted, state = tx.update(gradient, state, params)
        assert_close(unjitted, updates)
        params = optax.apply_updates(params, updates)


@every_case
def test_changes_something(name):
    params, _, history = jitted_loop(name)
    if not name.startswith("average_weights"):  # which only looks
        with pytest.raises(AssertionError):
            chex.assert_trees_all_close(history, gradients())
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params))


@every_factory
def test_is_an_element_of_a_chain(name):
    tx = CASES[name].build()
    chained, _, _ = train(optax.chain(optax.identity(), tx, optax.scale(1.0)), tree(0), gradients())
    assert_close(plainly(name), chained)


@pytest.mark.skipif(not SOAK, reason="vmap over seeds is of this scan; only with AMAC_JAX_SOAK=1")
@every_factory
def test_scan_is_the_loop(name):
    tx, params = CASES[name].build(), tree(0)

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    (scanned, _), _ = jax.lax.scan(step, (params, tx.init(params)), stack(gradients()))
    assert_close(scanned, plainly(name))


def trained_with(case: Case, params: Any, grads: Any, **changes: Any) -> Any:
    tx = case.build(**changes)

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), grads)
    return params, state


@pytest.mark.parametrize("name", [name for name in SOME if CASES[name].numeric])
def test_vmap_over_hyperparameters_is_a_sweep(name):
    """All of them traced: a row as it is, and for each a row in which it alone is another."""
    case = CASES[name]
    usual = {argument: first for argument, (first, _) in case.numeric.items()}
    rows = [usual, *({**usual, argument: two[1]} for argument, two in case.numeric.items())]
    values = {argument: jnp.asarray([row[argument] for row in rows]) for argument in usual}

    def run(values):
        return trained_with(case, tree(0), stack(gradients()), **values)

    swept, alone = jax.jit(jax.vmap(run))(values), jax.jit(run)
    for index in range(len(rows)):
        assert_close(pick(swept, index), alone(pick(values, index)))
    for index, argument in enumerate(usual, start=1):
        both = zip(*(jax.tree.leaves(pick(swept, row)) for row in (0, index)), strict=True)
        assert not all(np.allclose(a, b, rtol=1e-6) for a, b in both), f"{argument} does nothing"


@every_factory
def test_vmap_over_seeds_is_the_runs(name):
    tx, step = jitted(name)
    params = [tree(0), tree(1)]
    grads = [gradients(), jax.tree.map(lambda g: -2 * g, gradients())]
    run = jax.jit(jax.vmap(functools.partial(trained_with, CASES[name])))
    together = run(stack(params), stack([stack(steps) for steps in grads]))
    for index in range(2):
        alone = train(tx, params[index], grads[index], step)
        assert_close(pick(together, index), alone[:2])


@every_factory
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_state_keeps_its_form_in_every_precision(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        tx, params = CASES[name].build(), tree(0, dtype)
        before = tx.init(params)
        if dtype == "float32":
            params, after, history = jitted_loop(name)
        else:
            params, after, history = train(tx, params, gradients(dtype))
        chex.assert_trees_all_equal_structs(before, after)
        assert abstract(before) == abstract(after)
        assert abstract(jax.eval_shape(tx.init, params)) == abstract(before)
        chex.assert_trees_all_equal_dtypes(history[0], params)
        for leaf in jax.tree.leaves(after):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                assert jnp.finfo(leaf.dtype).bits >= CASES[name].state_bits
            assert jnp.all(jnp.isfinite(leaf))


@every_factory
def test_parameters_and_state_can_be_donated_together(name):
    tx, params = CASES[name].build(), tree(0)

    # `jit` would drop what the step only overwrites, the old metrics, and not donate it.
    @functools.partial(jax.jit, donate_argnums=(0, 1), keep_unused=True)
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, params)
    state = tx.init(params)
    for gradient in gradients():
        given = jax.tree.leaves((params, state))
        params, state = step(params, state, gradient)
        assert all(leaf.is_deleted() for leaf in given)
    assert_close(params, plainly(name))


@every_factory
def test_masked_leaves_pass_through(name):
    mask = {"dense": True, "embed": False, "temperature": False}
    tx = optax.masked(CASES[name].build(), mask)
    _, _, history = train(tx, tree(0), gradients())
    chex.assert_trees_all_equal([u["embed"] for u in history], [g["embed"] for g in gradients()])
    masked = {"dense": tree(0)["dense"]}
    for updates in history:
        masked = optax.apply_updates(masked, {"dense": updates["dense"]})
    assert_close(masked, plainly_on_a_part(name))


@every_factory
def test_partition_runs_it_on_its_part(name):
    tx = optax.partition(
        {"ours": CASES[name].build(), "theirs": optax.set_to_zero()},
        {"dense": "ours", "embed": "theirs", "temperature": "theirs"},
    )
    params, _, _ = train(tx, tree(0), gradients())
    assert_close(params["dense"], plainly_on_a_part(name)["dense"])
    chex.assert_trees_all_equal(params["embed"], tree(0)["embed"])


@every_factory
def test_multi_steps_counts_optimizer_steps(name):
    tx = CASES[name].build()
    twice = [gradient for gradient in gradients() for _ in range(2)]
    with jax.numpy_dtype_promotion("standard"):  # which `MultiSteps` is written for
        accumulated, _, _ = train(optax.MultiSteps(tx, 2).gradient_transformation(), tree(0), twice)
    assert_close(accumulated, plainly(name))


@every_factory
def test_inject_hyperparams_is_the_plain_one(name):
    case = CASES[name]
    tx = optax.inject_hyperparams(case.factory)(**case.arguments())
    injected, state, _ = train(tx, tree(0), gradients())
    assert set(case.numeric) <= set(state.hyperparams)
    if case.state_bits == 32:
        assert_close(injected, plainly(name))
        return
    # A traced hyperparameter is another program, a bit of float32 away. Where state is rounded to
    # fewer bits, that bit may round a number the other way, by 2^-8 of a step, which is 0.1: that
    # happens to few of them, the others are as close as everywhere.
    assert_close(injected, plainly(name), atol=0.1 * 2**-8)
    pairs = zip(jax.tree.leaves(injected), jax.tree.leaves(plainly(name)), strict=True)
    close = [np.isclose(one, other, rtol=1e-5, atol=1e-6).ravel() for one, other in pairs]
    assert np.mean(np.concatenate(close)) > 0.9


@pytest.mark.parametrize("name", [*OPTIMIZERS, "amac", "amac_reference 1"])
def test_inject_hyperparams_takes_the_defaults(name):
    """It hands every default over as if it had been given, as an array where it is a number."""
    factory = CASES[name].factory
    needed = {"amac": {"learning_rate": 0.1, "total_steps": 20}, "amac_reference 1": {}}
    arguments = needed.get(name, {"learning_rate": 0.1})
    plain, _, _ = train(factory(**arguments), tree(0), gradients())
    injected, state, _ = train(optax.inject_hyperparams(factory)(**arguments), tree(0), gradients())
    assert set(arguments) <= set(state.hyperparams)
    # In float32 1 - 0.999, which Optax subtracts in float64, is off by up to 3 parts in 100,000.
    assert_close(injected, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("technique", OFF)
def test_inject_hyperparams_switches_a_technique_without_recompiling(technique):
    arguments = {name: two[0] for name, two in TECHNIQUES.items()}
    tx = optax.inject_hyperparams(amac_jax.adam)(0.1, **{**arguments, **OFF[technique]})
    params = tree(0)
    state = tx.init(params)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    for on in (False, True):
        for name, off in OFF[technique].items():
            state.hyperparams[name] = jnp.asarray(arguments[name] if on else off, jnp.float32)
        updates, state = update(tree(1), state, params)
        params = optax.apply_updates(params, updates)


@every_factory
def test_apply_if_finite_holds_it_still(name):
    tx = optax.apply_if_finite(CASES[name].build(), max_consecutive_errors=9)
    params = tree(0)
    state = tx.init(params)
    bad = {**tree(1), "temperature": jnp.array(jnp.nan)}
    updates, after = jax.jit(tx.update)(bad, state, params)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
    chex.assert_trees_all_equal(after.inner_state, state.inner_state)


@every_case
def test_unknown_extra_args_are_ignored(name):
    """They make the same program."""
    tx, params = CASES[name].build(), tree(0)
    state, extra = tx.init(params), {"unheard_of": tree(3)}

    def program(**extra):
        return str(jax.make_jaxpr(functools.partial(tx.update, **extra))(params, state, params))

    assert program(**extra) == program()


@every_factory
@pytest.mark.parametrize(
    "params",
    [
        {},
        {
            "scalar": jnp.array(2.0, jnp.float32),
            "none": None,
            "masked": optax.MaskedNode(),
            "zero-size": jnp.zeros((0, 3)),
            "nested": [jnp.ones(2), (jnp.ones((1, 2)), jnp.ones((2, 2, 2, 2)))],
        },
        jnp.ones((3, 2)),
    ],
    ids=["empty tree", "everything", "bare array"],
)
def test_takes_any_tree(name, params):
    gradient = jax.tree.map(lambda p: 0.5 * p, params)
    trained, _, history = train(CASES[name].build(), params, [gradient] * 3)
    chex.assert_trees_all_equal_shapes_and_dtypes(trained, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(history[-1], params)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(trained))


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.identity is not None]
)
def test_at_its_off_value_it_is_the_identity(name):
    case = CASES[name]
    _, _, history = train(case.build(**(case.identity or {})), tree(0), gradients())
    chex.assert_trees_all_equal(history, gradients())


@pytest.mark.parametrize("technique", OFF)
def test_off_in_the_pipeline_is_absent_from_it(technique):
    on = {name: two[0] for name, two in TECHNIQUES.items()}
    without = {name: on[name] for name in on if name not in COMPANIONS.get(technique, {})}

    def updates_with(**changes):
        tx = amac_jax.adam(0.1, **changes)
        params, history = tree(0), []
        state = tx.init(params)
        for gradient in gradients()[:3]:  # without jit, which fuses and rounds as it likes
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            history.append(updates)
        return history

    absent = updates_with(**{**without, technique: None})
    chex.assert_trees_all_equal(updates_with(**{**on, **OFF[technique]}), absent)
    if technique != "average_start":  # which only looks
        with pytest.raises(AssertionError):
            chex.assert_trees_all_close(updates_with(**on), absent)


ONLY_LOOKS = ("average_start", "skip_nonfinite", "record_metrics")


PAIRS = [(name, technique) for name in OPTIMIZERS for technique in ON]
# A fifth of them has each optimizer two or three times and each technique three times.
FIFTH = [pair for index, pair in enumerate(PAIRS) if (index + index // len(ON)) % 5 == 0]


@pytest.mark.parametrize(("name", "technique"), PAIRS if SOAK else FIFTH)
def test_every_optimizer_takes_every_technique(name, technique):
    """The jitted loop is the scan, in a `vmap` over two runs."""
    case, grads = OPTIMIZERS[name], stack(gradients())
    looped, state, _ = train(case.build(**ON[technique]), tree(0), gradients())
    run = functools.partial(trained_with, case, **ON[technique])
    other = tree(1), jax.tree.map(lambda g: -2 * g, grads)
    both = jax.jit(jax.vmap(run))(stack([tree(0), other[0]]), stack([grads, other[1]]))
    assert_close(pick(both, 0), (looped, state))
    with pytest.raises(AssertionError):
        assert_close(pick(both[0], 1), looped)
    if technique in ONLY_LOOKS:
        assert_close(looped, plainly(name))
    else:
        with pytest.raises(AssertionError):
            assert_close(looped, plainly(name))
