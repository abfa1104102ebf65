"""`layout`: every rule against real modules, and against what the modules compute."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from amac_jax.layout import FanInRule, fan_in_axes, is_kernel, kernel_mask, stacked

# Flax would rather see the class go; those who have it still train it.
pytestmark = pytest.mark.filterwarnings("ignore:SelfAttention will be deprecated")

KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles in a fraction of the time
VECTOR = jnp.ones((2, 8))
# Constant over the features, so that centred kernels give 0, and not over the positions, so that
# attention depends on every kernel.
SEQUENCE = jnp.broadcast_to(jnp.arange(1.0, 5.0)[None, :, None], (1, 4, 8)) / 4
TOKENS = jnp.zeros((2,), jnp.int32)


def grid(spatial: int, channels: int = 4) -> jax.Array:
    return jnp.ones((1, *[6] * spatial, channels))


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


Axes = Mapping[str, tuple[int, ...] | None]  # path of a leaf -> fan-in axes
Built = tuple[Any, Callable[[Any], Any]]  # parameters, and the outputs as a function of them


def linen(module: nn.Module, *inputs: Any) -> Built:
    variables = module.init(KEY, *inputs)
    return variables["params"], lambda params: module.apply(
        {**variables, "params": params}, *inputs
    )


def linen_cell(module: Any, inputs: jax.Array = VECTOR) -> Built:
    carry = jax.tree.map(jnp.ones_like, module.initialize_carry(KEY, inputs.shape))
    return linen(module, carry, inputs)


def nnx_model(model: Any, call: Callable[[Any], Any]) -> Built:
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return params, lambda params: call(nnx.merge(graphdef, params, rest))


def nnx_cell(cell: Any) -> Built:
    carry = jax.tree.map(jnp.ones_like, cell.initialize_carry((2, 8), rngs()))
    return nnx_model(cell, lambda cell: cell(carry, VECTOR))


def haiku(function: Callable[..., Any], *inputs: Any) -> Built:
    transformed = hk.transform_with_state(function)
    params, state = transformed.init(KEY, *inputs)
    return params, lambda params: transformed.apply(params, state, KEY, *inputs)[0]


def haiku_cell(build: Callable[[], Any], inputs: jax.Array = VECTOR) -> Built:
    def step(inputs: jax.Array) -> Any:
        cell = build()
        state = jax.tree.map(jnp.ones_like, cell.initial_state(inputs.shape[0]))
        return cell(inputs, state)

    return haiku(step, inputs)


def equinox(model: Any, call: Callable[[Any], Any]) -> Built:
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return params, lambda params: call(eqx.combine(params, static))


def inside(outputs: Any) -> Any:
    """Without the borders of images (positions that see padding)."""
    return jax.tree.map(lambda y: y[(slice(None), *[slice(2, -2)] * (y.ndim - 2))], outputs)


def inside_channels_first(output: jax.Array) -> jax.Array:
    return output[(slice(None), *[slice(2, -2)] * (output.ndim - 1))]


class Case(NamedTuple):
    name: str
    build: Callable[[], Built]
    expected: Axes
    view: Callable[[Any], Any] | None = lambda outputs: outputs  # what to compare; None: nothing
    given: dict[str, dict[str, float]] = {}  # noqa: RUF012  # leaf -> values of other leaves
    rule: FanInRule = fan_in_axes


# --- Flax Linen -----------------------------------------------------------------------------------


class ScannedDense(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        return nn.Dense(8)(x), None


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        return x + nn.MultiHeadAttention(num_heads=2, name="attention")(nn.LayerNorm()(x)), None


class Scanned(nn.Module):
    block: Any
    name_of_stack: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        stack = nn.scan(
            self.block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return nn.Dense(5)(stack(name=self.name_of_stack)(x, None)[0])


class Ensemble(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = nn.vmap(
            nn.Dense,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,  # pyright: ignore[reportArgumentType]
            axis_size=3,
        )
        return dense(5)(x)


class Named(nn.Module):
    """Modules whose own names say embedding, scale and bias."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(5, name="bias")(nn.Dense(6, name="scale")(nn.Dense(7, name="embedding")(x)))


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.DenseGeneral((2, 3), name="mixer")(x)


