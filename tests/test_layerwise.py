"""`scale_by_layer` and `layerwise_decay` against the papers' equations, on real models."""

import itertools
import re
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import amac_jax
from amac_jax import decay_weights, heavy_ball, layerwise_decay, lookahead, scale_by_layer
from amac_jax._core.paths import path_matches, written_path
from tests.helpers import apply, assert_close, assert_same_bits, float64, normals, train

KEY = jax.random.key(0, impl="unsafe_rbg")
LIKE = {
    "embed": {"embedding": jnp.zeros((5, 2))},
    "layers": [{"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)} for _ in range(3)],
    "head": {"kernel": jnp.zeros((2, 3))},
}
BOTTOM_UP = ["embed", "layers/0", "layers/1", "layers/2", "head"]


def multiplied(tree: Any, by: dict[str, float]) -> Any:
    """The tree in float64 with each leaf multiplied by what is given for a part of its path."""

    def leafwise(path, leaf):
        [factor] = [m for part, m in by.items() if f"/{part}/" in f"/{written_path(path)}/"]
        return np.asarray(leaf, np.float64) * factor

    return jax.tree_util.tree_map_with_path(leafwise, tree)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("given_as", ["patterns", "function", "mapping"])
def test_equals_discriminative_fine_tuning(seed, given_as):
    """Equation 2 of Howard and Ruder: theta_l <- theta_l - eta_l g_l, eta_(l-1) = eta_l / 2.6."""
    eta = 0.1
    rates = {"head": eta}
    for below, above in reversed(list(itertools.pairwise(BOTTOM_UP))):
        rates[below] = rates[above] / 2.6
    multipliers: Any = {
        "patterns": layerwise_decay(1 / 2.6, BOTTOM_UP),
        "function": layerwise_decay(
            1 / 2.6,
            lambda path, leaf: next(
                depth for depth, part in enumerate(BOTTOM_UP) if written_path(path).startswith(part)
            ),
        ),
        "mapping": {part: rate / eta for part, rate in rates.items()},
    }[given_as]
    start, *gradients = normals(seed, LIKE, 5)
    expected = float64(start)
    tx = optax.chain(optax.sgd(eta), scale_by_layer(multipliers))
    for gradient, (params, state) in zip(gradients, train(tx, start, gradients), strict=True):
        steps = multiplied(gradient, rates)
        expected = jax.tree.map(lambda p, s: p - s, expected, steps)
        assert_close(params, expected)
        assert state[-1].inner == optax.EmptyState()


# --- Real models ----------------------------------------------------------------------------------


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (4, 5):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(2)(x)


class NNXMLP(nnx.Module):
    def __init__(self) -> None:
        sizes, rngs = [(3, 4), (4, 5), (5, 2)], nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(*size, rngs=rngs) for size in sizes])


def linen_params() -> Any:
    return jax.jit(LinenMLP().init)(KEY, np.ones((1, 3), np.float32))["params"]


def nnx_params() -> Any:
    return nnx.state(NNXMLP(), nnx.Param)


def equinox_params() -> Any:
    return eqx.filter(eqx.nn.MLP(3, 2, 4, depth=2, key=KEY), eqx.is_inexact_array)


def number_in_path(path: Any, leaf: Any) -> int:
    [number] = re.findall(r"\d", written_path(path))
    return int(number)


MODELS = {
    "linen": (linen_params, "Dense_"),
    "nnx": (nnx_params, "layers/"),
    "equinox": (equinox_params, "layers/"),
}


@pytest.mark.parametrize("given_as", ["patterns", "function"])
@pytest.mark.parametrize("name", MODELS)
def test_layers_of_a_real_model(name, given_as):
    build, prefix = MODELS[name]
    params = build()
    depth_of = number_in_path if given_as == "function" else [f"{prefix}{i}" for i in range(3)]
    tx = optax.chain(optax.identity(), scale_by_layer(layerwise_decay(0.5, depth_of)))
    state = tx.init(params)
    updates, state = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    found = {
        written_path(path): set(np.unique(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }
    assert len(found) == 6  # kernel and bias of three layers
    for path, values in found.items():
        layer = int(re.findall(r"\d", path)[0])
        assert values == {(0.25, 0.5, 1.0)[layer]}


def test_trains_the_head_of_an_nnx_model_and_leaves_the_rest():
    model = NNXMLP()
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    tx = optax.chain(optax.sgd(0.1), scale_by_layer(layerwise_decay(0.0, ["layers/0", "*"])))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    gradient = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    nnx.jit(lambda model, optimizer: optimizer.update(model, gradient))(model, optimizer)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert_same_bits(after["layers"][0], before["layers"][0])
    moved = jax.tree.map(lambda leaf: leaf - 0.1, float64(before["layers"][2]))
    assert_close(after["layers"][2], moved)


def test_layers_stacked_in_one_leaf_by_an_array():
    params = {"blocks": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))}}
    decay = jnp.array([0.25, 0.5, 1.0])
    tx = scale_by_layer(
        lambda params: jax.tree.map(
            lambda leaf: decay.reshape(3, *[1] * (leaf.ndim - 1)).astype(leaf.dtype), params
        )
    )
    updates, _ = apply(tx, params)
    for leaf in jax.tree.leaves(updates):
        assert_close(leaf, np.broadcast_to(np.array([0.25, 0.5, 1.0]), leaf.T.shape).T)


