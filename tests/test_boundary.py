"""The boundary: arithmetic in at least float32, on trained leaves alone, and the way back out."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from amac_jax._core.boundary import CountedState, Stage, stage_of, technique, transformation
from amac_jax._core.leaves import (
    copied,
    each_leaf,
    enter,
    global_norm,
    trained_only,
    widen,
    zeros_like,
)
from amac_jax._core.ranges import COUNT, NON_NEGATIVE
from tests.helpers import assert_close, assert_same_bits, float64, normals, train

LIKE = {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}
LOW = [jnp.bfloat16, jnp.float16]


def within(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Any transformation inside the boundary."""
    return transformation(stage_of(tx))


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("seed", range(2))
def test_moments_are_those_of_float32(seed, dtype):
    params = cast(next(normals(seed, LIKE)), dtype)
    gradients = [cast(gradient, dtype) for gradient in normals(seed + 10, LIKE, 5)]
    wide = train(optax.scale_by_adam(), widen(params), map(widen, gradients))
    low = train(within(optax.scale_by_adam()), params, gradients)
    for (params, state), (_, expected) in zip(low, wide, strict=True):
        assert_close(state.inner, expected)
        assert int(state.count) == int(expected.count)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"int32", "float32"}
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}


def test_updates_come_back_in_the_dtype_of_the_gradients():
    params = {"low": jnp.ones(2, jnp.bfloat16), "half": jnp.ones(2, jnp.float16), "f": jnp.ones(2)}
    gradients = {"low": jnp.ones(2), "half": jnp.ones(2, jnp.bfloat16), "f": jnp.ones(2)}
    tx = within(optax.adamw(0.1))
    updates, _ = tx.update(gradients, tx.init(params), params)
    chex.assert_trees_all_equal_dtypes(updates, gradients)


def test_second_moment_decays_where_b2_would_round_to_one():
    assert jnp.bfloat16(0.999) == 1.0
    tx = within(optax.scale_by_rms(decay=0.999))
    params = jnp.ones(3, jnp.bfloat16)
    gradients = [params] + [jnp.zeros_like(params)] * 700
    *_, (_, state) = train(tx, params, gradients)
    assert_close(state.inner.nu, np.full(3, 0.001 * 0.999**700), 1e-6)
    # One half is left after 693 steps. The same in bfloat16 itself stays where it was.
    (_, first), *_, (_, last) = train(optax.scale_by_rms(decay=0.999), params, gradients)
    assert_same_bits(last.nu, first.nu)


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("wide", [jnp.float32, jnp.float64])
def test_what_is_wide_already_passes_bit_for_bit(wide):
    with jax.enable_x64(True):
        params = cast(next(normals(0, LIKE)), wide)
        gradients = [cast(gradient, wide) for gradient in normals(1, LIKE, 3)]
        ours = train(within(optax.adamw(0.1)), params, gradients)
        theirs = train(optax.adamw(0.1), params, gradients)
        for (after, _), (expected, _) in zip(ours, theirs, strict=True):
            assert_same_bits(after, expected)


