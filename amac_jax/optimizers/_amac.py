"""AMaC: a core and the techniques that measurements say are worth it, for the length of a run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Unpack, cast

import jax
import numpy as np
import optax
from jax.typing import DTypeLike

from amac_jax._core.aliases import Keywords, is_function
from amac_jax._core.boundary import Transformation, described, transformation
from amac_jax._core.chain import without_rate
from amac_jax._core.draws import Sampler
from amac_jax._core.draws.keys import Key
from amac_jax._core.hyperparameters import Hyperparameter, derived, is_number, product
from amac_jax._core.ranges import COUNT, DECAY, NON_NEGATIVE, POSITIVE, UNIT, Range, check, checked
from amac_jax.kernels import FanInRule
from amac_jax.optimizers._compose import compose, stages_of
from amac_jax.optimizers._keywords import core_of, takes_techniques
from amac_jax.optimizers._muon import scale_by_orthogonal
from amac_jax.schedules import linear_anneal, warmup_cosine
from amac_jax.techniques import RANGES, TECHNIQUES, AutoTechniques

LARGEST_SHARE = 0.05
"""The largest share of a weight that a step removes with the weight decay "auto"."""


WITHOUT_EPOCHS = 0.15
"""The weight decay "auto" of a run that does not say how often it sees its data."""


class Core(NamedTuple):
    """What AMaC makes of the length of a run for one of its cores; `xp` is NumPy or jax.numpy."""

    rate: Callable[[Any, Any], Any]  # (xp, total_steps) -> the peak of the learning rate
    # (total_steps, b1, b2, eps, fan_in_axes)
    build: Callable[..., optax.GradientTransformation]
    techniques: Keywords  # what "auto" stands for; None for a keyword that is not here


def adam_rate(xp: Any, total_steps: Any) -> Any:
    """Adam's learning rate: 0.01 in a run of 1,000 steps, less in a longer one."""
    return 0.01 * (1000.0 / total_steps) ** (1 / 3)


def muon_rate(xp: Any, total_steps: Any) -> Any:
    """Muon's learning rate: 0.015 in a run of 1,000 steps, less in a longer one."""
    return 0.015 * (1000.0 / total_steps) ** 0.5


def decay_of(xp: Any, epochs: Any) -> Any:
    """The weight decay: more where the same data come again and again."""
    return xp.clip(epochs / 30.0, 0.05, 0.8)


def _adam(
    total_steps: Hyperparameter,
    b1: Hyperparameter,
    b2: Hyperparameter,
    eps: Hyperparameter,
    fan_in_axes: FanInRule | None,
):
    return core_of(optax.scale_by_adam, b1=b1, b2=b2, eps=eps)


def _muon(
    total_steps: Hyperparameter,
    b1: Hyperparameter,
    b2: Hyperparameter,
    eps: Hyperparameter,
    fan_in_axes: FanInRule | None,
):
    def others_multiplier(xp: Any, total_steps: Any) -> Any:
        return adam_rate(xp, total_steps) / muon_rate(xp, total_steps)

    return scale_by_orthogonal(
        b1,
        others=core_of(optax.scale_by_adam, b2=b2, eps=eps),
        others_multiplier=derived(others_multiplier, total_steps),
        fan_in_axes=fan_in_axes,
    )


CORES: Mapping[str, Core] = {
    "muon": Core(muon_rate, _muon, {}),
    "adam": Core(adam_rate, _adam, {"centralize": True, "clip_value": 1.0, "sync_period": 5}),
}
"""The cores of `amac` by their names, and the techniques that each has by default."""

AUTO_SHARES = {"warmup_steps": 0.1, "average_start": 0.75}
"""The values of "auto" that are shares of the run, for every core."""

EVERY_TECHNIQUE: dict[str, Any] = {
    "core": "adam",
    "end_ratio": 0.0,
    "momentum": 0.9,
    "noise": 0.01,
    "weight_decay": 0.1,
    "slow_step_size": 0.5,
}
"""Keywords of `amac` that switch on every technique of the published optimizer."""

_AUTO: dict[str, Any] = dict.fromkeys(
    (
        "centralize", "clip_value", "dampening", "weight_decay", "decay_floor", "sync_period",
        "slow_step_size", "average_start", "average_period",
    ),
    "auto",
)  # fmt: skip


