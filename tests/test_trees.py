"""Every precision and every tree, in every factory: supported, left alone or refused by name."""

import re
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from tests.helpers import SOAK, array, assert_same_bits, mixed_tree
from tests.table import CASES, ONE_OF_EACH_FACTORY, jitted_step

every_case = pytest.mark.parametrize("name", CASES)
every_factory = pytest.mark.parametrize("name", CASES if SOAK else ONE_OF_EACH_FACTORY)

# Who refuses complex parameters: what adds noise, clips by value, takes signs or solves systems.
REFUSES = {
    **dict.fromkeys(("inject_noise", "inject_noise threefry", "compose"), "inject_noise"),
    **{name: "inject_noise" for name in CASES if "amac" in name and name != "amac auto"},
    **{name: "newton" for name in CASES if name.startswith("newton")},
    **{name: name for name in ("clip_by_value", "lion", "sophia")},
}
TAKES_COMPLEX = [name for name in CASES if name not in REFUSES]


def form(tree: Any) -> Any:
    return jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def wide(seed: int) -> Any:
    return jax.tree.map(lambda leaf: array(leaf, "float32"), mixed_tree(seed))


# Mixed precisions, and counters at their end.


@every_case
def test_each_leaf_of_a_mixed_tree_keeps_its_precision(name):
    tx, params = CASES[name].build(), mixed_tree(0)
    state = tx.init(params)
    step = jitted_step(name)
    after, new_state, _ = step(params, state, mixed_tree(1))
    assert form(after) == form(params)
    assert form(new_state) == form(state)
    exact, _, _ = step(wide(0), tx.init(wide(0)), wide(1))
    for leaf, expected in zip(jax.tree.leaves(after), jax.tree.leaves(exact), strict=True):
        # The update is rounded to the leaf's precision, and the sum is: half a unit each.
        np.testing.assert_allclose(
            np.float32(leaf), expected, rtol=2e-6 + float(jnp.finfo(leaf.dtype).eps), atol=2e-2
        )


@every_case
def test_counters_stop_at_the_largest_int32(name):
    params = mixed_tree(0)
    state = CASES[name].build().init(params)

    def is_counter(leaf):
        return leaf.dtype == jnp.int32 and leaf.ndim == 0

    largest = jnp.iinfo(jnp.int32).max
    state = jax.tree.map(
        lambda leaf: np.full_like(leaf, largest) if is_counter(leaf) else leaf, state
    )
    for step in range(2):
        params, state, _ = jitted_step(name)(params, state, mixed_tree(step))
    counts = [
        int(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if is_counter(leaf) and jax.tree_util.keystr(path).endswith(".count")
    ]
    assert set(counts) <= {largest}
    for leaf in jax.tree.leaves((params, state)):
        if is_counter(leaf):
            assert int(leaf) >= 0
        elif jnp.issubdtype(leaf.dtype, jnp.floating) and not name.startswith("amac_reference"):
            # The published noise and decay grow with the number of steps, without end.
            assert np.all(np.isfinite(np.asarray(leaf)))


# Integers, bools and keys.


@every_factory
def test_integers_bools_and_keys_are_left_alone(name):
    """With gradients as `jax.grad(..., allow_int=True)` hands them over, and without state."""
    others = {
        "steps": jnp.array([7, 8]),
        "small": jnp.array(3, jnp.uint8),
        "mask": jnp.array([True, False]),
        "key": jax.random.key(5),
    }
    floats = {"weights": wide(0)["dense"]["kernel"]}  # after the others, in the order of leaves
    both = {**others, **floats}

    def loss(params):
        return jnp.sum(params["weights"] ** 4)

    tx = optax.with_extra_args_support(CASES[name].build())

    def taken(params, state, gradient):
        updates, state = tx.update(gradient, state, params)

        def applied(param, update):  # `optax.apply_updates` cannot add anything to a key
            key = update.dtype == jax.dtypes.float0
            return param if key else optax.apply_updates(param, update)

        return jax.tree.map(applied, params, updates), state

    @jax.jit  # in one program, the same operations on both
    def step(params, states):
        gradients = jax.grad(loss, allow_int=True)(params[0]), jax.grad(loss)(params[1])
        assert gradients[0]["key"].dtype == jax.dtypes.float0
        return tuple(zip(*map(taken, params, states, gradients), strict=True))

    states = tx.init(both), tx.init(floats)
    shapes = [[leaf.shape for leaf in jax.tree.leaves(state)] for state in states]
    assert shapes[0] == shapes[1]
    runs = (both, floats), states
    for _ in range(2):
        runs = step(*runs)
    (trained, alone), _ = runs
    assert form(trained) == form(both)
    for key, leaf in others.items():
        got, leaf = (jax.random.key_data(x) if key == "key" else x for x in (trained[key], leaf))
        assert_same_bits(got, leaf)
    for one, other in zip(
        jax.tree.leaves({key: trained[key] for key in floats}), jax.tree.leaves(alone), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_masks_may_name_the_leaves_that_are_left_alone():
    params = {"steps": jnp.array(7), "w": jnp.ones(2)}
    gradients = jax.tree.map(jnp.zeros_like, params)
    for mask in ({"steps": True, "w": True}, {"steps": False, "w": True}, True):
        tx = amac_jax.sgd(0.5, weight_decay=0.5, decay_mask=mask)
        updates, _ = tx.update(gradients, tx.init(params), params)
        assert_same_bits(updates, {"steps": jnp.array(0), "w": jnp.full(2, -0.25)})


def test_averages_leave_them_as_they_are():
    params = {"steps": jnp.array(7), "w": jnp.ones(2)}
    tx = amac_jax.sgd(0.5, average_start=1)
    _, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert_same_bits(
        amac_jax.averaged_params(state, params), {"steps": jnp.array(7), "w": jnp.full(2, 0.5)}
    )


# Complex numbers.


@pytest.mark.parametrize("name", TAKES_COMPLEX)
def test_complex_parameters_turn_with_their_phase(name):
    """exp(i phi) times parameters and gradients: exp(i phi) times the path, whatever phi.

    At phi = 0 it is the path of the real parameters: so the size of a complex number is what
    counts, not its real part or its square.
    """
    step, tx = jitted_step(name), CASES[name].build()

    def end(turn):
        def turned(tree):
            return jax.tree.map(lambda leaf: np.asarray(leaf, turn.dtype) * turn, tree)

        params = turned(wide(0))
        state = tx.init(params)
        for index in range(1, 4):
            params, state, _ = step(params, state, turned(wide(index)))
        return jax.tree.leaves(params)

    plain, flat, turn = end(np.float32(1)), end(np.complex64(1)), np.exp(0.7j)
    for one, complex_one, turned in zip(plain, flat, end(np.complex64(turn)), strict=True):
        assert turned.dtype == jnp.complex64
        np.testing.assert_allclose(turned, complex_one * turn, rtol=1e-5, atol=1e-5)
        if CASES[name].state_bits == 32:  # complex state has no dtype to be rounded to
            np.testing.assert_allclose(complex_one, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", REFUSES)
def test_what_has_no_meaning_for_complex_parameters_is_refused_by_name(name):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.complex64), wide(0))
    message = f"{REFUSES[name]} must have real parameters, got complex64 at 'dense/bias'"
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        CASES[name].build().init(params)
    remedy = "split_real_and_imaginary(...) around the whole optimizer, if it takes no extra args,"
    assert remedy in str(error.value)


@pytest.mark.usefixtures("promoting")
def test_the_remedy_that_the_message_names():
    tx = optax.contrib.split_real_and_imaginary(amac_jax.amac(0.1, total_steps=10, core="adam"))
    params = {"w": jnp.ones(3, jnp.complex64)}
    updates, _ = tx.update({"w": jnp.full(3, 1 + 1j, jnp.complex64)}, tx.init(params), params)
    assert updates["w"].dtype == jnp.complex64
    assert np.all(np.asarray(updates["w"].real) < 0)
    assert np.all(np.asarray(updates["w"].imag) < 0)


# Sizes.


@every_case
def test_leaves_of_more_elements_than_int32_counts(name):
    params = {
        "kernel": jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32),
        "bias": jax.ShapeDtypeStruct((2**31,), jnp.bfloat16),
    }
    tx = CASES[name].build()
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(tx.update, params, state, params)
    assert form(updates) == form(params)
    assert form(after) == form(state)


