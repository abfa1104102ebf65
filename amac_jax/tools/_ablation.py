"""Ablation: the effect of each of AMaC's techniques on a loss function of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from amac_jax._core.aliases import Keywords, Tree, is_function
from amac_jax._core.draws.keys import Key, as_key_data, typed_key
from amac_jax._core.hyperparameters import is_number
from amac_jax._core.ranges import POSITIVE, check
from amac_jax.optimizers import amac
from amac_jax.techniques import TECHNIQUES as ROWS
from amac_jax.tools._aligned import aligned
from amac_jax.tools._batches import number_of_batches
from amac_jax.tools._losses import loss_of
from amac_jax.tools._runs import Job, run_all


class Switch(NamedTuple):
    """A technique as keywords of `amac`, and their values with and without it."""

    on: Mapping[str, float | str]  # used only where AMaC has it off; "auto": a value of AMaC's
    off: Mapping[str, float]


TECHNIQUES = {
    **{
        row.keyword: Switch({next(iter(row.off)): row.trial or "auto"}, row.off)
        for row in ROWS
        if row.off and (row.trial or row.keyword in amac.defaults)  # pyright: ignore[reportFunctionMemberAccess]
    },
    # Each of these two brings with it what it changes.
    "cautious_decay": Switch(
        {"cautious_decay": 1.0, "weight_decay": "auto"}, {"cautious_decay": 0.0}
    ),
    "slow_momentum": Switch({"slow_momentum": 0.5, "slow_step_size": 0.7}, {"slow_momentum": 0.0}),
    "warmup_steps": Switch({"warmup_steps": "auto"}, {"warmup_steps": 0.0}),
    "end_ratio": Switch({"end_ratio": "auto"}, {"end_ratio": 1.0}),
}
OFF = {name: value for switch in TECHNIQUES.values() for name, value in switch.off.items()}


class Effect(NamedTuple):
    """The effect of a technique in units of the score, positive where the technique helps."""

    technique: str
    around: str  # "amac": all else as in AMaC; "muon", "adam", "core": it alone on top of the core
    mean: float  # the mean effect over the seeds
    half_width: float  # half the width of Student's 95 % confidence interval, paired by seed
    p: float  # two-sided paired t-test, not corrected for the number of techniques


class Ablation(NamedTuple):
    """The scores of every variant, and the effects computed from them."""

    scores: dict[str, np.ndarray]  # "amac", "amac with noise", "muon with noise"...: (seeds,)
    effects: list[Effect]  # two for every technique
    failed: dict[str, int]  # the number of runs without a finite score, for variants with any

    def __str__(self) -> str:
        plain = plain_of(self.scores)
        means = [f"{name} {np.mean(self.scores[name]):.4g}" for name in (plain, "amac")]
        rows = [["technique", f"added to {plain}", "p", "in amac", "p"]]
        named = {(effect.technique, effect.around): effect for effect in self.effects}
        for technique in dict.fromkeys(effect.technique for effect in self.effects):
            cells = [technique]
            for around in (plain, "amac"):
                effect = named[technique, around]
                cells += [f"{effect.mean:+.4g} ± {effect.half_width:.2g}", f"{effect.p:.2g}"]
            rows.append(cells)
        head = f"mean score: {', '.join(means)}; effects are positive where a technique helps\n"
        return head + aligned(rows)


def ablate(
    loss_fn: Callable[..., Any],
    params: Tree,
    batches: Tree,
    *,
    learning_rate: float | Literal["auto"] = "auto",
    core: Literal["muon", "adam"] | optax.GradientTransformation = "muon",
    epochs: float | None = None,
    steps: int | None = None,
    score_fn: Callable[..., ArrayLike] | None = None,
    higher_is_better: bool = False,
    has_aux: bool = False,
    model_state: Tree = None,
    seeds: int = 20,
    techniques: tuple[str, ...] = tuple(TECHNIQUES),
    width: int | None = None,
    key: Key = 0,
    **settings: Any,
) -> Ablation:
    """The effect of each technique of AMaC on a loss function and its data.

        effect around AMaC = score of AMaC with it - score of AMaC without it
        effect around the core = score of the core with it - score of the core

    Every technique is switched by its off value, so that all variants and seeds are one vmapped
    program of 2 (1 + number of techniques) x `seeds` runs, on all devices of the process. With the
    same seed, all variants begin with the same weights and see the same batches, so that
    differences are paired.

    The core alone, "muon" or "adam" among the scores and "core" for one of your own, runs at the
    constant rate `learning_rate` with nothing around it. A technique has AMaC's values around this
    core. Where AMaC has it off there, it is tried at 1 (`clip_norm`, `centralize`, `clip_value`),
    0.5 (`momentum`), 0.1 (`noise`, `weight_decay`), and all else at AMaC's value around Adam.
    `cautious_decay` brings AMaC's weight decay with it, and `slow_momentum`, which is tried at 0.5,
    brings lookahead with a `slow_step_size` of 0.7.

    Args:
      loss_fn: a function of parameters and a batch that returns a scalar. One with dropout takes a
        JAX key too, a new one at every step: `loss_fn(params, batch, key)`.
      params: the weights at the start, or a function that makes them from a JAX key, so that each
        seed begins with its own weights.
      batches: a tree of arrays whose first axis counts the batches, or a function that makes a
        batch from a JAX key. Each pass through the arrays takes the batches in a random order.
      learning_rate: the peak rate of AMaC and the constant rate of the core alone, > 0. "auto" is
        the rate of `amac`.
      core: as in `amac`: "muon", "adam", or a transformation of your own, which needs a learning
        rate.
      epochs: how often a run passes over its data, as in `amac`, > 0.
      steps: the number of steps of each run, >= 1; None is one pass through `batches`.
      score_fn: a function of the weights to evaluate, which are averaged where the variant
        averages. The best choice is the loss on data not trained on. None is the mean of
        `loss_fn` over `batches`, which are the training data.
      higher_is_better: whether a higher score of `score_fn` is better.
      has_aux: whether `loss_fn` returns `(loss, aux)`, of which `aux` is left alone.
      model_state: what changes in training beside the weights, such as the statistics of BatchNorm:
        a tree, or a function that makes it from the key that `params` got. Then it is
        `loss_fn(params, model_state, batch) -> (loss, model_state)`, with `has_aux`
        `(loss, (model_state, aux))`, and `score_fn(params, model_state)`. For all variants
        moving averages in it are computed anew at the end, from 100 batches at most. The moving
        averages of training belong to the live weights, not to the averaged ones.
      seeds: the number of seeds, >= 2.
      techniques: names in `TECHNIQUES`. AMaC's value stays for the techniques not named. What is
        neither named nor in AMaC has no state.
      width: the number of runs at a time; None is all runs, which must fit in memory together
        with their states, and 1 for convolutions on a CPU.
      key: an integer seed or a JAX key, from which the keys of all seeds are made.
      **settings: keywords of `amac` for every variant. For a technique's keyword, such as
        `weight_decay=0.3`, a number, the value is used where the technique is on.

    Returns:
      An `Ablation`: `print` shows it as a table, and `amac_jax.tools.plotting.plot_ablation` draws
      one or several. A run whose score is not finite counts as the worst finite score of all runs.

    Raises:
      ValueError: for an argument outside its range, an unknown technique, batches without a
        common first axis, or a loss outside the contract; where `amac` raises one; and where not a
        single run has a finite score.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (10, 8, 3))
      >>> def loss(w, x):
      ...     return jnp.mean((x @ (w - 1.0)) ** 2)
      >>> found = ablate(loss, jnp.zeros(3), x, steps=20, seeds=2, techniques=("sync_period",))
      >>> sorted(found.scores)
      ['amac', 'amac with sync_period', 'muon', 'muon with sync_period']
    """
    if isinstance(techniques, str):
        raise ValueError(f"techniques must be a tuple of names, got {techniques!r}")
    if higher_is_better and score_fn is None:
        raise ValueError("higher_is_better needs a score_fn: a lower loss is the better one")
    if not techniques:
        raise ValueError(f"techniques must have a name, such as {next(iter(TECHNIQUES))!r}, got ()")
    for name in techniques:
        if name not in TECHNIQUES:
            known = ", ".join(TECHNIQUES)
            raise ValueError(f"techniques must be among {known}, got {name!r}")
    for name, value, least in (("seeds", seeds, 2), ("width", width, 1), ("steps", steps, 1)):
        if value is not None and (not isinstance(value, int | np.integer) or value < least):
            raise ValueError(f"{name} must be a whole number in [{least}, inf), got {value!r}")
    if learning_rate != "auto":
        if not is_number(learning_rate):
            raise ValueError(f"learning_rate must be 'auto' or a number, got {learning_rate!r}")
        check("learning_rate", learning_rate, POSITIVE)
    elif not isinstance(core, str):
        raise ValueError("learning_rate must be a number with a core of your own, got 'auto'")
    if steps is None:
        if is_function(batches):
            raise ValueError("steps must be given where batches is a function, got None")
        steps = number_of_batches(batches)
    if score_fn is None and is_function(batches):
        raise ValueError("score_fn must be given where batches is a function, got None")
    key = typed_key(as_key_data(key), like=key)
    found = _resolved(learning_rate, steps, core=core, epochs=epochs, **settings)
    peak = found["learning_rate"]
    around_adam = _resolved(peak, steps, core="adam", epochs=epochs)
    plain = core if isinstance(core, str) else "core"
    variants = _variants(plain, techniques, {**settings, **found}, around_adam)
    switched = variants["amac"].keys()
    sync_period = found["sync_period"] or around_adam["sync_period"]
    constants = {
        **{name: value for name, value in settings.items() if name not in switched},
        "core": core,
        "decay_floor": found["decay_floor"],
        "sync_period": sync_period if "slow_step_size" in switched else None,
    }
    job = Job(
        loss=loss_of(loss_fn, takes_state=model_state is not None, has_aux=has_aux),
        params=params,
        model_state=model_state,
        batches=batches,
        optimizer=lambda values, key: amac(peak, steps, **{**constants, **values, "key": key}),
        steps=int(steps),
        score=score_fn,
    )
    job.check(key)

    keys = jax.random.split(key, int(seeds))
    values = {
        name: jnp.repeat(jnp.asarray([row[name] for row in variants.values()]), len(keys))
        for name in switched
    }
    which = np.tile(np.arange(len(keys)), len(variants))
    scores = run_all(job, values, keys, which, width=width, name="ablate", last=1).scores
    return _ablation(
        dict(zip(variants, scores.reshape(-1, len(keys)), strict=True)),
        higher_is_better,
    )


def _resolved(learning_rate: float | Literal["auto"], steps: int, **settings: Any) -> Keywords:
    """What `amac` makes of these arguments; None for what it leaves out."""
    tx = amac(learning_rate, int(steps), **settings)
    return tx.resolved


def _variants(
    plain: str, techniques: tuple[str, ...], found: Keywords, around_adam: Keywords
) -> dict[str, dict[str, float]]:
    """The value of every switched keyword, for each variant by name.

    Args:
      plain: the name of the core alone.
      techniques: names in `TECHNIQUES`.
      found: the keywords of AMaC around this core.
      around_adam: those around Adam, where AMaC has more techniques on.
    """
    own = {name: _number(name, found[name]) for name in OFF if found.get(name) is not None}
    auto = {**around_adam, **{name: value for name, value in own.items() if value != OFF[name]}}
    keywords = own.keys() | {name for chosen in techniques for name in TECHNIQUES[chosen].on}
    off = {name: value for name, value in OFF.items() if name in keywords}
    as_amac = {**off, **own}
    variants = {"amac": as_amac, plain: off}
    for technique in techniques:
        switch = TECHNIQUES[technique]
        without = {name: value for name, value in switch.off.items() if name in keywords}
        was_on = any(as_amac[name] != value for name, value in without.items())
        if was_on:
            on = {name: as_amac[name] for name in {**switch.on, **without}}
            variants[f"amac without {technique}"] = {**as_amac, **without}
        else:
            on = {k: float(auto[k] if v == "auto" else v) for k, v in switch.on.items()}
            variants[f"amac with {technique}"] = {**as_amac, **on}
        variants[f"{plain} with {technique}"] = {**off, **on}
    return variants


def _number(name: str, value: Any) -> float:
    if not is_number(value) and not isinstance(value, bool):
        raise ValueError(f"{name} must be a number, which can be switched, got {value!r}")
    return float(value)


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
      >>> scores |= {"muon": [1.0, 1.0], "muon with noise": [1.0, 2.0]}
      >>> [(effect.around, effect.mean) for effect in effects_of(scores, higher_is_better=True)]
      [('muon', 0.5), ('amac', 1.5)]
    """
    sign = 1 if higher_is_better else -1
    rows = {name: sign * np.asarray(row, float) for name, row in scores.items()}
    plain = plain_of(scores)
    effects = []
    for technique in [name for name in TECHNIQUES if f"{plain} with {name}" in rows]:
        effects.append(_effect(technique, plain, rows[f"{plain} with {technique}"] - rows[plain]))
        if f"amac without {technique}" in rows:
            gains = rows["amac"] - rows[f"amac without {technique}"]
        else:
            gains = rows[f"amac with {technique}"] - rows["amac"]
        effects.append(_effect(technique, "amac", gains))
    return effects


def plain_of(scores: Mapping[str, Any]) -> str:
    """The name of the core alone, among the names of variants.

    Example:
      >>> plain_of({"amac": 2.0, "amac without noise": 1.0, "adam": 0.0, "adam with noise": 0.5})
      'adam'
    """
    return next(name for name in scores if name != "amac" and " with" not in name)


def _effect(name: str, around: str, gains: np.ndarray) -> Effect:
    from scipy import stats  # here, because it takes half a second to import

    error = gains.std(ddof=1) / np.sqrt(len(gains))
    half_width = stats.t.ppf(0.975, len(gains) - 1) * error
    if error == 0:  # the technique has the same effect in every run
        return Effect(name, around, float(gains.mean()), 0.0, float(gains.mean() == 0))
    p = 2 * stats.t.sf(abs(gains.mean()) / error, len(gains) - 1)
    return Effect(name, around, float(gains.mean()), float(half_width), float(p))
