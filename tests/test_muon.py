"""Muon against the singular value decomposition in NumPy, its quintics against the best ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linprog

import amac_jax
from amac_jax import muon, scale_by_orthogonal, stacked
from amac_jax._core.polar import polar_factor
from amac_jax.optimizers import MINIMAX, NEWTON_SCHULZ
from tests.helpers import apply, assert_close, assert_same_bits, normals, train

LIKE = {
    "dense": {"kernel": jnp.zeros((8, 3)), "bias": jnp.zeros(3)},
    "back": {"kernel": jnp.zeros((3, 8))},
    "conv": {"kernel": jnp.zeros((3, 3, 4, 5))},
    "query": {"kernel": jnp.zeros((8, 2, 3)), "bias": jnp.zeros((2, 3))},
    "embed": {"embedding": jnp.zeros((11, 8))},
}
KERNELS = ("dense", "back", "conv", "query")
EXACT = (*MINIMAX[5], *((15 / 8, -10 / 8, 3 / 8),) * 3)  # Newton's steps converge to the factor
LOW = {3: 0.01, 4: 0.004, 5: 0.001}
RANGE = {3: (0.730, 1.270), 4: (0.873, 1.127), 5: (0.886, 1.114)}


def as_matrix(kernel):
    """fan-in x fan-out, in float64, of the kernels of `LIKE`."""
    kernel = np.asarray(kernel, np.float64)
    fan_in = 8 if kernel.shape == (8, 2, 3) else int(np.prod(kernel.shape[:-1]))
    return kernel.reshape(fan_in, -1)


def polar(matrix):
    """U V^T of the decomposition."""
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    return u @ vt


def values(quintics, s):
    for a, b, c in quintics:
        s = a * s + b * s**3 + c * s**5
    return s


def best_error(low, high):
    """The least largest |1 - p(s)| on [low, high] of a quintic p, by a linear program."""
    s = np.concatenate([np.geomspace(low, high, 2000), np.linspace(low, high, 2000)])
    powers = np.stack([s, s**3, s**5, np.zeros_like(s)], axis=1)
    slack = np.array([0.0, 0.0, 0.0, 1.0])
    found = linprog(
        slack,
        np.concatenate([powers - slack, -powers - slack]),
        np.concatenate([np.ones_like(s), -np.ones_like(s)]),
        bounds=[(None, None)] * 3 + [(0, None)],
    )
    return found.fun


@pytest.mark.parametrize("number", MINIMAX)
def test_each_quintic_is_the_best_for_what_the_one_before_it_leaves(number):
    low, high = LOW[number], 1.0
    for quintic in MINIMAX[number]:
        s = np.geomspace(low, high, 20_000)
        error = np.max(np.abs(1 - values([quintic], s)))
        assert error <= best_error(low, high) + 2e-3
        low, high = 1 - error, 1 + error
    assert RANGE[number] == (round(low, 3), round(high, 3))


SPECTRA = {
    "random": lambda rng: rng.standard_normal((128, 196)),
    "square": lambda rng: rng.standard_normal((128, 128)),
    "low rank": lambda rng: rng.standard_normal((64, 4)) @ rng.standard_normal((4, 96)),
    "falling": lambda rng: _with_values(rng, 1 / np.arange(1, 65)),
}


def _with_values(rng, s):
    u, v = (np.linalg.qr(rng.standard_normal((len(s), len(s))))[0] for _ in range(2))
    return u * s @ v


def singular_values(matrix):
    s = np.linalg.svd(matrix, compute_uv=False)
    return s[s > 1e-9 * s[0]]


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_singular_values_are_nearer_to_one_than_the_first_muons(spectrum):
    """At the first and the last percentile, in the mean of 20 matrices; four quintics, not five."""
    ours, first = [], []
    for seed in range(20):
        s = singular_values(SPECTRA[spectrum](np.random.default_rng(seed)))
        after = values(MINIMAX[4], s / np.sum(s**8) ** (1 / 8))
        ours.append(np.abs(1 - np.percentile(after, [1, 99])))
        after = values(NEWTON_SCHULZ, s / np.sum(s**2) ** (1 / 2))
        first.append(np.abs(1 - np.percentile(after, [1, 99])))
    assert np.all(np.mean(ours, axis=0) < np.mean(first, axis=0))


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_singular_values_go_through_the_quintics(spectrum):
    matrix = SPECTRA[spectrum](np.random.default_rng(0))
    s = singular_values(matrix)
    found = polar_factor(jnp.float32(matrix), MINIMAX[4])
    found = np.linalg.svd(np.float64(found), compute_uv=False)[: len(s)]
    expected = values(MINIMAX[4], s / np.sum(s**8) ** (1 / 8))
    np.testing.assert_allclose(np.sort(found), np.sort(expected), atol=1e-3)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_wide_matrices_have_the_same_factor_to_half_of_the_digits(spectrum):
    """A CPU takes the products of their smaller side alone; others have as many as always."""
    square = SPECTRA[spectrum](np.random.default_rng(0))[:32, :32]
    to_wide = np.linalg.qr(np.random.default_rng(1).standard_normal((100, 32)))[0].T
    found = jax.jit(lambda x: polar_factor(x, MINIMAX[4]))(jnp.float32(square @ to_wide))
    with jax.enable_x64(True):
        expected = polar_factor(jnp.float64(square), MINIMAX[4]) @ to_wide
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (2, 4, 4)])
def test_the_polar_factor_is_that_of_the_decomposition_at_every_scale(shape, scale):
    matrices = np.random.default_rng(0).standard_normal(shape)
    found = polar_factor(jnp.float32(matrices * scale), EXACT)
    u, _, vt = np.linalg.svd(matrices, full_matrices=False)
    np.testing.assert_allclose(found, u @ vt, atol=1e-5)


def test_a_zero_matrix_and_a_complex_one():
    assert not np.any(polar_factor(jnp.zeros((2, 3)), EXACT))
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((3, 4)) + 1j * rng.standard_normal((3, 4))
    np.testing.assert_allclose(polar_factor(jnp.complex64(matrix), EXACT), polar(matrix), atol=1e-5)


def reference(params, gradients, eta, b1, nesterov, decay, multiplier):
    """Muon's equations leaf by leaf in float64: the parameters after every step."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    weights = {path: np.asarray(leaf, np.float64) for path, leaf in leaves}
    first, second = dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0.0)
    for t, gradient in enumerate(gradients, start=1):
        for path, g in jax.tree_util.tree_leaves_with_path(gradient):
            g = np.asarray(g, np.float64)
            is_kernel = path[0].key in KERNELS and path[1].key == "kernel"
            b = b1 if is_kernel else 0.9
            first[path] = b * first[path] + (1 - b) * g
            second[path] = 0.999 * second[path] + 0.001 * g**2
            if is_kernel:
                m = as_matrix(b * first[path] + (1 - b) * g if nesterov else first[path])
                d = (0.2 * np.sqrt(max(m.shape)) * polar(m)).reshape(g.shape)
                d = d + decay * weights[path]
            else:
                v_hat = second[path] / (1 - 0.999**t)
                d = multiplier * first[path] / (1 - b**t) / (np.sqrt(v_hat) + 1e-8)
            weights[path] = weights[path] - eta * d
        yield jax.tree.unflatten(jax.tree.structure(params), list(weights.values()))


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("b1", "decay", "multiplier"), [(0.95, 0.0, 1.0), (0.5, 0.3, 2.0)])
def test_equals_its_equations_for_fifty_steps(nesterov, b1, decay, multiplier):
    params, *gradients = normals(0, LIKE, 51)
    tx = muon(
        0.01, b1=b1, nesterov=nesterov, weight_decay=decay, others_multiplier=multiplier,
        quintics=EXACT,
    )  # fmt: skip
    expected = reference(params, gradients, 0.01, b1, nesterov, decay, multiplier)
    for (ours, _), theirs in zip(train(tx, params, gradients), expected, strict=True):
        assert_close(ours, theirs, 1e-4)