def mixer_rule(path: Any, leaf: Any) -> tuple[int, ...] | None:
    """What the docstring advises for a layer that names and shapes do not give away."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return (0,) if name.endswith("mixer/kernel") else fan_in_axes(path, leaf)


LINEN_ATTENTION = {
    "key/bias": None,
    "key/kernel": (0,),
    "out/bias": None,
    "out/kernel": (0, 1),
    "query/bias": None,
    "query/kernel": (0,),
    "value/bias": None,
    "value/kernel": (0,),
}
# With uniform attention to equal values, what `out` sees is constant over heads and head_dim.
LINEN_OUT = {"out/kernel": {"query/kernel": 0.0, "value/kernel": 0.1}}
LINEN_LSTM = {
    **{f"h{gate}/bias": None for gate in "fgio"},
    **{f"h{gate}/kernel": (0,) for gate in "fgio"},
    **{f"i{gate}/kernel": (0,) for gate in "fgio"},
}
SCALE_AND_BIAS = {"bias": None, "scale": None}

LINEN = [
    Case("Dense", lambda: linen(nn.Dense(3), VECTOR), {"bias": None, "kernel": (0,)}),
    Case(
        "Conv 1d",
        lambda: linen(nn.Conv(5, (3,)), grid(1)),
        {"bias": None, "kernel": (0, 1)},
        inside,
    ),
    Case(
        "Conv 2d",
        lambda: linen(nn.Conv(5, (3, 3)), grid(2)),
        {"bias": None, "kernel": (0, 1, 2)},
        inside,
    ),
    Case(
        "Conv 3d",
        lambda: linen(nn.Conv(5, (3, 3, 3)), grid(3)),
        {"bias": None, "kernel": (0, 1, 2, 3)},
        inside,
    ),
    Case(
        "Conv grouped",
        lambda: linen(nn.Conv(6, (3, 3), feature_group_count=2), grid(2)),
        {"bias": None, "kernel": (0, 1, 2)},
        inside,
    ),
    Case(
        "ConvTranspose",
        lambda: linen(nn.ConvTranspose(5, (3, 3)), grid(2)),
        {"bias": None, "kernel": (0, 1, 2)},
        inside,
    ),
    *(
        Case(
            attention.__name__,
            lambda attention=attention: linen(
                attention(num_heads=2, qkv_features=6, out_features=7), SEQUENCE
            ),
            LINEN_ATTENTION,
            given=LINEN_OUT,
        )
        for attention in (
            nn.MultiHeadDotProductAttention,
            nn.MultiHeadAttention,
            nn.SelfAttention,
        )
    ),
    Case(
        "attention with normalized queries and keys",
        lambda: linen(nn.MultiHeadAttention(num_heads=2, normalize_qk=True), SEQUENCE),
        {**LINEN_ATTENTION, "key_ln/scale": None, "query_ln/scale": None},
        None,  # what a centred kernel leaves is rounding, which the norm enlarges
    ),
    *(
        Case(cell.__name__, lambda cell=cell: linen_cell(cell(4)), LINEN_LSTM)
        for cell in (nn.LSTMCell, nn.OptimizedLSTMCell)
    ),
    Case(
        "GRUCell",
        lambda: linen_cell(nn.GRUCell(4)),
        {
            "hn/bias": None,
            "hn/kernel": (0,),
            "hr/kernel": (0,),
            "hz/kernel": (0,),
            "in/bias": None,
            "in/kernel": (0,),
            "ir/bias": None,
            "ir/kernel": (0,),
            "iz/bias": None,
            "iz/kernel": (0,),
        },
    ),
    Case(
        "MGUCell",
        lambda: linen_cell(nn.MGUCell(4)),
        {
            "hf/kernel": (0,),
            "hn/bias": None,
            "hn/kernel": (0,),
            "if/bias": None,
            "if/kernel": (0,),
            "in/bias": None,
            "in/kernel": (0,),
        },
    ),
    Case(
        "SimpleCell",
        lambda: linen_cell(nn.SimpleCell(4)),
        {"h/kernel": (0,), "i/bias": None, "i/kernel": (0,)},
    ),
    Case(
        "ConvLSTMCell",
        lambda: linen_cell(nn.ConvLSTMCell(4, (3, 3)), grid(2)),
        {"hh/bias": None, "hh/kernel": (0, 1, 2), "ih/bias": None, "ih/kernel": (0, 1, 2)},
        inside,
    ),
    Case("Embed", lambda: linen(nn.Embed(5, 3), TOKENS), {"embedding": None}),
    Case("LayerNorm", lambda: linen(nn.LayerNorm(), VECTOR), SCALE_AND_BIAS),
    Case(
        "LayerNorm over two axes",
        lambda: linen(nn.LayerNorm(feature_axes=(-2, -1)), grid(2)),
        SCALE_AND_BIAS,
    ),
    Case(
        "BatchNorm", lambda: linen(nn.BatchNorm(use_running_average=True), grid(2)), SCALE_AND_BIAS
    ),
    Case("RMSNorm", lambda: linen(nn.RMSNorm(), VECTOR), {"scale": None}),
    Case("GroupNorm", lambda: linen(nn.GroupNorm(2), grid(2)), SCALE_AND_BIAS),
    Case("InstanceNorm", lambda: linen(nn.InstanceNorm(), grid(2)), SCALE_AND_BIAS),
    Case("PReLU", lambda: linen(nn.PReLU(), VECTOR), {"negative_slope": None}),
    Case(
        "WeightNorm",
        lambda: linen(nn.WeightNorm(nn.Dense(3), feature_axes=(-2, -1)), VECTOR),
        {
            "layer_instance/bias": None,
            "layer_instance/kernel": (0,),
            "layer_instance/kernel/scale": None,
        },
        None,  # the kernel's norm divides it: not linear, and 0 / 0 at 0
    ),
    Case(
        "Partitioned",
        lambda: linen(
            nn.Dense(3, kernel_init=nn.with_partitioning(nn.initializers.normal(), ("i", "o"))),
            VECTOR,
        ),
        {"bias": None, "kernel/value": (0,)},
    ),
    Case(
        "modules called bias, scale, embedding",
        lambda: linen(Named(), VECTOR),
        {
            "bias/bias": None,
            "bias/kernel": (0,),
            "embedding/bias": None,
            "embedding/kernel": (0,),
            "scale/bias": None,
            "scale/kernel": (0,),
        },
        None,  # only the first sees a constant input
    ),
    Case(
        "DenseGeneral by a rule of its own",
        lambda: linen(Mixer(), VECTOR),
        {"mixer/bias": None, "mixer/kernel": (0,)},
        rule=mixer_rule,
    ),
    Case(
        "scan",
        lambda: linen(Scanned(ScannedDense), VECTOR),
        {
            "Dense_0/bias": None,
            "Dense_0/kernel": (0,),
            "ScanScannedDense_0/Dense_0/bias": None,
            "ScanScannedDense_0/Dense_0/kernel": (1,),
        },
        # A scanned kernel that is centred or zero makes the input of the last one 0.
        given={"Dense_0/kernel": {"ScanScannedDense_0/Dense_0/kernel": 0.1}},
        rule=stacked("ScanScannedDense_*"),
    ),
    Case(
        "scan of attention",
        lambda: linen(Scanned(Transformer, "blocks"), SEQUENCE),
        {
            "Dense_0/bias": None,
            "Dense_0/kernel": (0,),
            "blocks/LayerNorm_0/bias": None,
            "blocks/LayerNorm_0/scale": None,
            "blocks/attention/key/bias": None,
            "blocks/attention/key/kernel": (1,),
            "blocks/attention/out/bias": None,
            "blocks/attention/out/kernel": (1, 2),
            "blocks/attention/query/bias": None,
            "blocks/attention/query/kernel": (1,),
            "blocks/attention/value/bias": None,
            "blocks/attention/value/kernel": (1,),
        },
        None,  # residual and normalized: no kernel sees a constant input
        rule=stacked("blocks"),
    ),
    Case(
        "vmap",
        lambda: linen(Ensemble(), VECTOR),
        {"VmapDense_0/bias": None, "VmapDense_0/kernel": (1,)},
        rule=stacked("VmapDense_0/*"),
    ),
]

# --- Flax NNX -------------------------------------------------------------------------------------


class NNXModel(nnx.Module):
    def __init__(self) -> None:
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs()), nnx.Conv(8, 5, (3,), rngs=rngs())])
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs())
        self.embedding = nnx.Linear(8, 7, rngs=rngs())
        self.tokens = nnx.Embed(9, 8, rngs=rngs())
        self.weight = nnx.Param(jnp.ones((2, 3, 8)))
        self.positions_embed = nnx.Param(jnp.ones((4, 8)))


NNX_MODEL = {
    "attention/key/bias/value": None,
    "attention/key/kernel/value": (0,),
    "attention/out/bias/value": None,
    "attention/out/kernel/value": (0, 1),
    "attention/query/bias/value": None,
    "attention/query/kernel/value": (0,),
    "attention/value/bias/value": None,
    "attention/value/kernel/value": (0,),
    "embedding/bias/value": None,
    "embedding/kernel/value": (0,),
    "layers/0/bias/value": None,
    "layers/0/kernel/value": (0,),
    "layers/1/bias/value": None,
    "layers/1/kernel/value": (0, 1),
    "positions_embed/value": None,
    "tokens/embedding/value": None,
    "weight/value": (0, 1),
}


def nnx_stack() -> nnx.Linear:
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def create(rngs: nnx.Rngs) -> nnx.Linear:
        return nnx.Linear(8, 8, rngs=rngs)

    return create(rngs())


def nnx_scan(model: nnx.Linear) -> jax.Array:
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def apply(x: jax.Array, layer: nnx.Linear) -> jax.Array:
        return layer(x)

    return apply(VECTOR, model)


def nnx_vmap(model: nnx.Linear) -> jax.Array:
    return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(model, VECTOR)


NNX_KERNEL = {"bias/value": None, "kernel/value": (0,)}
NNX_IMAGE_KERNEL = {"bias/value": None, "kernel/value": (0, 1, 2)}
NNX_SCALE_AND_BIAS = {"bias/value": None, "scale/value": None}
NNX_ATTENTION = {f"{name}/value": axes for name, axes in LINEN_ATTENTION.items()}

NNX = [
    Case(
        "Linear",
        lambda: nnx_model(nnx.Linear(8, 3, rngs=rngs()), lambda model: model(VECTOR)),
        NNX_KERNEL,
    ),
    Case(
        "Conv 2d",
        lambda: nnx_model(nnx.Conv(4, 5, (3, 3), rngs=rngs()), lambda model: model(grid(2))),
        NNX_IMAGE_KERNEL,
        inside,
    ),
    Case(
        "ConvTranspose",
        lambda: nnx_model(
            nnx.ConvTranspose(4, 5, (3, 3), rngs=rngs()), lambda model: model(grid(2))
        ),
        NNX_IMAGE_KERNEL,
        inside,
    ),
    Case(
        "MultiHeadAttention",
        lambda: nnx_model(
            nnx.MultiHeadAttention(
                num_heads=2,
                in_features=8,
                qkv_features=6,
                out_features=7,
                decode=False,
                rngs=rngs(),
            ),
            lambda model: model(SEQUENCE),
        ),
        NNX_ATTENTION,
        given={"out/kernel/value": {"query/kernel/value": 0.0, "value/kernel/value": 0.1}},
    ),
    Case(
        "LSTMCell",
        lambda: nnx_cell(nnx.LSTMCell(8, 4, rngs=rngs())),
        {
            **{f"h{gate}/bias/value": None for gate in "fgio"},
            **{f"h{gate}/kernel/value": (0,) for gate in "fgio"},
            **{f"{gate}/kernel/value": (0,) for gate in ("if_", "ig", "ii", "io")},
        },
    ),
    Case(
        "OptimizedLSTMCell",
        lambda: nnx_cell(nnx.OptimizedLSTMCell(8, 4, rngs=rngs())),
        {
            "dense_h/bias/value": None,
            "dense_h/kernel/value": (0,),
            "dense_i/kernel/value": (0,),
        },
    ),
    *(
        Case(
            cell.__name__,
            lambda cell=cell: nnx_cell(cell(8, 4, rngs=rngs())),
            {
                "dense_h/kernel/value": (0,),
                "dense_i/bias/value": None,
                "dense_i/kernel/value": (0,),
            },
        )
        for cell in (nnx.GRUCell, nnx.SimpleCell)
    ),
    Case(
        "Embed",
        lambda: nnx_model(nnx.Embed(5, 3, rngs=rngs()), lambda model: model(TOKENS)),
        {"embedding/value": None},
    ),
    *(
        Case(
            norm.__name__,
            lambda norm=norm: nnx_model(norm(8, rngs=rngs()), lambda model: model(SEQUENCE)),
            NNX_SCALE_AND_BIAS,
        )
        for norm in (nnx.LayerNorm, nnx.BatchNorm, nnx.InstanceNorm)
    ),
    Case(
        "RMSNorm",
        lambda: nnx_model(nnx.RMSNorm(8, rngs=rngs()), lambda model: model(SEQUENCE)),
        {"scale/value": None},
    ),
    Case(
        "GroupNorm",
        lambda: nnx_model(nnx.GroupNorm(8, 2, rngs=rngs()), lambda model: model(SEQUENCE)),
        NNX_SCALE_AND_BIAS,
    ),
    Case(
        "LoRA",
        lambda: nnx_model(nnx.LoRA(8, 2, 4, rngs=rngs()), lambda model: model(VECTOR)),
        {"lora_a/value": (0,), "lora_b/value": (0,)},
        None,  # the second does not see a constant input, and is 0 at first
    ),
    Case(
        "scan",
        lambda: nnx_model(nnx_stack(), nnx_scan),
        {"bias/value": None, "kernel/value": (1,)},
        rule=stacked("*"),
    ),
    Case(
        "vmap",
        lambda: nnx_model(nnx_stack(), nnx_vmap),
        {"bias/value": None, "kernel/value": (1,)},
        rule=stacked("kernel", "bias"),
    ),
    Case(
        "a model",
        lambda: nnx_model(NNXModel(), lambda model: model.weight[...]),
        NNX_MODEL,
        None,  # no forward pass
    ),
]

# --- Haiku ----------------------------------------------------------------------------------------

separable = hk.SeparableDepthwiseConv2D  # pyright: ignore[reportPrivateImportUsage]
layer_stack = hk.experimental.layer_stack  # pyright: ignore[reportPrivateImportUsage]

HAIKU = [
    Case(
        "Linear",
        lambda: haiku(lambda x: hk.Linear(3)(x), VECTOR),
        {"linear/b": None, "linear/w": (0,)},
    ),
    Case(
        "Linear called embed",
        lambda: haiku(lambda x: hk.Linear(3, name="embed")(x), VECTOR),
        {"embed/b": None, "embed/w": (0,)},
    ),
    *(
        Case(
            f"Conv{spatial}D",
            lambda spatial=spatial: haiku(
                lambda x: hk.ConvND(spatial, 5, 3, name="conv")(x), grid(spatial)
            ),
            {"conv/b": None, "conv/w": tuple(range(spatial + 1))},
            inside,
        )
        for spatial in (1, 2, 3)
    ),
    *(
        Case(
            layer.__name__,
            lambda layer=layer, spatial=spatial: haiku(lambda x: layer(5, 3)(x), grid(spatial)),
            {f"{name}/b": None, f"{name}/w": axes},
            inside,
        )
        for layer, spatial, name, axes in (
            (hk.Conv1DTranspose, 1, "conv1_d_transpose", (0, 2)),
            (hk.Conv2DTranspose, 2, "conv2_d_transpose", (0, 1, 3)),
            (hk.Conv3DTranspose, 3, "conv3_d_transpose", (0, 1, 2, 4)),
        )
    ),
    Case(
        "ConvNDTranspose",
        lambda: haiku(lambda x: hk.ConvNDTranspose(2, 5, 3)(x), grid(2)),
        {"conv_nd_transpose/b": None, "conv_nd_transpose/w": (0, 1, 3)},
        inside,
    ),
    Case(
        "two Conv2DTranspose in a module",
        lambda: haiku(
            lambda x: hk.Sequential([hk.Conv2DTranspose(5, 3), hk.Conv2DTranspose(7, 3)])(x),
            grid(2),
        ),
        {
            "conv2_d_transpose/b": None,
            "conv2_d_transpose/w": (0, 1, 3),
            "conv2_d_transpose_1/b": None,
            "conv2_d_transpose_1/w": (0, 1, 3),
        },
        inside,
        given={"conv2_d_transpose_1/w": {"conv2_d_transpose/w": 0.1}},
    ),
    *(
        Case(
            layer.__name__,
            lambda layer=layer, spatial=spatial: haiku(lambda x: layer(2, 3)(x), grid(spatial)),
            {f"{name}/b": None, f"{name}/w": axes},
            inside,
        )
        for layer, spatial, name, axes in (
            (hk.DepthwiseConv1D, 1, "depthwise_conv1_d", (0, 1)),
            (hk.DepthwiseConv2D, 2, "depthwise_conv2_d", (0, 1, 2)),
            (hk.DepthwiseConv3D, 3, "depthwise_conv3_d", (0, 1, 2, 3)),
        )
    ),
    Case(
        "SeparableDepthwiseConv2D",
        lambda: haiku(lambda x: separable(2, 3)(x), grid(2)),
        {
            "separable_depthwise_conv2_d/~/depthwise_conv2_d/w": (0, 1, 2),
            "separable_depthwise_conv2_d/~/depthwise_conv2_d_1/b": None,
            "separable_depthwise_conv2_d/~/depthwise_conv2_d_1/w": (0, 1, 2),
        },
        inside,
    ),
    Case(
        "MultiHeadAttention",
        lambda: haiku(
            lambda x: hk.MultiHeadAttention(
                2, 3, w_init=hk.initializers.VarianceScaling(), name="mha"
            )(x, x, x),
            SEQUENCE,
        ),
        {
            **{f"mha/{name}/b": None for name in ("key", "linear", "query", "value")},
            **{f"mha/{name}/w": (0,) for name in ("key", "linear", "query", "value")},
        },
        given={"mha/linear/w": {"mha/query/w": 0.0, "mha/value/w": 0.1}},
    ),
    Case(
        "LSTM",
        lambda: haiku_cell(lambda: hk.LSTM(4)),
        {"lstm/linear/b": None, "lstm/linear/w": (0,)},
    ),
    Case(
        "GRU",
        lambda: haiku_cell(lambda: hk.GRU(4)),
        {"gru/b": None, "gru/w_h": (0,), "gru/w_i": (0,)},
        # The reset gate, which multiplies what w_h sees, must be the same for every feature.
        given={"gru/w_h": {"gru/w_i": 0.0}},
    ),
    Case(
        "VanillaRNN",
        lambda: haiku_cell(lambda: hk.VanillaRNN(4)),
        {
            "vanilla_rnn/linear/b": None,
            "vanilla_rnn/linear/w": (0,),
            "vanilla_rnn/linear_1/b": None,
            "vanilla_rnn/linear_1/w": (0,),
        },
    ),
    Case(
        "Conv2DLSTM",
        lambda: haiku_cell(lambda: hk.Conv2DLSTM((6, 6), 5, 3), grid(2)),
        {
            "conv2_dlstm/hidden_to_hidden/b": None,
            "conv2_dlstm/hidden_to_hidden/w": (0, 1, 2),
            "conv2_dlstm/input_to_hidden/b": None,
            "conv2_dlstm/input_to_hidden/w": (0, 1, 2),
        },
        inside,
    ),
    Case("Embed", lambda: haiku(lambda x: hk.Embed(5, 3)(x), TOKENS), {"embed/embeddings": None}),
    Case("Bias", lambda: haiku(lambda x: hk.Bias()(x), grid(2)), {"bias/b": None}),
    Case(
        "LayerNorm",
        lambda: haiku(lambda x: hk.LayerNorm(-1, True, True)(x), VECTOR),
        {"layer_norm/offset": None, "layer_norm/scale": None},
    ),
    Case(
        "BatchNorm",
        lambda: haiku(lambda x: hk.BatchNorm(True, True, 0.9)(x, True), grid(2)),
        {"batch_norm/offset": None, "batch_norm/scale": None},
    ),
    Case(
        "GroupNorm",
        lambda: haiku(lambda x: hk.GroupNorm(2)(x), grid(2)),
        {"group_norm/offset": None, "group_norm/scale": None},
    ),
    Case(
        "InstanceNorm",
        lambda: haiku(lambda x: hk.InstanceNorm(True, True)(x), grid(2)),
        {"instance_norm/offset": None, "instance_norm/scale": None},
    ),
    Case("RMSNorm", lambda: haiku(lambda x: hk.RMSNorm(-1)(x), VECTOR), {"rms_norm/scale": None}),
    Case(
        "layer_stack",
        lambda: haiku(lambda x: layer_stack(3)(lambda x: hk.Linear(8)(x))(x), VECTOR),
        {
            "__layer_stack_no_per_layer/linear/b": None,
            "__layer_stack_no_per_layer/linear/w": (1,),
        },
        rule=stacked("__layer_stack_no_per_layer"),
    ),
]

# --- Equinox --------------------------------------------------------------------------------------


class EquinoxModel(eqx.Module):
    """Two-axis weights that only the attributes' names tell apart."""

    token_embedder: eqx.nn.Embedding
    norms: list[eqx.nn.LayerNorm]
    patch_embed: eqx.nn.Conv2d
    head: eqx.nn.Linear
    settings: dict[str, jax.Array]

    def __init__(self) -> None:
        self.token_embedder = eqx.nn.Embedding(9, 8, key=KEY)
        self.norms = [eqx.nn.LayerNorm((4, 8)), eqx.nn.LayerNorm(8)]
        self.patch_embed = eqx.nn.Conv2d(3, 8, 2, key=KEY)
        self.head = eqx.nn.Linear(8, 3, key=KEY)
        self.settings = {"weight": jnp.ones((2, 3, 4))}


