"""Key paths as text, and the patterns that fit them."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import jax
import optax
from jax.tree_util import KeyPath

from amac_jax._core.aliases import Tree


def written_path(path: KeyPath) -> str:
    """A leaf's path as names joined by "/": the text against which a path pattern is matched.

    Args:
      path: the leaf's key path.

    Returns:
      For example "ScanBlock_0/Dense_0/kernel"; "" for a bare array.

    Example:
      >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"layers": [{"kernel": 1.0}]})
      >>> written_path(path)
      'layers/0/kernel'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def path_matches(path: KeyPath, pattern: str) -> bool:
    """Whether a pattern fits a leaf's path or a leading part of the path.

    Args:
      path: the leaf's key path.
      pattern: a glob (`fnmatch`) of names joined by "/": "layers/0" names every leaf below it.
        `*` matches across "/"; upper and lower case differ.

    Example:
      >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"layers": [{"kernel": 1.0}]})
      >>> [path_matches(path, pattern) for pattern in ("layers/0", "*/kernel", "kernel")]
      [True, True, False]
    """
    names = written_path(path).split("/")
    parts = ("/".join(names[: end + 1]) for end in range(len(names)))
    return any(fnmatchcase(part, pattern) for part in parts)


def first_fit(path: KeyPath, patterns: Sequence[str]) -> str | None:
    """The first pattern that fits a path, or None."""
    return next((pattern for pattern in patterns if path_matches(path, pattern)), None)


def check_patterns(name: str, patterns: Sequence[str]) -> None:
    """Refuses anything but a sequence of non-empty strings; a bare string is refused too."""
    strings = isinstance(patterns, Sequence) and not isinstance(patterns, str | bytes)
    if not strings or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise ValueError(f"{name} must have non-empty strings for patterns, got {patterns!r}")


def check_fits(
    name: str, patterns: Sequence[str], tree: Tree, *, first_decides: bool = False
) -> None:
    """Refuses a pattern that fits no leaf: a misspelt name would otherwise silently do nothing.

    Where the first pattern that fits decides, a pattern behind a wider one is refused too, which
    would never decide. A tree without leaves passes. A tree from which `optax.masked` or
    `optax.partition` has hidden leaves passes too, because the pattern may fit a hidden leaf.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    nodes = jax.tree.leaves(tree, is_leaf=is_masked)
    if not paths or any(is_masked(node) for node in nodes):
        return
    for pattern in patterns:
        if not any(path_matches(path, pattern) for path in paths):
            some = ", ".join(repr(written_path(path)) for path in paths[:5])
            raise ValueError(
                f"{name} must each fit a leaf, and {pattern!r} fits none; there are {some}"
                + (", ..." if len(paths) > 5 else "")
            )
    if not first_decides:
        return
    leaves = [{i for i, path in enumerate(paths) if path_matches(path, p)} for p in patterns]
    for number, pattern in enumerate(patterns):
        for other, fitted in zip(patterns[:number], leaves, strict=False):
            if leaves[number] < fitted:
                raise ValueError(
                    f"{name} must have {pattern!r} before {other!r}, which fits all that it fits "
                    "and more: the first that fits decides"
                )


def is_masked(node: object) -> bool:
    """Whether a node stands for a leaf that `optax.masked` or `optax.partition` has hidden."""
    return isinstance(node, optax.MaskedNode)
