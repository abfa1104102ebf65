"""The value of a hyperparameter at a step, from a number, an array or a schedule."""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from amac_jax._core.aliases import promoted

Count: TypeAlias = int | np.ndarray | jax.Array
"""The number of updates made before this one: 0 at first; an array of counts gives an array."""

Schedule: TypeAlias = Callable[[Any], jax.Array]
"""A function of the count."""

Hyperparameter: TypeAlias = float | np.ndarray | jax.Array | Callable[[Any], ArrayLike]
"""A Python number, an array (traced or not) or a schedule."""


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a Python or NumPy number, whose value can be read at once."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def value_at(hyperparameter: Hyperparameter, count: Count) -> jax.Array:
    """The value of a hyperparameter when `count` updates have been made.

    Args:
      hyperparameter: a number, an array or a schedule of `count`.
      count: int or integer array; 0 at the first update.

    Returns:
      An array. Floats have at least 32 bits: float16 and bfloat16 become float32.

    Example:
      >>> float(value_at(0.5, 3)), float(value_at(lambda count: 2.0 * count, 3))
      (0.5, 6.0)
    """
    with jax.numpy_dtype_promotion("standard"):  # in which schedules are written
        value = hyperparameter(count) if callable(hyperparameter) else hyperparameter
    value = jnp.asarray(value)
    if jnp.issubdtype(value.dtype, jnp.floating):
        value = value.astype(promoted(value.dtype, jnp.float32))
    return value


def whole_value_at(hyperparameter: Hyperparameter, count: Count) -> jax.Array:
    """`value_at` as an int32: `optax.inject_hyperparams` hands integers over as floats."""
    return jnp.round(value_at(hyperparameter, count)).astype(jnp.int32)


def float_value_at(hyperparameter: Hyperparameter, count: Count) -> jax.Array:
    """`value_at` in floating point: float64 with x64 on."""
    return as_float(value_at(hyperparameter, count))


def next_count(count: jax.Array) -> jax.Array:
    """count + 1, stopping at the largest int32 instead of overflowing."""
    return jnp.asarray(optax.safe_increment(count))


def step_number(count: Count) -> jax.Array:
    """t = count + 1, the 1-based number of the step being taken, in floating point."""
    return as_float(count) + 1.0


def as_float(number: ArrayLike) -> jax.Array:
    """The number in floating point: float64 with x64 on, where int32 / int would give float32."""
    return jnp.asarray(number).astype(jnp.result_type(float))


def derived(function: Callable[..., Any], *given: Hyperparameter) -> Hyperparameter:
    """function(np or jnp, *values) of hyperparameters at every step. For numbers it is a number.

    Example:
      >>> derived(lambda xp, a, b: xp.minimum(a, b), 3, 2), derived(lambda xp, a: a / 2, 3)
      (2.0, 1.5)
    """
    if all(is_number(value) for value in given):
        dtype = jnp.result_type(float)  # as without folding
        return float(function(np, *(np.asarray(value, dtype) for value in given)))
    return lambda count: function(jnp, *(float_value_at(value, count) for value in given))


def product(first: Hyperparameter, second: Hyperparameter) -> Hyperparameter:
    """The product of two hyperparameters at every step. For two numbers it is a number.

    Example:
      >>> product(0.5, 3), float(value_at(product(0.5, lambda count: count + 1.0), 3))
      (1.5, 2.0)
    """
    if is_number(first) and is_number(second):
        return _folded(np.multiply, first, second)
    return lambda count: value_at(first, count) * value_at(second, count)


def quotient(first: Hyperparameter, second: Hyperparameter) -> Hyperparameter:
    """first / second at every step, and 0 where `second` is 0. For two numbers it is a number.

    Example:
      >>> quotient(3.0, 4), quotient(3.0, 0.0)
      (0.75, 0.0)
    """
    if is_number(first) and is_number(second):
        return _folded(np.divide, first, second) if second != 0 else 0.0

    def value(count: Count) -> jax.Array:
        divisor = value_at(second, count)
        safe = jnp.where(divisor == 0, 1.0, divisor)
        return jnp.where(divisor == 0, 0.0, value_at(first, count) / safe)

    return value


def _folded(operation: np.ufunc, first: float, second: float) -> float:
    # In the precision of JAX's floats: the result is then, to the bit, as without folding.
    dtype = jnp.result_type(float)
    return float(operation(np.asarray(first, dtype), np.asarray(second, dtype)))
