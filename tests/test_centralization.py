"""`centralize` against its equation, and on the gradients of real models of four libraries."""

import functools
import unittest.mock
from collections.abc import Callable
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import keystr, tree_leaves_with_path

from amac_jax import adam, amac, centralize, stacked
from amac_jax.techniques._centralization import fan_in_mean
from tests.helpers import apply, assert_close, assert_same_bits, float64, normals

LIKE = {
    "dense": {"kernel": jnp.zeros((8, 3)), "bias": jnp.zeros(3)},
    "conv": {"kernel": jnp.zeros((3, 3, 4, 5)), "bias": jnp.zeros(5)},
    "query": {"kernel": jnp.zeros((8, 2, 4)), "bias": jnp.zeros((2, 4))},
    "norm": {"scale": jnp.zeros(8)},
    "embed": {"embedding": jnp.zeros((11, 8))},
    "one_input": {"kernel": jnp.zeros((1, 4))},
}
FAN_IN = {"dense": (0,), "conv": (0, 1, 2), "query": (0,)}


@functools.lru_cache(typed=True)  # 1.0 is not True
def centralized(strength):
    """Compiled once for all seeds."""
    return jax.jit(lambda gradients: apply(centralize(strength), gradients)[0])


@pytest.mark.parametrize("strength", [1.0, True, 0.5, 0.0])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_paper(seed, strength):
    gradients = next(normals(seed, LIKE))
    result = centralized(strength)(gradients)
    for layer, axes in FAN_IN.items():
        g, ours = float64(gradients[layer]["kernel"]), float64(result[layer].pop("kernel"))
        mean = g.mean(axis=axes, keepdims=True)
        np.testing.assert_allclose(ours, g - strength * mean, rtol=0, atol=1e-6)
        np.testing.assert_allclose(
            ours.mean(axis=axes), (1 - strength) * mean.squeeze(), rtol=0, atol=1e-6
        )
        assert np.all(np.abs(mean) > 1e-6)
        del gradients[layer]["kernel"]
    # Biases, scales, embeddings and the kernel with one input.
    assert_same_bits(result, gradients)


def test_a_rule_of_ones_own():
    gradients = next(normals(0, {"a": jnp.zeros((4, 3)), "b": jnp.zeros((4, 3))}))

    def rule(path: Any, leaf: Any) -> tuple[int, ...] | None:
        return (1,) if path[-1].key == "a" else None

    result, _ = apply(centralize(fan_in_axes=rule), gradients)
    expected = float64(gradients["a"]) - float64(gradients["a"]).mean(axis=1, keepdims=True)
    assert_close(result["a"], expected)
    assert_same_bits(result["b"], gradients["b"])


def test_every_layer_of_a_stack_is_centralized_by_itself():
    gradients = {"blocks": {"kernel": jnp.zeros((6, 8, 3)), "bias": jnp.zeros((6, 3))}}
    gradients = next(normals(0, gradients))
    result, _ = apply(centralize(fan_in_axes=stacked("blocks")), gradients)
    before, after = (float64(tree["blocks"]["kernel"]) for tree in (gradients, result))
    for layer in range(6):
        assert_close(after[layer], before[layer] - before[layer].mean(axis=0))
    assert_same_bits(result["blocks"]["bias"], gradients["blocks"]["bias"])


def test_the_strength_is_scheduled_by_the_count_of_updates():
    gradients = next(normals(0, {"kernel": jnp.zeros((8, 3))}))
    mean = float64(gradients["kernel"]).mean(axis=0)
    for steps, left in ((1, 1.0), (2, 0.5), (3, 0.0)):
        result, state = apply(centralize(lambda count: 0.5 * count), gradients, steps=steps)
        assert int(state.count) == steps
        assert_close(float64(result["kernel"]).mean(axis=0), left * mean)


