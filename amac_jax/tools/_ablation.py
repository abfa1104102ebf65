"""Ablation: the effect of each of AMaC's techniques on a loss function of your own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from amac_jax._core.hyperparameters import Hyperparameter, value_at
from amac_jax._core.objective import check_objective
from amac_jax._core.random.keys import Key, as_key_data, typed_key
from amac_jax._core.ranges import POSITIVE, check
from amac_jax._core.types import Tree, is_function
from amac_jax.optimizers import AUTO_SHARES, amac, auto_weight_decay
from amac_jax.state import averaged_params
from amac_jax.techniques import TECHNIQUES as ROWS
from amac_jax.tools._batches import batch_at, number_of_batches, random_order


class Switch(NamedTuple):
    """A technique as a keyword of `amac` with two values."""

    keyword: str
    on: float | str  # used only where AMaC has the technique off; else AMaC's own value is used
    off: float


TECHNIQUES = {  # named by the keyword that puts the technique into `amac`
    **{
        row.keyword: Switch(keyword, row.trial or amac.defaults[keyword], off)  # pyright: ignore
        for row in ROWS
        for keyword, off in [*row.off.items()][:1]
        if row.trial or keyword in amac.defaults  # pyright: ignore[reportFunctionMemberAccess]
    },
    "warmup_steps": Switch("warmup_steps", "auto", 0.0),
    "end_ratio": Switch("end_ratio", 0.3, 1.0),
}
KEYWORDS = tuple(switch.keyword for switch in TECHNIQUES.values())


class Effect(NamedTuple):
    """The effect of a technique in units of the score, positive where the technique helps."""

    technique: str
    around: str  # "amac": all else as in AMaC; "adam": the technique alone on top of Adam
    mean: float  # the mean effect over the seeds
    half_width: float  # half the width of Student's 95 % confidence interval, paired by seed
    p: float  # two-sided paired t-test, not corrected for the number of techniques


class Ablation(NamedTuple):
    """The scores of every variant, and the effects computed from them."""

    scores: dict[str, np.ndarray]  # "amac", "amac without noise", "adam with noise"...: (seeds,)
    effects: list[Effect]  # two for every technique
    failed: dict[str, int]  # the number of runs without a finite score, for variants with any

    def __str__(self) -> str:
        means = [f"{name} {np.mean(self.scores[name]):.4g}" for name in ("adam", "amac")]
        rows = [["technique", "added to adam", "p", "in amac", "p"]]
        named = {(effect.technique, effect.around): effect for effect in self.effects}
        for technique in dict.fromkeys(effect.technique for effect in self.effects):
            cells = [technique]
            for around in ("adam", "amac"):
                effect = named[technique, around]
                cells += [f"{effect.mean:+.4g} ± {effect.half_width:.2g}", f"{effect.p:.2g}"]
            rows.append(cells)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        head = f"mean score: {', '.join(means)}; effects are positive where a technique helps\n"
        return head + "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def ablate(
    loss_fn: Callable[[Tree, Tree], jax.Array],
    params: Tree,
    batches: Tree,
    *,
    learning_rate: float = 5e-3,
    steps: int | None = None,
    score_fn: Callable[[Tree], ArrayLike] | None = None,
    higher_is_better: bool = False,
    seeds: int = 20,
    techniques: tuple[str, ...] = tuple(TECHNIQUES),
    width: int | None = None,
    key: Key = 0,
    **settings: Any,
) -> Ablation:
    """The effect of each technique of AMaC on a loss function and its data.

        effect around AMaC = score of AMaC with it - score of AMaC without it
        effect around Adam = score of Adam with it - score of Adam

    Every technique is switched by its off value, so that all variants and seeds are one vmapped
    program of 2 (1 + number of techniques) x `seeds` runs. With the same seed, all variants begin
    with the same weights and see the same batches, so that differences are paired.
    "adam" is Adam at a constant rate with nothing around it. A technique that AMaC has off by
    default is switched on at the value of `TECHNIQUES`, or of `settings`.

    Args:
      loss_fn: a function of parameters and a batch that returns a scalar.
      params: the weights at the start, or a function that makes them from a JAX key, so that each
        seed begins with its own weights.
      batches: a tree of arrays whose first axis counts the batches, or a function that makes a
        batch from a JAX key. Each pass through the arrays takes the batches in a random order.
      learning_rate: the peak rate of AMaC and the constant rate of Adam, > 0.
      steps: the number of steps of each run, >= 1; None is one pass through `batches`.
      score_fn: a function of the weights to evaluate, which are averaged where the variant
        averages. The best choice is the loss on data not trained on. None is the mean of
        `loss_fn` over `batches`, which are the training data.
      higher_is_better: whether a higher score is better.
      seeds: the number of seeds, >= 2.
      techniques: names in `TECHNIQUES`. AMaC's value stays for the techniques not named.
      width: the number of runs at a time; None is all runs, which must fit in memory together
        with their states.
      key: an integer seed or a JAX key, from which the keys of all seeds are made.
      **settings: keywords of `amac` for every variant. For a technique's keyword, such as
        `weight_decay=0.3`, the value is used where the technique is on.

    Returns:
      An `Ablation`: `print` shows it as a table, and `amac_jax.tools.plotting.plot_ablation` draws
      one or several. A run whose score is not finite counts as the worst finite score of all runs.

    Raises:
      ValueError: for an argument outside its range, an unknown technique, batches without a
        common first axis, or a loss that is not a scalar, and where not a single run has a finite
        score.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (10, 8, 3))
      >>> def loss(w, x):
      ...     return jnp.mean((x @ (w - 1.0)) ** 2)
      >>> found = ablate(loss, jnp.zeros(3), x, steps=20, seeds=2, techniques=("sync_period",))
      >>> sorted(found.scores)
      ['adam', 'adam with sync_period', 'amac', 'amac without sync_period']
    """
    if isinstance(techniques, str):
        raise ValueError(f"techniques must be a tuple of names, got {techniques!r}")
    for name in techniques:
        if name not in TECHNIQUES:
            known = ", ".join(TECHNIQUES)
            raise ValueError(f"techniques must be among {known}, got {name!r}")
    for name, value, least in (("seeds", seeds, 2), ("width", width, 1), ("steps", steps, 1)):
        if value is not None and (not isinstance(value, int | np.integer) or value < least):
            raise ValueError(f"{name} must be a whole number in [{least}, inf), got {value!r}")
    check("learning_rate", learning_rate, POSITIVE)
    make_batch = batches if is_function(batches) else None
    if steps is None:
        if make_batch:
            raise ValueError("steps must be given where batches is a function, got None")
        steps = number_of_batches(batches)
    if score_fn is None and make_batch:
        raise ValueError("score_fn must be given where batches is a function, got None")
    key = typed_key(as_key_data(key), like=key)
    job = _Job(
        loss_fn=loss_fn,
        make=params if is_function(params) else lambda key: params,
        batch=make_batch,
        score=score_fn,
        steps=int(steps),
        learning_rate=learning_rate,
        settings=tuple((name, value) for name, value in settings.items() if name not in KEYWORDS),
    )
    data = None if make_batch else jax.tree.map(jnp.asarray, batches)
    start = jax.eval_shape(job.make, key)
    batch = jax.eval_shape(lambda: job.batch(key) if job.batch else batch_at(data, 0))
    check_objective(lambda pair: loss_fn(*pair), (start, batch), "ablate", name="loss_fn")

    variants = _variants(techniques, learning_rate, settings, job.steps)
    keys = jax.random.split(key, int(seeds))
    every_key = jnp.tile(keys, len(variants))
    values = {
        name: jnp.repeat(jnp.asarray([row[name] for row in variants.values()]), len(keys))
        for name in KEYWORDS
    }
    scores = _scores(job, width or len(every_key), data, values, every_key)
    return _ablation(
        dict(zip(variants, np.asarray(scores, float).reshape(-1, len(keys)), strict=True)),
        higher_is_better,
    )


class _Job(NamedTuple):
    """The parts of the experiment that all runs share."""

    loss_fn: Callable[[Tree, Tree], jax.Array]
    make: Callable[[jax.Array], Tree]  # (key) -> parameters
    batch: Callable[[jax.Array], Tree] | None  # (key) -> a batch; None where batches are arrays
    score: Callable[[Tree], ArrayLike] | None
    steps: int
    learning_rate: float
    settings: tuple[tuple[str, Any], ...]


def _scores(job: _Job, width: int, data: Tree, values: dict[str, jax.Array], keys: jax.Array):
    """The scores of all runs, `width` runs at a time, in one program."""

    def run(data, values, key):
        make_key, noise_key, data_key = jax.random.split(key, 3)
        params = job.make(make_key)
        settings = _all_off({**dict(job.settings), **values, "key": noise_key})
        tx = amac(job.learning_rate, job.steps, **settings)
        if job.batch is None:
            order = random_order(data_key, number_of_batches(data), job.steps)
        else:
            order = jax.random.split(data_key, job.steps)

        def step(carry, index):
            params, state = carry
            batch = batch_at(data, index) if job.batch is None else job.batch(index)
            gradients = jax.grad(job.loss_fn)(params, batch)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), order)
        weights = averaged_params(state, params)
        if job.score is not None:
            return job.score(weights)
        return jnp.mean(jax.lax.map(lambda batch: job.loss_fn(weights, batch), data))

    @jax.jit
    def run_all(data, values, keys):
        return jax.lax.map(
            lambda arguments: run(data, *arguments),
            (values, keys),
            batch_size=min(width, len(keys)),
        )

    return run_all(data, values, keys)


def _all_off(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, where a technique that is off is off with all of its keywords.

    Lookahead with a `slow_step_size` of 1 is off only if its `slow_momentum` is off too.
    """
    for row in ROWS:
        for (first, off), (name, also) in zip(
            row.off.items(), [*row.off.items()][1:], strict=False
        ):
            given, is_off = settings.get(name), settings[first] == off
            if given is not None and not isinstance(given, str):
                settings[name] = _where(is_off, also, given)
    return settings