# --- Which multiplier -----------------------------------------------------------------------------


def test_the_first_pattern_that_fits_decides_and_without_one_it_is_1():
    params = {"Dense_1": {"kernel": 1.0, "bias": 1.0}, "Dense_10": 1.0, "other": 1.0}
    params = jax.tree.map(jnp.asarray, params)
    tx = scale_by_layer({"Dense_1/bias": 0.5, "Dense_1": 0.25, "D*": 2.0})
    updates, _ = apply(tx, params)
    expected = {"Dense_1": {"kernel": 0.25, "bias": 0.5}, "Dense_10": 2.0, "other": 1.0}
    assert_same_bits(updates, jax.tree.map(jnp.asarray, expected))


def test_depths_may_skip_numbers_and_none_is_left_at_1():
    depths = {"a": 0, "b": 3, "c": 1, "d": None}
    decay = layerwise_decay(0.5, lambda path, leaf: depths[written_path(path)])
    assert decay(dict.fromkeys(depths, 1.0)) == {"a": 0.125, "b": 1.0, "c": 0.25, "d": 1.0}
    assert layerwise_decay(0.5, lambda path, leaf: None)({"a": 1.0}) == {"a": 1.0}


def test_a_leaf_with_no_pattern_is_left_at_1_and_top_is_the_last_pattern():
    decay = layerwise_decay(0.5, ("a", "b/*", "c"))
    assert decay({"a": 0, "b": {"w": 0}, "c": 0, "d": 0}) == {
        "a": 0.25,
        "b": {"w": 0.5},
        "c": 1.0,
        "d": 1.0,
    }


def test_a_function_is_called_on_params_or_else_on_the_updates():
    seen = []

    def multipliers(tree):
        seen.append(tree)
        return jax.tree.map(lambda _: 0.5, tree)

    tx, params, updates = scale_by_layer(multipliers), {"w": jnp.ones(2)}, {"w": jnp.full(2, 3.0)}
    state = tx.init(params)
    for given in (params, None):
        assert_close(tx.update(updates, state, given)[0], {"w": np.full(2, 1.5)})
    assert [leaf["w"][0] for leaf in seen] == [1.0, 1.0, 3.0]


def test_gradual_unfreezing_by_a_schedule():
    params = {"body": jnp.zeros(2), "head": jnp.zeros(2)}
    gradients = [jax.tree.map(jnp.ones_like, params)] * 4
    tx = scale_by_layer({"body": lambda count: 0.5 * (count >= 2), "head": 2.0})
    history = [float64(params) for params, _ in train(tx, params, gradients)]
    assert [params["body"][0] for params in history] == [0.0, 0.0, 0.5, 1.0]
    assert [params["head"][0] for params in history] == [2.0, 4.0, 6.0, 8.0]
    state: Any = tx.init(params)
    assert (int(state.count), state.inner) == (0, optax.EmptyState())
    assert state.count.dtype == jnp.int32


# --- Numbers --------------------------------------------------------------------------------------

EXTREME = jnp.array([1.5, -0.0, jnp.inf, -jnp.inf, jnp.nan, 2e-38, 3e38])


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_1_is_the_identity_and_0_is_0_whatever_the_update(dtype, jit):
    updates = {"one": EXTREME.astype(dtype), "zero": EXTREME.astype(dtype)}
    tx = scale_by_layer({"zero": 0, "one": 1})
    update = jax.jit(tx.update) if jit else tx.update
    result, _ = update(updates, tx.init(updates))
    zeros = jnp.zeros(len(EXTREME), dtype)
    assert_same_bits(result, {"one": updates["one"], "zero": zeros})


def test_a_frozen_layer_stays_under_momentum_and_decay_and_lookahead():
    params, *gradients = normals(0, LIKE, 7)
    tx = optax.chain(
        optax.sgd(0.1),
        heavy_ball(0.9),
        decay_weights(0.01),
        scale_by_layer({"embed": 0.0, "layers/[01]": 0.0}),
        lookahead(2, 0.5),
    )
    *_, (after, _) = train(tx, params, gradients)
    assert_same_bits(after["embed"], params["embed"])
    assert_same_bits(after["layers"][:2], params["layers"][:2])
    for name in ("layers", "head"):
        kernels = [tree[name][-1] if name == "layers" else tree[name] for tree in (params, after)]
        assert np.all(float64(kernels[0]["kernel"]) != float64(kernels[1]["kernel"]))