def test_optax_centralizes_over_the_outputs_of_a_flax_kernel():
    gradients = next(normals(0, {"kernel": jnp.zeros((8, 3)), "embedding": jnp.zeros((5, 4))}))
    theirs, _ = apply(optax.centralize(), gradients)
    ours, _ = apply(centralize(), gradients)
    g = float64(gradients["kernel"])
    assert_close(theirs["kernel"], g - g.mean(axis=1, keepdims=True))
    assert_close(ours["kernel"], g - g.mean(axis=0, keepdims=True))
    assert np.all(np.abs(float64(theirs["kernel"]).mean(axis=0)) > 1e-3)
    assert not np.allclose(theirs["embedding"], gradients["embedding"])


@jax.jit
def in_bfloat16(gradient):
    return gradient - gradient.mean(axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_of_bfloat16_gradients_is_taken_in_float32(seed):
    # 1 + 1/256 is half-way between two numbers of bfloat16.
    noise = np.random.default_rng(seed).normal(size=(4096, 4))
    gradient = (noise - noise.mean(axis=0) + 1 + 1 / 256).astype(jnp.bfloat16)
    exact = float64(gradient) - float64(gradient).mean(axis=0)
    rounding = np.abs(exact) * 2.0**-8 + 1e-6
    naive = in_bfloat16(gradient)
    assert np.mean(np.abs(float64(naive) - exact) > rounding) > 0.5
    result = centralized(1.0)({"kernel": gradient})["kernel"]
    assert result.dtype == jnp.bfloat16
    assert np.all(np.abs(float64(result) - exact) <= rounding)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=5),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_any_kernel_keeps_its_differences_and_the_rest_of_its_mean(shape, strength, seed):
    gradient = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    result = centralized(strength)({"kernel": gradient})["kernel"]
    left = 1.0 if np.prod(shape[:-1]) == 1 else 1 - strength
    g, axes = float64(gradient), tuple(range(len(shape) - 1))
    mean = g.mean(axis=axes)
    np.testing.assert_allclose(float64(result).mean(axis=axes), left * mean, atol=1e-6)
    np.testing.assert_allclose(float64(result) - left * mean, g - mean, atol=2e-6)


# --- Gradients of real models ---------------------------------------------------------------------

KEY = jax.random.key(0, impl="rbg")  # compiles in a tenth of the time
Built = tuple[Any, Callable[[Any], jax.Array]]  # parameters, and the loss as a function of them
SEQUENCE = (2, 5, 6)  # batch, time, features


def inputs(*shape: int) -> jax.Array:
    values = np.random.default_rng(7).standard_normal(shape)
    return jax.device_put(values.astype(np.float32))


def parameters(shapes: Any) -> Any:
    """Random values for the shapes of a model's parameters: its own would be compiled."""
    rng = np.random.default_rng(6)
    values = jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape), shapes)
    return jax.device_put(jax.tree.map(np.float32, values))


def squared_error(outputs: Any) -> jax.Array:
    """Against random targets, so that no gradient is symmetric."""
    rng = np.random.default_rng(8)
    errors = [y - np.float32(rng.standard_normal(y.shape)) for y in jax.tree.leaves(outputs)]
    return jnp.add(0.0, sum(jnp.mean(error**2) for error in errors))


def linen(module: nn.Module, *shape: int) -> Built:
    x = inputs(*shape)
    params = parameters(jax.eval_shape(module.init, KEY, x)["params"])
    return params, lambda params: squared_error(module.apply({"params": params}, x))


def nnx_model(build: Callable[[], Any], *shape: int) -> Built:
    x = inputs(*shape)

    def loss(params: Any) -> jax.Array:
        model = build()
        nnx.update(model, params)
        return squared_error(model(x))

    return parameters(nnx.state(nnx.eval_shape(build), nnx.Param)), loss


def haiku(build: Callable[[], Any], *shape: int) -> Built:
    def forward(x: jax.Array) -> Any:
        module = build()
        if isinstance(module, hk.RNNCore):
            return hk.dynamic_unroll(module, x, module.initial_state(x.shape[1]))
        return module(x, x, x) if isinstance(module, hk.MultiHeadAttention) else module(x)

    model, x = hk.transform(forward), inputs(*shape)
    params = parameters(jax.eval_shape(model.init, KEY, x))
    return params, lambda params: squared_error(model.apply(params, None, x))


