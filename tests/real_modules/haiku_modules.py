"""Haiku's modules, and the fan-in axes of their leaves."""

import haiku as hk

from amac_jax.kernels import stacked
from tests.real_modules.common import (
    SEQUENCE,
    TOKENS,
    VECTOR,
    Case,
    grid,
    haiku,
    haiku_cell,
    inside,
)

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