def _where(condition: jax.Array, value: float, other: Hyperparameter) -> Hyperparameter:
    return lambda count: jnp.where(condition, value, value_at(other, count))


def _variants(techniques, learning_rate, settings, steps: int) -> dict[str, dict[str, float]]:
    """The value of every switch, for each variant by name."""
    auto = {name: share * steps for name, share in AUTO_SHARES.items()}
    auto["weight_decay"] = float(value_at(auto_weight_decay(learning_rate, steps), 0))
    off = {switch.keyword: switch.off for switch in TECHNIQUES.values()}
    on, as_amac = {}, {}
    for keyword, value, without in TECHNIQUES.values():
        default = auto.get(keyword, inspect.signature(amac).parameters[keyword].default)
        chosen = settings.get(keyword, default)
        as_amac[keyword] = without if chosen is None else chosen
        on[keyword] = value if as_amac[keyword] == without else as_amac[keyword]
        on[keyword] = auto[keyword] if on[keyword] == "auto" else on[keyword]
    variants = {"amac": as_amac, "adam": off}
    for name in techniques:
        keyword = TECHNIQUES[name].keyword
        was_on = as_amac[keyword] != off[keyword]
        other = off[keyword] if was_on else on[keyword]
        variants[f"amac {'without' if was_on else 'with'} {name}"] = {**as_amac, keyword: other}
        variants[f"adam with {name}"] = {**off, keyword: on[keyword]}
    return {name: {k: float(v) for k, v in row.items()} for name, row in variants.items()}