@takes_techniques(**_AUTO)
@checked(total_steps=COUNT, epochs=POSITIVE, b1=DECAY, b2=DECAY, eps=NON_NEGATIVE)
def amac(
    learning_rate: Hyperparameter | Literal["auto"],
    total_steps: Hyperparameter,
    *,
    core: Literal["muon", "adam"] | optax.GradientTransformation = "muon",
    epochs: Hyperparameter | None = None,
    warmup_steps: Hyperparameter | Literal["auto"] | None = "auto",
    end_ratio: Hyperparameter | Literal["auto"] = "auto",
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    **techniques: Unpack[AutoTechniques],
) -> Transformation:
    """AMaC: tell it the number of steps, and every other value follows.

    `amac("auto", total_steps)` needs nothing else. Where the run passes over noisy data several
    times, `amac("auto", total_steps, epochs=...)` is better:

        M <- b1 M + (1 - b1) G;   O = U V^H of b1 M + (1 - b1) G = U S V^H
        theta <- theta - eta_t (0.2 sqrt(max(fan-in, fan-out)) O + lambda theta)    kernels
        theta <- theta - eta_t c m_hat / (sqrt(v_hat) + eps)                        all else
        from step `average_start`, every `average_period`   A <- running mean of theta

    The learning rate eta_t is `warmup_cosine(learning_rate, total_steps, warmup_steps, end)`, and
    end is `end_ratio` times the learning rate. The rate stays up, so that the weights of the last
    quarter differ. Their mean stands for the weights that a schedule with end 0 would reach.
    **Evaluate with `averaged_params(opt_state, params)`**: with the noise of small batches the last
    weights are usually worse.

    `core="adam"` moves every leaf by Adam. Its gradients are centralized, its steps clipped by
    value, and lookahead is on. `**amac_jax.optimizers.EVERY_TECHNIQUE`, which has `core="adam"`, is
    the published idea, every technique of it. `amac_reference` lists what differs from the
    published program.

    What "auto" stands for, with T = `total_steps` and E = `epochs`:

        learning_rate    0.015 sqrt(1000 / T) in "muon", 0.01 (1000 / T)^(1/3) in "adam"
        c                0.01 (1000 / T)^(1/3) / (0.015 sqrt(1000 / T)) in "muon"
        weight_decay     E / 30, at least 0.05 and at most 0.8; 0.15 without E; at most 0.05 / eta
        decay_floor      0.7 where the weight decay is "auto": decay alone leaves a kernel, such as
                         a trained one, with at least this share of the norm that it came with
        warmup_steps     T / 10
        end_ratio        0.3
        average_start    3 T / 4
        average_period   5
        centralize       True in "adam"; left out in "muon" and around a core of your own
        clip_value       1.0 in "adam"; left out in "muon" and around a core of your own
        sync_period      5 in "adam"; left out in "muon" and around a core of your own
        slow_step_size   0.8
        dampening        `momentum`

    The `repr` of the transformation shows the values but c, and its attribute `resolved` has them
    by name; where an argument is traced or a schedule, they are functions of the count. The
    learning rate and the weight decay are also among `metrics`. benchmarks/README.md says how the
    values were found, and what each technique is worth around each core.

    Args:
      learning_rate: the peak of eta_t; >= 0. A schedule is followed as it is, without another
        warm-up or cosine. Either way "muon" moves all leaves but kernels at c times it.
        "auto": see above.
        A step moves a kernel by 0.2 eta in the mean. A rate that suits AdamW in a run of 10,000
        steps is many times too low in one of 500.
      total_steps: the length of the run, in steps, whole, > warmup_steps; may be traced.
      core: "muon", which is `scale_by_orthogonal`, "adam", or a transformation of your own, which
        needs a learning rate. "muon" keeps 4 bytes for a weight of a kernel where "adam" keeps 8,
        and does 16 to 24 operations a weight times the smaller side of the kernel. A gradient does
        6 a weight times the batch: for a side of 1,024 and 500,000 tokens that is a hundredth, for
        128 and 64 examples most of the run. "adam" does a few dozen operations a weight. To spare a
        head from Muon: `core=scale_by_orthogonal(0.9, exclude=("head",))`.
      epochs: how often the run passes over its data, > 0; steps times batch size over the number
        of examples. Without it, a run that repeats its data more than about ten times learns
        more of their noise than it should. Leave it out where the data have no noise to learn.
      warmup_steps: in steps. Off: None or 0.
      end_ratio: the learning rate from `total_steps` on, as a share of the peak, in [0, 1]. Off: 1,
        a constant rate. At 0 averaging changes little.
      b1: decay of the momentum of kernels in "muon", which is Nesterov's, and of Adam's first
        moment; in [0, 1).
      b2, eps: as in `adam`, for all leaves that Adam moves.
      momentum: mu; see `heavy_ball`. Off: None or 0.
      dampening: with mu, the learning rate has the same meaning as without momentum. At 0 its
        effect is 1 / (1 - mu) times as large.
      centralize: the strength; see `centralize`. Off: None or 0.
      noise: sigma at the start, in units of the learning rate; it falls in a straight line to 0 at
        `total_steps`; see `inject_noise`. Off: None or 0.
      clip_value: c; see `clip_by_value`. Off: None or inf.
      weight_decay: lambda; see `decay_weights`. A schedule is followed as it is. Off: None or 0.
      sync_period, slow_step_size: k and alpha; see `lookahead`. Off: k = None or alpha = 1.
      average_start: in steps, up to `total_steps`; see `average_weights`. Off: None, with no
        buffer for an average, or inf.
      average_period: in steps.
      key: an integer seed or a JAX key, for noise and for rounding.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it.

    Raises:
      ValueError: for an argument outside its range, for total_steps <= warmup_steps, or for
        average_start > total_steps; for an unknown core; for a `warmup_steps` or an `end_ratio`
        that is not off beside a schedule; with a core of your own, for the learning rate "auto" and
        for b1, b2 and eps; from `init`, for complex parameters with `noise` or `clip_value`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = amac("auto", total_steps=1000, epochs=6)
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)

    Reference:
      Jordan et al., Muon, 2024, https://kellerjordan.github.io/posts/muon/. For rates that fall
      with the length of a run: Bjorck et al., Scaling Optimal LR Across Token Horizons, 2024,
      https://arxiv.org/abs/2409.19913.
      Johnson, AMaC: Adaptive Momentum and Cosine Annealing, 2024,
      https://github.com/godsonj64/AMaC-Optimizer.
    """
    if isinstance(core, str):
        row = _named(core)
        usual_rate: Any = derived(row.rate, total_steps)
        transformed = row.build(total_steps, b1, b2, eps, techniques.get("fan_in_axes"))
    else:
        _check_own_core(core, learning_rate, b1=b1, b2=b2, eps=eps)
        usual_rate, transformed = learning_rate, core
    peak = _auto("learning_rate", learning_rate, usual_rate, NON_NEGATIVE)
    settings: dict[str, Any] = {**_AUTO, **techniques}
    around = amac_techniques(total_steps, core, **settings)
    decay = auto_weight_decay(peak, epochs)
    around["weight_decay"] = _auto("weight_decay", around["weight_decay"], decay)
    if is_function(learning_rate):
        _check_no_shape("warmup_steps", warmup_steps, off=0)
        _check_no_shape("end_ratio", end_ratio, off=1)
        warmup, end = None, None
        rate = peak
    else:
        usual_warmup = product(total_steps, AUTO_SHARES["warmup_steps"])
        warmup = _auto("warmup_steps", warmup_steps, usual_warmup)
        end = _auto("end_ratio", end_ratio, 0.3, UNIT)
        rate = warmup_cosine(peak, total_steps, 0 if warmup is None else warmup, product(peak, end))
    tx = cast(Transformation, compose(transformed, rate, **around))
    tx.resolved = {
        "learning_rate": peak, "warmup_steps": warmup, "end_ratio": end,
        **{name: around.get(name) for name in _AUTO},
    }  # fmt: skip
    if not isinstance(core, str):
        tx.resolved |= dict.fromkeys(("b1", "b2", "eps"))  # the core has its own
    return tx


