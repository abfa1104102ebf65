"""Many runs of one training loop as one vmapped program, some at a time, on all devices.

A run is a job with values of its own, such as a learning rate, and a key. `width` runs are one
program of fixed shapes, which is called for a few steps at a time: so there is a progress bar,
and going on with fewer runs, or to another step, compiles nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from amac_jax._core.aliases import Tree, is_function, promoted
from amac_jax._core.leaves import in_dtypes_of
from amac_jax.state import averaged_params
from amac_jax.techniques import AverageWeightsState
from amac_jax.tools._batches import batch_at, number_of_batches, random_order
from amac_jax.tools._losses import Loss, check_loss, check_score

PAUSE = 0.2  # seconds that a program runs at least before the next call of it has more steps
SETTLING = 100  # batches at most from which the model state of averaged weights is computed
UNIFORM = 1e-3  # how far the decays of one moving average may differ from element to element

Values = Mapping[str, Any]
"""Names -> arrays: () for one run, (runs,) for several."""

Tell = Callable[[int], Any]
"""Is called with the number of steps made since the last call."""


class Keys(NamedTuple):
    """What the key of a run is used for."""

    make: jax.Array  # weights and model state
    optimizer: jax.Array
    data: jax.Array
    loss: jax.Array

    @classmethod
    def of(cls, key: jax.Array) -> Keys:
        """All of them new: runs with the same key begin alike and see the same batches."""
        make, optimizer, data = jax.random.split(key, 3)
        return cls(make, optimizer, data, jax.random.fold_in(key, 3))


class Seeds(NamedTuple):
    """One row a seed."""

    keys: jax.Array
    orders: jax.Array  # (seeds, steps): the batch of every step


class Job(NamedTuple):
    """What all runs of a program share."""

    loss: Loss
    params: Tree  # or a function of a key
    model_state: Tree  # or a function of the same key; None where the loss takes none
    batches: Tree  # stacked on the first axis, or a function of a key
    optimizer: Callable[[Values, jax.Array], optax.GradientTransformation]  # (values, key)
    steps: int
    # (weights to evaluate[, model state]) -> (); None is the mean of the loss over the batches.
    score: Callable[..., ArrayLike] | None = None
    keys: Callable[[jax.Array], Keys] = Keys.of

    def start(self, keys: Keys) -> tuple[Tree, Tree]:
        """Weights and model state before the first step."""
        given = self.params, self.model_state
        params, model_state = (tree(keys.make) if is_function(tree) else tree for tree in given)
        return jax.tree.map(jnp.asarray, (params, model_state))

    def data(self) -> Tree:
        """The batches as an argument of programs, lest they become constants."""
        return None if is_function(self.batches) else jax.tree.map(jnp.asarray, self.batches)

    def shapes(self) -> Tree:
        """The shapes of these batches."""
        return None if is_function(self.batches) else jax.tree.map(_shape_of, self.batches)

    def order(self, key: jax.Array) -> jax.Array:
        """The batch of every step: its number, or its key."""
        if is_function(self.batches):
            return jax.random.split(key, self.steps)
        return random_order(key, number_of_batches(self.batches), self.steps)

    def seeds(self, keys: jax.Array) -> Seeds:
        """What the runs with these keys share, whatever their values."""
        orders = jax.jit(jax.vmap(lambda key: self.order(self.keys(key).data)))(keys)
        return Seeds(keys, orders)

    def batch(self, data: Tree, which: jax.Array) -> Tree:
        return self.batches(which) if is_function(self.batches) else batch_at(data, which)

    def check(self, key: jax.Array) -> None:
        """Refuses a loss or a score outside the contract."""
        params, model_state, batch, loss_key = self._arguments(key)
        for path, leaf in jax.tree.leaves_with_path(params):
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                name = jax.tree_util.keystr(path) or "their leaf"
                raise ValueError(f"params must be floating-point, got {leaf.dtype} at {name}")
        check_loss(self.loss, params, model_state, batch, loss_key)
        if self.score is not None:
            check_score(self.score, params, *(model_state,) if self.loss.takes_state else ())

    def trace(self, values: Values, key: jax.Array) -> None:
        """Goes through a step without computing anything, for the errors of the optimizer."""

        def step(values, key, data):
            run = begun(self, values, Seeds(key, self.order(self.keys(key).data)))
            return stepped(self, run, None, jnp.int32(0), jnp.int32(0), data)

        jax.eval_shape(step, values, key, self.shapes())

    def convolves(self, key: jax.Array) -> bool:
        """Whether the loss has convolutions."""
        return "conv_general_dilated" in str(jax.make_jaxpr(self.loss)(*self._arguments(key)))

    def _arguments(self, key: jax.Array) -> tuple[Tree, ...]:
        """The shapes of what the loss takes."""

        def first(key, data):
            keys = self.keys(key)
            return *self.start(keys), self.batch(data, self.order(keys.data)[0]), keys.loss

        return jax.eval_shape(first, key, self.shapes())


class Runs(NamedTuple):
    """Runs on their way: in every array a row a run."""

    values: Values
    keys: Keys
    order: jax.Array  # the batch of every step
    params: Tree
    model_state: Tree
    opt_state: Tree
    total: jax.Array  # the sum of the losses that are being measured


class Program:
    """`width` runs of a job at a time; without a width, `count` runs in so many parts."""

    def __init__(
        self, job: Job, count: int, width: int | None, key: jax.Array, parts: int = 1
    ) -> None:
        self.job = job
        devices = _devices()
        # On a CPU XLA convolves many times as slowly inside a loop, and with many kernels at once.
        self._one_by_one = devices[0].platform == "cpu" and job.convolves(key)
        width = min(width or (1 if self._one_by_one else -(-count // parts)), count)
        self.width = -(-width // len(devices)) * len(devices)
        mesh = Mesh(np.asarray(devices), ("runs",))
        self._by_run = NamedSharding(mesh, PartitionSpec("runs"))
        self._data = jax.device_put(job.data(), NamedSharding(mesh, PartitionSpec()))
        self._begin = self._jitted(jax.vmap(partial(begun, job)))
        self._advance = self._repeated(partial(stepped, job), donate_argnums=0)
        self._settle = self._repeated(partial(settling, job))
        self._score = self._jitted(jax.vmap(partial(scored, job), in_axes=(0, 0, None)))
        self._move = self._jitted(jax.vmap(partial(jax.tree.map, _moved)))

    def groups(self, count: int) -> Iterator[np.ndarray]:
        """The numbers 0 .. count - 1, `width` at a time."""
        return (np.arange(first, count)[: self.width] for first in range(0, count, self.width))

    def begin(self, values: Values, seeds: Seeds, which: np.ndarray) -> Runs:
        """Runs before their first step.

        Args:
          values: arrays of `width` rows or fewer, one a run.
          seeds: some seeds.
          which: the number of the seed of each run.
        """
        rows = self._filled_up(np.arange(len(which)))
        chosen = {name: jnp.asarray(array)[rows] for name, array in values.items()}
        own = jax.tree.map(lambda array: array[which[rows]], seeds)
        return self._begin(*jax.device_put((chosen, own), self._by_run))

    def advance(self, runs: Runs, start: int, stop: int, since: int, tell: Tell) -> Runs:
        """The runs after steps `start` .. `stop` - 1, their losses measured from `since` on.

        Args:
          runs: the runs, which are given away.
          start, stop, since: numbers of steps; the first step is 0.
          tell: hears how many steps each run has made.
        """
        return self._dispatched(self._advance, runs, {}, start, stop, since, tell)

    def scores(self, runs: Runs) -> np.ndarray:
        """The score of each run, of averaged weights where the optimizer averages."""
        states = None
        if self.job.loss.takes_state and averages(runs.opt_state):
            states = runs.model_state, self._move(runs.model_state)
            count = min(self.job.steps, SETTLING)
            states = self._dispatched(self._settle, states, runs, 0, count, 0, lambda steps: None)
        return np.asarray(jax.device_get(self._score(runs, states, self._data)), float)

    def park(self, runs: Runs, count: int) -> list[np.ndarray]:
        """The first runs in the memory of the host; they are given away."""
        leaves, self._structure = jax.tree.flatten(runs)
        self._kinds = [jax.random.key_impl(leaf) if _is_key(leaf) else None for leaf in leaves]
        data = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in leaves]
        return [np.asarray(leaf)[:count] for leaf in data]

    def resume(self, parked: Sequence[list[np.ndarray]], rows: np.ndarray) -> Runs:
        """Some of the runs that are parked, which are counted through all groups."""
        chosen = self._filled_up(rows)
        leaves = [np.concatenate(leaves)[chosen] for leaves in zip(*parked, strict=True)]
        leaves = [
            leaf if kind is None else jax.random.wrap_key_data(jnp.asarray(leaf), impl=kind)
            for leaf, kind in zip(leaves, self._kinds, strict=True)
        ]
        return jax.device_put(jax.tree.unflatten(self._structure, leaves), self._by_run)

    def _filled_up(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([rows, np.full(self.width - len(rows), rows[-1])])

    def _jitted(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return jax.jit(function, out_shardings=self._by_run, **options)

    def _repeated(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """(carry, fixed, start, stop, since, data) -> carry, of a step of one run."""
        step = jax.vmap(function, in_axes=(0, 0, None, None, None))

        def steps(carry, fixed, start, stop, since, data):
            if self._one_by_one:
                return step(carry, fixed, start, since, data)
            return jax.lax.fori_loop(
                start, stop, lambda number, carry: step(carry, fixed, number, since, data), carry
            )

        return self._jitted(steps, **options)

    def _dispatched(self, steps, carry, fixed, start: int, stop: int, since: int, tell: Tell):
        count = 1
        while start < stop:
            began = time.perf_counter()
            count = min(count, stop - start)
            carry = steps(carry, fixed, start, start + count, since, self._data)
            jax.block_until_ready(carry)
            tell(count)
            start += count
            if not self._one_by_one and time.perf_counter() - began < PAUSE:
                count *= 2
        return carry


# One run.


def begun(job: Job, values: Values, seed: Seeds) -> Runs:
    """The run before its first step."""
    keys = job.keys(seed.keys)
    params, model_state = job.start(keys)

    def first_loss(data):
        return job.loss(params, model_state, job.batch(data, seed.orders[0]), keys.loss)[0]

    loss = jax.eval_shape(first_loss, job.shapes())
    total = jnp.zeros((), promoted(loss.dtype, jnp.float32))
    opt_state = job.optimizer(values, keys.optimizer).init(params)
    return Runs(values, keys, seed.orders, params, model_state, opt_state, total)


def stepped(job: Job, run: Runs, _, number: jax.Array, since: jax.Array, data: Tree) -> Runs:
    """The run after step `number`."""
    batch = job.batch(data, run.order[number])
    key = jax.random.fold_in(run.keys.loss, number)

    def loss(params):
        return job.loss(params, run.model_state, batch, key)

    (value, model_state), gradients = jax.value_and_grad(loss, has_aux=True)(run.params)
    tx = optax.with_extra_args_support(job.optimizer(run.values, run.keys.optimizer))
    updates, opt_state = tx.update(
        gradients, run.opt_state, run.params,
        value=value, grad=gradients, value_fn=lambda params: loss(params)[0],
    )  # fmt: skip
    return run._replace(
        params=optax.apply_updates(run.params, updates),
        model_state=model_state,
        opt_state=in_dtypes_of(run.opt_state, opt_state),
        total=jnp.where(number <= since, 0, run.total) + value.astype(run.total.dtype),
    )


def settling(job: Job, states: tuple[Tree, Tree], run: Runs, number: jax.Array, _, data: Tree):
    """Two model states of the weights to evaluate, one batch on."""
    batch = job.batch(data, run.order[number])
    key = jax.random.fold_in(run.keys.loss, number)
    weights = evaluated(run)
    after = [job.loss(weights, state, batch, key)[1] for state in states]
    return after[0], after[1]


def scored(job: Job, run: Runs, states: tuple[Tree, Tree] | None, data: Tree) -> jax.Array:
    """The score of the run so far; with the states that `settling` has left, of averages."""
    weights, state = evaluated(run), run.model_state
    if states is not None:
        state = jax.tree.map(_settled, run.model_state, *states)
    if job.score is not None:
        rest = (state,) if job.loss.takes_state else ()
        return jnp.asarray(job.score(weights, *rest))

    def loss(number):
        key = jax.random.fold_in(run.keys.loss, number)
        return job.loss(weights, state, batch_at(data, number), key)[0]

    return jnp.mean(jax.lax.map(loss, jnp.arange(number_of_batches(data))))


def averages(opt_state: Tree) -> bool:
    """Whether the optimizer averages weights."""

    def is_average(node):
        return isinstance(node, AverageWeightsState)

    return any(map(is_average, jax.tree.leaves(opt_state, is_leaf=is_average)))


def evaluated(run: Runs) -> Tree:
    """The weights to evaluate, in the structure of the parameters."""
    if not averages(run.opt_state):
        return run.params
    leaves = jax.tree.leaves(averaged_params(run.opt_state, run.params))
    return jax.tree.unflatten(jax.tree.structure(run.params), leaves)


def _shape_of(leaf: ArrayLike) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _moved(leaf: jax.Array) -> jax.Array:
    """A second start for a moving average, from which its decay can be seen."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return leaf + jnp.maximum(1, jnp.max(jnp.abs(leaf), initial=0)).astype(leaf.dtype)