class EquinoxNorm(eqx.Module):
    norm: Any


def equinox_norm(norm: Any) -> Built:
    return equinox(EquinoxNorm(norm), lambda model: model.norm(jnp.ones((4, 8))))


def equinox_batch_norm() -> Built:
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, axis_name="batch", mode="batch")
    return equinox(
        EquinoxNorm(norm),
        lambda model: jax.vmap(
            lambda x: model.norm(x, state)[0], axis_name="batch", axis_size=2, in_axes=None
        )(jnp.ones((4, 8))),
    )


def equinox_image(layer: Any, spatial: int, **settings: Any) -> Built:
    model = layer(4, 6, 3, padding=1, key=KEY, **settings)
    return equinox(model, lambda model: model(jnp.ones((4, *[6] * spatial))))


def equinox_stack(out_size: int) -> eqx.nn.Linear:
    return eqx.filter_vmap(lambda key: eqx.nn.Linear(8, out_size, use_bias=False, key=key))(
        jax.random.split(KEY, 3)
    )


def equinox_scan(stack: eqx.nn.Linear) -> jax.Array:
    arrays, static = eqx.partition(stack, eqx.is_array)
    return jax.lax.scan(
        lambda x, layer: (eqx.combine(layer, static)(x), None), jnp.ones(8), arrays
    )[0]


