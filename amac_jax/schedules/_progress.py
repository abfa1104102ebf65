"""The share of a length that is done, and the curves between two values over it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from amac_jax._core.hyperparameters import Count


def whole(count: Count) -> jax.Array:
    """The count as an integer, exact beyond 2^24, where float32 leaves numbers out."""
    return jnp.asarray(count).astype(jnp.result_type(int))


def fraction(steps_done: jax.Array, length: jax.Array) -> jax.Array:
    """steps_done / length, not below 0 and not above 1; a length of 0 is complete at once."""
    # Exactly 1 at the end, where XLA's n * (1 / n) need not be 1.
    # The inner `where` keeps 0 / 0 out of gradients.
    safe_length = jnp.where(length > 0, length, 1.0)
    return jnp.where(steps_done < length, jnp.maximum(steps_done / safe_length, 0.0), 1.0)


def line(start: jax.Array, end: jax.Array, progress: jax.Array) -> jax.Array:
    """A straight line, which is exact at both ends."""
    # start + (end - start) need not be exactly `end`.
    return start * (1.0 - progress) + end * progress


def half_cosine(start: jax.Array, end: jax.Array, progress: jax.Array) -> jax.Array:
    """Half a cosine between the same two values, which is as exact at both ends."""
    return line(end, start, 0.5 * (1.0 + jnp.cos(jnp.pi * progress)))


def root(start: jax.Array, end: jax.Array, progress: jax.Array) -> jax.Array:
    """A curve along the square root of the progress, steep at first, as exact at both ends."""
    # The inner `where` keeps the infinite slope at 0 out of gradients.
    safe_progress = jnp.where(progress > 0, progress, 1.0)
    return line(start, end, jnp.where(progress > 0, jnp.sqrt(safe_progress), 0.0))


SHAPES = {"linear": line, "cosine": half_cosine}
