"""Arithmetic in at least float32, whatever the dtype of the parameters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from amac_jax.precision import at_least_float32, global_norm, map_wide, wide_copy, widen
from tests.helpers import assert_close, assert_same_bits, float64, normals, train

LIKE = {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}
LOW = [jnp.bfloat16, jnp.float16]


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("seed", range(2))
def test_moments_are_those_of_float32(seed, dtype):
    params = cast(next(normals(seed, LIKE)), dtype)
    gradients = [cast(gradient, dtype) for gradient in normals(seed + 10, LIKE, 5)]
    wide = train(optax.scale_by_adam(), widen(params), map(widen, gradients))
    low = train(at_least_float32(optax.scale_by_adam()), params, gradients)
    for (params, state), (_, expected) in zip(low, wide, strict=True):
        assert_close(state, expected)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"int32", "float32"}
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}


def test_updates_come_back_in_the_dtype_of_the_gradients():
    params = {"low": jnp.ones(2, jnp.bfloat16), "half": jnp.ones(2, jnp.float16), "f": jnp.ones(2)}
    gradients = {"low": jnp.ones(2), "half": jnp.ones(2, jnp.bfloat16), "f": jnp.ones(2)}
    tx = at_least_float32(optax.adamw(0.1))
    updates, _ = tx.update(gradients, tx.init(params), params)
    chex.assert_trees_all_equal_dtypes(updates, gradients)


def test_second_moment_decays_where_b2_would_round_to_one():
    assert jnp.bfloat16(0.999) == 1.0
    tx = at_least_float32(optax.scale_by_rms(decay=0.999))
    params = jnp.ones(3, jnp.bfloat16)
    gradients = [params] + [jnp.zeros_like(params)] * 700
    *_, (_, state) = train(tx, params, gradients)
    assert_close(state.nu, np.full(3, 0.001 * 0.999**700), 1e-6)
    # One half is left after 693 steps. The same in bfloat16 itself stays where it was.
    (_, first), *_, (_, last) = train(optax.scale_by_rms(decay=0.999), params, gradients)
    assert_same_bits(last.nu, first.nu)


@pytest.mark.parametrize("wide", [jnp.float32, jnp.float64])
def test_what_is_wide_already_passes_bit_for_bit(wide):
    with jax.enable_x64(True):
        params = cast(next(normals(0, LIKE)), wide)
        gradients = [cast(gradient, wide) for gradient in normals(1, LIKE, 3)]
        ours = train(at_least_float32(optax.adamw(0.1)), params, gradients)
        theirs = train(optax.adamw(0.1), params, gradients)
        for (after, _), (expected, _) in zip(ours, theirs, strict=True):
            assert_same_bits(after, expected)


def test_extra_args_and_absent_params_reach_the_inner_transformation():
    def update(updates, state, params=None, **extra_args):
        assert params is None
        return jax.tree.map(lambda u: u * extra_args["factor"], updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    tx = at_least_float32(inner)
    assert tx.update(jnp.ones(1), tx.init(jnp.ones(1)), factor=3.0)[0] == 3.0


@pytest.mark.parametrize("dtype", LOW)
def test_global_norm_is_taken_in_float32(dtype):
    tree = {"a": jnp.full(70_000, 10, dtype), "b": jnp.full((3, 2), 2, dtype)}
    expected = np.sqrt(70_000 * 10.0**2 + 6 * 2.0**2)  # its square is beyond float16
    assert global_norm(tree).dtype == jnp.float32
    assert_close(global_norm(tree), expected)


def test_integers_and_wide_floats_stay_as_they_are():
    tree = {"i": jnp.arange(3), "b": jnp.array(True), "f": jnp.ones(2), "k": jnp.ones(2) * 1j}
    assert_same_bits(widen(tree), tree)


def test_a_wide_copy_is_a_buffer_of_its_own():
    params = jnp.ones(3)
    copy = wide_copy(params)
    params.delete()
    assert_close(copy, np.ones(3))


def test_map_wide_rounds_once():
    tree = jnp.asarray([1.0, 3.0, 7.0], jnp.bfloat16)
    rounded = map_wide(lambda x: x / 3 * 3 + 2**-9, tree)
    expected = float64(tree) / 3 * 3 + 2**-9
    assert_same_bits(rounded, jnp.asarray(expected, jnp.bfloat16))
