"""`kernels`: every rule against real modules, and against what the modules compute."""

import functools
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

from amac_jax.kernels import fan_in_axes, kernel_mask
from tests.real_modules.common import (
    KEY,
    SEQUENCE,
    VECTOR,
    Built,
    equinox,
    grid,
    linen,
    nnx_model,
    rngs,
    table,
    written,
)
from tests.real_modules.equinox_modules import EQUINOX
from tests.real_modules.haiku_modules import HAIKU
from tests.real_modules.linen_modules import LINEN, LINEN_ATTENTION
from tests.real_modules.nnx_modules import NNX, NNX_MODEL, NNXModel

# Flax would rather see the class go; those who have it still train it.
pytestmark = pytest.mark.filterwarnings("ignore:SelfAttention will be deprecated")

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
def parameters(name: str) -> Any:
    """The tree of the module's parameters; with values from NumPy it is not compiled.

    Kernels are random, biases zero and all others one, nearly as modules begin.
    """
    rng = np.random.default_rng(0)

    def value(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if CASES[name].expected[written(path)] is not None:
            array = 0.3 * rng.normal(size=leaf.shape)
        else:
            array = np.full(leaf.shape, not re.search(r"bias|\bb$", written(path)))
        return jax.device_put(array.astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(value, jax.eval_shape(lambda: CASES[name].build()[0]))


@pytest.mark.parametrize("name", CASES)
def test_every_leaf_of_a_real_module(name: str) -> None:
    case = CASES[name]
    params = parameters(name)
    assert table(case.rule, params) == case.expected
    assert table(case.rule, jax.eval_shape(lambda: params)) == case.expected


@pytest.mark.parametrize("name", CASES)
def test_mask_is_true_where_there_are_fan_in_axes(name: str) -> None:
    case = CASES[name]
    params = parameters(name)
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
    params = parameters(name)
    view = case.view
    assert view is not None

    @jax.jit
    def outputs(params: Any) -> list[jax.Array]:
        _, apply = case.build()  # the module's own parameters are not used, and not compiled
        return jax.tree.leaves(view(apply(params)))

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


@functools.cache
def an_nnx_model() -> NNXModel:
    return nnx.jit(NNXModel)()


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
    found = table(fan_in_axes, view(an_nnx_model()))
    assert {name.removesuffix("/value"): axes for name, axes in found.items()} == {
        name.removesuffix("/value"): axes for name, axes in NNX_MODEL.items()
    }


def test_all_variables_of_a_linen_module() -> None:
    variables = jax.jit(nn.BatchNorm(use_running_average=True).init)(KEY, grid(2))
    assert not any(jax.tree.leaves(kernel_mask(variables)))
    variables = jax.jit(nn.MultiHeadAttention(num_heads=2).init)(KEY, SEQUENCE)
    frozen = freeze(variables)
    expected = {f"params/{name}": axes for name, axes in LINEN_ATTENTION.items()}
    assert table(fan_in_axes, variables) == table(fan_in_axes, frozen) == expected


# --- Masks ------------------------------------------------------------------------------------


def test_mask_has_the_structure_of_the_parameters() -> None:
    params = {"kernel": jnp.ones((8, 3)), "b": None, "c": (optax.MaskedNode(), [jnp.ones(3)])}
    mask = kernel_mask(params)
    assert mask == {"kernel": True, "b": None, "c": (optax.MaskedNode(), [False])}
    assert type(mask["kernel"]) is bool
    assert type(mask["c"][1][0]) is bool


def test_mask_of_a_module_with_functions_for_leaves() -> None:
    model = eqx.filter_jit(lambda: eqx.nn.MLP(8, 3, 5, 1, key=KEY))()
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
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True)
    for update, param in pairs:
        expected = np.asarray(param) * (0.5 if param.ndim == 2 else 0.0)
        np.testing.assert_allclose(update, expected)