EQUINOX = [
    Case(
        "Linear",
        lambda: equinox(eqx.nn.Linear(8, 3, key=KEY), lambda model: model(jnp.ones(8))),
        {"weight": (1,), "bias": None},
    ),
    *(
        Case(
            layer.__name__,
            lambda layer=layer, spatial=spatial: equinox_image(layer, spatial),
            {"weight": tuple(range(1, spatial + 2)), "bias": None},
            inside_channels_first,
        )
        for layer, spatial in (
            (eqx.nn.Conv1d, 1),
            (eqx.nn.Conv2d, 2),
            (eqx.nn.Conv3d, 3),
            (eqx.nn.ConvTranspose1d, 1),
            (eqx.nn.ConvTranspose2d, 2),
            (eqx.nn.ConvTranspose3d, 3),
        )
    ),
    *(
        Case(
            f"{layer.__name__} grouped",
            lambda layer=layer: equinox_image(layer, 2, groups=2),
            {"weight": (1, 2, 3), "bias": None},
            inside_channels_first,
        )
        for layer in (eqx.nn.Conv2d, eqx.nn.ConvTranspose2d)
    ),
    Case(
        "MultiheadAttention",
        lambda: equinox(
            eqx.nn.MultiheadAttention(2, 8, use_query_bias=True, key=KEY),
            lambda model: model(SEQUENCE[0], SEQUENCE[0], SEQUENCE[0]),
        ),
        {
            "query_proj/weight": (1,),
            "query_proj/bias": None,
            "key_proj/weight": (1,),
            "value_proj/weight": (1,),
            "output_proj/weight": (1,),
        },
        given={
            "output_proj/weight": {
                "query_proj/weight": 0.0,
                "query_proj/bias": 0.0,
                "value_proj/weight": 0.1,
            }
        },
    ),
    Case(
        "LSTMCell",
        lambda: equinox(
            eqx.nn.LSTMCell(8, 4, key=KEY),
            lambda model: model(jnp.ones(8), (jnp.ones(4), jnp.ones(4))),
        ),
        {"weight_ih": (1,), "weight_hh": (1,), "bias": None},
    ),
    Case(
        "GRUCell",
        lambda: equinox(
            eqx.nn.GRUCell(8, 4, key=KEY), lambda model: model(jnp.ones(8), jnp.ones(4))
        ),
        {"weight_ih": (1,), "weight_hh": (1,), "bias": None, "bias_n": None},
    ),
    Case(
        "MLP",
        lambda: equinox(eqx.nn.MLP(8, 3, 5, 1, key=KEY), lambda model: model(jnp.ones(8))),
        {
            "layers/0/weight": (1,),
            "layers/0/bias": None,
            "layers/1/weight": (1,),
            "layers/1/bias": None,
        },
        None,  # the second does not see a constant input
    ),
    Case(
        "LayerNorm",
        lambda: equinox_norm(eqx.nn.LayerNorm((4, 8))),
        {"norm/weight": None, "norm/bias": None},
    ),
    Case(
        "RMSNorm",
        lambda: equinox_norm(eqx.nn.RMSNorm((4, 8))),
        {"norm/weight": None, "norm/bias": None},
    ),
    Case(
        "GroupNorm",
        lambda: equinox_norm(eqx.nn.GroupNorm(2, 4)),
        {"norm/weight": None, "norm/bias": None},
    ),
    Case("BatchNorm", equinox_batch_norm, {"norm/weight": None, "norm/bias": None}),
    Case(
        "WeightNorm",
        lambda: equinox(
            eqx.nn.WeightNorm(eqx.nn.Conv2d(4, 5, 3, key=KEY)), lambda model: model(jnp.ones(8))
        ),
        {"layer/weight": (1, 2, 3), "layer/bias": None, "g": None},
        None,  # the weight's norm divides it: not linear, and 0 / 0 at 0
    ),
    Case(
        "names of attributes",
        lambda: equinox(EquinoxModel(), lambda model: model.head(jnp.ones(8))),
        {
            "token_embedder/weight": None,
            "norms/0/weight": None,
            "norms/0/bias": None,
            "norms/1/weight": None,
            "norms/1/bias": None,
            "patch_embed/weight": (1, 2, 3),
            "patch_embed/bias": None,
            "head/weight": (1,),
            "head/bias": None,
            "settings/weight": (0, 1),
        },
        None,  # no forward pass
    ),
    Case(
        "filter_vmap, run by scan",
        lambda: equinox(equinox_stack(8), equinox_scan),
        {"weight": (2,)},
        rule=stacked("weight"),
    ),
    Case(
        "filter_vmap",
        lambda: equinox(
            equinox_stack(5),
            eqx.filter_vmap(lambda layer: layer(jnp.ones(8))),
        ),
        {"weight": (2,)},
        rule=stacked("*"),
    ),
    Case(
        "filter_vmap of an MLP",
        lambda: equinox(
            eqx.filter_vmap(lambda key: eqx.nn.MLP(8, 3, 5, 1, key=key))(jax.random.split(KEY, 3)),
            lambda model: model,
        ),
        {
            "layers/0/weight": (2,),
            "layers/0/bias": None,
            "layers/1/weight": (2,),
            "layers/1/bias": None,
        },
        None,  # no forward pass
        rule=stacked("layers/*"),
    ),
]

