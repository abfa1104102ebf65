"""The published AMaC, step for step, mistakes included: what `amac` is compared with."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from amac_jax.leaves import floats_only
from amac_jax.optimizers.compose import compose
from amac_jax.precision import wide_copy, widen
from amac_jax.samplers import Sampler
from amac_jax.schedules import Schedule, check, check_lengths, next_count, step_number
from amac_jax.transforms.averaging import AverageWeightsState


def amac_reference(
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    mu: float = 0.9,
    eps: float = 1e-8,
    wd: float = 0.01,
    alpha: float = 0.5,
    k: int = 5,
    clip_value: float = 1.0,
    warmup_steps: int = 1000,
    noise_factor: float = 0.01,
    total_steps: int | None = None,
    sampler: str | Sampler = "fast",
    key: Any = 0,
    record_metrics: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The AMaC optimizer as its author published it for PyTorch.

    With t the 1-based number of the step and w = `warmup_steps`:

        eta_t = lr t / w                                     t <= w
        eta_t = lr (1 + cos(pi (t - w) / P)) / 2             after
        g <- g - mean of the whole tensor g
        d <- clip(m_hat / (sqrt(v_hat) + eps) + noise_factor (1 - t / 2w) xi, -c, c)
        v <- mu v - eta_t d
        theta <- (1 - eta_t wd (1 - t / 2w)) theta + v
        every k steps   phi <- alpha phi + (1 - alpha) theta,   theta <- phi

    where the half-period P is 2 w in the first version, and total_steps - w in the second.

    What is wrong in it, kept here and put right in `amac`:
    - noise and decay are scaled by 1 - t / 2w, which turns negative after 2 w steps and grows,
      so that the weights are then pushed outwards;
    - the mean of a whole tensor is subtracted, biases included, which mixes output units and
      leaves a tensor of one element no gradient at all;
    - every weight decays, biases too;
    - mu is not dampened, so that the rate is in effect lr / (1 - mu);
    - the cosine is not stopped at its end: a longer run is warmed up again;
    - averaging starts when the warm-up ends, so it averages early weights, and its loop runs once
      for every tensor: with P tensors each average is of P snapshots a time, half-updated.

    Args:
      lr: the highest learning rate, >= 0.
      beta1: decay of the first moment, in [0, 1).
      beta2: decay of the second moment, in [0, 1).
      mu: momentum, in [0, 1).
      eps: in units of the gradient, >= 0.
      wd: weight decay at the start, >= 0.
      alpha: the share of the slow weights that a synchronisation keeps (1 - `slow_step_size`).
      k: steps between synchronisations and averages, >= 1.
      clip_value: limit on the elements of d, > 0.
      warmup_steps: w, >= 1.
      noise_factor: standard deviation of the noise at the start, >= 0.
      total_steps: None for the first version; its length, > w, for the second.
      sampler: of `inject_noise`.
      key: of `inject_noise`.
      record_metrics: whether to record scalars for `amac_jax.metrics`.

    Returns:
      A transformation, as `compose` returns it, with the average beside it.

    Raises:
      ValueError: for an argument outside its range.

    Do not train with it: it is here to be compared with.

    Example:
      >>> tx = amac_reference(lr=1e-4, clip_value=0.5, noise_factor=0.005, total_steps=9380)
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)

    Reference:
      Johnson, AMaC: Adaptive Momentum and Cosine Annealing, 2024,
      https://github.com/godsonj64/AMaC-Optimizer.
    """
    check("lr", lr, "[0, inf)")
    check("beta1", beta1, "[0, 1)")
    check("beta2", beta2, "[0, 1)")
    check("mu", mu, "[0, 1)")
    check("eps", eps, "[0, inf)")
    check("wd", wd, "[0, inf)")
    check("alpha", alpha, "[0, 1]")
    check("k", k, "[1, inf)", whole=True)
    check("clip_value", clip_value, "(0, inf]")
    check("warmup_steps", warmup_steps, "[1, inf)")
    check("noise_factor", noise_factor, "[0, inf)")
    half_period = 2 * warmup_steps
    if total_steps is not None:
        check_lengths(total_steps, warmup_steps)
        half_period = total_steps - warmup_steps

    def learning_rate(count: Any) -> jax.Array:
        t = step_number(count)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * (t - warmup_steps) / half_period))
        return lr * jnp.where(t <= warmup_steps, t / warmup_steps, cosine)

    def annealed(initial: float) -> Schedule:
        return lambda count: initial * (1.0 - step_number(count) / (2 * warmup_steps))

    center = optax.stateless_with_tree_map(lambda g, _: g - jnp.mean(g))
    steps = compose(
        optax.chain(center, optax.scale_by_adam(b1=beta1, b2=beta2, eps=eps)),
        learning_rate,
        noise=annealed(noise_factor),
        key=key,
        sampler=sampler,
        clip_value=clip_value,
        momentum=mu,
        weight_decay=annealed(wd),
        decay_mask=True,
        sync_period=k,
        slow_step_size=1 - alpha,
        record_metrics=record_metrics,
    )
    return optax.chain(steps, _average_in_the_loop(warmup_steps, k))


def _average_in_the_loop(start: int, period: int) -> optax.GradientTransformationExtraArgs:
    """The published average: taken anew inside the loop over the tensors that updates them.

    When tensor i has been updated, tensors 0 ... i are new and the others still old, and all of
    them are averaged. Of the P snapshots of one step, tensor j is thus old in j and new in P - j.
    """

    def init(params: optax.Params) -> AverageWeightsState:
        zero = jnp.zeros([], jnp.int32)
        return AverageWeightsState(count=zero, averaged=zero + 0, average=wide_copy(params))

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError("amac_reference needs params: tx.update(updates, state, params)")
        step = next_count(state.count)
        due = (step >= start) & (step % period == 0)
        leaves, structure = jax.tree.flatten(params)
        new_leaves = structure.flatten_up_to(
            jax.tree.map(lambda p, u: widen(p) + widen(u), params, updates)
        )
        tensors = len(leaves)

        def fold_in(average):
            def fold(j, mean, old, new):
                n = state.averaged.astype(mean.dtype)
                return (n * mean + j * widen(old) + (tensors - j) * new) / (n + tensors)

            means = structure.flatten_up_to(average)
            return structure.unflatten(map(fold, range(tensors), means, leaves, new_leaves))

        average = jax.lax.cond(due, fold_in, lambda average: average, state.average)
        most = jnp.iinfo(jnp.int32).max - tensors
        averaged = jnp.where(due, jnp.minimum(state.averaged, most) + tensors, state.averaged)
        return updates, AverageWeightsState(count=step, averaged=averaged, average=average)

    return floats_only(optax.GradientTransformationExtraArgs(init, update))