@pytest.mark.parametrize("name", CASES if SOAK else ["sgd with techniques"])
def test_two_thousand_leaves(name):
    layer = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    params = {f"layer{index}": layer for index in range(1000)}
    techniques = {"clip_norm": 1.0, "momentum": 0.9, "average_start": 1}
    tx = CASES[name].build() if name in CASES else amac_jax.sgd(0.1, **techniques)
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(tx.update, params, state, params)
    assert form(updates) == form(jax.eval_shape(lambda: params))
    assert form(after) == form(state)


# Random trees.

shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
dtypes = st.sampled_from(["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
leaves = st.tuples(shapes, dtypes)
names = st.sampled_from(["kernel", "bias", "w", "scale", "embedding", "query", "0", "μ"])
trees = st.recursive(
    leaves | st.just(None) | st.just(optax.MaskedNode()),
    lambda inner: (
        st.dictionaries(names, inner, max_size=3)
        | st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=5,
)


def is_leaf(node: Any) -> bool:
    return isinstance(node, tuple) and len(node) == 2 and isinstance(node[1], str)


def filled(tree: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)

    def fill(leaf):
        shape, dtype = leaf
        return array(np.asarray(3 * rng.normal(size=shape)).astype(np.int8), dtype)

    return jax.tree.map(fill, tree, is_leaf=is_leaf)


def on_random_trees(examples: int) -> Any:
    settings = hypothesis.settings(
        max_examples=(40 if SOAK else 1) * examples, derandomize=True, deadline=None, database=None
    )
    given = hypothesis.given(
        name=st.sampled_from(list(CASES)), tree=trees, choices=st.integers(0, 2**16 - 1)
    )
    return lambda test: settings(given(test))


def chosen(name: str, choices: int) -> Any:
    """The case with, for each hyperparameter, the first or the second of its values."""
    pairs = enumerate(CASES[name].numeric.items())
    values = {argument: pair[choices >> index & 1] for index, (argument, pair) in pairs}
    return optax.with_extra_args_support(CASES[name].build(**values))


@on_random_trees(200)
def test_any_tree_keeps_its_form(name, tree, choices):
    tx, params = chosen(name, choices), {"model": filled(tree, 0)}
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(tx.update, params, state, params)
    assert form(updates) == form(params)
    assert form(after) == form(state)


@on_random_trees(30)
def test_any_tree_is_trained_and_nothing_else_is_touched(name, tree, choices):
    tx, params = chosen(name, choices), {"model": filled(tree, 0)}

    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    after, state = params, tx.init(params)
    for seed in range(2):
        after, state = step(after, state, {"model": filled(tree, seed)})
    assert form(after) == form(params)
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(after), strict=True):
        if jnp.issubdtype(old.dtype, jnp.floating):
            assert bool(jnp.all(jnp.isfinite(new)))
        else:
            assert_same_bits(new, old)
