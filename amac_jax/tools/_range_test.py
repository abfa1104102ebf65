"""The learning-rate range test: the loss after a few steps at each of many rates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from amac_jax._core.aliases import Tree, is_function
from amac_jax._core.draws.keys import Key, as_key_data, typed_key
from amac_jax.optimizers import adam
from amac_jax.tools._batches import number_of_batches
from amac_jax.tools._losses import loss_of
from amac_jax.tools._runs import Job, Keys, run_all


class RangeTest(NamedTuple):
    """The result of `lr_range_test`."""

    learning_rates: np.ndarray  # (number,)
    losses: np.ndarray  # (number,) at the end of each run; not finite where the run diverged
    start: float  # the loss of the same batches before the first step
    suggestion: float  # a peak learning rate; NaN if not a single run lowered the loss


def lr_range_test(
    loss_fn: Callable[..., Any],
    params: Tree,
    batches: Tree,
    *,
    optimizer: Callable[[jax.Array], optax.GradientTransformation] | None = None,
    low: float = 1e-5,
    high: float = 1.0,
    number: int = 31,
    steps: int = 100,
    width: int | None = None,
    has_aux: bool = False,
    model_state: Tree = None,
    key: Key = 0,
) -> RangeTest:
    """The loss after a few steps at each of many learning rates, as one vmapped program.

        eta_i = low (high / low)^(i / (number - 1)),   i = 0 .. number - 1
        losses_i = mean of loss_fn(theta, batch) over the last quarter of `steps` steps at eta_i

    Every rate has its own run, from the same weights and through the same batches. Smith raises
    the rate within one run instead, so that each loss also depends on all smaller rates before it.

    The suggestion is the geometric mean of the rates whose fall of the loss is at least nine
    tenths of the largest fall. It lies in the middle of the bottom of the curve, away from the
    steep right edge, and is meant for the peak of a schedule with warm-up. Take it as a first
    value to try: a short run cannot show effects that need many steps.

    Args:
      loss_fn: a function of parameters and a batch that returns a scalar. One with dropout takes a
        JAX key too, a new one at every step: `loss_fn(params, batch, key)`.
      params: the weights at the start of every run, or a function that makes them from a JAX key.
      batches: a tree of arrays whose first axis counts the batches, or a function that makes a
        batch from a JAX key. Each pass through the arrays takes the batches in a random order.
      optimizer: a function from a learning rate, which is traced, to a transformation; None is
        `adam`.
      low, high: the least and the largest rate, 0 < low < high.
      number: the number of rates, >= 2.
      steps: the number of steps of each run, >= 4.
      width: the number of runs at a time; None is all of them, which takes `number` times the
        memory of the parameters and the state, and 1 for convolutions on a CPU.
      has_aux: whether `loss_fn` returns `(loss, aux)`, of which `aux` is left alone.
      model_state: what changes in training beside the weights, such as the statistics of BatchNorm:
        a tree, or a function that makes it from the key that `params` got. Then it is
        `loss_fn(params, model_state, batch) -> (loss, model_state)`, with `has_aux`
        `(loss, (model_state, aux))`.
      key: an integer seed or a JAX key, for the order of the batches and all that is random.

    Returns:
      A `RangeTest`; `amac_jax.tools.plotting.plot_range_test` draws it. Its `suggestion` is NaN if
      not a single rate lowers the loss. One near `low` or `high` says that the range is too narrow.

    Raises:
      ValueError: for an argument outside its range, batches without a common first axis, or a
        loss outside the contract.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (20, 8, 4))
      >>> def loss(w, x):
      ...     return jnp.mean((x @ (w - 1.0)) ** 2)
      >>> found = lr_range_test(loss, jnp.zeros(4), x)
      >>> 0.01 < found.suggestion < 0.5
      True

    Reference:
      Smith, Cyclical Learning Rates for Training Neural Networks, 2017,
      https://arxiv.org/abs/1506.01186.
    """
    if not 0 < low < high < np.inf:
        raise ValueError(f"low and high must be 0 < low < high < inf, got {low!r} and {high!r}")
    for name, value, least in (("number", number, 2), ("steps", steps, 4), ("width", width, 1)):
        if value is not None and (not isinstance(value, int | np.integer) or value < least):
            raise ValueError(f"{name} must be a whole number in [{least}, inf), got {value!r}")
    if not is_function(batches):
        number_of_batches(batches)  # for its errors
    build = adam if optimizer is None else optimizer
    if hasattr(build, "update") or not callable(build):
        raise ValueError(
            "optimizer must be a function from a learning rate to a transformation, such as "
            f"amac_jax.adamw without its brackets, got {build!r}"
        )
    job = Job(
        loss=loss_of(loss_fn, takes_state=model_state is not None, has_aux=has_aux),
        params=params,
        model_state=model_state,
        batches=batches,
        optimizer=lambda values, key: build(values["learning_rate"]),
        steps=int(steps),
        keys=_keys,
    )
    key = typed_key(as_key_data(key), like=key)
    job.check(key)
    last = job.steps // 4
    rates = np.geomspace(low, high, number)
    values, which = {"learning_rate": jnp.asarray(rates)}, np.zeros(number, int)
    found = run_all(
        job, values, key[None], which, width=width, name="lr_range_test", last=last, scored=False
    )
    start = float(jax.jit(partial(_loss_at_start, job, last))(job.data(), key))
    return RangeTest(rates, found.losses, start, _suggestion(rates, start - found.losses))


def _keys(key: jax.Array) -> Keys:
    """The order of the batches comes from the key itself."""
    others = jax.random.split(jax.random.fold_in(key, 0), 2)
    return Keys(make=others[0], optimizer=key, data=key, loss=others[1])


def _loss_at_start(job: Job, last: int, data: Tree, key: jax.Array) -> jax.Array:
    """The mean loss of the batches that the runs are measured on, before the first step."""
    keys = job.keys(key)
    params, model_state = job.start(keys)
    order = job.order(keys.data)

    def loss(number):
        batch, key = job.batch(data, order[number]), jax.random.fold_in(keys.loss, number)
        return job.loss(params, model_state, batch, key)[0]

    return jnp.mean(jax.lax.map(loss, jnp.arange(job.steps - last, job.steps)))


def _suggestion(rates: np.ndarray, falls: np.ndarray) -> float:
    falls = np.where(np.isfinite(falls), falls, -np.inf)
    if not falls.max() > 0:
        return float("nan")
    return float(np.exp(np.log(rates[falls >= 0.9 * falls.max()]).mean()))
