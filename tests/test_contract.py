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
from tests.helpers import SOAK, array
from tests.table import (
    CASES,
    COMPANIONS,
    OFF,
    ON,
    ONE_OF_EACH_FACTORY,
    OPTIMIZERS,
    TECHNIQUES,
    Case,
    jitted_step,
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
        return array(rng.normal(size=shape), dtype)

    return {
        "dense": {"kernel": draw(4, 3), "bias": draw(3)},
        "embed": {"embedding": draw(5, 2)},
        "temperature": draw(),
    }


def part(seed: int) -> Any:
    """One of the four leaves: for the forms that treat every leaf as they treat one."""
    return {"dense": {"kernel": tree(seed)["dense"]["kernel"]}}


def layer(seed: int) -> Any:
    """A kernel and its bias: for the forms that treat all other leaves as they treat a bias."""
    return {"dense": tree(seed)["dense"]}


def gradients(like: Any = tree) -> list[Any]:
    return [like(100 + step) for step in range(STEPS)]


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
def jitted_loop(name: str) -> tuple[Any, Any, list[Any]]:
    """With four leaves; `jitted_step` has test_trees.py and test_bad_steps.py use it too."""
    return train(CASES[name].build(), tree(0), gradients(), jitted_step(name))


@functools.cache
def jitted(name: str) -> tuple[optax.GradientTransformation, Any]:
    """A case and its step for the part, compiled once for all tests."""
    tx = CASES[name].build()
    return tx, step_of(tx)


@functools.cache
def jitted_loop_on_the_part(name: str) -> tuple[Any, Any, list[Any]]:
    tx, step = jitted(name)
    return train(tx, part(0), gradients(part), step)


def plainly(name: str) -> Any:
    """The part's parameters, with which the other forms of a case are compared."""
    return jitted_loop_on_the_part(name)[0]


def stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def pick(trees: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], trees)


def other_gradients() -> list[Any]:
    return jax.tree.map(lambda leaf: -2 * np.asarray(leaf), gradients(part))


def all_finite(tree: Any) -> bool:
    return all(np.all(np.isfinite(np.asarray(leaf))) for leaf in jax.tree.leaves(tree))


