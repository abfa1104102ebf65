"""The optimizers: each a core with techniques around it; our own cores stand beside them."""

# isort: off
from amac_jax._core.polar import MINIMAX, NEWTON_SCHULZ
from amac_jax.optimizers import recipes
from amac_jax.optimizers._adabelief import ScaleByAdabeliefState, adabelief, scale_by_adabelief
from amac_jax.optimizers._adam import adam, adamax, adamw, amsgrad, nadam
from amac_jax.optimizers._adagrad import adagrad, rmsprop
from amac_jax.optimizers._amac import (
    AUTO_SHARES, EVERY_TECHNIQUE, amac, amac_techniques, scale_by_amac,
)  # fmt: skip
from amac_jax.optimizers._amac_reference import amac_reference
from amac_jax.optimizers._by_name import OPTIMIZERS, by_name
from amac_jax.optimizers._compose import compose
from amac_jax.optimizers._lion import lion
from amac_jax.optimizers._muon import ScaleByOrthogonalState, muon, scale_by_orthogonal
from amac_jax.optimizers._newton import newton, scale_by_newton
from amac_jax.optimizers._radam import ScaleByRadamState, radam, scale_by_radam
from amac_jax.optimizers._sgd import momentum, nesterov, sgd
from amac_jax.optimizers._sophia import ScaleBySophiaState, scale_by_sophia, sophia

__all__ = [  # noqa: RUF022, by kind
    "compose", "amac", "amac_reference", "sgd", "momentum", "nesterov", "adagrad", "rmsprop",
    "adam", "adamw", "amsgrad", "adamax", "nadam", "radam", "adabelief", "lion", "sophia",
    "muon", "newton", "recipes", "by_name", "OPTIMIZERS", "scale_by_amac", "scale_by_adabelief",
    "scale_by_newton", "scale_by_orthogonal",
    "scale_by_radam", "scale_by_sophia", "MINIMAX", "NEWTON_SCHULZ", "AUTO_SHARES",
    "EVERY_TECHNIQUE", "amac_techniques",
    "ScaleByAdabeliefState", "ScaleByOrthogonalState", "ScaleByRadamState", "ScaleBySophiaState",
]  # fmt: skip