def direction(tx, gradients):
    return jax.jit(lambda gradients: apply(tx, gradients)[0])(gradients)


def test_layers_in_a_stack_are_a_matrix_each():
    [gradients] = normals(0, {"blocks": {"kernel": jnp.zeros((4, 3, 5))}})
    tx = scale_by_orthogonal(fan_in_axes=stacked("blocks"), quintics=EXACT)
    ours = direction(tx, gradients)["blocks"]["kernel"]
    for layer, g in zip(ours, gradients["blocks"]["kernel"], strict=True):
        np.testing.assert_allclose(layer, 0.2 * np.sqrt(5) * polar(np.float64(g)), atol=1e-5)
    whole = direction(scale_by_orthogonal(quintics=EXACT), gradients)["blocks"]["kernel"]
    assert not np.allclose(whole, ours, atol=1e-2)


def test_a_leaf_moves_as_if_it_were_alone():
    """Matrices of one shape share a product, transposed ones too."""
    [gradients] = normals(0, LIKE)
    together = direction(scale_by_orthogonal(), gradients)
    for name in KERNELS:
        alone = direction(scale_by_orthogonal(), {name: gradients[name]})
        assert_close(together[name], alone[name], 1e-5)


def products(tx, params):
    """The lines of a step's program that multiply matrices."""
    state = jax.eval_shape(tx.init, params)
    text = str(jax.make_jaxpr(tx.update)(params, state, params))
    return re.findall(r"(\w+)\[.*\] = dot_general", text)