CASES = {
    f"{library}: {case.name}": case
    for library, cases in (("linen", LINEN), ("nnx", NNX), ("haiku", HAIKU), ("equinox", EQUINOX))
    for case in cases
}
MEASURED = [
    name for name, case in CASES.items() if case.view is not None and any(case.expected.values())
]


@pytest.fixture(autouse=True)
def _fast_random_numbers():
    with jax.default_prng_impl("unsafe_rbg"):
        yield


@functools.cache
def built(name: str) -> Built:
    return CASES[name].build()


def written(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def table(rule: FanInRule, params: Any) -> Axes:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {written(path): rule(path, leaf) for path, leaf in leaves}


@pytest.mark.parametrize("name", CASES)
def test_every_leaf_of_a_real_module(name: str) -> None:
    case = CASES[name]
    params, _ = built(name)
    assert table(case.rule, params) == case.expected
    assert table(case.rule, jax.eval_shape(lambda: params)) == case.expected


@pytest.mark.parametrize("name", CASES)
def test_mask_is_true_where_there_are_fan_in_axes(name: str) -> None:
    case = CASES[name]
    params, _ = built(name)
    mask = kernel_mask(params, rule=case.rule)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    leaves = {written(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(mask)}
    assert leaves == {path: axes is not None for path, axes in case.expected.items()}
    assert {type(leaf) for leaf in leaves.values()} == {bool}


def test_every_kind_of_kernel_is_measured() -> None:
    assert len(CASES) == sum(map(len, (LINEN, NNX, HAIKU, EQUINOX)))  # no name is there twice
    assert len(MEASURED) >= 50


@pytest.mark.parametrize("name", MEASURED)
def test_fan_in_is_what_the_module_sums_over(name: str) -> None:
    """Found from outputs alone, for inputs that are constant over the features.

    A kernel that is centred over all its fan-in axes, or over any one of them, then does what a
    kernel of zeros does; one that is centred over any other axis does not.
    """
    case = CASES[name]
    params, apply = built(name)
    view = case.view
    assert view is not None

    outputs = jax.jit(lambda params: jax.tree.leaves(view(apply(params))))

    def outputs_with(kernel: str, change: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
        given = case.given.get(kernel, {})

        def changed(path: Any, leaf: jax.Array) -> np.ndarray:
            array = np.asarray(leaf)
            if written(path) in given:
                return np.full_like(array, given[written(path)])
            return change(array) if written(path) == kernel else array

        params_with = jax.tree_util.tree_map_with_path(changed, params)
        return [np.asarray(output) for output in outputs(params_with)]

    def acts_as_zero(kernel: str, axes: int | tuple[int, ...]) -> bool:
        zero = outputs_with(kernel, np.zeros_like)
        centred = outputs_with(kernel, lambda w: w - np.mean(w, axis=axes, keepdims=True))
        assert all(output.size for output in zero)
        return all(np.max(np.abs(a - b)) < 1e-5 for a, b in zip(zero, centred, strict=True))

    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        fan_in = case.rule(path, leaf)
        if fan_in is not None:
            kernel = written(path)
            assert acts_as_zero(kernel, fan_in), kernel
            found = tuple(axis for axis in range(leaf.ndim) if acts_as_zero(kernel, axis))
            assert found == fan_in, kernel


# --- Trees of NNX -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "view",
    [
        lambda model: model,
        lambda model: nnx.state(model, nnx.Param),
        lambda model: nnx.split(model)[1],
        lambda model: nnx.split(model, nnx.Param, ...)[1],
        lambda model: nnx.to_pure_dict(nnx.state(model, nnx.Param)),
    ],
    ids=["model", "state", "split", "split by type", "pure dict"],
)
def test_an_nnx_model_is_the_same_in_every_form(view: Callable[[Any], Any]) -> None:
    found = table(fan_in_axes, view(NNXModel()))
    assert {name.removesuffix("/value"): axes for name, axes in found.items()} == {
        name.removesuffix("/value"): axes for name, axes in NNX_MODEL.items()
    }


def test_all_variables_of_a_linen_module() -> None:
    variables = nn.BatchNorm(use_running_average=True).init(KEY, grid(2))
    assert not any(jax.tree.leaves(kernel_mask(variables)))
    variables = nn.MultiHeadAttention(num_heads=2).init(KEY, SEQUENCE)
    frozen = freeze(variables)
    expected = {f"params/{name}": axes for name, axes in LINEN_ATTENTION.items()}
    assert table(fan_in_axes, variables) == table(fan_in_axes, frozen) == expected


# --- Plain trees ------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    matrix: Any
    bias: Any
    value: Any


class Pair(NamedTuple):
    w: Any
    b: Any


def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


PLAIN = [
    ("bare matrix", array(8, 3), {"": (0,)}),
    ("bare vector", array(8), {"": None}),
    ("bare scalar", array(), {"": None}),
    ("bare of four axes", array(3, 3, 4, 5), {"": (0, 1, 2)}),
    ("list", [array(8, 3), array(3)], {"0": (0,), "1": None}),
    ("pairs", [(array(8, 3), array(3))], {"0/0": (0,), "0/1": None}),
    ("named pairs", [Pair(array(8, 3), array(1, 3))], {"0/w": (0,), "0/b": None}),
    (
        "dataclass",
        {"layer": Layer(array(8, 3), array(1, 3), array(3, 4))},
        {"layer/matrix": (0,), "layer/bias": None, "layer/value": (0,)},
    ),
    ("dict", {"w1": array(8, 3), "b1": array(3)}, {"w1": (0,), "b1": None}),
    ("dict with integer keys", {0: {"w": array(8, 3)}}, {"0/w": (0,)}),
    ("weight in a dict", {"weight": array(8, 3)}, {"weight": (0,)}),
    ("weight in a dict norm", {"norm": {"weight": array(8, 3)}}, {"norm/weight": (0,)}),
    ("weight in a dict embed", {"embed": {"weight": array(8, 3)}}, {"embed/weight": (0,)}),
    ("attention without heads", {"query": {"kernel": array(8, 6)}}, {"query/kernel": (0,)}),
    (
        "a two-axis convolution called query",
        {"query": {"kernel": array(1, 1, 8, 6)}},
        {"query/kernel": (0, 1, 2)},
    ),
    ("list of embeddings", {"embeddings": [array(9, 8)]}, {"embeddings/0": None}),
    ("nothing", {"a": None, "b": optax.MaskedNode()}, {}),
]


@pytest.mark.parametrize(
    ("params", "expected"), [row[1:] for row in PLAIN], ids=[r[0] for r in PLAIN]
)
def test_plain_trees(params: Any, expected: Axes) -> None:
    assert table(fan_in_axes, params) == expected


@pytest.mark.parametrize("ndim", [2, 3, 4])
@pytest.mark.parametrize("key", [DictKey, GetAttrKey])
@pytest.mark.parametrize(
    "name",
    [
        *("b", "bias", "Bias", "bias_n", "bias_hh", "in_bias", "offset", "beta"),
        *("scale", "log_scale", "gamma", "gain"),
        *("embed", "embedding", "embeddings", "pos_embedding", "PositionEmbed"),
    ],
)
def test_names_that_are_no_kernel_however_many_axes(name: str, key: Any, ndim: int) -> None:
    leaf = array(*range(2, 2 + ndim))
    assert fan_in_axes((DictKey("layer"), key(name)), leaf) is None
    assert fan_in_axes((key(name),), leaf) is None
    assert not is_kernel((key(name),), leaf)


@pytest.mark.parametrize("key", [DictKey, GetAttrKey])
@pytest.mark.parametrize(
    "name", ["w", "b1", "bb", "biased", "unbiased", "scaled", "betas", "again", "g2", "rescale"]
)
def test_names_that_only_look_like_them_are_kernels(name: str, key: Any) -> None:
    assert fan_in_axes((key(name),), array(8, 3)) == (0,)
    assert is_kernel((key(name),), array(8, 3))


@pytest.mark.parametrize("key", [DictKey, GetAttrKey])
@pytest.mark.parametrize("projection", ["query", "key", "value"])
def test_attention_projections_by_key_and_by_attribute(projection: str, key: Any) -> None:
    assert fan_in_axes((key(projection), key("kernel")), array(8, 2, 3)) == (0,)
    assert fan_in_axes((key(f"{projection}s"), key("kernel")), array(8, 2, 3)) == (0, 1)
    assert fan_in_axes((key("out"), key("kernel")), array(2, 3, 8)) == (0, 1)


@pytest.mark.parametrize("leaf", [1.0, 2, None, jnp.ones, "text", array()])
def test_what_has_no_axes_is_no_kernel(leaf: Any) -> None:
    assert fan_in_axes((DictKey("kernel"),), leaf) is None


def test_only_the_shape_is_read() -> None:
    shapes = [np.ones((8, 3)), jnp.ones((8, 3), jnp.bfloat16), array(8, 3)]
    assert [fan_in_axes((DictKey("kernel"),), leaf) for leaf in shapes] == [(0,)] * 3

    @jax.jit
    def traced(kernel: jax.Array) -> jax.Array:
        assert fan_in_axes((DictKey("kernel"),), kernel) == (0,)
        return kernel

    traced(jnp.ones((8, 3)))


# --- Masks ------------------------------------------------------------------------------------


def test_mask_has_the_structure_of_the_parameters() -> None:
    params = {"kernel": jnp.ones((8, 3)), "b": None, "c": (optax.MaskedNode(), [jnp.ones(3)])}
    mask = kernel_mask(params)
    assert mask == {"kernel": True, "b": None, "c": (optax.MaskedNode(), [False])}
    assert type(mask["kernel"]) is bool
    assert type(mask["c"][1][0]) is bool


def test_mask_of_a_module_with_functions_for_leaves() -> None:
    model = eqx.nn.MLP(8, 3, 5, 1, key=KEY)
    mask = kernel_mask(model)
    assert jax.tree.structure(mask) == jax.tree.structure(model)
    assert [layer.weight for layer in mask.layers] == [True, True]
    assert not mask.activation


@pytest.mark.parametrize(
    "build",
    [
        lambda: linen(nn.Dense(3, bias_init=nn.initializers.ones), VECTOR),
        lambda: nnx_model(
            nnx.Linear(8, 3, bias_init=nnx.initializers.ones, rngs=rngs()), lambda model: None
        ),
        lambda: equinox(eqx.nn.Linear(8, 3, key=KEY), lambda model: None),
    ],
    ids=["linen", "nnx", "equinox"],
)
def test_mask_is_taken_by_optax(build: Callable[[], Built]) -> None:
    params, _ = build()
    tx = optax.add_decayed_weights(0.5, mask=kernel_mask)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True)
    for update, param in pairs:
        np.testing.assert_allclose(update, param * (0.5 if param.ndim == 2 else 0.0))


# --- Stacks -----------------------------------------------------------------------------------

KERNEL = (DictKey("blocks"), SequenceKey(0), DictKey("Dense_0"), DictKey("kernel"))


@pytest.mark.parametrize(
    ("pattern", "in_the_stack"),
    [
        ("blocks", True),
        ("blocks/0", True),
        ("blocks/*", True),
        ("blocks/0/Dense_0/kernel", True),
        ("*/kernel", True),
        ("*", True),
        ("block?/[0-3]", True),
        ("block", False),
        ("Blocks", False),
        ("blocks/1", False),
        ("Dense_0", False),
        ("kernel", False),
        ("blocks/0/Dense_0/kernel/value", False),
    ],
)
def test_a_pattern_matches_a_leading_part_of_the_path(pattern: str, in_the_stack: bool) -> None:
    expected = (1,) if in_the_stack else (0, 1)
    assert stacked(pattern)(KERNEL, array(6, 8, 3)) == expected
    assert stacked("elsewhere", pattern)(KERNEL, array(6, 8, 3)) == expected


def test_a_stack_is_judged_without_its_leading_axes() -> None:
    seen = []

    def rule(path: Any, leaf: Any) -> tuple[int, ...]:
        seen.append((path, leaf.shape, leaf.dtype))
        return (0, 2)

    leaf = jax.ShapeDtypeStruct((6, 7, 8, 3, 4), jnp.bfloat16)
    assert stacked("blocks", rule=rule, axes=2)(KERNEL, leaf) == (2, 4)
    assert stacked("elsewhere", rule=rule, axes=2)(KERNEL, leaf) == (0, 2)
    assert seen == [
        (KERNEL, (8, 3, 4), jnp.bfloat16),
        (KERNEL, (6, 7, 8, 3, 4), jnp.bfloat16),
    ]


def test_a_stack_needs_no_array() -> None:
    class Shaped:
        shape = (6, 8, 3)

    assert stacked("blocks")(KERNEL, Shaped()) == (1,)
    assert stacked("blocks")(KERNEL, jnp.tanh) is None


def test_stacks_within_stacks() -> None:
    rule = stacked("blocks", rule=stacked("blocks/0/Dense_0"))
    assert rule(KERNEL, array(6, 7, 8, 3)) == (2,)
    other = (*KERNEL[:2], DictKey("kernel"))
    assert rule(other, array(6, 8, 3)) == (1,)
    assert stacked("blocks", axes=2)(KERNEL, array(6, 7, 8, 3)) == (2,)


@pytest.mark.parametrize("shape", [(6,), (6, 3)])
def test_what_is_no_kernel_in_a_layer_is_none_in_a_stack(shape: tuple[int, ...]) -> None:
    assert stacked("blocks")(KERNEL, array(*shape)) is None


def test_stacked_vectors_are_kernels_only_by_mistake() -> None:
    """Why `stacked` is there: undeclared, the axis of the layers counts as fan-in."""
    slopes = (DictKey("blocks"), DictKey("negative_slope"))
    assert fan_in_axes(slopes, array(6, 8)) == (0,)
    assert stacked("blocks")(slopes, array(6, 8)) is None


def test_a_leaf_with_too_few_axes_for_a_stack() -> None:
    with pytest.raises(ValueError, match=r"'blocks/0/Dense_0/kernel'.*axes=2.*shape \(6,\)"):
        stacked("blocks", axes=2)(KERNEL, array(6))
    assert stacked("elsewhere", axes=2)(KERNEL, array(6)) is None


@pytest.mark.parametrize("patterns", [(), ("",), ("blocks", ""), (fan_in_axes,)])
def test_patterns_that_are_refused(patterns: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="patterns must be one or more non-empty strings, got"):
        stacked(*patterns)


@pytest.mark.parametrize("axes", [0, -1, 1.0, "1", None])
def test_axes_that_are_refused(axes: Any) -> None:
    with pytest.raises(ValueError, match=r"axes must be a whole number in \[1, inf\), got"):
        stacked("blocks", axes=axes)