def test_extra_args_and_absent_params_reach_the_inner_transformation():
    def update(updates, state, params=None, **extra_args):
        assert params is None
        return jax.tree.map(lambda u: u * extra_args["factor"], updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    tx = within(inner)
    assert tx.update(jnp.ones(1), tx.init(jnp.ones(1)), factor=3.0)[0] == 3.0


@pytest.mark.parametrize("dtype", LOW)
def test_global_norm_is_taken_in_float32(dtype):
    tree = {"a": jnp.full(70_000, 10, dtype), "b": jnp.full((3, 2), 2, dtype)}
    expected = np.sqrt(70_000 * 10.0**2 + 6 * 2.0**2)  # its square is beyond float16
    assert global_norm(tree).dtype == jnp.float32
    assert_close(global_norm(tree), expected)


def test_integers_and_wide_floats_stay_as_they_are():
    tree = {"i": jnp.arange(3), "b": jnp.array(True), "f": jnp.ones(2), "k": jnp.full(2, 1j)}
    assert_same_bits(widen(tree), tree)


def test_a_copy_is_a_buffer_of_its_own():
    params = jnp.ones(3)
    copy = copied(params)
    params.delete()
    assert_close(copy, np.ones(3))


def test_a_copy_is_in_at_least_the_dtype_that_is_asked_for():
    with jax.enable_x64(True):
        for given, asked, dtype in [
            ("bfloat16", "float32", "float32"),
            ("float64", "float32", "float64"),
            ("float32", "float64", "float64"),
            ("float16", "bfloat16", "float32"),
            ("complex64", "float32", "complex64"),
        ]:
            assert copied(jnp.ones(2, given), jnp.dtype(asked)).dtype == dtype
            shape = jax.ShapeDtypeStruct((2,), given)
            assert_same_bits(copied(shape, jnp.dtype(asked)), jnp.zeros(2, dtype))


def test_zeros_are_wide():
    tree = {"low": jnp.ones(2, jnp.bfloat16), "f": jnp.ones((1, 3)), "none": None}
    assert_same_bits(zeros_like(tree), {"low": jnp.zeros(2), "f": jnp.zeros((1, 3)), "none": None})


def test_updates_are_rounded_once():
    """x / 3 * 3 + 2^-9 in float32, and then in bfloat16; each division would round otherwise."""
    tx = within(
        optax.stateless(lambda u, p: jax.tree.map(lambda x: x / 3 * 3 + jnp.float32(2**-9), u))
    )
    tree = jnp.asarray([1.0, 3.0, 7.0], jnp.bfloat16)
    rounded, _ = tx.update(tree, tx.init(tree))
    expected = float64(tree) / 3 * 3 + 2**-9
    assert_same_bits(rounded, jnp.asarray(expected, jnp.bfloat16))


def test_leaf_maths_is_in_the_dtype_of_the_first_tree():
    seen = []

    def equation(u, p, rate):
        seen.append((u.dtype, p.dtype, rate.dtype, rate.shape))
        return u - rate * p

    updates = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
    params = {"a": jnp.full(2, 4.0), "b": jnp.full(2, 4.0, jnp.float16)}
    result = each_leaf(equation, updates, params, rate=jnp.float32(0.25))
    assert_same_bits(result, jax.tree.map(jnp.zeros_like, updates))
    assert seen == [
        (dtype, dtype, dtype, ()) for dtype in (jnp.dtype("bfloat16"), jnp.dtype("float32"))
    ]


# Which leaves are trained.


def test_a_stage_sees_trained_leaves_alone():
    def relu(x):
        return jnp.maximum(x, 0)

    params = {
        "w": jnp.ones(2, jnp.bfloat16), "n": np.ones(2, np.float32), "steps": jnp.arange(3),
        "mask": jnp.array([True]), "key": jax.random.key(0), "rate": 0.5, "on": True,
        "call": relu, "name": "dense", "none": None, "z": jnp.ones(1, jnp.complex64),
    }  # fmt: skip
    trained = {"w", "n", "z"}
    seen = {}

    def init(tree):
        seen["init"] = tree
        return zeros_like(tree)

    def update(updates, state, tree, step):
        seen["updates"], seen["params"] = updates, tree
        return jax.tree.map(jnp.negative, updates), state

    tx = transformation(Stage(update, init))
    state = tx.init(params)
    assert {name for name, leaf in seen["init"].items() if leaf is not None} == trained
    assert_same_bits(seen["init"]["w"], params["w"])  # in its own dtype: an average may keep it
    gradients = {name: params[name] if name in trained else None for name in params}
    updates, _ = tx.update(gradients, state, params)
    for role in ("updates", "params"):
        assert {name for name, leaf in seen[role].items() if leaf is not None} == trained
        assert seen[role]["w"].dtype == jnp.float32
    assert_same_bits(updates, jax.tree.map(jnp.negative, gradients))
    assert updates["none"] is None


def test_what_has_a_gradient_and_is_not_trained_gets_the_update_zero_or_what_came():
    params = {"w": jnp.ones(2), "steps": jnp.array(7), "mask": jnp.array(True), "key": jnp.ones(1)}
    params["key"] = jax.random.key(3)
    gradients = jax.grad(lambda p: jnp.sum(p["w"] ** 2), allow_int=True)(params)
    tx = within(optax.scale(3.0))
    updates, _ = tx.update(gradients, tx.init(params), params)
    assert_same_bits(updates["w"], jnp.full(2, 6.0))
    assert_same_bits(updates["steps"], jnp.array(0))
    assert_same_bits(updates["mask"], jnp.array(False))
    assert updates["key"].dtype == jax.dtypes.float0


def test_an_objective_is_given_the_whole_tree():
    params = {"w": jnp.full(2, 3.0), "steps": jnp.array(7), "rate": 0.5}
    gradients = {"w": jnp.ones(2), "steps": None, "rate": None}

    def value_fn(tree):
        assert tree["rate"] == 0.5
        return jnp.sum(tree["w"]) * tree["steps"] * tree["rate"]

    inside = enter(gradients, params, {"value_fn": value_fn, "other": 1})
    assert float(inside.extra_args["value_fn"](inside.params)) == 21.0
    assert inside.extra_args["other"] == 1


def test_trained_only_is_equinoxs_filter():
    tree = [jnp.ones(2), np.ones(2), jnp.arange(2), 1.5, jax.nn.relu, None, jax.random.key(0), "a"]
    assert_same_bits(trained_only(tree), [jnp.ones(2), np.ones(2), *[None] * 6])


@pytest.mark.parametrize(
    ("gradient", "param", "message"),
    [
        (jnp.ones(3), jnp.ones((2, 3)), r"the gradient at 'a/b' must have the shape of its param"),
        (jnp.ones([]), 2.0, "the parameter of a gradient at 'a/b' must be an array, got 2.0"),
        (jnp.ones([]), "x", "the parameter of a gradient at 'a/b' must be an array, got 'x'"),
    ],
)
def test_what_does_not_fit_is_refused_by_path(gradient, param, message):
    with pytest.raises(ValueError, match=message):
        enter({"a": {"b": gradient}}, {"a": {"b": param}}, {})


def test_a_gradient_that_is_a_python_number_is_refused_by_path():
    with pytest.raises(ValueError, match=r"the gradient at 'a' must be an array, got 1\.0"):
        enter({"a": 1.0}, None, {})


# The count, and the values of hyperparameters.


@technique(scale=NON_NEGATIVE, period=COUNT)
def scaled_every(scale, period=1):
    def update(updates, state, params, step):
        due = (step.count + 1) % step.period == 0
        factor = jnp.where(due, step.scale, 0.0)
        return each_leaf(lambda u, factor: factor * u, updates, factor=factor), state

    return Stage(update)


def test_a_technique_is_given_the_values_of_its_hyperparameters_at_the_step():
    tx = scaled_every(
        lambda count: jnp.float32(count) + 1.0, period=2.0
    )  # as inject_hyperparams has it
    state = tx.init(jnp.ones(1))
    assert state == CountedState(jnp.array(0), optax.EmptyState())
    found = []
    for _ in range(4):
        updates, state = tx.update(jnp.ones(1), state)
        found.append(float(updates[0]))
    assert found == [0.0, 2.0, 0.0, 4.0]
    assert int(state.count) == 4


def test_a_technique_holds_its_numbers_against_their_ranges_and_says_what_it_is():
    with pytest.raises(ValueError, match=r"scale must be in \[0, inf\), got -1"):
        scaled_every(-1)
    with pytest.raises(ValueError, match=r"period must be a whole number in \[1, inf\), got 1.5"):
        scaled_every(1.0, period=1.5)
    with pytest.raises(TypeError, match="perid"):
        scaled_every(1.0, perid=2)
    assert repr(scaled_every(0.5)) == "scaled_every(scale=0.5, period=1)"
    assert repr(scaled_every(jnp.ones([]))) == "scaled_every(scale=<array>, period=1)"


def test_the_inside_of_ours_is_without_a_second_boundary():
    """One count, however the technique is put into a chain of stages."""
    tx = within(scaled_every(0.5))
    updates, state = tx.update(jnp.full(1, 3.0, jnp.bfloat16), tx.init(jnp.ones(1, jnp.bfloat16)))
    assert_same_bits(updates, jnp.full(1, 1.5, jnp.bfloat16))
    assert state.inner == optax.EmptyState()