def test_equal_shapes_are_one_batch_and_large_matrices_are_not():
    small = {f"layer{i}": {"kernel": jnp.zeros((8, 4) if i % 2 else (4, 8))} for i in range(6)}
    assert len(products(scale_by_orthogonal(quintics=MINIMAX[4]), small)) == 4 * 3
    for side, alone, on_a_gpu in ((512, 2, 1), (4096, 2, 2)):
        large = {
            f"layer{i}": {"kernel": jax.ShapeDtypeStruct((2 * side, side), "float32")}
            for i in range(2)
        }
        tx = scale_by_orthogonal(quintics=MINIMAX[3])
        step = jax.jit(tx.update).trace(large, jax.eval_shape(tx.init, large), large)
        for platform, stacks in (("cpu", alone), ("cuda", on_a_gpu), ("tpu", alone)):
            text = step.lower(lowering_platforms=(platform,)).as_text()
            assert len(re.findall("dot_general", text)) == stacks * 3 * 3, platform


def test_products_of_bfloat16_are_summed_in_float32():
    [gradients] = normals(0, LIKE)
    narrow = direction(scale_by_orthogonal(product_dtype="bfloat16"), gradients)
    wide = direction(scale_by_orthogonal(), gradients)
    assert 1e-5 < np.abs(narrow["dense"]["kernel"] - wide["dense"]["kernel"]).max() < 0.05


def test_excluded_kernels_and_all_other_leaves_move_by_the_other_core():
    [gradients] = normals(0, LIKE)
    tx = scale_by_orthogonal(exclude=("back", "q*"), others=optax.scale_by_sign(), b1=0.0)
    ours = direction(tx, gradients)
    for name, leaves in gradients.items():
        for kind, g in leaves.items():
            signs = np.sign(g)
            by_sign = np.array_equal(ours[name][kind], signs)
            assert by_sign == (kind != "kernel" or name in ("back", "query"))