def auto_weight_decay(
    learning_rate: Hyperparameter, epochs: Hyperparameter | None
) -> Hyperparameter:
    """The lambda of AMaC: `epochs` / 30 in [0.05, 0.8], and never more than 0.05 / eta.

    Example:
      >>> [round(auto_weight_decay(0.01, epochs), 3) for epochs in (1, 15, 60, None)]
      [0.05, 0.5, 0.8, 0.15]
      >>> round(auto_weight_decay(1.0, 15), 3)
      0.05
    """
    usual = WITHOUT_EPOCHS if epochs is None else derived(decay_of, epochs)

    def limited(xp: Any, decay: Any, rate: Any) -> Any:
        return xp.minimum(decay, LARGEST_SHARE / xp.maximum(rate, 1e-30))

    return derived(limited, usual, learning_rate)


def amac_techniques(
    total_steps: Hyperparameter,
    core: str | optax.GradientTransformation = "adam",
    **techniques: Unpack[AutoTechniques],
) -> dict[str, Any]:
    """The techniques that AMaC puts around a core, as keywords of `compose`.

    Args:
      total_steps: the length of the run, in steps.
      core: as in `amac`. A core of your own has the same techniques around it as "muon".
      **techniques: keywords of `amac`, which explains them. A weight decay passes as it is: "auto"
        needs the learning rate, which only `amac` knows.

    Example:
      >>> from amac_jax import compose
      >>> tx = compose(optax.scale_by_lion(), 1e-4, **amac_techniques(1000))
    """
    automatic = {
        **(_named(core).techniques if isinstance(core, str) else {}),
        "dampening": techniques.get("momentum"),
        "decay_floor": 0.7 if techniques.get("weight_decay") == "auto" else None,
        "slow_step_size": 0.8,
        "average_start": product(total_steps, AUTO_SHARES["average_start"]),
        "average_period": 5,
    }
    around: dict[str, Any] = {name: "auto" for name in _AUTO if name != "weight_decay"}
    around |= techniques
    for name in automatic.keys() | (_AUTO.keys() - {"weight_decay"}):
        around[name] = _auto(name, around[name], automatic.get(name))
    for row in TECHNIQUES:
        for name in row.companions():
            if name in around and techniques.get(name, "auto") == "auto" and not row.is_in(around):
                del around[name]
    if around.get("noise") is not None:
        check("noise", around["noise"], RANGES["noise"])
        around["noise"] = linear_anneal(around["noise"], total_steps)
    start = around.get("average_start")
    if is_number(start) and is_number(total_steps) and total_steps < start < float("inf"):
        raise ValueError(
            f"average_start must be at most total_steps, {total_steps!r}, or inf, got {start!r}"
        )
    return around


