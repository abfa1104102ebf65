"""What several test files need: random trees, a training loop, comparisons of trees."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# More seeds, kills, layouts and examples: 42 minutes, for the table in tests/README.md.
SOAK = os.environ.get("AMAC_JAX_SOAK") == "1"

# JAX's warning, also in pyproject.toml, that an entry of its cache is cut short: another process is
# writing it, or was killed then. JAX compiles the program instead.
CACHE_WARNING = "Error reading persistent compilation cache entry"


def array(values: Any, dtype: Any) -> jax.Array:
    """NumPy's numbers on the device; `jnp.asarray` compiles a program for every shape."""
    return jax.device_put(np.asarray(values).astype(jnp.dtype(dtype)))


def normals(seed: int, like: Any, steps: int = 1) -> Iterator[Any]:
    """Trees of standard normal leaves in the shapes and dtypes of `like`, one a step."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        yield jax.tree.map(lambda leaf: array(rng.standard_normal(leaf.shape), leaf.dtype), like)


def train(
    tx: optax.GradientTransformation, params: Any, gradients: Iterable[Any], *, jit: bool = True
) -> Iterator[tuple[Any, Any]]:
    """Takes a step with every gradient; yields parameters and optimizer state after each."""

    update, state = jax.jit(tx.update) if jit else tx.update, tx.init(params)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        yield params, state


def apply(
    tx: optax.GradientTransformation, updates: Any, params: Any = None, *, steps: int = 1
) -> tuple[Any, Any]:
    """The result and the state after the last of some steps with the same updates."""
    result, state = None, tx.init(updates if params is None else params)
    for _ in range(steps):
        result, state = tx.update(updates, state, params)
    return result, state


def float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """The same structure and, relative or absolute, nearly the same numbers."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(float64(a), float64(e), rtol=tolerance, atol=tolerance)


def assert_same_bits(actual: Any, expected: Any) -> None:
    """The same structure, dtypes and bits: signs of zeros and NaN included.

    A GPU keeps neither the sign nor the other bits of NaN, so that there NaN is NaN.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a), np.asarray(e)
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        if jax.default_backend() != "cpu" and jnp.issubdtype(a.dtype, jnp.inexact):
            a, e = (np.where(np.isnan(x), np.full_like(x, np.nan), x) for x in (a, e))
        assert a.tobytes() == e.tobytes()


def mixed_tree(seed: int) -> Any:
    """A kernel, a bias, an embedding and a scalar, normal, in three precisions."""
    rng = np.random.default_rng(seed)

    def draw(dtype, *shape):
        return array(rng.normal(size=shape), dtype)

    return {
        "dense": {"kernel": draw("float16", 4, 3), "bias": draw("float32", 3)},
        "embed": {"embedding": draw("bfloat16", 5, 2)},
        "temperature": draw("float32"),
    }
