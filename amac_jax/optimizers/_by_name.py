"""The optimizers by their names, for programs that read them from a config."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import optax

from amac_jax.optimizers._adabelief import adabelief
from amac_jax.optimizers._adagrad import adagrad, rmsprop
from amac_jax.optimizers._adam import adam, adamax, adamw, amsgrad, nadam
from amac_jax.optimizers._amac import amac
from amac_jax.optimizers._amac_reference import amac_reference
from amac_jax.optimizers._keywords import unknown_keyword
from amac_jax.optimizers._lion import lion
from amac_jax.optimizers._muon import muon
from amac_jax.optimizers._newton import newton
from amac_jax.optimizers._radam import radam
from amac_jax.optimizers._sgd import momentum, nesterov, sgd
from amac_jax.optimizers._sophia import sophia

OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformationExtraArgs]] = MappingProxyType(
    {
        factory.__name__: factory
        for factory in (
            *(amac, amac_reference, sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw),
            *(amsgrad, adamax, nadam, radam, adabelief, lion, muon, sophia, newton),
        )
    }
)
"""Name -> factory, read-only; each name is also an attribute of `amac_jax`."""


def by_name(name: str, **keywords: Any) -> optax.GradientTransformationExtraArgs:
    """Builds the optimizer of a name, as a config has it.

    `amac_jax.OPTIMIZERS` has all names and their factories: AMaC, the published AMaC and the
    classic optimizers, each of which is also an attribute of `amac_jax`. `compose` and `recipes`
    are not among them: the first takes a core, and a recipe is for a kind of model.

    Args:
      name: one of `amac_jax.OPTIMIZERS`.
      **keywords: arguments of this factory, techniques included; `help(amac_jax.adamw)` lists
        them.

    Returns:
      What the factory returns.

    Raises:
      ValueError: for an unknown name; the message lists the names, and the nearest if there is
        one. For an argument outside its range, as from the factory itself.
      TypeError: for a keyword that the factory does not have; the message lists what it has. For
        a missing one, as from the factory itself.

    Example:
      >>> by_name("adamw", learning_rate=1e-3, clip_norm=1.0)
      adamw(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08, weight_decay=0.01, clip_norm=1.0)
      >>> config = {"name": "amac", "learning_rate": "auto", "total_steps": 1000}
      >>> tx = by_name(**config)
    """
    factory = OPTIMIZERS.get(name) if isinstance(name, str) else None
    if factory is None:
        nearest = difflib.get_close_matches(str(name).lower(), OPTIMIZERS, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(
            f"name must be one of {', '.join(map(repr, OPTIMIZERS))}, got {name!r}{hint}"
        )
    known = list(inspect.signature(factory).parameters)
    for keyword in keywords:
        if keyword not in known:
            what = unknown_keyword(name, keyword, known)
            raise TypeError(f"{what} (it takes {', '.join(known)})")
    return factory(**keywords)