@checked(total_steps=COUNT, b1=DECAY, b2=DECAY, eps=NON_NEGATIVE)
def scale_by_amac(
    total_steps: Hyperparameter,
    *,
    core: Literal["muon", "adam"] | optax.GradientTransformation = "muon",
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    clip_norm: Hyperparameter | None = None,
    centralize: Hyperparameter | Literal["auto"] | None = "auto",
    fan_in_axes: FanInRule | None = None,
    noise: Hyperparameter | None = None,
    key: Key = 0,
    sampler: str | Sampler = "fast",
    relative_noise: bool = False,
    clip_value: Hyperparameter | Literal["auto"] | None = "auto",
    state_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `amac` at a learning rate of 1: without rate, weight decay and sign.

        g -> clip by global norm -> centralize -> core -> noise -> clip by value -> d

    It is for trainers that multiply with the rate and add the decay themselves, as they do with
    `optax.scale_by_adam`. It has the stages of `amac` that come before the learning rate. In
    "muon" the factor c of all leaves but kernels, which `amac` explains, is inside.

    The stages of `amac` after the rate see whole updates or parameters, and stand after the rate
    in a chain too. This is `amac(schedule, T, core="adam", weight_decay=0.1, decay_floor=None)`:

        optax.chain(
            amac_jax.scale_by_amac(T, core="adam"),
            optax.add_decayed_weights(0.1, amac_jax.kernel_mask),
            optax.scale_by_learning_rate(schedule),
            amac_jax.lookahead(5, 0.8),               # not in "muon"
            amac_jax.average_weights(0.75 * T, 5),    # read with `averaged_params`
        )

    `heavy_ball` stands directly after the rate, and the decay of `amac` after it: there it is
    `decay_weights`, whose rate is eta_t lambda.

    Args:
      total_steps: the length of the run, in steps, whole, >= 1; may be traced. c and the noise
        depend on it. A good peak of the rate, and a good decay, are what "auto" stands for in
        `amac`: 0.015 sqrt(1000 / T) in "muon", 0.01 (1000 / T)^(1/3) in "adam".
      core, b1, b2, eps, centralize, noise, key, clip_value: as in `amac`, "auto" included.
      clip_norm: limit on the gradients' global norm. Off: None or inf. See `clip_by_global_norm`.
      fan_in_axes: the rule for kernels and their fan-in axes. None is `amac_jax.fan_in_axes`.
      sampler, relative_noise: see `inject_noise`.
      state_dtype: "bfloat16" stores the state of the core in it. Off: None or "float32".

    Returns:
      A transformation whose updates point along the gradient, in the shapes and dtypes of the
      gradients. State: `CountedState` around the states of the core and of the techniques that are
      in, in the order above.

    Raises:
      ValueError: for an argument outside its range; for an unknown core; with a core of your own,
        for b1, b2 and eps; from `init`, for complex parameters with `noise` or `clip_value`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = optax.chain(scale_by_amac(1000), optax.scale_by_learning_rate(0.01))
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> updates["bias"].round(5)
      Array([-0.00667, -0.00667], dtype=float32)
    """
    given: dict[str, Any] = {
        "clip_norm": clip_norm, "centralize": centralize, "fan_in_axes": fan_in_axes,
        "noise": noise, "key": key, "sampler": sampler, "relative_noise": relative_noise,
        "clip_value": clip_value, "state_dtype": state_dtype,
    }  # fmt: skip
    if isinstance(core, str):
        transformed = _named(core).build(total_steps, b1, b2, eps, fan_in_axes)
    else:
        _check_own_core(core, None, b1=b1, b2=b2, eps=eps)
        transformed = core
    of_the_rest = dict.fromkeys(("weight_decay", "sync_period", "average_start"))
    around = amac_techniques(total_steps, core, **given, **of_the_rest)
    stage = without_rate(stages_of({"core": transformed, **around}))
    arguments = {"total_steps": total_steps, "core": core, "b1": b1, "b2": b2, "eps": eps}
    written = {name: around.get(name, value) for name, value in given.items()}
    return transformation(stage, described("scale_by_amac", {**arguments, **written}))


def _named(core: str) -> Core:
    if core not in CORES:
        raise ValueError(_cores(core))
    return CORES[core]


def _cores(given: object) -> str:
    return f"core must be {', '.join(map(repr, CORES))} or a transformation, got {given!r}"


def _auto(name: str, value: Any, derived: Any, allowed: Range | None = None) -> Any:
    """The value, or the derived one for "auto"."""
    if isinstance(value, str):
        if value != "auto":
            expected = allowed or RANGES.get(name, NON_NEGATIVE)
            raise ValueError(
                f"{name} must be 'auto' or {expected}, a schedule or an array, got {value!r}"
            )
        return derived
    if allowed is not None:
        check(name, value, allowed)
    return value


def _check_own_core(core: Any, learning_rate: Any, **arguments: Any) -> None:
    """Refuses what "auto" cannot know, and what would do nothing, with a core of the user's own.

    Arrays pass, as everywhere: `optax.inject_hyperparams` hands over defaults as arrays.
    """
    if not hasattr(core, "update"):
        raise ValueError(_cores(core))
    if isinstance(learning_rate, str):
        raise ValueError(
            f"learning_rate must be a number or a schedule with a core of your own, "
            f"got {learning_rate!r}"
        )
    for name, value in arguments.items():
        if isinstance(value, jax.Array | np.ndarray):
            continue
        if not is_number(value) or value != inspect.signature(amac).parameters[name].default:
            raise ValueError(f"{name} must be given to a core of your own itself, got {value!r}")


def _check_no_shape(name: str, value: Any, off: float) -> None:
    """Refuses what would change the shape of a schedule that is followed as it is."""
    is_off = value is None or (is_number(value) and value == off)
    if not is_off and not (isinstance(value, str) and value == "auto"):
        raise ValueError(
            f"{name} must be 'auto' or {off} with a schedule for the learning rate, which is "
            f"followed as it is, got {value!r}"
        )
