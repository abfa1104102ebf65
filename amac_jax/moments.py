"""Moving averages of gradients, as the adaptive cores keep them."""

from typing import Any

import jax
import jax.numpy as jnp


def abs_square(x: jax.Array) -> jax.Array:
    """|x|^2, real also where x is complex.

    Example:
      >>> abs_square(jnp.array([-2.0, 3.0]))
      Array([4., 9.], dtype=float32)
    """
    return jnp.square(jnp.abs(x))


def moving_average(decay: jax.Array, old: Any, new: Any) -> Any:
    """decay * old + (1 - decay) * new, leaf by leaf, in the dtype of `old`.

    Example:
      >>> moving_average(jnp.array(0.75), jnp.array([4.0]), jnp.array([8.0]))
      Array([5.], dtype=float32)
    """

    def leafwise(old: jax.Array, new: jax.Array) -> jax.Array:
        b = decay.astype(old.dtype)
        return b * old + (1.0 - b) * new.astype(old.dtype)

    return jax.tree.map(leafwise, old, new)


def bias_corrected(average: Any, decay: jax.Array, step: jax.Array) -> Any:
    """average / (1 - decay^step), the mean of what a moving average that began at 0 has seen.

    The denominator comes from expm1: decay^step itself would be rounded before it is subtracted.

    Example:
      >>> bias_corrected(jnp.array([3.0]), jnp.array(0.5), jnp.array(2.0))
      Array([4.], dtype=float32)
    """
    share = -jnp.expm1(step * jnp.log(decay.astype(step.dtype)))
    return jax.tree.map(lambda leaf: leaf / share.astype(leaf.dtype), average)
