"""The kind of a parameter leaf, from its key path and shape: a kernel with fan-in axes, or not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey, KeyPath

from amac_jax._core.aliases import Tree
from amac_jax._core.paths import check_fits, path_matches, written_path

FanInRule: TypeAlias = Callable[[KeyPath, Tree], tuple[int, ...] | None]
"""(key path, leaf) -> the axes a layer sums over, or None for a leaf that is not a kernel."""


class _Layout(NamedTuple):
    leaf: str  # regular expression of the leaf's name; the name of an attribute starts with a dot
    outputs: tuple[int, ...] | None  # the axes that are not fan-in; None: not a kernel
    parent: str = ".*"  # regular expression of the name above
    ndim: int | None = None  # the number of axes; None: any

    def fits(self, name: str, parent: str, ndim: int) -> bool:
        named = re.fullmatch(self.leaf, name) and re.fullmatch(self.parent, parent)
        return bool(named) and self.ndim in (None, ndim)


_LAYOUTS = (  # the first row that fits decides
    _Layout(r"\.?(b|bias|bias_.*|.*_bias|offset|beta)", None),
    _Layout(r"\.?(scale|.*_scale|gamma|gain)", None),
    _Layout(r".*embed.*", None),
    # Flax attention: (in, heads, head_dim). Its `out`, (heads, head_dim, out), is like a Dense.
    _Layout(r"\.?kernel", (-2, -1), parent="query|key|value", ndim=3),
    # Haiku's transposed convolutions: (spatial..., out, in).
    _Layout(r"w", (-2,), parent=r".*conv(\d_|_n)d_transpose(_\d+)?"),
    # Equinox: (out, in, spatial...). The `weight` of a norm or an embedding and the `g` of a
    # `WeightNorm` are not kernels.
    _Layout(r"\.weight", None, parent=".*norm.*"),
    _Layout(r"\.weight", None, parent=".*embed.*", ndim=2),
    _Layout(r"\.g", None),
    _Layout(r"\.weight(_.*)?", (0,)),
    # All others: plain arrays, Flax and Haiku kernels, (in, out) and (spatial..., in, out).
    _Layout(r".*", (-1,)),
)


def fan_in_axes(path: KeyPath, leaf: object) -> tuple[int, ...] | None:
    """Returns the axes of a parameter over which its layer sums, or None if it is not a kernel.

    The fan-in axes of a kernel W are the axes i in y[o] = sum_i W[i, o] x[i]. A leaf is judged by
    its own name (the last name in its path that is not an index), the name above it and its
    shape:

    - A leaf with fewer than two axes is not a kernel.
    - A leaf named `b`, `bias`, `bias_*`, `*_bias`, `offset`, `beta`, `scale`, `*_scale`, `gamma`
      or `gain`, or with "embed" in its name, is not a kernel, however many axes it has. A
      `kernel` or `w` in a module with such a name is a kernel.
    - Flax (Linen and NNX) and Haiku: `kernel` and `w*` are (spatial..., in, out), and all axes
      but the last are fan-in. The 3-axis query, key and value kernels of attention are
      (in, heads, head_dim), and the first axis is fan-in. Haiku's `conv*_d_transpose` are
      (spatial..., out, in).
    - Equinox: an attribute `weight` or `weight_*` is (out, in, spatial...), and all axes but the
      first are fan-in. A `weight` is not a kernel in a module whose attribute name contains
      "norm", nor, with two axes, in a module whose attribute name contains "embed". An attribute
      `g` is the scale of a `WeightNorm`.
    - Any other leaf with two or more axes: all axes but the last are fan-in.

    A path does not contain the class of a module. The following layers need a rule of your own,
    which decides for the leaves it knows and calls this function for all others:

    - layers stacked along a leading axis (see `stacked`).
    - Equinox: an `Embedding`, or a `LayerNorm` over several axes, under another name; a `Linear`
      called, say, `patch_embed`.
    - Flax: `Einsum`, `ConvLocal`, `ConvTranspose` with `transpose_kernel`; a `DenseGeneral`
      (`LinearGeneral`) with several output axes that is not called query, key or value; a
      one-dimensional `Conv` that is called so.
    - Haiku: transposed convolutions under another name.
    - a dataclass of your own with (in, out) in `weight`.

    Args:
      path: the leaf's key path, as `jax.tree_util.tree_map_with_path` gives it.
      leaf: an array or a `jax.ShapeDtypeStruct`; only its shape is read. A leaf without a shape
        is not a kernel.

    Returns:
      Sorted, non-negative axes; or None for a leaf that is neither centralized nor decayed.

    Example:
      >>> params = {"dense": {"kernel": jnp.ones((8, 3)), "bias": jnp.ones(3)},
      ...           "query": {"kernel": jnp.ones((8, 2, 4)), "bias": jnp.ones((2, 4))}}
      >>> for path, leaf in jax.tree_util.tree_leaves_with_path(params):
      ...     print(jax.tree_util.keystr(path), fan_in_axes(path, leaf))
      ['dense']['bias'] None
      ['dense']['kernel'] (0,)
      ['query']['bias'] None
      ['query']['kernel'] (0,)

      A rule for a model with a `DenseGeneral` of kernel (in, 4, 5) called "mixer":

      >>> def rule(path, leaf):
      ...     name = jax.tree_util.keystr(path, simple=True, separator="/")
      ...     return (0,) if name.endswith("mixer/kernel") else fan_in_axes(path, leaf)
      >>> kernel_mask({"mixer": {"kernel": jnp.ones((8, 4, 5))}}, rule=rule)
      {'mixer': {'kernel': True}}
    """
    ndim = len(getattr(leaf, "shape", ()))
    if ndim < 2:
        return None
    name, parent = _names(path)
    layout = next(layout for layout in _LAYOUTS if layout.fits(name, parent, ndim))
    if layout.outputs is None:
        return None
    outputs = {axis % ndim for axis in layout.outputs}
    return tuple(axis for axis in range(ndim) if axis not in outputs)


def is_kernel(path: KeyPath, leaf: object) -> bool:
    """Returns whether a leaf is a kernel: not a bias, a scale, an embedding or a scalar.

    Args:
      path: the leaf's key path.
      leaf: an array or a `jax.ShapeDtypeStruct`.

    Returns:
      `fan_in_axes(path, leaf) is not None`.

    Example:
      >>> is_kernel((jax.tree_util.DictKey("bias"),), jnp.ones((2, 4)))
      False
    """
    return fan_in_axes(path, leaf) is not None


def kernel_mask(params: Tree, *, rule: FanInRule = fan_in_axes) -> Tree:
    """Returns which leaves are kernels, as a mask for `optax.masked`, `optax.adamw` and others.

    Args:
      params: any pytree of parameters, NNX states and modules among them. None and
        `optax.MaskedNode` do not hold leaves and stay.
      rule: the rule that decides; for example a rule made by `stacked`.

    Returns:
      A tree of Python bools with the structure of `params`.

    Raises:
      ValueError: for a pattern of `stacked` that fits no leaf (unless leaves are hidden by
        `optax.masked` or `optax.partition`, or the tree has none).

    Example:
      >>> kernel_mask({"kernel": jnp.ones((8, 3)), "bias": jnp.ones(3), "frozen": None})
      {'bias': False, 'frozen': None, 'kernel': True}
    """
    check_rule(rule, params)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: rule(path, leaf) is not None, params)


def stacked(*patterns: str, rule: FanInRule = fan_in_axes, axes: int = 1) -> FanInRule:
    """Returns a rule for parameters stacked along leading axes, which are not fan-in of any layer.

    Use it for layers made by `nn.scan`, `nn.vmap`, `nnx.scan`, `nnx.vmap`, `eqx.filter_vmap` or
    `hk.experimental.layer_stack` with the layers on the leading axes. The path and shape of such
    a kernel do not tell a stack from one more spatial axis. The rule judges a leaf in a stack by
    `rule` as if its first `axes` axes were absent, and any other leaf as it is.

    Args:
      *patterns: the paths that are stacked, as globs (`fnmatch`). A pattern fits a leaf's path,
        written as names joined by "/", such as "ScanBlock_0/Dense_0/kernel", or a leading part of
        the path: "ScanBlock_0" fits every leaf below it. `*` matches across "/", and upper and
        lower case differ.
      rule: the rule for one layer.
      axes: the number of leading axes, at least 1. For stacks within stacks: 2, or `stacked` of
        `stacked`.

    Returns:
      A rule that gives the axes of the leaf as it is, stacked. The techniques that take it
      refuse, from `init`, a pattern that fits no leaf.

    Raises:
      ValueError: without a pattern; if `axes` is not a whole number of at least 1; and, from the
        rule, for a leaf in the stack with fewer axes than `axes`.

    Example:
      >>> params = {"blocks": {"kernel": jnp.ones((6, 8, 3)), "bias": jnp.ones((6, 3))},
      ...           "head": {"kernel": jnp.ones((8, 3))}}
      >>> rule = stacked("blocks")
      >>> for path, leaf in jax.tree_util.tree_leaves_with_path(params):
      ...     print(jax.tree_util.keystr(path), rule(path, leaf))
      ['blocks']['bias'] None
      ['blocks']['kernel'] (1,)
      ['head']['kernel'] (0,)
    """
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise ValueError(f"patterns must be one or more non-empty strings, got {patterns!r}")
    if not isinstance(axes, int) or axes < 1:
        raise ValueError(f"axes must be a whole number in [1, inf), got {axes!r}")

    def stacked_rule(path: KeyPath, leaf: object) -> tuple[int, ...] | None:
        shape = getattr(leaf, "shape", None)
        if shape is None or not any(path_matches(path, pattern) for pattern in patterns):
            return rule(path, leaf)
        if len(shape) < axes:
            raise ValueError(
                f"{written_path(path)!r} must have at least axes={axes} leading axes to be a "
                f"stack, got shape {tuple(shape)}"
            )
        dtype = getattr(leaf, "dtype", jnp.float32)
        fan_in = rule(path, jax.ShapeDtypeStruct(shape[axes:], dtype))
        return None if fan_in is None else tuple(axis + axes for axis in fan_in)

    def stack_axes(path: KeyPath, leaf: object) -> int:
        fits = any(path_matches(path, pattern) for pattern in patterns)
        return axes * fits + _stack_axes(rule, path, leaf)

    inner = getattr(rule, "patterns", ())
    stacked_rule.patterns = (*patterns, *inner)  # pyright: ignore[reportFunctionMemberAccess]
    stacked_rule.stack_axes = stack_axes  # pyright: ignore[reportFunctionMemberAccess]
    return stacked_rule


class MatrixAxes(NamedTuple):
    """The axes of a kernel as a stack of matrices, fan-in x fan-out; every axis is in one field."""

    stack: tuple[int, ...]
    fan_in: tuple[int, ...]
    fan_out: tuple[int, ...]


def matrix_axes(path: KeyPath, leaf: object, rule: FanInRule = fan_in_axes) -> MatrixAxes | None:
    """The axes of a leaf as matrices, or None for a leaf that is not a kernel.

    The leading axes that `stacked` names are the stack. Without it a kernel is one matrix.

    Example:
      >>> rule = stacked("blocks")
      >>> path = (jax.tree_util.DictKey("blocks"), jax.tree_util.DictKey("kernel"))
      >>> matrix_axes(path, jnp.ones((6, 3, 3, 8, 4)), rule)
      MatrixAxes(stack=(0,), fan_in=(1, 2, 3), fan_out=(4,))
    """
    fan_in = rule(path, leaf)
    if fan_in is None:
        return None
    stack = tuple(range(_stack_axes(rule, path, leaf)))
    others = range(len(getattr(leaf, "shape", ())))
    fan_out = tuple(axis for axis in others if axis not in stack and axis not in fan_in)
    return MatrixAxes(stack, tuple(fan_in), fan_out)


def _stack_axes(rule: FanInRule, path: KeyPath, leaf: object) -> int:
    """The number of leading axes that a rule of `stacked` takes for a stack."""
    count = getattr(rule, "stack_axes", None)
    return 0 if count is None else count(path, leaf)


def check_rule(rule: FanInRule, params: Tree) -> None:
    """Refuses a pattern of `stacked` that fits no leaf of the parameters."""
    check_fits("patterns of stacked", getattr(rule, "patterns", ()), params)


def _names(path: KeyPath) -> tuple[str, str]:
    """The names of a leaf and of the node that holds it, in lower case and without indices."""
    if path and path[-1] == GetAttrKey("value"):
        # The attribute of an NNX Variable or a Linen Partitioned is not a name.
        path, is_attribute = path[:-1], False
    else:
        is_attribute = bool(path) and isinstance(path[-1], GetAttrKey)
    # A Haiku module is one key with slashes: "mlp/~/linear_0".
    names = [name for name in written_path(path).lower().split("/") if not name.isdigit()]
    parent, name = ["", "", *names][-2:]
    return (f".{name}" if is_attribute else name), parent