def assert_close(one: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    chex.assert_trees_all_close(one, other, rtol=rtol, atol=atol)


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@every_factory
def test_jit_changes_nothing_and_traces_once(name):
    tx, params, history = CASES[name].build(), part(0), jitted_loop_on_the_part(name)[2]
    state = tx.init(params)
    for gradient, updates in zip(gradients(part)[:2], history, strict=False):
        unjitted, state = tx.update(gradient, state, params)
        assert_close(unjitted, updates)
        params = optax.apply_updates(params, updates)


@every_case
def test_changes_something(name):
    params, _, history = jitted_loop(name)
    if not name.startswith("average_weights"):  # which only looks
        with pytest.raises(AssertionError):
            chex.assert_trees_all_close(history, gradients())
    assert all_finite(params)


@pytest.mark.skipif(not SOAK, reason="vmap over seeds is of this scan; only with AMAC_JAX_SOAK=1")
@every_factory
def test_scan_is_the_loop(name):
    tx, params = CASES[name].build(), part(0)

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    (scanned, _), _ = jax.lax.scan(step, (params, tx.init(params)), stack(gradients(part)))
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
    values = {argument: np.asarray([row[argument] for row in rows]) for argument in usual}

    # In 8 steps several periods of two end, and the last one of three is not over.
    params, grads = layer(0), stack([layer(100 + step) for step in range(8)])

    def run(values):
        return trained_with(case, params, grads, **values)

    swept, one_by_one = jax.jit(lambda values: (jax.vmap(run)(values), jax.lax.map(run, values)))(
        values
    )
    assert_close(swept, one_by_one)
    for index, argument in enumerate(usual, start=1):
        both = zip(*(jax.tree.leaves(pick(swept, row)) for row in (0, index)), strict=True)
        assert not all(np.allclose(a, b, rtol=1e-6) for a, b in both), f"{argument} does nothing"


@every_factory
def test_vmap_over_seeds_is_the_runs(name):
    tx, step = jitted(name)
    params = [part(0), part(1)]
    grads = [gradients(part), other_gradients()]
    run = jax.jit(jax.vmap(functools.partial(trained_with, CASES[name])))
    together = run(stack(params), stack([stack(steps) for steps in grads]))
    for index in range(2):
        alone = train(tx, params[index], grads[index], step)
        assert_close(pick(together, index), alone[:2])


@pytest.mark.parametrize("dtype", PRECISIONS)
@every_factory
def test_state_keeps_its_form_in_every_precision(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        tx, params = CASES[name].build(), tree(0, dtype)
        before = tx.init(params)
        if dtype == "float32":
            params, after, history = jitted_loop(name)
        else:
            typed = functools.partial(tree, dtype=dtype)
            params, after, history = train(tx, params, gradients(typed), jitted_step(name))
        chex.assert_trees_all_equal_structs(before, after)
        assert abstract(before) == abstract(after)
        assert abstract(jax.eval_shape(tx.init, params)) == abstract(before)
        chex.assert_trees_all_equal_dtypes(history[0], params)
        for leaf in jax.tree.leaves(after):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                assert jnp.finfo(leaf.dtype).bits >= CASES[name].state_bits
        assert all_finite(after)


@every_factory
def test_in_a_chain_parameters_and_state_can_be_donated_together(name):
    """The chain's steps are the transformation's own."""
    tx = optax.chain(optax.identity(), CASES[name].build(), optax.scale(1.0))

    # `jit` would drop what the step only overwrites, the old metrics, and not donate it.
    @functools.partial(jax.jit, donate_argnums=(0, 1), keep_unused=True)
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = part(0)
    state = tx.init(params)
    for gradient in gradients(part):
        given = jax.tree.leaves((params, state))
        params, state = step(params, state, gradient)
        assert all(leaf.is_deleted() for leaf in given)
    assert_close(params, plainly(name))


@every_factory
def test_masked_leaves_pass_through(name):
    dense = {"kernel": True, "bias": False}
    mask = {"dense": dense, "embed": False, "temperature": False}
    tx = optax.masked(CASES[name].build(), mask)
    params, _, history = train(tx, tree(0), gradients())
    for ours, gradient in zip(history, gradients(), strict=True):
        ours["dense"]["kernel"] = gradient["dense"]["kernel"]
        chex.assert_trees_all_equal(ours, gradient)
    assert_close(params["dense"]["kernel"], plainly(name)["dense"]["kernel"])


@every_factory
def test_partition_runs_it_on_its_part(name):
    tx = optax.partition(
        {"ours": CASES[name].build(), "theirs": optax.set_to_zero()},
        {
            "dense": {"kernel": "ours", "bias": "theirs"},
            "embed": "theirs",
            "temperature": "theirs",
        },
    )
    params, _, _ = train(tx, tree(0), gradients())
    assert_close(params["dense"]["kernel"], plainly(name)["dense"]["kernel"])
    params["dense"]["kernel"] = tree(0)["dense"]["kernel"]
    chex.assert_trees_all_equal(params, tree(0))


@every_factory
def test_multi_steps_counts_optimizer_steps(name):
    tx = CASES[name].build()
    twice = [gradient for gradient in gradients(part) for _ in range(2)]
    with jax.numpy_dtype_promotion("standard"):  # which `MultiSteps` is written for
        accumulated, _, _ = train(optax.MultiSteps(tx, 2).gradient_transformation(), part(0), twice)
    assert_close(accumulated, plainly(name))


@every_factory
def test_inject_hyperparams_is_the_plain_one(name):
    case = CASES[name]
    tx = optax.inject_hyperparams(case.factory)(**case.arguments())
    injected, state, _ = train(tx, part(0), gradients(part))
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
    plain, _, _ = train(factory(**arguments), part(0), gradients(part))
    injecting = optax.inject_hyperparams(factory)(**arguments)
    injected, state, _ = train(injecting, part(0), gradients(part))
    assert set(arguments) <= set(state.hyperparams)
    # In float32 1 - 0.999, which Optax subtracts in float64, is off by up to 3 parts in 100,000.
    assert_close(injected, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("technique", OFF)
def test_inject_hyperparams_switches_a_technique_without_recompiling(technique):
    arguments = {name: two[0] for name, two in TECHNIQUES.items()}
    tx = optax.inject_hyperparams(amac_jax.adam)(0.1, **{**arguments, **OFF[technique]})
    params = part(0)
    state = tx.init(params)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    for on in (False, True):
        for name, off in OFF[technique].items():
            state.hyperparams[name] = array(arguments[name] if on else off, "float32")
        updates, state = update(part(1), state, params)
        params = optax.apply_updates(params, updates)


@every_factory
def test_apply_if_finite_holds_it_still(name):
    tx = optax.apply_if_finite(CASES[name].build(), max_consecutive_errors=9)
    params = part(0)
    state = tx.init(params)
    bad = np.array(part(1)["dense"]["kernel"])
    bad[0, 0] = np.nan
    updates, after = jax.jit(tx.update)({"dense": {"kernel": bad}}, state, params)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
    chex.assert_trees_all_equal(after.inner_state, state.inner_state)


@every_case
def test_unknown_extra_args_are_ignored(name):
    """They make the same program; MaxText passes `loss` and `grad_norm`, others `value`."""
    tx, params = CASES[name].build(), part(0)
    number = jnp.ones([], jnp.float32)
    extra = {"unheard_of": part(3), "loss": number, "grad_norm": number, "value": number}
    state = jax.eval_shape(tx.init, params)

    def program(**extra):
        return str(jax.make_jaxpr(functools.partial(tx.update, **extra))(params, state, params))

    assert program(**extra) == program()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {
            "scalar": jnp.array(2.0, jnp.float32),
            "none": None,
            "masked": optax.MaskedNode(),
            "zero-size": jnp.zeros((0, 3)),
            "nested": [jnp.ones(2), (jnp.ones((2, 1, 2, 2)),)],
        },
        jnp.ones((3, 2)),
    ],
    ids=["empty tree", "everything", "bare array"],
)
@every_factory
def test_takes_any_tree(name, params):
    gradient = jax.tree.map(lambda p: np.float32(0.5) * np.asarray(p), params)
    trained, _, history = train(CASES[name].build(), params, [gradient] * 3)
    chex.assert_trees_all_equal_shapes_and_dtypes(trained, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(history[-1], params)
    assert all_finite(trained)


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.identity is not None]
)
def test_at_its_off_value_it_is_the_identity(name):
    case = CASES[name]
    _, _, history = train(case.build(**(case.identity or {})), tree(0), gradients())
    chex.assert_trees_all_equal(history, gradients())


