"""`kernels`: plain trees, names of leaves, and stacks of layers."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from amac_jax.kernels import fan_in_axes, is_kernel, stacked
from tests.real_modules.common import Axes, table


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