def test_products_are_rounded_once():
    updates = jnp.linspace(0.0, 1.0, 201, dtype=jnp.bfloat16)
    result, _ = apply(scale_by_layer(0.3), updates)
    once = (updates.astype(jnp.float32) * jnp.float32(0.3)).astype(jnp.bfloat16)
    assert_same_bits(result, once)
    assert np.any(np.asarray(result) != np.asarray(updates * jnp.bfloat16(0.3)))


def test_in_float64():
    with jax.enable_x64(True):
        updates = {"a": jnp.array([1.0, 3.0]), "b": jnp.array([1.0, 3.0])}
        result, _ = apply(scale_by_layer(layerwise_decay(0.1, ["a", "b"])), updates)
        assert_same_bits(result, {"a": updates["a"] * 0.1, "b": updates["b"]})


# --- Sweeps and wrappers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "multipliers_of",
    [
        lambda value: value,
        lambda value: {"embed": value, "layers/1": 0.5},
        lambda value: layerwise_decay(value, BOTTOM_UP),
        lambda value: layerwise_decay(value, lambda path, leaf: len(path)),
    ],
    ids=["one", "mapping", "patterns", "depths"],
)
def test_vmap_is_a_sweep(multipliers_of):
    updates = next(normals(0, LIKE))

    def run(value):
        return apply(scale_by_layer(multipliers_of(value)), updates)[0]

    values = [0.0, 0.3, 1.0]
    swept = jax.jit(jax.vmap(run))(jnp.array(values))
    for index, value in enumerate(values):
        alone = run(value)
        assert_close(jax.tree.map(lambda leaf, i=index: leaf[i], swept), alone)
    assert np.any(
        float64(swept["embed"]["embedding"][0]) != float64(run(0.3)["embed"]["embedding"])
    )


@pytest.mark.parametrize("wrap", ["masked", "masked by prefix", "partition"])
def test_patterns_and_layers_that_a_wrapper_hides(wrap):
    updates = next(normals(0, LIKE))
    tx = scale_by_layer({"head": 0.5, "layers": 0.25, "embed/embedding": 3.0})
    hidden = {"embed": False, "layers": True, "head": True}
    if wrap == "masked":
        mask = jax.tree.map(lambda leaf: leaf.shape != (5, 2), LIKE)
        tx = optax.masked(tx, mask)
    elif wrap == "masked by prefix":
        tx = optax.masked(tx, hidden)
    else:
        parts = {True: tx, False: optax.identity()}
        tx = optax.partition(parts, hidden)  # pyright: ignore[reportArgumentType]
    result, _ = apply(tx, updates)
    assert_close(result, multiplied(updates, {"head": 0.5, "layers": 0.25, "embed": 1.0}))


def test_patterns_of_a_decay_do_not_depend_on_what_is_hidden():
    updates = next(normals(0, LIKE))
    tx = optax.masked(
        scale_by_layer(layerwise_decay(0.5, BOTTOM_UP)),
        {"embed": True, "layers": True, "head": False},
    )
    by = {"embed": 0.0625, "layers/0": 0.125, "layers/1": 0.25, "layers/2": 0.5, "head": 1.0}
    assert_close(apply(tx, updates)[0], multiplied(updates, by))


@pytest.mark.parametrize("multipliers", [{"layers/1": 0.5}, layerwise_decay(0.5, BOTTOM_UP), 0.5])
def test_in_inject_hyperparams(multipliers):
    updates = next(normals(0, LIKE))
    static = ("multipliers",) if callable(multipliers) else ()
    tx = optax.inject_hyperparams(scale_by_layer, static_args=static)(multipliers)
    assert_same_bits(apply(tx, updates, updates)[0], apply(scale_by_layer(multipliers), updates)[0])


@pytest.mark.parametrize("params", [{}, {"a": None}, optax.MaskedNode()])
def test_trees_without_leaves_have_no_pattern_to_fit(params):
    for multipliers in ({"head": 0.5}, layerwise_decay(0.5, ["head"])):
        assert apply(scale_by_layer(multipliers), params, params)[0] == params


def test_a_bare_array_and_none_leaves():
    assert apply(scale_by_layer({"*": 0.5}), jnp.array(3.0))[0] == 1.5
    result, _ = apply(scale_by_layer({"a": 0.5}), {"a": jnp.array(3.0), "b": None})
    assert result == {"a": 1.5, "b": None}


