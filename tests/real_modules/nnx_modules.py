"""Flax NNX's modules, and the fan-in axes of their leaves."""

import jax
import jax.numpy as jnp
from flax import nnx

from amac_jax.kernels import stacked
from tests.real_modules.common import (
    SEQUENCE,
    TOKENS,
    VECTOR,
    Case,
    grid,
    inside,
    nnx_cell,
    nnx_model,
    rngs,
)
from tests.real_modules.linen_modules import LINEN_ATTENTION


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
