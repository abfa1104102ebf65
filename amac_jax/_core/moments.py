"""Moving averages of gradients, which the adaptive cores keep."""

import jax
import jax.numpy as jnp

from amac_jax._core.aliases import Tree
from amac_jax._core.leaves import each_leaf


def abs_square(x: jax.Array) -> jax.Array:
    """|x|^2, which is real for complex x too.

    Example:
      >>> abs_square(jnp.array([-2.0, 3.0]))
      Array([4., 9.], dtype=float32)
    """
    return jnp.square(jnp.abs(x))


def moving_average(decay: jax.Array, old: Tree, new: Tree) -> Tree:
    """decay * old + (1 - decay) * new, leaf by leaf, in the dtype of `old`.

    Example:
      >>> moving_average(jnp.array(0.75), jnp.array([4.0]), jnp.array([8.0]))
      Array([5.], dtype=float32)
    """

    return each_leaf(lambda old, new, b: b * old + (1.0 - b) * new, old, new, b=decay)


def bias_corrected(average: Tree, decay: jax.Array, step: jax.Array) -> Tree:
    """average / (1 - decay^step): a moving average that began at 0, freed of its bias towards 0.

    The result is the weighted mean of the values averaged so far. The denominator comes from
    expm1, because decay^step alone would be rounded before the subtraction.

    Example:
      >>> bias_corrected(jnp.array([3.0]), jnp.array(0.5), jnp.array(2.0))
      Array([4.], dtype=float32)
    """
    share = -jnp.expm1(step * jnp.log(decay.astype(step.dtype)))
    return each_leaf(lambda leaf, share: leaf / share, average, share=share)
