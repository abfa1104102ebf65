"""The published AMaC, step for step, mistakes included: the reference for `amac`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Stage, Step, technique
from amac_jax._core.draws import Sampler
from amac_jax._core.draws.keys import Key
from amac_jax._core.hyperparameters import Count, Schedule, next_count, step_number
from amac_jax._core.leaves import copied
from amac_jax._core.ranges import AT_LEAST_ONE as LENGTH
from amac_jax._core.ranges import COUNT, DECAY, LIMIT, NON_NEGATIVE, UNIT, checked
from amac_jax._core.xla import only_when
from amac_jax.optimizers._compose import compose
from amac_jax.optimizers._keywords import core_of
from amac_jax.schedules import warmup_cosine
from amac_jax.techniques import AverageWeightsState


@checked(
    lr=NON_NEGATIVE, beta1=DECAY, beta2=DECAY, mu=DECAY, eps=NON_NEGATIVE, wd=NON_NEGATIVE,
    alpha=UNIT, k=COUNT, clip_value=LIMIT, warmup_steps=LENGTH, noise_factor=NON_NEGATIVE,
)  # fmt: skip
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
    key: Key = 0,
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

    The half-period P is 2 w in the first version, and total_steps - w in the second.

    These mistakes of the published code are kept here and put right in `amac`:
    - Noise and decay are scaled by 1 - t / 2w. This factor turns negative after 2 w steps and grows
      in size: the weights are then pushed outwards.
    - The mean of a whole tensor is subtracted, from biases too. This mixes output units and leaves
      a tensor of one element without a gradient.
    - Every weight decays, biases too.
    - mu is not dampened: the rate is in effect lr / (1 - mu).
    - The cosine does not stop at its end: a longer run is warmed up again.
    - Averaging starts when the warm-up ends, so it averages early weights. Its loop runs once for
      every tensor: with N tensors each average takes in N half-updated snapshots at a time.

    Args:
      lr: the highest learning rate, >= 0.
      beta1: decay of the first moment, in [0, 1).
      beta2: decay of the second moment, in [0, 1).
      mu: momentum, in [0, 1).
      eps: in units of the gradient, >= 0.
      wd: weight decay at the start, >= 0.
      alpha: the share of the slow weights that a synchronization keeps, 1 - `slow_step_size`; in
        [0, 1].
      k: steps between synchronizations and between averages, >= 1.
      clip_value: limit on the elements of d, > 0.
      warmup_steps: w, in steps, >= 1.
      noise_factor: standard deviation of the noise at the start, >= 0.
      total_steps: None is the first version. A number is the second version, with the length of
        the run, > w.
      sampler: see `inject_noise`.
      key: see `inject_noise`.
      record_metrics: whether to record scalars for `amac_jax.metrics`.

    Returns:
      A transformation, as `compose` returns it, and the average after it. State: a tuple of their
      two states; the second is `CountedState` around `AverageWeightsState`.

    Raises:
      ValueError: for an argument outside its range.

    When not to use:
      Do not train with it: it is here for comparisons.

    Example:
      >>> tx = amac_reference(lr=1e-4, clip_value=0.5, noise_factor=0.005, total_steps=9380)
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)

    Reference:
      Johnson, AMaC: Adaptive Momentum and Cosine Annealing, 2024,
      https://github.com/godsonj64/AMaC-Optimizer.
    """
    half_period = 2 * warmup_steps
    if total_steps is not None:
        warmup_cosine(lr, total_steps, warmup_steps)  # for its errors
        half_period = total_steps - warmup_steps

    def learning_rate(count: Count) -> jax.Array:
        t = step_number(count)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * (t - warmup_steps) / half_period))
        return lr * jnp.where(t <= warmup_steps, t / warmup_steps, cosine)

    def annealed(initial: float) -> Schedule:
        return lambda count: initial * (1.0 - step_number(count) / (2 * warmup_steps))

    center = optax.stateless_with_tree_map(lambda g, _: g - jnp.mean(g))
    steps = compose(
        core_of(optax.chain, center, optax.scale_by_adam(b1=beta1, b2=beta2, eps=eps)),
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


@technique()
def _average_in_the_loop(start: int, period: int) -> Stage:
    """The published average, which is taken again after every tensor.

    The published loop updates one tensor at a time and then averages all of them. When tensor i has
    been updated, tensors 0 ... i are new and the others are still old. A step with N tensors thus
    has N snapshots: tensor j is old in j of them and new in N - j.
    """

    def init(params: Tree) -> AverageWeightsState:
        return AverageWeightsState(jnp.zeros([], jnp.int32), copied(params), None)

    def update(updates: Tree, state: AverageWeightsState, params: Tree, step: Step):
        number = next_count(step.count)
        due = (number >= start) & (number % period == 0)
        leaves, structure = jax.tree.flatten(params)
        new_leaves = structure.flatten_up_to(jax.tree.map(jnp.add, params, updates))
        tensors = len(leaves)

        def fold_in(average: Tree) -> Tree:
            def fold(j: int, mean: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
                n = state.averaged.astype(mean.dtype)
                return (n * mean + j * old + (tensors - j) * new) / (n + tensors)

            means = structure.flatten_up_to(average)
            return structure.unflatten(map(fold, range(tensors), means, leaves, new_leaves))

        average = only_when(due, fold_in, state.average)
        most = jnp.iinfo(jnp.int32).max - tensors
        averaged = jnp.where(due, jnp.minimum(state.averaged, most) + tensors, state.averaged)
        return updates, state._replace(averaged=averaged, average=average)

    return Stage(update, init, needs_params=True)
