"""The three clips against their equations in NumPy and against Optax's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amac_jax import clip_by_global_norm, clip_by_unit_norm, clip_by_value
from tests.helpers import apply, assert_close, assert_same_bits, float64, normals


def zeros(*shape):
    return np.zeros(shape, np.float32)


LIKE = {
    "dense": {"kernel": zeros(5, 3), "bias": zeros(3)},
    "conv": {"kernel": zeros(3, 2, 4, 5)},
    "query": {"kernel": zeros(6, 2, 3), "bias": zeros(2, 3)},
    "out": {"kernel": zeros(2, 3, 6)},
    "embed": {"embedding": zeros(7, 4)},
}
STRANGE = np.float32([-0.0, 0.0, 1e-30, 1e38, -np.inf, np.inf, np.nan, 3.0])
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


def frobenius(tree):
    return np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(float64(tree))))


@functools.cache
def compiled(clip, *arguments, **keywords):
    """One program for all seeds, which gives the result of the first update."""
    tx = clip(*arguments, **keywords)
    return jax.jit(lambda updates, params=None: apply(tx, updates, params)[0])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("limit", [0.1, 1.0, 100.0])
def test_by_value_is_numpy_clip(seed, limit):
    updates = next(normals(seed, LIKE))
    expected = jax.tree.map(lambda u: np.clip(u, -limit, limit), float64(updates))
    assert_close(compiled(clip_by_value, limit)(updates), expected)


def test_by_value_keeps_each_nan_where_it_is():
    clipped, _ = apply(clip_by_value(2.0), jax.device_put(STRANGE))
    assert_same_bits(clipped, np.float32([-0.0, 0.0, 1e-30, 2.0, -2.0, 2.0, np.nan, 2.0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip", [clip_by_value, clip_by_global_norm, clip_by_unit_norm])
def test_a_limit_of_inf_changes_no_bit(clip, dtype):
    with np.errstate(over="ignore"):
        updates = {"kernel": np.stack([STRANGE, STRANGE * np.float32(0.1)]).astype(dtype)}
    updates = jax.device_put(updates)
    assert_same_bits(apply(clip(jnp.inf), updates, updates)[0], updates)


@pytest.mark.parametrize("clip", [clip_by_value, clip_by_global_norm])
def test_limits_are_scheduled_by_the_count_of_updates(clip):
    tx = clip(lambda count: 1.0 + count)  # the third step: 3
    clipped, state = apply(tx, jnp.array([10.0]), steps=3)
    assert (float(clipped[0]), int(state.count)) == (3.0, 3)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("limit", [0.1, 5.0])
def test_by_global_norm_is_the_equation(seed, limit):
    updates = next(normals(seed, LIKE))
    assert frobenius(updates) > 5.0
    factor = min(1.0, limit / frobenius(updates))
    expected = jax.tree.map(lambda u: u * factor, float64(updates))
    assert_close(compiled(clip_by_global_norm, limit)(updates), expected)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    st.lists(st.floats(-(2.0**50), 2.0**50, width=32), min_size=4, max_size=4),
    st.floats(2**-20, 2**20, width=32),
)
def test_the_norm_ends_at_the_limit_or_is_left_alone(values, limit):
    updates = jax.device_put([np.float32(values[:1]), np.float32(values[1:])])
    clipped, _ = apply(clip_by_global_norm(limit), updates)
    assert frobenius(clipped) <= limit * (1 + 1e-6)
    if frobenius(updates) < limit * (1 - 1e-6):
        assert_same_bits(clipped, updates)
    else:
        np.testing.assert_allclose(frobenius(clipped), limit, rtol=1e-5)


def test_float16_gradients_beyond_the_range_of_their_squares():
    updates = {"kernel": np.full((350, 200), 10, np.float16)}
    clipped = compiled(clip_by_global_norm, 1.0)(updates)
    assert clipped["kernel"].dtype == jnp.float16
    np.testing.assert_allclose(frobenius(clipped), 1.0, rtol=1e-3)
    theirs = compiled(optax.clip_by_global_norm, 1.0)(updates)
    assert not 0.99 < frobenius(theirs) < 1.01


def test_a_nan_stays_in_its_leaf():
    updates = {"sick": np.float32([1.0, np.nan]), "well": np.float32([3.0, -4.0])}
    assert_same_bits(compiled(clip_by_global_norm, 1.0)(updates), updates)
    # Optax's takes the norm, NaN, to every leaf.
    assert np.isnan(compiled(optax.clip_by_global_norm, 1.0)(updates)["well"]).all()


def unit_clip(gradient, weight, fan_in, ratio, eps):
    """Brock et al., 2021, equation 3, one output unit at a time."""
    if fan_in is None:
        largest = ratio * max(np.linalg.norm(weight.ravel()), eps)
        return gradient * min(1.0, largest / np.linalg.norm(gradient.ravel()))
    outputs = [axis for axis in range(gradient.ndim) if axis not in fan_in]
    result = np.empty_like(gradient)
    for unit in np.ndindex(*[gradient.shape[axis] for axis in outputs]):
        index = [slice(None)] * gradient.ndim
        for axis, i in zip(outputs, unit, strict=True):
            index[axis] = i
        g, w = gradient[tuple(index)], weight[tuple(index)]
        largest = ratio * max(np.linalg.norm(w.ravel()), eps)
        result[tuple(index)] = g * min(1.0, largest / np.linalg.norm(g.ravel()))
    return result


FAN_IN = {
    ("dense", "kernel"): (0,),
    ("dense", "bias"): None,
    ("conv", "kernel"): (0, 1, 2),
    ("query", "kernel"): (0,),
    ("query", "bias"): None,
    ("out", "kernel"): (0, 1),
    ("embed", "embedding"): None,
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("ratio", "eps"), [(0.01, 1e-3), (1.0, 1e-3), (0.5, 2.0)])
def test_by_unit_norm_is_the_paper_for_every_unit(seed, ratio, eps):
    params, updates = normals(seed, LIKE, 2)
    clipped = compiled(clip_by_unit_norm, ratio, eps=eps)(updates, params)
    some_clipped = some_left = False
    for (layer, leaf), fan_in in FAN_IN.items():
        g, w = float64(updates[layer][leaf]), float64(params[layer][leaf])
        expected = unit_clip(g, w, fan_in, ratio, eps)
        assert_close(clipped[layer][leaf], expected)
        some_clipped |= bool(np.any(expected != g))
        some_left |= bool(np.any(expected == g))
    assert some_clipped
    assert some_left or ratio < 0.1


def test_zero_weights_may_move_by_eps():
    ones = {"kernel": np.ones((4, 2), np.float32)}
    clipped = compiled(clip_by_unit_norm, 0.01, eps=1e-3)(ones, {"kernel": zeros(4, 2)})
    assert_close(clipped["kernel"], np.full((4, 2), 1e-5 / 2), 1e-11)


def test_by_unit_norm_takes_a_rule():
    params, updates = normals(0, {"kernel": zeros(4, 3)}, 2)
    clip = compiled(clip_by_unit_norm, 0.1, fan_in_axes=lambda path, leaf: (1,))
    clipped = clip(updates, params)
    expected = unit_clip(float64(updates["kernel"]), float64(params["kernel"]), (1,), 0.1, 1e-3)
    assert_close(clipped["kernel"], expected)


def test_by_unit_norm_reads_schedules():
    tx = clip_by_unit_norm(lambda count: 0.1 * (1 + count), eps=lambda count: 1.0 + count)
    updates = {"bias": jnp.array([100.0])}
    clipped, _ = apply(tx, updates, {"bias": jnp.zeros(1)}, steps=3)  # 0.3 of 3
    assert_close(clipped["bias"], np.array([0.9]))


@pytest.mark.parametrize("seed", range(2))
def test_optax_agrees_on_dense_layers_only(seed):
    params, updates = normals(seed, LIKE, 2)
    ours = compiled(clip_by_unit_norm, 0.1)(updates, params)
    theirs = compiled(optax.adaptive_grad_clip, 0.1)(updates, params)
    assert_close(ours["dense"], theirs["dense"])
    assert_close(ours["conv"], theirs["conv"])
    for layer, leaf in (("out", "kernel"), ("query", "bias"), ("embed", "embedding")):
        assert not np.allclose(ours[layer][leaf], theirs[layer][leaf], rtol=1e-3)


def test_without_a_limit_an_infinite_norm_passes():
    """Off is off: inf / inf would make NaN of all of it."""
    gradient = {"w": jnp.array([jnp.inf, 1.0, -0.0])}
    tx = clip_by_global_norm(jnp.inf)
    assert_same_bits(tx.update(gradient, tx.init(gradient))[0], gradient)
