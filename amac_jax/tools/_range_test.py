"""The learning-rate range test: the loss after a few steps at each of many rates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from amac_jax._core.aliases import Tree
from amac_jax._core.draws.keys import Key, as_key_data, typed_key
from amac_jax._core.objective import check_objective
from amac_jax.optimizers import adam
from amac_jax.tools._batches import batch_at, number_of_batches, random_order


class RangeTest(NamedTuple):
    """The result of `lr_range_test`."""

    learning_rates: np.ndarray  # (number,)
    losses: np.ndarray  # (number,) at the end of each run; not finite where the run diverged
    start: float  # the loss of the same batches before the first step
    suggestion: float  # a peak learning rate; NaN if not a single run lowered the loss


def lr_range_test(
    loss_fn: Callable[[Tree, Tree], jax.Array],
    params: Tree,
    batches: Tree,
    *,
    optimizer: Callable[[jax.Array], optax.GradientTransformation] | None = None,
    low: float = 1e-5,
    high: float = 1.0,
    number: int = 31,
    steps: int = 100,
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
      loss_fn: a function of parameters and a batch that returns a scalar.
      params: the weights at the start of every run.
      batches: a tree of arrays whose first axis counts the batches; each pass goes through the
        batches in a random order.
      optimizer: a function from a learning rate, which is traced, to a transformation; None is
        `adam`.
      low, high: the least and the largest rate, 0 < low < high.
      number: the number of rates, >= 2. All runs are in memory at once, which takes `number`
        times the memory of the parameters and the state.
      steps: the number of steps of each run, >= 4.
      key: an integer seed or a JAX key for the order of the batches.

    Returns:
      A `RangeTest`; `amac_jax.tools.plotting.plot_range_test` draws it.

    Raises:
      ValueError: for an argument outside its range, batches without a common first axis, or a
        loss that is not a scalar.

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
    for name, value, least in (("number", number, 2), ("steps", steps, 4)):
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} must be a whole number in [{least}, inf), got {value!r}")
    size = number_of_batches(batches)

    def loss_of_first(params):
        return loss_fn(params, batch_at(batches, 0))

    check_objective(loss_of_first, params, "lr_range_test", name="loss_fn")
    rates = np.geomspace(low, high, number)
    order = random_order(typed_key(as_key_data(key), like=key), size, int(steps))
    start, losses = jax.device_get(
        _losses(loss_fn, optimizer or adam, params, batches, order, jnp.asarray(rates))
    )
    return RangeTest(rates, losses, float(start), _suggestion(rates, float(start) - losses))


@partial(jax.jit, static_argnums=(0, 1))
def _losses(loss_fn, optimizer, params, batches, order, rates):
    """The mean loss over the last quarter's batches: before the first step, and within each run."""
    measured = order[-(len(order) // 4) :]

    def run(rate):
        tx = optax.with_extra_args_support(optimizer(rate))

        def step(carry, index):
            params, state = carry

            def value_fn(params):
                return loss_fn(params, batch_at(batches, index))

            value, gradients = jax.value_and_grad(value_fn)(params)
            updates, state = tx.update(gradients, state, params, value=value, value_fn=value_fn)
            return (optax.apply_updates(params, updates), state), value

        _, values = jax.lax.scan(step, (params, tx.init(params)), order)
        return jnp.mean(values[-len(measured) :])

    start = jnp.mean(jax.lax.map(lambda index: loss_fn(params, batch_at(batches, index)), measured))
    return start, jax.vmap(run)(rates)


def _suggestion(rates: np.ndarray, falls: np.ndarray) -> float:
    falls = np.where(np.isfinite(falls), falls, -np.inf)
    if not falls.max() > 0:
        return float("nan")
    return float(np.exp(np.log(rates[falls >= 0.9 * falls.max()]).mean()))