def _settled(old: jax.Array, new: jax.Array, moved: jax.Array) -> jax.Array:
    """A leaf of model state without its share of the old one, which belongs to other weights.

    A moving average of decay m keeps the share r = m^n of its start through n batches, and a start
    that is moved shows how much that is:

        r = (moved - new) / (moved start - old),    (new - r old) / (1 - r)

    What is not a moving average stays as the batches left it.
    """
    if not jnp.issubdtype(old.dtype, jnp.floating) or not old.size:
        return new
    wide = promoted(old.dtype, jnp.float32)
    old, start, new, moved = (x.astype(wide) for x in (old, _moved(old), new, moved))
    shares = (moved - new) / (start - old)
    share = jnp.mean(shares)
    is_average = (jnp.max(shares) - jnp.min(shares) < UNIFORM) & (share > -UNIFORM) & (share < 0.99)
    settled = jnp.where(is_average, (new - share * old) / jnp.where(is_average, 1 - share, 1), new)
    return settled.astype(old.dtype)


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _devices() -> list[Any]:
    """All devices of this process, or the one that `jax.default_device` names."""
    if getattr(jax.config, "jax_default_device", None) is not None:
        return list(jnp.zeros(()).devices())
    return jax.local_devices()


class Measured(NamedTuple):
    """What the runs of a job have come to."""

    scores: np.ndarray  # (runs,); empty if they are not scored
    losses: np.ndarray  # (runs,): means over the last steps


