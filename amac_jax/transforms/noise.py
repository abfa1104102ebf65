"""Noise injection, with a counter-based generator that costs next to nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from amac_jax.keys import key_data, typed_key
from amac_jax.leaves import floats_only
from amac_jax.precision import widen
from amac_jax.samplers import Sampler, sampler_named
from amac_jax.schedules import Hyperparameter, check, next_count, value_at


class InjectNoiseState(NamedTuple):
    """The number of updates made, and a copy of the key."""

    count: jax.Array  # () int32
    key: jax.Array  # (2,) uint32: key data, which any serializer can store


def inject_noise(
    scale: Hyperparameter,
    *,
    key: Any = 0,
    relative: bool = False,
    sampler: str | Sampler = "fast",
) -> optax.GradientTransformationExtraArgs:
    """Adds fresh noise to every element at every step.

        d <- d + sigma xi,   E xi = 0, E xi^2 = 1

    The noise is a function of key, step, leaf and position in the leaf alone: the same on any
    number of devices, under any sharding, and after a restart.

    Place it after the core, where sigma is in units of the learning rate, or before it to
    perturb gradients.

    Args:
      scale: sigma, in the unit of the updates where it stands; >= 0. Off: 0.
      key: an integer seed or a JAX key, typed or raw.
      relative: whether sigma is in units of each leaf's root mean square.
      sampler: "fast", nearly normal and nearly free (see `samplers.fast_normal`); "gaussian",
        normal (see `samplers.gaussian`); "threefry", which is
        `optax.tree.random_like(jax.random.fold_in(key, count), like, jax.random.normal)`; or a
        function (key, count, like) of the typed key, the number of updates made before this one
        and the updates, that returns a tree shaped as they are.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given.
      State: `InjectNoiseState`.

    Raises:
      ValueError: for a negative or NaN scale, or an unknown sampler; from `init`, for complex
        parameters.

    `optax.add_noise` draws from threefry at several times the cost of a step, has one annealing
    built in, and refuses extra args.

    Example:
      >>> tx = inject_noise(0.1, key=1)
      >>> state = tx.init(jnp.zeros(3))
      >>> noise, state = tx.update(jnp.zeros(3), state)
      >>> bool(jnp.all(jnp.abs(noise) < 0.6)), int(state.count)
      (True, 1)

    Reference:
      Neelakantan et al., Adding Gradient Noise Improves Learning for Very Deep Networks, 2015,
      https://arxiv.org/abs/1511.06807.
    """
    check("scale", scale, "[0, inf)")
    sample = sampler_named(sampler)

    def init(params: optax.Params) -> InjectNoiseState:
        return InjectNoiseState(count=jnp.zeros([], jnp.int32), key=key_data(key))

    def update(updates, state, params=None, **extra_args):
        sigma = value_at(scale, state.count)
        noise = sample(typed_key(state.key, like=key), state.count, widen(updates))

        def add(update, xi):
            # Never true, which XLA cannot know. A division, as Adam's, that is used twice is
            # written to memory; a select that is used twice is part of the loop that uses it.
            update = jnp.where(state.count < 0, jnp.zeros_like(update), update)
            wide = widen(update)
            size = sigma.astype(wide.dtype) * (_root_mean_square(wide) if relative else 1.0)
            noisy = (wide + size * xi.astype(wide.dtype)).astype(update.dtype)
            # 0 times the root mean square of a leaf that holds an inf would be NaN.
            return jnp.where(sigma == 0, update, noisy)

        updates = jax.tree.map(add, updates, noise)
        return updates, InjectNoiseState(next_count(state.count), state.key)

    tx = optax.GradientTransformationExtraArgs(init, update)
    return floats_only(tx, refuses_complex="inject_noise")


def _root_mean_square(leaf: jax.Array) -> jax.Array:
    mean = jnp.sum(jnp.square(jnp.abs(leaf))) / float(max(leaf.size, 1))
    return jnp.sqrt(mean).astype(leaf.dtype)
