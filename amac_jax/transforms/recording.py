"""A chain that records scalars about each of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from amac_jax.precision import global_norm, widen
from amac_jax.schedules import Hyperparameter, next_count, value_at


class RecordState(NamedTuple):
    """The number of updates made, the last step's scalars, and the states of the chain."""

    count: jax.Array  # () int32
    metrics: dict[str, jax.Array]  # each () float32, fixed names; 0 before the first step
    inner: tuple[Any, ...]


def recorded_chain(
    stages: Mapping[str, optax.GradientTransformation],
    hyperparameters: Mapping[str, Hyperparameter],
) -> optax.GradientTransformationExtraArgs:
    """`optax.chain` of the stages, in their order, with scalars about every step in its state.

    Always recorded: grad_norm ||g||, update_norm ||u||, param_norm ||theta|| before the step,
    update_ratio ||u|| / ||theta||, and the value of each hyperparameter given. Where the stages
    hold them: clip_fraction, the share of elements that stage "clip_by_value" changed;
    first_moment_norm and second_moment_norm, of the fields `mu` and `nu` of stage "core";
    momentum_norm, of `velocity`; slow_distance ||theta + u - phi||, of `slow`; averaged_count,
    of `averaged`; plateau_scale, of the field `scale` of stage "plateau".

    Args:
      stages: transformations by name.
      hyperparameters: what to record of them, by name.

    Returns:
      A transformation with the updates of the chain. State: `RecordState`.

    Raises:
      ValueError: for `update` without `params`.

    `optax.monitor`'s state changes its structure at the first update, which `scan` refuses.

    Example:
      >>> tx = recorded_chain({"core": optax.scale(-0.5)}, {"learning_rate": 0.5})
      >>> params = jnp.array([3.0, 4.0])
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> float(state.metrics["grad_norm"]), float(state.metrics["update_ratio"])
      (5.0, 0.5)
    """
    transforms = {name: optax.with_extra_args_support(tx) for name, tx in stages.items()}

    def init(params: optax.Params) -> RecordState:
        inner = tuple(tx.init(params) for tx in transforms.values())
        shapes = jax.eval_shape(
            lambda params, inner: measure(params, params, params, inner, jnp.zeros([], jnp.int32)),
            params,
            inner,
        )
        zeros = {name: jnp.zeros([], jnp.float32) for name in shapes}
        if "clip_by_value" in transforms:
            zeros["clip_fraction"] = jnp.zeros([], jnp.float32)
        return RecordState(count=jnp.zeros([], jnp.int32), metrics=zeros, inner=inner)

    def measure(gradients, updates, params, inner, count) -> dict[str, jax.Array]:
        core = inner[list(transforms).index("core")]
        param_norm, update_norm = global_norm(params), global_norm(updates)
        values = {
            "grad_norm": global_norm(gradients),
            "update_norm": update_norm,
            "param_norm": param_norm,
            "update_ratio": update_norm / jnp.where(param_norm > 0, param_norm, 1.0),
            **{name: value_at(value, count) for name, value in hyperparameters.items()},
        }
        for name, field, state in (
            ("first_moment_norm", "mu", core),
            ("second_moment_norm", "nu", core),
            ("momentum_norm", "velocity", inner),
        ):
            if found := _fields(state, field):
                values[name] = global_norm(found)
        if found := _fields(inner, "slow"):
            distance = jax.tree.map(lambda p, u, s: widen(p) + u - s, params, updates, found[0])
            values["slow_distance"] = global_norm(distance)
        if found := _fields(inner, "averaged"):
            values["averaged_count"] = found[0]
        if "plateau" in transforms:
            plateau = inner[list(transforms).index("plateau")]
            if found := _fields(plateau, "scale"):
                values["plateau_scale"] = found[0]
        return {name: value.astype(jnp.float32) for name, value in values.items()}

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError("record_metrics needs params: tx.update(updates, state, params)")
        gradients, inner, clipped = updates, [], {}
        for (name, tx), stage_state in zip(transforms.items(), state.inner, strict=True):
            before = updates
            updates, stage_state = tx.update(updates, stage_state, params, **extra_args)
            inner.append(stage_state)
            if name == "clip_by_value":
                clipped = {"clip_fraction": _share_changed(before, updates)}
        metrics = measure(gradients, updates, params, tuple(inner), state.count) | clipped
        return updates, RecordState(next_count(state.count), metrics, tuple(inner))

    return optax.GradientTransformationExtraArgs(init, update)


def _fields(state: Any, name: str) -> list[Any]:
    def is_field(path: Any, value: Any) -> bool:
        return isinstance(path[-1], optax.tree_utils.NamedTupleKey)  # and no parameter's name

    return [value for _, value in optax.tree.get_all_with_path(state, name, is_field)]


def _share_changed(before: Any, after: Any) -> jax.Array:
    changed = jax.tree.map(lambda a, b: jnp.sum(a != b, dtype=jnp.float32), before, after)
    return optax.tree.sum(changed) / jnp.float32(max(optax.tree.size(before), 1))