def run_all(
    job: Job,
    values: Values,
    keys: jax.Array,
    which: np.ndarray,
    *,
    width: int | None,
    name: str,
    last: int,
    scored: bool = True,
) -> Measured:
    """All runs from their first step to their last, `width` of them at a time.

    Args:
      job: what is run.
      values: the values of the runs, (runs,) each.
      keys: the keys of the seeds, (seeds,).
      which: the number of the seed of each run, (runs,).
      width: the number of runs at a time; None is all of them.
      name: what the progress bar says.
      last: the number of steps over which losses are averaged.
      scored: whether the runs are scored.
    """
    program, seeds = Program(job, len(which), width, keys[0]), job.seeds(keys)
    scores, losses = [], []
    with progress(name, len(which) * job.steps) as bar:
        for rows in program.groups(len(which)):
            own = {name: array[rows] for name, array in values.items()}
            runs = program.begin(own, seeds, which[rows])
            tell = telling(bar, len(rows))
            runs = program.advance(runs, 0, job.steps, job.steps - last, tell)
            losses.append(mean_losses(runs, last)[: len(rows)])
            if scored:
                scores.append(program.scores(runs)[: len(rows)])
    return Measured(np.concatenate(scores) if scored else np.empty(0), np.concatenate(losses))


def mean_losses(runs: Runs, steps: int) -> np.ndarray:
    """The mean of the losses that were measured in so many steps."""
    return np.asarray(jax.device_get(runs.total), float) / steps


def telling(bar: Tell, runs: int) -> Tell:
    """Counts the steps of so many runs."""
    return lambda steps: bar(steps * runs)


@contextmanager
def progress(name: str, total: int) -> Iterator[Tell]:
    """A progress bar on a terminal, where tqdm is installed."""
    try:
        from tqdm import tqdm  # here, because it is in an extra
    except ImportError:
        yield lambda steps: None
        return
    with tqdm(
        total=total, desc=name, unit="step", unit_scale=True, leave=False, disable=None
    ) as bar:
        yield bar.update