def equinox(build: Callable[[], Any], call: Callable[[Any, jax.Array], Any], *shape: int) -> Built:
    shapes, static = eqx.partition(
        eqx.filter_eval_shape(build), lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    )
    params, x = parameters(shapes), inputs(*shape)
    return params, lambda params: squared_error(call(eqx.combine(params, static), x))


def over_batch(model: Any, x: jax.Array) -> Any:
    return jax.vmap(model)(x)


def self_attention(model: Any, x: jax.Array) -> Any:
    return jax.vmap(lambda x: model(x, x, x))(x)


def lstm_cell(model: Any, x: jax.Array) -> Any:
    return jax.vmap(lambda x: model(x, (jnp.ones(4), jnp.ones(4))))(x)


def gru_cell(model: Any, x: jax.Array) -> Any:
    return jax.vmap(lambda x: model(x, jnp.ones(4)))(x)


def rngs() -> nnx.Rngs:
    return nnx.Rngs(KEY)


MODELS: dict[str, Callable[[], Built]] = {
    "linen Dense": lambda: linen(nn.Dense(4), 5, 6),
    "linen Conv 1d": lambda: linen(nn.Conv(4, (3,)), *SEQUENCE),
    "linen Conv 2d": lambda: linen(nn.Conv(4, (3, 3)), 2, 6, 6, 3),
    "linen Conv 3d": lambda: linen(nn.Conv(4, (2, 2, 2)), 2, 4, 4, 4, 3),
    "linen ConvTranspose": lambda: linen(nn.ConvTranspose(4, (3, 3)), 2, 5, 5, 3),
    "linen attention": lambda: linen(nn.MultiHeadDotProductAttention(2, qkv_features=8), *SEQUENCE),
    "linen LSTM": lambda: linen(nn.RNN(nn.OptimizedLSTMCell(4)), *SEQUENCE),
    "linen GRU": lambda: linen(nn.RNN(nn.GRUCell(4)), *SEQUENCE),
    "nnx Linear": lambda: nnx_model(lambda: nnx.Linear(6, 4, rngs=rngs()), 5, 6),
    "nnx Conv 1d": lambda: nnx_model(lambda: nnx.Conv(6, 4, (3,), rngs=rngs()), *SEQUENCE),
    "nnx Conv 2d": lambda: nnx_model(lambda: nnx.Conv(3, 4, (3, 3), rngs=rngs()), 2, 6, 6, 3),
    "nnx Conv 3d": lambda: nnx_model(lambda: nnx.Conv(3, 4, (2, 2, 2), rngs=rngs()), 2, 4, 4, 4, 3),
    "nnx ConvTranspose": lambda: nnx_model(
        lambda: nnx.ConvTranspose(3, 4, (3, 3), rngs=rngs()), 2, 5, 5, 3
    ),
    "nnx attention": lambda: nnx_model(
        lambda: nnx.MultiHeadAttention(2, 6, qkv_features=8, decode=False, rngs=rngs()), *SEQUENCE
    ),
    "nnx LSTM": lambda: nnx_model(lambda: nnx.RNN(nnx.LSTMCell(6, 4, rngs=rngs())), *SEQUENCE),
    "nnx GRU": lambda: nnx_model(lambda: nnx.RNN(nnx.GRUCell(6, 4, rngs=rngs())), *SEQUENCE),
    "haiku Linear": lambda: haiku(lambda: hk.Linear(4), 5, 6),
    "haiku Conv1D": lambda: haiku(lambda: hk.Conv1D(4, 3), *SEQUENCE),
    "haiku Conv2D": lambda: haiku(lambda: hk.Conv2D(4, 3), 2, 6, 6, 3),
    "haiku Conv3D": lambda: haiku(lambda: hk.Conv3D(4, 2), 2, 4, 4, 4, 3),
    "haiku Conv2DTranspose": lambda: haiku(lambda: hk.Conv2DTranspose(4, 3), 2, 5, 5, 3),
    "haiku attention": lambda: haiku(
        lambda: hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling()), *SEQUENCE
    ),
    "haiku LSTM": lambda: haiku(lambda: hk.LSTM(4), *SEQUENCE),
    "haiku GRU": lambda: haiku(lambda: hk.GRU(4), *SEQUENCE),
    "equinox Linear": lambda: equinox(lambda: eqx.nn.Linear(6, 4, key=KEY), over_batch, 5, 6),
    "equinox Conv1d": lambda: equinox(lambda: eqx.nn.Conv1d(6, 4, 3, key=KEY), over_batch, 2, 6, 5),
    "equinox Conv2d": lambda: equinox(
        lambda: eqx.nn.Conv2d(3, 4, 3, key=KEY), over_batch, 2, 3, 6, 6
    ),
    "equinox Conv3d": lambda: equinox(
        lambda: eqx.nn.Conv3d(3, 4, 2, key=KEY), over_batch, 2, 3, 4, 4, 4
    ),
    "equinox ConvTranspose2d": lambda: equinox(
        lambda: eqx.nn.ConvTranspose2d(3, 4, 3, key=KEY), over_batch, 2, 3, 5, 5
    ),
    "equinox attention": lambda: equinox(
        lambda: eqx.nn.MultiheadAttention(2, 6, key=KEY), self_attention, *SEQUENCE
    ),
    "equinox LSTM": lambda: equinox(lambda: eqx.nn.LSTMCell(6, 4, key=KEY), lstm_cell, 5, 6),
    "equinox GRU": lambda: equinox(lambda: eqx.nn.GRUCell(6, 4, key=KEY), gru_cell, 5, 6),
}


