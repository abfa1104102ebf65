"""Equinox's modules, and the fan-in axes of their leaves."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from amac_jax.kernels import stacked
from tests.real_modules.common import KEY, SEQUENCE, Built, Case, equinox, inside_channels_first


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
