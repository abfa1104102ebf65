"""The ranges of hyperparameters, and the one place that checks numbers against them."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from amac_jax._core.aliases import Keywords
from amac_jax._core.hyperparameters import Count, Hyperparameter, value_at, whole_value_at


class Range(NamedTuple):
    """An interval of numbers, and the other values that may stand in the place of a number."""

    low: float
    high: float
    includes_low: bool = True
    includes_high: bool = True
    whole: bool = False  # whether it contains only whole numbers
    needs_float32: bool = False  # whether 16-bit arrays are refused: they round 0.9999 to 1
    takes_bool: bool = False  # whether True and False stand for 1 and 0
    takes_trees: bool = False  # whether mappings and arrays of any shape pass too

    def __str__(self) -> str:
        left, right = "[" if self.includes_low else "(", "]" if self.includes_high else ")"
        kind = "a whole number in " if self.whole else "in "
        return f"{kind}{left}{self.low:g}, {self.high:g}{right}"

    def __contains__(self, value: Any) -> bool:  # a range never contains NaN
        above = value >= self.low if self.includes_low else value > self.low
        below = value <= self.high if self.includes_high else value < self.high
        is_whole = not self.whole or not math.isfinite(value) or value == int(value)
        return bool(above and below and is_whole)

    def evaluated(self, given: Hyperparameter, count: Count) -> jax.Array:
        """The value of a hyperparameter of this range when `count` updates have been made."""
        return (whole_value_at if self.whole else value_at)(given, count)


REAL = Range(-math.inf, math.inf, includes_low=False, includes_high=False)
NON_NEGATIVE = Range(0, math.inf, includes_high=False)
POSITIVE = Range(0, math.inf, includes_low=False, includes_high=False)
LIMIT = Range(0, math.inf, includes_low=False)  # for clipping; inf is off
START = Range(0, math.inf)  # for a first step; inf never comes
UNIT = Range(0, 1)
SHARE = Range(0, 1, includes_low=False)
FLOOR = Range(0, 1, includes_high=False)
STRENGTH = Range(0, 1, takes_bool=True)
DECAY = Range(0, 1, includes_high=False, needs_float32=True)  # for a moving average
DECAY_OR_MEAN = Range(0, 1, needs_float32=True)  # 1 is the plain mean
COUNT = Range(1, math.inf, includes_high=False, whole=True)
COUNT_OR_ZERO = Range(0, math.inf, includes_high=False, whole=True)
ABOVE_ONE = Range(1, math.inf, includes_low=False)  # for a factor of what is usual; inf is off
AT_LEAST_ONE = Range(1, math.inf, includes_high=False)
MULTIPLIERS = Range(0, math.inf, includes_high=False, takes_trees=True)


def check(name: str, value: object, allowed: Range) -> None:
    """Refuses a Python number outside a range; arrays of shape () and schedules pass unread.

    Args:
      name: the argument's name, for the message.
      value: the argument.
      allowed: the range.

    Raises:
      ValueError: naming the argument, the range and the value received.

    Example:
      >>> check("b1", 1.0, DECAY)
      Traceback (most recent call last):
      ValueError: b1 must be in [0, 1), got 1.0
    """
    if allowed.takes_trees and isinstance(value, Mapping | jax.Array | np.ndarray):
        return
    if isinstance(value, jax.Array | np.ndarray) and value.ndim > 0:
        raise ValueError(
            f"{name} must be a scalar, got shape {value.shape}; use jax.vmap for several values"
        )
    dtype = getattr(value, "dtype", None)
    if allowed.needs_float32 and dtype in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"{name} must be in at least float32, got {dtype}, in which 0.9999 is 1; "
            "optax.inject_hyperparams takes hyperparam_dtype=jnp.float32"
        )
    if callable(value) or isinstance(value, jax.Array | np.ndarray):
        return
    if isinstance(value, str | bytes) or not isinstance(value, int | float | np.number):
        raise ValueError(f"{name} must be {allowed}, a schedule or an array, got {value!r}")
    is_refused_bool = isinstance(value, bool) and not allowed.takes_bool
    if is_refused_bool or value not in allowed:
        off = "; off is inf" if is_refused_bool and math.inf in allowed else ""
        raise ValueError(f"{name} must be {allowed}, got {value!r}{off}")


Function = TypeVar("Function", bound=Callable[..., Any])


def checked(**ranges: Range) -> Callable[[Function], Function]:
    """Makes a function refuse numbers outside the ranges of its arguments.

    An argument whose default is None may be None. `ranges_of` reads the ranges.

    Example:
      >>> @checked(rate=NON_NEGATIVE)
      ... def double(rate):
      ...     return 2 * rate
      >>> double(-1.0)
      Traceback (most recent call last):
      ValueError: rate must be in [0, inf), got -1.0
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def with_checks(*args: Any, **kwargs: Any) -> Any:
            try:
                check_arguments(signature, ranges, args, kwargs)
            except TypeError as error:  # which does not say whose argument it is
                taken = ", ".join(signature.parameters)
                raise TypeError(f"{function.__name__}(): {error} (it takes {taken})") from None
            return function(*args, **kwargs)

        with_checks.ranges = ranges  # pyright: ignore[reportAttributeAccessIssue]
        return with_checks  # pyright: ignore[reportReturnType]

    return decorate


def check_arguments(
    signature: inspect.Signature,
    ranges: Mapping[str, Range],
    args: Sequence[Any],
    kwargs: Keywords,
) -> dict[str, Any]:
    """The arguments of a call, with defaults, each checked against its range."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    for name, allowed in ranges.items():
        value = bound.arguments[name]
        if value is not None or signature.parameters[name].default is not None:
            check(name, value, allowed)
    return bound.arguments


def ranges_of(function: Callable[..., Any]) -> Mapping[str, Range]:
    """The ranges of a function's arguments, as given to `checked` or `technique`."""
    return getattr(function, "ranges", {})