def updates_with(**techniques: Any) -> list[Any]:
    """The updates of three steps, without jit, which fuses and rounds as it likes."""
    tx = amac_jax.adam(0.1, **techniques)
    params, history = part(0), []
    state = tx.init(params)
    for gradient in gradients(part)[:3]:
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        history.append(updates)
    return history


@functools.cache
def updates_with_all() -> list[Any]:
    return updates_with(**{name: two[0] for name, two in TECHNIQUES.items()})


@pytest.mark.parametrize("technique", OFF)
def test_off_in_the_pipeline_is_absent_from_it(technique):
    on = {name: two[0] for name, two in TECHNIQUES.items()}
    without = {name: on[name] for name in on if name not in COMPANIONS.get(technique, {})}
    absent = updates_with(**{**without, technique: None})
    chex.assert_trees_all_equal(updates_with(**{**on, **OFF[technique]}), absent)
    if technique != "average_start":  # which only looks
        with pytest.raises(AssertionError):
            chex.assert_trees_all_close(updates_with_all(), absent)


ONLY_LOOKS = ("average_start", "skip_nonfinite", "skip_spikes", "record_metrics")


PAIRS = [(name, technique) for name in OPTIMIZERS for technique in ON]
# A fifth of them has each optimizer two or three times and each technique three times.
FIFTH = [pair for index, pair in enumerate(PAIRS) if (index + index // len(ON)) % 5 == 0]
# Each technique once, with the first optimizers of those.
ONE_OF_EACH_TECHNIQUE = list({pair[1]: pair for pair in reversed(FIFTH)}.values())


@functools.cache
def jitted_with(name: str, technique: str) -> tuple[optax.GradientTransformation, Any]:
    tx = OPTIMIZERS[name].build(**ON[technique])
    return tx, step_of(tx)


def looped(name: str, technique: str, params: Any, grads: list[Any]) -> tuple[Any, Any]:
    """The optimizer's parameters and state after a jitted loop with this technique."""
    tx, step = jitted_with(name, technique)
    return train(tx, params, grads, step)[:2]


@pytest.mark.parametrize(("name", "technique"), PAIRS if SOAK else FIFTH)
def test_every_optimizer_takes_every_technique(name, technique):
    params, _ = looped(name, technique, part(0), gradients(part))
    if technique in ONLY_LOOKS:
        assert_close(params, plainly(name))
    else:
        with pytest.raises(AssertionError):
            assert_close(params, plainly(name))


@pytest.mark.parametrize(("name", "technique"), PAIRS if SOAK else ONE_OF_EACH_TECHNIQUE)
def test_with_every_technique_vmap_over_seeds_is_the_runs(name, technique):
    """The vmapped run is a scan."""
    params, grads = [part(0), part(1)], [gradients(part), other_gradients()]
    run = jax.vmap(functools.partial(trained_with, OPTIMIZERS[name], **ON[technique]))
    both = jax.jit(run)(stack(params), stack([stack(steps) for steps in grads]))
    for index in range(2):
        assert_close(pick(both, index), looped(name, technique, params[index], grads[index]))
