"""Builders of parameters and outputs from real modules, and the rows of their tables."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

from amac_jax.kernels import FanInRule, fan_in_axes

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
    variables = jax.jit(module.init)(KEY, *inputs)
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
    params, state = jax.jit(transformed.init)(KEY, *inputs)
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
    # Leaf -> values of other leaves; never written to, which RUF012 cannot know.
    given: dict[str, dict[str, float]] = {}  # noqa: RUF012
    rule: FanInRule = fan_in_axes


def written(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def table(rule: FanInRule, params: Any) -> Axes:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {written(path): rule(path, leaf) for path, leaf in leaves}
