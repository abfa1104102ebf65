"""Noise injection, with a counter-based generator that costs next to nothing."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Observation, Stage, Step, technique
from amac_jax._core.draws import Sampler, sampler_named
from amac_jax._core.draws.keys import Key, as_key_data, check_key, typed_key
from amac_jax._core.hyperparameters import Hyperparameter
from amac_jax._core.leaves import each_leaf
from amac_jax._core.measures import Measure
from amac_jax._core.ranges import NON_NEGATIVE
from amac_jax._core.xla import opaque_zero


class InjectNoiseState(NamedTuple):
    """A copy of the key."""

    key: jax.Array  # uint32, (2,) for threefry: key data, which any serializer can store


@technique(scale=NON_NEGATIVE)
def inject_noise(
    scale: Hyperparameter,
    *,
    key: Key = 0,
    relative: bool = False,
    sampler: str | Sampler = "fast",
) -> Stage:
    """Adds fresh noise to every element at every step.

        d <- d + sigma xi,   E xi = 0, E xi^2 = 1

    The noise is a function of key, step, leaf and position in the leaf alone. It is the same on
    any number of devices, under any sharding, and after a restart.

    Place it after the core, where sigma is in units of the learning rate, or before the core, to
    perturb gradients.

    Args:
      scale: sigma, in the unit of the updates where it stands; >= 0. Off: 0.
      key: an integer seed or a JAX key, typed or raw.
      relative: whether sigma is in units of the root mean square of each leaf.
      sampler: one of

        - "fast": nearly normal and nearly free (`fast_normal` in `amac_jax._core.draws`).
        - "gaussian": normal (`gaussian` in `amac_jax._core.draws`).
        - "threefry":
          `optax.tree.random_like(jax.random.fold_in(key, count), like, jax.random.normal)`.
        - a function (key, count, like) -> noise, a tree shaped as `like`. It receives the typed
          key, the number of updates made before this one, and the updates.

    Returns:
      A transformation whose updates have the shapes and dtypes it is given.
      State: `CountedState` around `InjectNoiseState`.

    Raises:
      ValueError: for a negative, infinite or NaN scale, an unknown sampler, or a key that is
        neither a seed nor a JAX key; from `init`, for complex parameters.

    Differs from Optax:
      `optax.add_noise` draws from threefry at several times the cost of a step. One annealing is
      built into it, and it refuses extra args.

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
    sample = sampler_named(sampler)
    check_key(key)

    def init(params: Tree) -> InjectNoiseState:
        return InjectNoiseState(as_key_data(key))

    def update(updates: Tree, state: InjectNoiseState, params: Tree, step: Step):
        def noisy(update: jax.Array, xi: jax.Array, scale: jax.Array) -> jax.Array:
            # The condition is never true, but XLA cannot know this. A division that is used twice,
            # such as Adam's, is written to memory. A select that is used twice is not: it becomes
            # part of each loop that uses it.
            update = jnp.where(opaque_zero(step.count) < 0, jnp.zeros_like(update), update)
            size = scale * (root_mean_square(update) if relative else 1.0)
            # The root mean square of a leaf with an inf is inf, and 0 times inf is NaN.
            return jnp.where(scale == 0, update, update + size * xi)

        noise = sample(typed_key(state.key, like=key), step.count, updates)
        return each_leaf(noisy, updates, noise, scale=step.scale), state

    def metrics(seen: Observation) -> dict[str, Measure]:
        return {"noise_scale": seen.step.scale}

    return Stage(update, init, refuses_complex=True, metrics=metrics)


def root_mean_square(leaf: jax.Array) -> jax.Array:
    """The root of the mean of |x|^2 over a leaf, of shape () and in its dtype."""
    mean = jnp.sum(jnp.square(jnp.abs(leaf))) / float(max(leaf.size, 1))
    return jnp.sqrt(mean).astype(leaf.dtype)