def inputs_of(model: str, path: str, ndim: int) -> tuple[int, ...] | None:
    """The fan-in axes by the libraries' own documentation, model by model; None: a bias."""
    if ndim == 1 or "bias" in path:
        return None
    if model.startswith("equinox"):
        return tuple(range(1, ndim))  # (out, in, spatial...)
    if any(f"'{name}'" in path for name in ("query", "key", "value")) and ndim == 3:
        return (0,)  # (in, heads, head_dim)
    if model == "haiku Conv2DTranspose":
        return (0, 1, 3)  # (height, width, out, in)
    return tuple(range(ndim - 1))  # (spatial..., in, out)


@pytest.mark.parametrize("model", MODELS)
def test_kernel_gradients_of_a_real_model_have_mean_zero(model):
    params, loss = MODELS[model]()
    tx = centralize()

    @jax.jit
    def gradients_and_result(params: Any, state: Any) -> tuple[Any, Any]:
        gradients = jax.grad(loss)(params)
        return gradients, tx.update(gradients, state, params)[0]

    gradients, result = gradients_and_result(params, tx.init(params))
    kernels = 0
    for (path, before), after in zip(
        tree_leaves_with_path(gradients), jax.tree.leaves(result), strict=True
    ):
        axes = inputs_of(model, keystr(path), before.ndim)
        if axes is None:
            assert_same_bits(after, before)
            continue
        kernels += 1
        scale = np.max(np.abs(before))
        assert np.max(np.abs(float64(before).mean(axis=axes))) > 1e-3 * scale > 0
        assert np.max(np.abs(float64(after).mean(axis=axes))) < 1e-6 * min(1.0, scale)
    assert kernels > 0


# --- Embeddings -----------------------------------------------------------------------------------

VOCABULARY, FEATURES = 9, 4
TOKENS = np.int32([1, 4, 4, 7])
ABSENT = np.setdiff1d(np.arange(VOCABULARY), TOKENS)


class NNXText(nnx.Module):
    def __init__(self):
        self.embed = nnx.Embed(VOCABULARY, FEATURES, rngs=rngs())
        self.head = nnx.Linear(FEATURES, 3, rngs=rngs())

    def __call__(self, tokens):
        return self.head(self.embed(tokens))


class EquinoxText(eqx.Module):
    embed: eqx.nn.Embedding
    head: eqx.nn.Linear

    def __call__(self, token):
        return self.head(self.embed(token))


def linen_text() -> Built:
    model = nn.Sequential([nn.Embed(VOCABULARY, FEATURES), nn.Dense(3)])
    params = parameters(jax.eval_shape(model.init, KEY, TOKENS))
    return params, lambda params: squared_error(model.apply(params, TOKENS))