@pytest.mark.parametrize("b2", [0.0, 0.9])
def test_units_are_evened_out_as_in_normuon(b2):
    """A wide kernel, a tall one and one of attention, whose units are four heads of two."""
    shapes = {"wide": (4, 6), "tall": (6, 4), "query": (5, 4, 2)}
    like = {name: {"kernel": jnp.zeros(shape)} for name, shape in shapes.items()}
    params, *gradients = normals(1, like, 6)
    tx = scale_by_orthogonal(0.5, b2, quintics=EXACT)
    state, m, v = tx.init(params), dict.fromkeys(shapes, 0.0), dict.fromkeys(shapes, 0.0)
    for t, gradient in enumerate(gradients, start=1):
        ours, state = tx.update(gradient, state, params)
        for name, shape in shapes.items():
            g = np.float64(gradient[name]["kernel"]).reshape(shape[0], -1)
            m[name] = 0.5 * m[name] + 0.5 * g
            o = polar(0.5 * m[name] + 0.5 * g)
            v[name] = b2 * v[name] + (1 - b2) * np.mean(o**2, axis=0)
            o = o / np.sqrt(v[name] / (1 - b2**t))
            expected = 0.2 * o / np.sqrt(np.mean(o**2))
            np.testing.assert_allclose(
                ours[name]["kernel"].reshape(g.shape), expected, atol=1e-5, err_msg=name
            )
    assert state.inner.nu.shape == (6 + 4 + 8,)


def test_a_kernel_that_is_not_finite_leaves_the_others_alone():
    gradients = {"a": {"kernel": jnp.ones((4, 6))}, "b": {"kernel": jnp.full((4, 6), jnp.nan)}}
    tx = scale_by_orthogonal(b2=0.9)
    updates, state = jax.jit(tx.update)(gradients, tx.init(gradients))
    assert np.all(np.isfinite(updates["a"]["kernel"]))
    assert np.all(np.isnan(updates["b"]["kernel"]))
    np.testing.assert_array_equal(np.isfinite(state.inner.nu), [True] * 6 + [False] * 6)


@pytest.mark.parametrize("b2", [None, 0.9])
def test_a_kernel_without_a_gradient_stays(b2):
    zeros = jax.tree.map(jnp.zeros_like, LIKE)
    assert_same_bits(apply(scale_by_orthogonal(b2=b2), zeros, steps=2)[0], zeros)


def test_the_momentum_of_kernels_is_all_that_is_kept_of_them():
    state = scale_by_orthogonal().init(LIKE).inner
    kept = [leaf.shape for leaf in jax.tree.leaves(state.mu)]
    assert sorted(kept) == sorted(LIKE[name]["kernel"].shape for name in KERNELS)
    assert (11, 8) in [leaf.shape for leaf in jax.tree.leaves(state.others)]
    assert (8, 3) not in [leaf.shape for leaf in jax.tree.leaves(state.others)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quintics": 2}, "quintics must be a sequence of .* or None, got 2"),
        ({"quintics": ((1.0, 2.0),)}, "quintics must be"),
        ({"quintics": ((float("nan"), 2.0, 3.0),)}, "quintics must be"),
        ({"product_dtype": "int8"}, "product_dtype must be None or a dtype of floats, got 'int8'"),
        ({"product_dtype": "bf16"}, "product_dtype must be None or a dtype of floats, got 'bf16'"),
        ({"others": amac_jax.adam(0.1)}, "others must be a scale_by_"),
        ({"rms": 0.0}, r"rms must be in \(0, inf\), got 0.0"),
        ({"exclude": "head"}, "exclude must have non-empty strings for patterns, got 'head'"),
        ({"b2": 1.0}, r"b2 must be in \[0, 1\), got 1.0"),
        ({"b1": 1.0}, r"b1 must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        scale_by_orthogonal(**arguments)


def test_a_foreign_optimizer_in_the_place_of_the_other_core_is_refused():
    with pytest.raises(ValueError, match=r"others must be a scale_by_.*, got an optimizer"):
        muon(0.1, others=optax.adam(0.1)).init(LIKE)


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(ValueError, match="exclude must each fit a leaf"):
        scale_by_orthogonal(exclude=("hed",)).init(LIKE)


def test_the_optimizer_is_its_core_with_techniques():
    params, *gradients = normals(0, LIKE, 4)
    ours = muon(0.1, b1=0.8, weight_decay=0.3, average_start=2)
    chain = amac_jax.compose(scale_by_orthogonal(0.8), 0.1, weight_decay=0.3, average_start=2)
    assert_same_bits([*train(ours, params, gradients)], [*train(chain, params, gradients)])
