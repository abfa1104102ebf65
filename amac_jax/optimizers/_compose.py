"""The pipeline: one core, and the techniques around it in one fixed order."""

from __future__ import annotations

from typing import Unpack

import optax

from amac_jax._core.aliases import Keywords
from amac_jax._core.boundary import Stage, stage_of, transformation
from amac_jax._core.chain import chain
from amac_jax._core.hyperparameters import Hyperparameter
from amac_jax._core.ranges import ABOVE_ONE, COUNT, check
from amac_jax.optimizers._keywords import check_companions, takes_techniques
from amac_jax.techniques import RANGES, TECHNIQUES, Techniques
from amac_jax.wrappers import skip_nonfinite, skip_spikes


@takes_techniques()
def compose(
    core: optax.GradientTransformation,
    learning_rate: Hyperparameter,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """Builds an optimizer: a core, and the techniques around it that are asked for.

        g -> clip by global norm -> centralize -> core -> noise -> clip by value -> times -eta_t
          -> heavy ball -> weight decay -> layer multipliers -> plateau -> lookahead
          -> averaging -> u
        theta <- theta + u

    A technique left at None is not in the chain and has no state. A technique at its off value is
    in the chain, has its state, and is the identity. Everything is computed in at least float32.

    The table of techniques, with their equations and ranges, is `amac_jax.techniques.TECHNIQUES`.

    `fan_in_axes` decides for `centralize` and for the leaves that decay. With `plateau`, `update`
    needs the extra arg of the plateau, `value`. `state_dtype` is for the state of the core,
    momentum, lookahead and averaging: the state of AMaC then takes 8 bytes a parameter (see
    `store_state_in`). `skip_nonfinite` is `amac_jax.skip_nonfinite`. Without it a NaN or infinity
    stays in its leaf, except where a core reads all leaves.

    Args:
      core: any `optax.scale_by_*`, a core of ours such as `scale_by_radam`, or `optax.identity()`.
        An optimizer is refused: its updates point against the gradient already.
      learning_rate: eta, a number, an array or a schedule; >= 0.
      **techniques: None leaves a technique out.
        clip_norm: limit on the gradients' global norm. Off: inf. See `clip_by_global_norm`.
        centralize: share of its mean that a gradient loses; True is 1. Off: 0. See `centralize`.
        fan_in_axes: rule for kernels and their fan-in axes. None is `amac_jax.fan_in_axes`.
        noise: standard deviation, in units of the learning rate. Off: 0. See `inject_noise`.
        key: an integer seed or a JAX key, for noise and for rounding, which draw different bits.
        sampler: the name of a generator of noise, or a function. See `inject_noise`.
        relative_noise: whether `noise` is in units of each leaf's root mean square.
        clip_value: limit on each element of the core's output. Off: inf. See `clip_by_value`.
        momentum: decay of momentum on updates. Off: 0, with `dampening` 0. See `heavy_ball`.
        dampening: share of an update that momentum leaves out. Off: 0.
        weight_decay: lambda; steps remove eta_t lambda_t of a weight. Off: 0. See `decay_weights`.
        cautious_decay: share of its decay that a weight is spared where its update does not shrink
          it; True is 1. Off: None or 0.
        decay_floor: share of its first norm below which decay never takes a leaf. Off: None or 0.
        decay_mask: which leaves decay. None is kernels by `fan_in_axes`, True is every leaf.
        layer_multipliers: factors of updates by path, decay included. Off: 1. See `scale_by_layer`.
        plateau: a transformation that scales updates by a metric, as `reduce_on_plateau()` does.
        sync_period: steps between synchronizations with slow weights. See `lookahead`.
        slow_step_size: share of the way that slow weights go to the fast ones. Off: 1, without
          `slow_momentum`.
        slow_momentum: decay of Nesterov's momentum on the slow weights' steps. Off: None or 0.
        average_start: the first step whose weights are averaged. Off: inf. See `average_weights`.
        average_period: steps between two weights that are averaged.
        average_decay: decay of a moving average of weights. Off: None or 1, the plain mean.
        state_dtype: "bfloat16" stores state in it, rounded at random. Off: None or "float32".
        skip_nonfinite: whether a step with a NaN or infinite gradient changes only a counter.
        skip_spikes: factor of the usual norm of the gradients above which a step changes only
          counters, as does one with a NaN. Off: None or inf. See `skip_spikes`.
        record_metrics: whether to record scalars for `amac_jax.metrics`; a number n records them at
          the first step and every n-th.

    Returns:
      A transformation whose updates have the shapes and dtypes of the gradients. Integers and bools
      among the parameters have updates of 0. Other leaves that are not trained, such as keys, get
      their gradients back. State: `CountedState(count, ComposeState(last_learning_rate, metrics,
      stages))`. `stages` has the states of the core, the learning rate and the techniques, in the
      order of the pipeline. With `skip_nonfinite` it is all inside `optax.ApplyIfFiniteState`, with
      `skip_spikes` inside `SkipSpikesState`.

    Raises:
      TypeError: for an unknown keyword; the message names the nearest one, if there is one.
      ValueError: for a hyperparameter outside its range, with its name and value; for another
        `state_dtype`; for a keyword whose technique is not in the chain; for an optimizer in the
        place of the core: from `compose` if it is ours, from `init` if it is a foreign one that
        can be tried there; from `init`, for complex parameters with `noise` or `clip_value`; from
        `update` without `params`, where a technique needs them.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> tx = compose(optax.scale_by_adam(), 0.1, centralize=True, sync_period=5)
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> gradients = jax.tree.map(jnp.ones_like, params)
      >>> updates, state = tx.update(gradients, state, params)
      >>> updates["bias"].round(3)
      Array([-0.1, -0.1], dtype=float32)
    """
    check("learning_rate", learning_rate, RANGES["learning_rate"])
    stages = stages_of({"core": core, "learning_rate": learning_rate, **techniques})
    factor = techniques.get("skip_spikes")
    if factor is not None:
        check("skip_spikes", factor, ABOVE_ONE)
    every = techniques.get("record_metrics")
    if isinstance(every, bool):
        every = 1 if every else None
    elif every is not None:
        check("record_metrics", every, COUNT)
    tx = transformation(chain(stages, learning_rate, record_every=every))
    if techniques.get("skip_nonfinite"):
        tx = skip_nonfinite(tx)
    return tx if factor is None else skip_spikes(tx, factor)


def stages_of(given: Keywords) -> list[Stage]:
    """The core and the techniques of these keywords of `compose`, in the order of the pipeline."""
    for name, allowed in RANGES.items():
        value = given.get(name)
        if value is not None and value is not False:
            check(name, value, allowed)
    check_companions(given)
    stage_of(given["core"], "core")  # for its errors
    return [row.stage(given) for row in TECHNIQUES if row.is_in(given)]
