"""Flax Linen's modules, and the fan-in axes of their leaves."""

from typing import Any

import flax.linen as nn
import jax

from amac_jax.kernels import fan_in_axes, stacked
from tests.real_modules.common import (
    SEQUENCE,
    TOKENS,
    VECTOR,
    Case,
    grid,
    inside,
    linen,
    linen_cell,
)


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
