"""Search of hyperparameters: many trials of an optimizer as one vmapped program."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from amac_jax._core.aliases import Keywords, Tree, is_function
from amac_jax._core.draws.keys import Key, as_key_data, typed_key
from amac_jax.tools._aligned import aligned
from amac_jax.tools._batches import number_of_batches
from amac_jax.tools._losses import loss_of
from amac_jax.tools._runs import Job, Program, Runs, mean_losses, progress, telling
from amac_jax.tools._space import Axis, axes_of, check_keywords, points_of

RUNGS = 1 / 4, 1 / 2  # of a run, where halving drops trials: together half of the steps


class Sweep(NamedTuple):
    """The result of `sweep`; `print` shows it as a table."""

    trials: list[dict[str, Any]]  # what each trial gave the optimizer, in the order they were made
    scores: np.ndarray  # (trials, seeds) at each trial's last step; NaN or inf where it failed
    steps: np.ndarray  # (trials,) int: how many each of its runs made; fewer where it was dropped
    ranking: np.ndarray  # (trials,) int: numbers of trials, the best first
    space: dict[str, Axis]
    settings: dict[str, Any]  # what every trial gave the optimizer
    higher_is_better: bool

    @property
    def best(self) -> dict[str, Any]:
        """The keyword arguments of the best trial, settings included: `adamw(**found.best)`."""
        return {**self.settings, **self.trials[self.ranking[0]]}

    @property
    def total_steps(self) -> int:
        """The number of steps of all runs together."""
        return int(self.steps.sum()) * self.scores.shape[1]

    def __str__(self) -> str:
        seeds = self.scores.shape[1]
        longest = int(self.steps.max())
        rows = [["score", *self.space, ""]]
        for number in self.ranking:
            row, steps = self.scores[number], self.steps[number]
            failed = int(np.sum(~np.isfinite(row)))
            notes = [f"{failed} of {seeds} failed"] if failed and seeds > 1 else []
            notes += [f"dropped at step {steps}"] if steps < longest else []
            cells = [axis.written(self.trials[number][name]) for name, axis in self.space.items()]
            rows.append([_score(row), *cells, ", ".join(notes)])
        better = "higher" if self.higher_is_better else "lower"
        several = f"{seeds} seeds, mean ± standard deviation" if seeds > 1 else "1 seed"
        head = f"{len(self.trials)} trials of {several}; {better} is better\n"
        return head + aligned(rows)


def sweep(
    loss_fn: Callable[..., Any],
    params: Tree,
    batches: Tree,
    optimizer: Callable[..., optax.GradientTransformation],
    *,
    space: Mapping[str, tuple[Any, ...] | list[Any]],
    trials: int = 32,
    seeds: int = 2,
    steps: int | None = None,
    score_fn: Callable[..., ArrayLike] | None = None,
    higher_is_better: bool = False,
    halving: bool = False,
    width: int | None = None,
    has_aux: bool = False,
    model_state: Tree = None,
    key: Key = 0,
    **settings: Any,
) -> Sweep:
    """The best hyperparameters of an optimizer on a loss function and its data.

    Each trial is a point of the space, run with every seed. With the same seed all trials begin
    with the same weights and see the same batches in the same order. All runs whose chains are the
    same are one vmapped program, on all devices of the process.

    Points of the numeric axes are quasi-random (Halton's sequence, scrambled), so that few of them
    cover the space. Each combination of choices is a program of its own, and has an equal share of
    the trials. A space of choices alone is searched once through, whatever `trials` is.

    With `halving`, the worse half of the trials is dropped at a quarter of the run, and again at
    half of it. All runs together then make half of the steps: n T / 4 + n T / 8 + n T / 8. A trial
    that needs a whole run to show what it is worth may be dropped, as with a high rate that only
    the end of its schedule brings down. Nothing is compiled anew.

    Args:
      loss_fn: a function of parameters and a batch that returns a scalar. One with dropout takes a
        JAX key too, a new one at every step: `loss_fn(params, batch, key)`.
      params: the weights at the start, or a function that makes them from a JAX key, so that each
        seed begins with its own weights.
      batches: a tree of arrays whose first axis counts the batches, or a function that makes a
        batch from a JAX key. Each pass through the arrays takes the batches in a random order.
      optimizer: a function that makes a transformation from keyword arguments: `amac_jax.adamw`,
        `optax.adamw`, or one of your own, such as one that makes a schedule of a peak and a
        warm-up. Numbers of a range reach it as traced arrays, which the schedules of this library
        take and some of Optax's do not. Where it has an argument `key`, each seed gives it another
        one.
      space: keywords of the optimizer, each with `(low, high)`, where numbers are as likely in
        every part of the range; `(low, high, "log")`, where their logarithms are; or a list of
        choices, any Python values, which may change the chain: `[None, 1.0]`. Between two Python
        integers all numbers are whole: `(2, 20)`.
      trials: the number of points, at least 1, or 4 with `halving`.
      seeds: the number of runs of each point, >= 1.
      steps: the number of steps of each run, at least 1, or 4 with `halving`. None is one pass
        through `batches`.
      score_fn: a function of the weights to evaluate, which are averaged where the optimizer
        averages. The best choice is the loss on data not trained on. None is the mean of the loss
        over the last quarter of the steps made so far, which knows nothing of averages.
      higher_is_better: whether a higher score of `score_fn` is better.
      halving: whether the worse half is dropped, twice, by the score of the weights so far.
      width: the number of runs at a time. None is all runs of a program; with `halving` it is a
        quarter of them, and 1 for convolutions on a CPU. When `halving` compares runs, those that
        are not being trained are in the memory of the host.
      has_aux: whether `loss_fn` returns `(loss, aux)`, of which `aux` is left alone.
      model_state: what changes in training beside the weights, such as the statistics of BatchNorm:
        a tree, or a function that makes it from the key that `params` got. Then it is
        `loss_fn(params, model_state, batch) -> (loss, model_state)`, with `has_aux`
        `(loss, (model_state, aux))`, and `score_fn(params, model_state)`. For averaged weights
        moving averages in it are computed anew, from 100 batches at most.
      key: an integer seed or a JAX key, for the points and for the seeds.
      **settings: further keywords of the optimizer, the same for all trials, such as
        `total_steps=1000` of `amac`.

    Returns:
      A `Sweep`. `found.best` has the keyword arguments of the best trial: `adamw(**found.best)`.
      `amac_jax.tools.plotting.plot_sweep` draws it. A trial fails where the score of a seed is not
      finite, and ranks behind all others; a trial that was dropped ranks behind those that were
      not.

    Raises:
      ValueError: for a wrong space, a keyword that the optimizer does not have or needs, an axis
        that the optimizer cannot take as a traced number, an argument outside its range, batches
        without a common first axis, a loss outside the contract; and where all trials fail.

    Example:
      >>> from amac_jax import adamw
      >>> x = jax.random.normal(jax.random.key(0), (20, 8, 3))
      >>> def loss(w, x):
      ...     return jnp.mean((x @ (w - 1.0)) ** 2)
      >>> found = sweep(
      ...     loss, jnp.zeros(3), x, adamw, trials=8,
      ...     space={"learning_rate": (1e-3, 1.0, "log"), "clip_norm": [None, 1.0]},
      ... )
      >>> 0.05 < found.best["learning_rate"] < 1.0
      True
      >>> tx = adamw(**found.best)

    Reference:
      Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter
      Optimization, 2016, https://arxiv.org/abs/1502.07943 (halving).
    """
    axes = axes_of(space)
    if higher_is_better and score_fn is None:
        raise ValueError("higher_is_better needs a score_fn: a lower loss is the better one")
    check_keywords(optimizer, axes, settings, inspect.signature(sweep).parameters)
    if steps is None:
        if is_function(batches):
            raise ValueError("steps must be given where batches is a function, got None")
        steps = number_of_batches(batches)
    least = 4 if halving else 1
    for name, value, low in (
        ("trials", trials, least),
        ("steps", steps, least),
        ("seeds", seeds, 1),
        ("width", 1 if width is None else width, 1),
    ):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < low:
            why = " with halving" if low == 4 else ""
            raise ValueError(f"{name} must be a whole number in [{low}, inf){why}, got {value!r}")
    if not is_function(batches):
        number_of_batches(batches)  # for its errors
    key = typed_key(as_key_data(key), like=key)
    points = points_of(axes, int(trials), np.asarray(jax.random.key_data(key)).ravel())
    if halving and len(points) < least:
        raise ValueError(f"halving needs 4 trials, got {len(points)} combinations of choices")
    for point in points:
        try:
            tx = optimizer(**settings, **point)
        except ValueError as error:
            guilty = [name for name in axes if re.search(rf"\b{name}\b", str(error))]
            if not guilty:
                raise
            raise ValueError(f"space[{guilty[0]!r}] has what is refused: {error}") from error
        if not hasattr(tx, "update"):
            raise ValueError(f"optimizer must make a transformation, got {optimizer!r}")

    job = Job(
        loss=loss_of(loss_fn, takes_state=model_state is not None, has_aux=has_aux),
        params=params,
        model_state=model_state,
        batches=batches,
        optimizer=lambda values, key: optimizer(**values),  # replaced for every program
        steps=int(steps),
        score=score_fn,
    )
    job.check(key)
    stages = [job.steps]
    if halving:
        # Thirds of the run would cost 7/12 of the steps; its quarter and its half cost 1/2.
        stages = [int(job.steps * rung) for rung in RUNGS] + stages
    search = _Search(job, optimizer, axes, settings, points, int(seeds), width, key)
    return search.run(stages, higher_is_better)


class _Parked(NamedTuple):
    runs: list[np.ndarray]
    rows: np.ndarray  # their numbers


class _Search:
    """The programs of a space and the runs in them; run i is seed i % seeds of trial i // seeds."""

    def __init__(
        self,
        job: Job,
        optimizer: Callable[..., optax.GradientTransformation],
        axes: Mapping[str, Axis],
        settings: Keywords,
        points: list[dict[str, Any]],
        seeds: int,
        width: int | None,
        key: jax.Array,
    ) -> None:
        self.job, self.axes, self.settings = job, dict(axes), dict(settings)
        self.points, self.seeds, self.width, self.key = points, seeds, width, key
        self.optimizer = optimizer
        self.numeric = [name for name, axis in axes.items() if axis.choices is None]
        self.takes_key = "key" not in {*axes, *settings} and _takes_key(optimizer)
        self.shared = job.seeds(jax.random.split(key, seeds))
        self.scores = np.full((len(points), seeds), np.nan)
        self.steps = np.zeros(len(points), int)

    def run(self, stages: Sequence[int], higher_is_better: bool) -> Sweep:
        sign = 1 if higher_is_better else -1
        alive, kept = np.arange(len(self.points)), [len(self.points)]
        for _ in stages[1:]:
            kept.append(kept[-1] // 2)
        lengths = np.diff([0, *stages])
        total = self.seeds * int(np.dot(kept, lengths))
        programs = [self._program(trials, len(stages) > 1) for trials in self._by_choice()]
        waiting: list[list[_Parked]] = [[] for _ in programs]
        with progress("sweep", total) as bar:
            for number, stop in enumerate(stages):
                start = stages[number - 1] if number else 0
                last = number == len(stages) - 1
                for index, (program, trials) in enumerate(programs):
                    rows = self._rows(np.intersect1d(trials, alive))
                    before, waiting[index] = waiting[index], []
                    for some in program.groups(len(rows)):
                        runs = self._runs(program, before, rows[some])
                        since = stop - _measured(stop)
                        runs = program.advance(runs, start, stop, since, telling(bar, len(some)))
                        self._score(program, runs, rows[some], stop)
                        if not last:
                            parked = program.park(runs, len(some))
                            waiting[index].append(_Parked(parked, rows[some]))
                self.steps[alive] = stop
                if not np.isfinite(_means(self.scores)).any():
                    raise ValueError(
                        f"not a single trial has a finite score at step {stop}; try lower learning "
                        "rates"
                    )
                if not last:
                    best = [trial for trial in self._ranking(sign) if trial in alive]
                    finite = np.isfinite(_means(self.scores[best]))
                    alive = np.sort(np.asarray(best, int)[finite][: kept[number + 1]])
        return Sweep(
            self.points, self.scores, self.steps, self._ranking(sign), self.axes, self.settings,
            higher_is_better,
        )  # fmt: skip

    def _by_choice(self) -> list[np.ndarray]:
        """The numbers of the trials of each combination of choices."""
        size = math.prod(len(axis.choices) for axis in self.axes.values() if axis.choices)
        combination = np.arange(len(self.points)) * size // len(self.points)
        return [np.flatnonzero(combination == which) for which in range(size)]

    def _program(self, trials: np.ndarray, halving: bool) -> tuple[Program, np.ndarray]:
        choices = {
            name: value
            for name, value in self.points[trials[0]].items()
            if name not in self.numeric
        }

        def build(values, key):
            own = {"key": key} if self.takes_key else {}
            return self.optimizer(**self.settings, **choices, **values, **own)

        job = self.job._replace(optimizer=build)
        self._check_traced(job, trials)
        count = len(trials) * self.seeds
        return Program(job, count, self.width, self.key, parts=4 if halving else 1), trials

    def _rows(self, trials: np.ndarray) -> np.ndarray:
        return (trials[:, None] * self.seeds + np.arange(self.seeds)).ravel()

    def _runs(self, program: Program, before: list[_Parked], rows: np.ndarray) -> Runs:
        if not before:
            return program.begin(self._values(rows // self.seeds), self.shared, rows % self.seeds)
        places = np.concatenate([group.rows for group in before]).tolist()
        return program.resume(
            [group.runs for group in before], np.asarray([places.index(row) for row in rows])
        )

    def _values(self, trials: np.ndarray) -> dict[str, np.ndarray]:
        return {
            name: np.asarray([self.points[trial][name] for trial in trials])
            for name in self.numeric
        }

    def _score(self, program: Program, runs: Runs, rows: np.ndarray, stop: int) -> None:
        if self.job.score is not None:
            found = program.scores(runs)
        else:
            found = mean_losses(runs, _measured(stop))
        self.scores.ravel()[rows] = found[: len(rows)]

    def _ranking(self, sign: int) -> np.ndarray:
        """Numbers of trials, the best first: failed ones last, those that were dropped before."""
        means = _means(self.scores)
        return np.lexsort((-sign * np.nan_to_num(means), -self.steps, ~np.isfinite(means)))

    def _check_traced(self, job: Job, trials: np.ndarray) -> None:
        """Refuses a numeric axis that the optimizer needs as a Python number."""
        point = self.points[trials[0]]

        def fails(traced: Sequence[str]) -> bool:
            fixed = {name: point[name] for name in self.numeric if name not in traced}
            values = {name: jnp.asarray(np.asarray(point[name])) for name in traced}

            def build(values, key):
                return job.optimizer({**fixed, **values}, key)

            try:
                job._replace(optimizer=build).trace(values, self.key)
            except Exception:  # of any kind: which axis causes it is the question, not which error
                return True
            return False

        try:
            job.trace(
                {name: jnp.asarray(np.asarray(point[name])) for name in self.numeric}, self.key
            )
        except Exception as error:
            if fails([]):  # with Python numbers too, so that the range is not to blame
                raise
            guilty = [name for name in self.numeric if fails([name])] or self.numeric
            raise ValueError(
                f"{' and '.join(guilty)} cannot be a range: the optimizer needs a Python number "
                f"({type(error).__name__}); give a list of choices: "
                f'space={{"{guilty[0]}": [{point[guilty[0]]!r}, ...]}}'
            ) from error


def _measured(stop: int) -> int:
    """How many steps before `stop` the mean of the loss is of: a quarter of all so far."""
    return max(1, stop // 4)


def _means(scores: np.ndarray) -> np.ndarray:
    """(trials,): NaN where a seed has no finite score."""
    finite = np.isfinite(scores)
    return np.where(finite.all(axis=1), np.where(finite, scores, 0).mean(axis=1), np.nan)


def _takes_key(optimizer: Callable[..., Any]) -> bool:
    try:
        return "key" in inspect.signature(optimizer).parameters
    except (TypeError, ValueError):
        return False


def _score(row: np.ndarray) -> str:
    if not np.isfinite(row).all():
        return "failed"
    spread = f" ± {row.std(ddof=1):.2g}" if len(row) > 1 else ""
    return f"{row.mean():.4g}{spread}"
