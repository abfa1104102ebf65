"""The space of a search of hyperparameters: its axes, its points, and the keywords it may have."""

from __future__ import annotations

import difflib
import inspect
import itertools
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from amac_jax._core.aliases import Keywords
from amac_jax._core.hyperparameters import is_number


class Axis(NamedTuple):
    """An axis of the space: a range of numbers, or choices."""

    low: float = math.nan
    high: float = math.nan
    log: bool = False
    whole: bool = False  # both ends are Python integers
    choices: tuple[Any, ...] | None = None  # None for a range

    def at(self, shares: np.ndarray) -> list[float | int]:
        """The numbers at these shares of the way, in [0, 1), from the low end to the high one."""
        high = self.high + self.whole  # each whole number has a share of its own
        if self.log:
            values = self.low * (high / self.low) ** shares
        else:
            values = self.low + (high - self.low) * shares
        values = np.clip(np.floor(values) if self.whole else values, self.low, self.high)
        return [int(value) if self.whole else float(value) for value in values]

    @property
    def names(self) -> list[str]:
        """The choices as text, numbered where several read alike, as two schedules of one kind."""
        names = [_written(choice) for choice in self.choices or ()]
        return [
            f"{name} #{number}" if names.count(name) > 1 else name
            for number, name in enumerate(names, start=1)
        ]

    def which(self, value: Any) -> int:
        """The number of a choice, from 0."""
        return [repr(choice) for choice in self.choices or ()].index(repr(value))

    def written(self, value: Any) -> str:
        """A value on this axis as text."""
        return _written(value) if self.choices is None else self.names[self.which(value)]


def axes_of(space: Mapping[str, Any]) -> dict[str, Axis]:
    """The axes of a space.

    Raises:
      ValueError: for a space that is not one, saying which axis is wrong and what it may be.

    Example:
      >>> axes_of({"sync_period": (2, 20), "clip_norm": [None, 1.0]})["sync_period"].whole
      True
    """
    if not isinstance(space, Mapping) or not space:
        what = "have an axis" if isinstance(space, Mapping) else "be a mapping"
        raise ValueError(
            f'space must {what}, such as {{"learning_rate": (1e-4, 1e-1, "log")}}, got {space!r}'
        )
    return {name: _axis(f"space[{name!r}]", given) for name, given in space.items()}


def _axis(name: str, given: Any) -> Axis:
    if isinstance(given, list):
        if not given:
            raise ValueError(f"{name} must have at least one choice, got []")
        return Axis(choices=tuple(given))
    if not isinstance(given, tuple) or len(given) not in (2, 3):
        more = "; a fixed value is a keyword of sweep itself" if is_number(given) else ""
        raise ValueError(
            f'{name} must be (low, high), (low, high, "log") or a list of choices, '
            f"got {given!r}{more}"
        )
    low, high, *rest = given
    if not all(is_number(end) and math.isfinite(end) for end in (low, high)):
        raise ValueError(
            f"{name} must be between two finite numbers, got {given!r}; choices are a list"
        )
    if rest not in ([], ["log"]):
        raise ValueError(f'{name} may have "log" as third item and nothing else, got {given!r}')
    if not low < high:
        raise ValueError(f"{name} must have low < high, got {given!r}; one value: [{low!r}]")
    if rest and low <= 0:
        raise ValueError(f'{name} must have low > 0 with "log", got {given!r}')
    whole = all(isinstance(end, int | np.integer) for end in (low, high))
    if whole and high - low == 1:  # hardly what was meant
        raise ValueError(
            f"{name} has the whole numbers {low} and {high} alone, got {given!r}; numbers between "
            f"them are ({float(low)}, {float(high)}), and choices are a list"
        )
    return Axis(low, high, bool(rest), whole)


def check_keywords(
    optimizer: Any, axes: Keywords, settings: Keywords, others: Collection[str]
) -> None:
    """Refuses keywords that the optimizer does not have, and asks for those that it needs.

    Args:
      optimizer: a function that makes a transformation from keywords.
      axes: the space; its keys are keywords of the optimizer.
      settings: the keywords that all points share.
      others: the keywords of the search itself, for a hint.

    Raises:
      ValueError: naming the keyword and what the optimizer takes.
    """
    if hasattr(optimizer, "update") or not callable(optimizer):
        raise ValueError(
            "optimizer must be a function that makes a transformation from keywords, such as "
            f"amac_jax.adamw without its brackets, got {_short(optimizer)}"
        )
    name = getattr(optimizer, "__name__", "optimizer")
    for both in axes.keys() & settings.keys():
        raise ValueError(f"{both} is in the space and among the settings; leave one of them out")
    try:
        parameters = inspect.signature(optimizer).parameters.values()
    except (TypeError, ValueError):
        return
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for given in [*axes, *settings]:
            if given not in known:
                near = difflib.get_close_matches(given, known, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                if given in others:
                    hint = f" ({given}=... of sweep itself has one value for all trials)"
                taken = ", ".join(known)
                raise ValueError(f"{name} does not take {given!r}{hint}; it takes {taken}")
    for parameter in parameters:
        needed = parameter.default is parameter.empty and parameter.name in known
        if needed and parameter.name not in {*axes, *settings}:
            raise ValueError(
                f"{name} needs {parameter.name}: put it into the space, or fix it as a keyword: "
                f"sweep(..., {parameter.name}=...)"
            )


def points_of(axes: Mapping[str, Axis], trials: int, seed: np.ndarray) -> list[dict[str, Any]]:
    """The trials: for each combination of choices a part of the sequence of its own.

    The parts are consecutive: of Halton's sequence every second point lies in the same half.
    """
    from scipy.stats import qmc  # here, because it takes half a second to import

    numeric = {name: axis for name, axis in axes.items() if axis.choices is None}
    chosen = {name: axis.choices for name, axis in axes.items() if axis.choices is not None}
    combinations = [
        dict(zip(chosen, values, strict=True)) for values in itertools.product(*chosen.values())
    ]
    if not numeric:
        return combinations
    if trials < len(combinations):
        raise ValueError(
            f"trials must be at least {len(combinations)}, one for each combination of choices, "
            f"got {trials}"
        )
    is_new = "rng" in inspect.signature(qmc.Halton).parameters  # from SciPy 1.15 on
    seeded: dict[str, Any] = {"rng" if is_new else "seed": np.random.default_rng(seed)}
    unit = qmc.Halton(len(numeric), **seeded).random(trials)
    columns = {name: axis.at(unit[:, i]) for i, (name, axis) in enumerate(numeric.items())}
    points = []
    for number in range(trials):
        combination = combinations[number * len(combinations) // trials]
        values = {name: column[number] for name, column in columns.items()}
        points.append({name: {**values, **combination}[name] for name in axes})
    return points


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    # A schedule is made inside the function whose name says what it is.
    name = getattr(value, "__qualname__", None) if callable(value) else None
    return name.partition(".<locals>")[0] if name else str(value)


def _short(value: Any) -> str:
    return "a transformation that is already made" if hasattr(value, "update") else repr(value)