# --- Refused --------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("multipliers", "message"),
    [
        (-0.1, "multipliers must be in [0, inf)"),
        (NAN, "multipliers must be in [0, inf)"),
        ("fast", "multipliers must be in [0, inf)"),
        (None, "multipliers must be in [0, inf)"),
        ({"head": 1.0, "embed": -1.0}, "multipliers['embed'] must be in [0, inf)"),
        ({"head": jnp.inf}, "multipliers['head'] must be in [0, inf)"),
        ({"head": {"kernel": 0.1}}, "multipliers['head'] must be in [0, inf)"),
        ({"": 1.0}, "multipliers must have non-empty strings for patterns"),
        ({0: 1.0}, "multipliers must have non-empty strings for patterns"),
    ],
)
def test_multipliers_that_are_refused(multipliers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        scale_by_layer(multipliers)


@pytest.mark.parametrize(
    ("factor", "depth_of", "message"),
    [
        (1.1, ["a"], "factor must be in [0, 1]"),
        (-0.1, ["a"], "factor must be in [0, 1]"),
        (NAN, ["a"], "factor must be in [0, 1]"),
        ("a", ["a"], "factor must be in [0, 1]"),
        (lambda count: 0.5, ["a"], "factor must be in [0, 1] or an array"),
        (0.5, [], "depth_of must be a function or one or more patterns"),
        (0.5, "layers", "depth_of must have non-empty strings for patterns"),
        (0.5, ["a", ""], "depth_of must have non-empty strings for patterns"),
        (0.5, 3, "depth_of must have non-empty strings for patterns"),
    ],
)
def test_decays_that_are_refused(factor, depth_of, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        layerwise_decay(factor, depth_of)


@pytest.mark.parametrize(
    ("multipliers", "message"),
    [
        ({"head": 1.0, "Head": 1.0}, "multipliers .* 'Head' fits none; there are 'embed/"),
        ({"kernel": 1.0}, "multipliers .* 'kernel' fits none; there are 'embed/"),
        (
            layerwise_decay(0.5, ["head", "tail"]),
            "depth_of must each fit a leaf, and 'tail' fits none",
        ),
        (layerwise_decay(0.5, lambda path, leaf: 0.5), r"the depth of 'embed/.*' must be .* whole"),
        (layerwise_decay(0.5, lambda path, leaf: -1), r"the depth of 'embed/.*\[0, inf\).* got -1"),
        (
            lambda params: jax.tree.map(lambda _: -1.0, params),
            r"the multiplier of 'embed/embedding' must be in \[0, inf\).*, got -1.0",
        ),
        (
            optax.constant_schedule(0.5),
            r'must return a tree in the structure of params, .* every leaf is \{"\*": schedule\}',
        ),
    ],
)
def test_what_init_refuses(multipliers, message):
    with pytest.raises(ValueError, match=message):
        scale_by_layer(multipliers).init(LIKE)


def test_an_array_that_does_not_broadcast_to_its_leaf_is_refused():
    tx = scale_by_layer(lambda params: jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        apply(tx, jnp.ones(3))


def test_what_fits_and_what_is_written():
    [(path, _)] = jax.tree_util.tree_leaves_with_path({"layers": [{"kernel": 1.0}]})
    assert written_path(path) == "layers/0/kernel"
    fits = {"layers": True, "layers/0": True, "*/kernel": True, "kernel": False, "layer": False}
    assert {pattern: path_matches(path, pattern) for pattern in fits} == fits
    assert written_path(()) == ""
    assert path_matches((), "*")


def test_in_the_pipeline_it_scales_the_decay_and_keeps_no_state():
    """Stage 9: after learning rate, momentum and decay, before averaging."""
    params = {"head": jnp.array([2.0]), "body": jnp.array([2.0]), "frozen": jnp.array([2.0])}
    scale = {"body": 0.1, "frozen": 0.0}
    decayed = {"weight_decay": 0.2, "decay_mask": True, "average_start": 1}
    plain = amac_jax.sgd(0.5, **decayed)
    tx = amac_jax.sgd(0.5, **decayed, layer_multipliers=scale)
    count = len(jax.tree.leaves(plain.init(params)))
    state = tx.init(params)
    assert len(jax.tree.leaves(state)) == count
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    whole = -0.5 * (1.0 + 0.2 * 2.0)
    expected = {"head": whole, "body": 0.1 * whole, "frozen": 0.0}
    for name, update in expected.items():
        np.testing.assert_allclose(updates[name], update, rtol=1e-6)
        np.testing.assert_allclose(amac_jax.averaged_params(state)[name], 2.0 + update, rtol=1e-6)


def test_the_pipeline_takes_layerwise_decay():
    params = {"layers": [jnp.ones(1), jnp.ones(1), jnp.ones(1)]}
    decay = amac_jax.layerwise_decay(0.5, ["layers/0", "layers/1", "layers/2"])
    tx = amac_jax.adam(1.0, layer_multipliers=decay)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(jnp.stack(updates["layers"])[:, 0], [-0.25, -0.5, -1.0], rtol=1e-5)