def _ablation(scores: dict[str, np.ndarray], higher_is_better: bool) -> Ablation:
    sign = 1 if higher_is_better else -1
    finite = np.concatenate([row[np.isfinite(row)] for row in scores.values()])
    if not finite.size:
        raise ValueError(
            "score_fn must be finite for some run, got none; try a lower learning_rate"
        )
    failed = {name: int(np.sum(~np.isfinite(row))) for name, row in scores.items()}
    worst = sign * np.min(sign * finite)
    scores = {name: np.where(np.isfinite(row), row, worst) for name, row in scores.items()}
    failed = {name: count for name, count in failed.items() if count}
    return Ablation(scores, effects_of(scores, higher_is_better=higher_is_better), failed)


def effects_of(scores: Mapping[str, np.ndarray], *, higher_is_better: bool) -> list[Effect]:
    """The effects computed from the scores of an `Ablation`, two for every technique.

    Example:
      >>> scores = {"amac": [3.0, 4.0], "amac without noise": [1.0, 3.0]}
      >>> scores |= {"adam": [1.0, 1.0], "adam with noise": [1.0, 2.0]}
      >>> [(effect.around, effect.mean) for effect in effects_of(scores, higher_is_better=True)]
      [('adam', 0.5), ('amac', 1.5)]
    """
    sign = 1 if higher_is_better else -1
    rows = {name: sign * np.asarray(row, float) for name, row in scores.items()}
    effects = []
    for technique in [name for name in TECHNIQUES if f"adam with {name}" in rows]:
        effects.append(_effect(technique, "adam", rows[f"adam with {technique}"] - rows["adam"]))
        if f"amac without {technique}" in rows:
            gains = rows["amac"] - rows[f"amac without {technique}"]
        else:
            gains = rows[f"amac with {technique}"] - rows["amac"]
        effects.append(_effect(technique, "amac", gains))
    return effects


def _effect(name: str, around: str, gains: np.ndarray) -> Effect:
    from scipy import stats  # here, because it takes half a second to import

    error = gains.std(ddof=1) / np.sqrt(len(gains))
    half_width = stats.t.ppf(0.975, len(gains) - 1) * error
    if error == 0:  # the technique has the same effect in every run
        return Effect(name, around, float(gains.mean()), 0.0, float(gains.mean() == 0))
    p = 2 * stats.t.sf(abs(gains.mean()) / error, len(gains) - 1)
    return Effect(name, around, float(gains.mean()), float(half_width), float(p))