def nnx_text() -> Built:
    graph, shapes = nnx.split(nnx.eval_shape(NNXText))
    return parameters(shapes), lambda params: squared_error(nnx.merge(graph, params)(TOKENS))


def haiku_text() -> Built:
    model = hk.transform(lambda x: hk.Linear(3)(hk.Embed(VOCABULARY, FEATURES)(x)))
    params = parameters(jax.eval_shape(model.init, KEY, TOKENS))
    return params, lambda params: squared_error(model.apply(params, None, TOKENS))


def equinox_text() -> Built:
    def build() -> EquinoxText:
        embed = eqx.nn.Embedding(VOCABULARY, FEATURES, key=KEY)
        return EquinoxText(embed, eqx.nn.Linear(FEATURES, 3, key=KEY))

    model = parameters(eqx.filter_eval_shape(build))
    return model, lambda model: squared_error(jax.vmap(model)(TOKENS))


def embedding_and_kernel(params: Any) -> tuple[np.ndarray, np.ndarray]:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    (embedding,) = (leaf for leaf in leaves if leaf.shape == (VOCABULARY, FEATURES))
    (kernel,) = (leaf for leaf in leaves if leaf.shape in ((FEATURES, 3), (3, FEATURES)))
    return embedding, kernel


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("text", [linen_text, nnx_text, haiku_text, equinox_text])
def test_rows_of_tokens_that_did_not_occur_stay_as_they_are(text):
    params, loss = text()
    ours = amac(0.1, total_steps=100, noise=None, weight_decay=0.1)
    theirs = optax.chain(optax.centralize(), optax.adamw(0.1, weight_decay=0.1))

    @jax.jit
    def after_amac_and_optax(params: Any) -> tuple[Any, Any]:
        gradients = jax.grad(loss)(params)

        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            updates, state = ours.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        # with a synchronisation
        (after_amac, _), _ = jax.lax.scan(step, (params, ours.init(params)), None, 7)
        updates, _ = theirs.update(gradients, theirs.init(params), params)
        return after_amac, optax.apply_updates(params, updates)

    before, kernel_before = embedding_and_kernel(params)
    after_amac, after_optax = after_amac_and_optax(params)
    after, kernel_after = embedding_and_kernel(after_amac)
    assert_same_bits(after[ABSENT], before[ABSENT])
    assert np.all(after[TOKENS] != before[TOKENS])
    assert np.all(kernel_after != kernel_before)
    after, _ = embedding_and_kernel(after_optax)
    assert np.all(after[ABSENT] != before[ABSENT])


def test_each_platform_sums_a_long_fan_in_in_its_own_way():
    tx = centralize()
    gradients = {"kernel": jnp.ones((256, 3))}
    step = jax.jit(tx.update).trace(gradients, tx.init(gradients))
    found = {}
    for platform in ("cpu", "tpu", "cuda", "rocm"):
        text = step.lower(lowering_platforms=(platform,)).as_text()
        found[platform] = text.count("stablehlo.reduce("), text.count("stablehlo.dot_general")
    assert found == {"cpu": (1, 0), "tpu": (0, 1), "cuda": (2, 0), "rocm": (2, 0)}


def test_a_tpu_sums_with_the_norm_of_clipping():
    """A product would read the gradient once more."""
    tx = adam(0.1, centralize=True, clip_norm=1.0)
    gradients = {"kernel": jnp.ones((256, 3))}
    step = jax.jit(tx.update).trace(gradients, tx.init(gradients), gradients)
    assert "dot_general" not in step.lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((256, 3), (0,)), ((2, 256, 3), (1,)), ((3, 128, 4), (0, 1)), ((2, 3, 128, 4), (1, 2))],
)
def test_the_mean_is_the_same_on_each_platform(platform, shape, axes):
    """Only the order of the sum differs."""
    leaf = jax.random.normal(jax.random.key(0), shape) + 1.0

    def chosen(leaf, default, **ways):
        return ways[platform](leaf)

    with unittest.mock.patch("jax.lax.platform_dependent", chosen):
        mean = fan_in_mean(leaf, axes, is_read_alone=True)
    np.testing.assert_allclose(mean, leaf.mean(axis=axes, keepdims=True), atol=1e-6)
