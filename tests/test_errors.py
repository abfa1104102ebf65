"""Bad arguments are refused by name, range and value, when the factory is called."""

import inspect
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from amac_jax.optimizers import EVERY_TECHNIQUE
from tests.table import CASES, COMPANIONS, OPTIMIZERS

NAN = float("nan")
CLASSIC = [case.factory for case in OPTIMIZERS.values()]
WHOLE = "must be a whole number in [1, inf)"

REFUSED = [
    (amac_jax.centralize, {"strength": -0.1}, "strength must be in [0, 1]"),
    (amac_jax.centralize, {"strength": 1.5}, "strength must be in [0, 1]"),
    (amac_jax.clip_by_value, {"limit": 0.0}, "limit must be in (0, inf]"),
    (amac_jax.clip_by_value, {"limit": NAN}, "limit must be in (0, inf]"),
    (amac_jax.clip_by_global_norm, {"limit": -1.0}, "limit must be in (0, inf]"),
    (amac_jax.clip_by_unit_norm, {"ratio": 0.0}, "ratio must be in (0, inf]"),
    (amac_jax.clip_by_unit_norm, {"eps": 0.0}, "eps must be in (0, inf)"),
    (amac_jax.inject_noise, {"scale": -1e-9}, "scale must be in [0, inf)"),
    (amac_jax.inject_noise, {"scale": float("inf")}, "scale must be in [0, inf)"),
    (amac_jax.inject_noise, {"scale": 0.1, "sampler": "slow"}, "sampler must be one of"),
    (amac_jax.heavy_ball, {"decay": 1.0}, "decay must be in [0, 1)"),
    (amac_jax.heavy_ball, {"decay": 0.9, "dampening": 1.1}, "dampening must be in [0, 1]"),
    (amac_jax.decay_weights, {"rate": -0.1}, "rate must be in [0, inf)"),
    (amac_jax.decay_weights, {"cautious": 1.5}, "cautious must be in [0, 1]"),
    (amac_jax.decay_weights, {"floor": 1.0}, "floor must be in [0, 1)"),
    (amac_jax.decay_weights, {"floor": True}, "floor must be in [0, 1)"),
    (amac_jax.lookahead, {"slow_momentum": 1.0}, "slow_momentum must be in [0, 1)"),
    (amac_jax.lookahead, {"sync_period": 0}, "sync_period must be a whole number in [1, inf)"),
    (amac_jax.lookahead, {"sync_period": 2.5}, "sync_period must be a whole number in [1, inf)"),
    (amac_jax.lookahead, {"sync_period": float("inf")}, WHOLE),
    (amac_jax.lookahead, {"sync_period": NAN}, WHOLE),
    (amac_jax.lookahead, {"slow_step_size": 1.1}, "slow_step_size must be in [0, 1]"),
    (amac_jax.average_weights, {"start": -1}, "start must be in [0, inf]"),
    (amac_jax.average_weights, {"period": 0}, "period must be a whole number in [1, inf)"),
    (amac_jax.average_weights, {"decay": 1.1}, "decay must be in [0, 1]"),
    (amac_jax.warmup_cosine, {"peak": -1.0}, "peak must be in [0, inf)"),
    (amac_jax.warmup_cosine, {"end": NAN}, "end must be in [0, inf)"),
    (amac_jax.warmup_cosine, {"warmup_steps": 100}, "total_steps must be greater than"),
    (amac_jax.warmup_cosine, {"warmup_steps": -1}, "warmup_steps must be in [0, inf)"),
    (amac_jax.linear_anneal, {"total_steps": 0}, "total_steps must be in (0, inf)"),
    (amac_jax.linear_anneal, {"initial": NAN}, "initial must be in (-inf, inf)"),
    (amac_jax.noise_anneal, {"eta": -1.0}, "eta must be in [0, inf)"),
    (amac_jax.noise_anneal, {"gamma": NAN}, "gamma must be in [0, inf)"),
    (amac_jax.step_decay, {"period": 0}, "period must be a whole number in [1, inf)"),
    (amac_jax.cosine, {"total_steps": 0}, "total_steps must be in (0, inf)"),
    (
        amac_jax.cosine_restarts,
        {"first_steps": 0},
        "first_steps must be a whole number in [1, inf)",
    ),
    (amac_jax.one_cycle, {"total_steps": 0}, "total_steps must be in (0, inf)"),
    (amac_jax.warmup_stable_decay, {"decay_steps": 0}, "decay_steps must be in (0, inf)"),
    (amac_jax.warmup_stable_decay, {"total_steps": 0}, "total_steps must be in (0, inf)"),
    (
        amac_jax.warmup_stable_decay,
        {"shape": "root"},
        "shape must be one of 'linear', 'sqrt', 'cosine'",
    ),
    (amac_jax.reduce_on_plateau, {"patience": 0}, "patience must be a whole number in [1, inf)"),
    (amac_jax.reduce_on_plateau, {"factor": 1.5}, "factor must be in (0, 1]"),
    (amac_jax.reduce_on_plateau, {"mode": "least"}, "mode must be one of 'min', 'max'"),
    (amac_jax.scale_by_layer, {"multipliers": -1.0}, "multipliers must be in [0, inf)"),
    (amac_jax.layerwise_decay, {"factor": 1.5}, "factor must be in [0, 1]"),
    (amac_jax.accumulate_gradients, {"steps": 0}, "steps must be a whole number in [1, inf)"),
    *[
        (factory, {"learning_rate": -1.0}, "learning_rate must be in [0, inf)")
        for factory in CLASSIC
    ],
    (amac_jax.adam, {"plateau": 0.5}, "plateau must be a gradient transformation"),
    (amac_jax.adam, {"sync_period": True}, "sync_period must be a whole number in [1, inf)"),
    (amac_jax.accumulate_gradients, {"steps": True}, "steps must be a whole number in [1, inf)"),
    (amac_jax.momentum, {"decay": 1.0}, "decay must be in [0, 1)"),
    (amac_jax.momentum, {"dampening": 1.5}, "dampening must be in [0, 1]"),
    (amac_jax.nesterov, {"decay": -0.1}, "decay must be in [0, 1)"),
    (amac_jax.adagrad, {"eps": -1.0}, "eps must be in [0, inf)"),
    (amac_jax.rmsprop, {"decay": 1.0}, "decay must be in [0, 1)"),
    (amac_jax.amsgrad, {"b2": 1.0}, "b2 must be in [0, 1)"),
    (amac_jax.adamax, {"b2": 1.0}, "b2 must be in [0, 1)"),
    (amac_jax.nadam, {"b1": 1.0}, "b1 must be in [0, 1)"),
    (amac_jax.radam, {"threshold": 3.0}, "threshold must be in [4, inf)"),
    (amac_jax.radam, {"b2": 1.0}, "b2 must be in [0, 1)"),
    (amac_jax.adabelief, {"eps": 0.0}, "eps must be in (0, inf)"),
    (amac_jax.adabelief, {"eps_root": -1.0}, "eps_root must be in [0, inf)"),
    (amac_jax.lion, {"b2": 1.0}, "b2 must be in [0, 1)"),
    (amac_jax.lion, {"weight_decay": -1.0}, "weight_decay must be in [0, inf)"),
    (amac_jax.sophia, {"gamma": 0.0}, "gamma must be in (0, inf)"),
    (amac_jax.sophia, {"update_interval": 0}, "update_interval must be a whole number in [1, inf)"),
    (amac_jax.newton, {"damping": -1.0}, "damping must be in [0, inf)"),
    (amac_jax.newton, {"max_iterations": 0}, "max_iterations must be a whole number in [1, inf)"),
    (amac_jax.adam, {"layer_multipliers": -1.0}, "layer_multipliers must be in [0, inf)"),
    (amac_jax.sgd, {"learning_rate": -1.0}, "learning_rate must be in [0, inf)"),
    (amac_jax.sgd, {"learning_rate": NAN}, "learning_rate must be in [0, inf)"),
    (amac_jax.sgd, {"learning_rate": "fast"}, "learning_rate must be in [0, inf)"),
    (amac_jax.sgd, {"learning_rate": None}, "learning_rate must be in [0, inf)"),
    (amac_jax.adam, {"b1": 1.0}, "b1 must be in [0, 1)"),
    (amac_jax.adam, {"b2": -0.1}, "b2 must be in [0, 1)"),
    (amac_jax.adam, {"eps": -1e-8}, "eps must be in [0, inf)"),
    (amac_jax.adam, {"sync_period": 0}, "sync_period must be a whole number in [1, inf)"),
    (amac_jax.adam, {"sync_period": 5, "slow_momentum": 1.0}, "slow_momentum must be in [0, 1)"),
    (amac_jax.adamw, {"cautious_decay": -0.1}, "cautious_decay must be in [0, 1]"),
    (amac_jax.adamw, {"decay_floor": 1.0}, "decay_floor must be in [0, 1)"),
    (amac_jax.adamw, {"weight_decay": -0.1}, "weight_decay must be in [0, inf)"),
    (amac_jax.amac, {"learning_rate": -1.0}, "learning_rate must be in [0, inf)"),
    (amac_jax.amac, {"total_steps": 0}, f"total_steps {WHOLE}"),
    (amac_jax.amac, {"total_steps": 100.5}, f"total_steps {WHOLE}"),
    (amac_jax.amac, {"learning_rate": 1000, "total_steps": 5e-3}, f"total_steps {WHOLE}"),
    (
        amac_jax.amac,
        {"total_steps": 1000, "average_start": 2000},
        "average_start must be at most total_steps, 1000, or inf",
    ),
    (amac_jax.amac, {"warmup_steps": "none"}, "warmup_steps must be 'auto' or in [0, inf)"),
    (amac_jax.amac, {"average_start": "never"}, "average_start must be 'auto' or in [0, inf]"),
    (amac_jax.amac, {"weight_decay": "Auto"}, "weight_decay must be 'auto' or in [0, inf)"),
    (
        amac_jax.amac,
        {"momentum": 0.9, "dampening": "mu"},
        "dampening must be 'auto' or in [0, 1]",
    ),
    (amac_jax.amac, {"warmup_steps": 100}, "total_steps must be greater than warmup_steps"),
    (amac_jax.amac, {"b1": 1.0}, "b1 must be in [0, 1)"),
    (amac_jax.amac, {"momentum": 1.0}, "momentum must be in [0, 1)"),
    (amac_jax.amac, {"noise": -1.0}, "noise must be in [0, inf)"),
    (amac_jax.amac, {"weight_decay": -1.0}, "weight_decay must be in [0, inf)"),
    (amac_jax.amac, {"average_period": 0}, "average_period must be a whole number in [1, inf)"),
    (amac_jax.amac, {"average_start": -1}, "average_start must be in [0, inf]"),
    (amac_jax.amac, {"centralize": 2.0}, "centralize must be in [0, 1]"),
    (amac_jax.amac, {"clip_value": 0.0}, "clip_value must be in (0, inf]"),
    (amac_jax.amac, {"clip_norm": -1.0}, "clip_norm must be in (0, inf]"),
    (amac_jax.amac_reference, {"lr": -1.0}, "lr must be in [0, inf)"),
    (amac_jax.amac_reference, {"beta2": 1.0}, "beta2 must be in [0, 1)"),
    (amac_jax.amac_reference, {"mu": 1.0}, "mu must be in [0, 1)"),
    (amac_jax.amac_reference, {"alpha": 1.5}, "alpha must be in [0, 1]"),
    (amac_jax.amac_reference, {"k": 0}, "k must be a whole number in [1, inf)"),
    (amac_jax.amac_reference, {"clip_value": 0.0}, "clip_value must be in (0, inf]"),
    (amac_jax.amac_reference, {"warmup_steps": 0}, "warmup_steps must be in [1, inf)"),
    (amac_jax.amac_reference, {"total_steps": 1000}, "total_steps must be greater than"),
    # A keyword without the technique that it belongs to.
    *[
        (factory, {technique: None, name: value}, f"{name} needs {technique}, without which")
        for factory in (amac_jax.compose, amac_jax.adam, amac_jax.adamw, amac_jax.amac)
        for technique, companions in COMPANIONS.items()
        for name, value in companions.items()
    ],
    (amac_jax.sgd, {"slow_step_size": 0.5}, "slow_step_size needs sync_period, without which"),
    (amac_jax.sgd, {"centralize": True, "dampening": 0.5}, "dampening needs momentum"),
    # Bools in the place of numbers.
    (amac_jax.adam, {"clip_norm": True}, "clip_norm must be in (0, inf]"),
    (amac_jax.adam, {"weight_decay": True}, "weight_decay must be in [0, inf)"),
    (amac_jax.adam, {"noise": True}, "noise must be in [0, inf)"),
    (amac_jax.adam, {"momentum": True}, "momentum must be in [0, 1)"),
    (amac_jax.adam, {"clip_value": True}, "clip_value must be in (0, inf]"),
    (amac_jax.adam, {"average_start": True}, "average_start must be in [0, inf]"),
    (amac_jax.adam, {"learning_rate": True}, "learning_rate must be in [0, inf)"),
    (amac_jax.adam, {"learning_rate": False}, "learning_rate must be in [0, inf)"),
    (amac_jax.adam, {"b1": False}, "b1 must be in [0, 1)"),
    # Zeros, which are not False.
    (amac_jax.adam, {"clip_norm": 0.0}, "clip_norm must be in (0, inf]"),
    (amac_jax.adam, {"clip_value": 0}, "clip_value must be in (0, inf]"),
    (amac_jax.adam, {"average_start": 1, "average_period": 0}, f"average_period {WHOLE}"),
    # Keys.
    (amac_jax.inject_noise, {"key": "a"}, "key must be an integer seed or a JAX key"),
    (amac_jax.inject_noise, {"key": 0.5}, "key must be an integer seed or a JAX key"),
    (amac_jax.adam, {"noise": 0.1, "key": "a"}, "key must be an integer seed or a JAX key"),
    (amac_jax.sophia, {"key": "a"}, "key must be an integer seed or a JAX key"),
    (amac_jax.scale_by_sophia, {"key": "a"}, "key must be an integer seed or a JAX key"),
    (
        amac_jax.adam,
        {"state_dtype": "bfloat16", "key": "a"},
        "key must be an integer seed or a JAX key",
    ),
    (amac_jax.adam, {"key": "a"}, "key must be an integer seed or a JAX key"),
]
NEEDED = {
    **{factory: {"learning_rate": 0.1} for factory in [*CLASSIC, amac_jax.newton, amac_jax.sophia]},
    amac_jax.step_decay: {"initial": 1.0, "factor": 0.5, "period": 3},
    amac_jax.cosine: {"peak": 1.0, "total_steps": 100},
    amac_jax.cosine_restarts: {"peak": 1.0, "first_steps": 10},
    amac_jax.one_cycle: {"peak": 1.0, "total_steps": 100},
    amac_jax.warmup_stable_decay: {
        "peak": 1.0,
        "total_steps": 100,
        "warmup_steps": 10,
        "decay_steps": 20,
    },
    amac_jax.scale_by_layer: {"multipliers": 1.0},
    amac_jax.layerwise_decay: {"factor": 0.5, "depth_of": ["a", "b"]},
    amac_jax.accumulate_gradients: {"tx": amac_jax.sgd(0.1), "steps": 2},
    amac_jax.clip_by_value: {"limit": 1.0},
    amac_jax.clip_by_global_norm: {"limit": 1.0},
    amac_jax.inject_noise: {"scale": 0.1},
    amac_jax.decay_weights: {"rate": 0.1},
    amac_jax.heavy_ball: {"decay": 0.9},
    amac_jax.warmup_cosine: {"peak": 1.0, "total_steps": 100, "warmup_steps": 10},
    amac_jax.linear_anneal: {"initial": 1.0, "total_steps": 100},
    amac_jax.amac: {"learning_rate": 0.1, "total_steps": 100},
    amac_jax.compose: {"core": optax.scale_by_rms(), "learning_rate": 0.1},
}


@pytest.mark.parametrize(
    ("factory", "bad", "message"), REFUSED, ids=lambda x: getattr(x, "__name__", str(x))
)
def test_a_bad_argument_is_refused_by_name_range_and_value(factory, bad, message):
    good = NEEDED.get(factory, {})
    factory(**good)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        factory(**{**good, **bad})
    assert repr(next(reversed(bad.values()))) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "value", [jnp.array(-1.0), np.array(-1.0), lambda count: -1.0], ids=["jax", "numpy", "schedule"]
)
def test_arrays_and_schedules_pass_unread(value):
    tx = amac_jax.decay_weights(value)
    updates, _ = tx.update(jnp.zeros((2, 2)), tx.init(jnp.ones((2, 2))), jnp.ones((2, 2)))
    assert jnp.all(updates == 1.0)


@pytest.mark.parametrize("name", ["learning_rate", "b1", "noise", "clip_norm", "sync_period"])
def test_an_array_that_is_no_scalar_is_refused(name):
    """It would broadcast against the parameters."""
    message = re.escape(f"{name} must be a scalar, got shape (2,)")
    with pytest.raises(ValueError, match=message):
        amac_jax.adam(**{"learning_rate": 0.1, name: jnp.array([0.1, 0.2])})


@pytest.mark.parametrize(
    "tx",
    [
        amac_jax.clip_by_unit_norm(),
        amac_jax.decay_weights(0.1),
        amac_jax.lookahead(),
        amac_jax.average_weights(),
        amac_jax.amac(0.1, 100, **EVERY_TECHNIQUE),
        amac_jax.adam(0.1, record_metrics=True),
        amac_jax.amac_reference(),
    ],
)
def test_update_without_params_says_that_they_are_needed(tx):
    gradients = jnp.ones((2, 2))
    with pytest.raises(ValueError, match=r"needs params: tx.update\(updates, state, params\)"):
        tx.update(gradients, tx.init(gradients))


@pytest.mark.parametrize("factory", [*CLASSIC, amac_jax.amac, amac_jax.compose])
def test_an_unknown_keyword_is_a_type_error_that_names_the_nearest(factory):
    with pytest.raises(TypeError) as error:
        factory(**NEEDED[factory], clip_nrom=1.0)
    name = factory.__name__
    expected = f"{name}() does not take 'clip_nrom'; did you mean 'clip_norm'?"
    assert str(error.value) == expected
    with pytest.raises(TypeError) as error:
        factory(**NEEDED[factory], unheard_of=1.0)
    expected = f"{name}() does not take 'unheard_of'; its help lists the keywords"
    assert str(error.value) == expected


# Keywords of Optax, PyTorch and Keras, and what is said of each.
FOREIGN = {
    "mask": "decay_mask",
    "betas": "b1 and b2",
    "beta": "b1",
    "beta1": "b1",
    "beta2": "b2",
    "lr": "learning_rate",
    "epsilon": "eps",
    "nesterov": "amac_jax.nesterov and amac_jax.nadam",
    "amsgrad": "amac_jax.amsgrad",
    "centered": "compose(optax.scale_by_stddev(), learning_rate)",
    "eps_root": "compose(optax.scale_by_adam(eps_root=...), ...)",
    "mu_dtype": "state_dtype='bfloat16'",
    "accumulator_dtype": "state_dtype='bfloat16'",
    "initial_accumulator_value": "optax.scale_by_rss(initial_accumulator_value=...)",
    "initial_scale": "optax.scale_by_rms(initial_scale=...)",
    "layer_scale": "layer_multipliers",
    "max_norm": "clip_norm",
    "ns_steps": "quintics",
    "ns_coeffs": "quintics",
    "preconditioning": "quintics",
    "consistent_rms": "rms",
    "adam_b1": "others, such as optax.scale_by_adam(b1=...)",
    "adam_b2": "others, such as optax.scale_by_adam(b2=...)",
    "adam_learning_rate": "others_multiplier",
    "adam_weight_decay": "decay_mask",
    "muon_weight_dimension_numbers": "fan_in_axes",
    "weight_decay_mask": "decay_mask",
    "wd": "weight_decay",
    "adaptive": "b2",
    "steps": "total_steps",
    "exclude": "scale_by_orthogonal",
    "product_dtype": "scale_by_orthogonal",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_keyword_of_another_library_is_refused_and_ours_is_named(name):
    for factory in (amac_jax.adamw, amac_jax.amac, amac_jax.compose):
        with pytest.raises(TypeError) as error:
            factory(**NEEDED.get(factory, {"learning_rate": 0.1}), **{name: 1.0})
        start = f"{factory.__name__}() does not take {name!r}: "
        assert str(error.value).startswith(start)
        assert FOREIGN[name] in str(error.value).removeprefix(start)


@pytest.mark.parametrize("factory", [*CLASSIC, amac_jax.amac, amac_jax.compose])
def test_hyperparameters_are_keywords(factory):
    """Two numbers in a row would be taken in another order than meant."""
    positional = NEEDED[factory].values()
    factory(*positional)
    with pytest.raises(TypeError, match="positional argument") as error:
        factory(*positional, 0.9)
    *_, named = str(error.value).split("; ")
    order = [name for name in inspect.signature(factory).parameters if name in NEEDED[factory]]
    assert named == f"{', '.join(order)} may be positional, every other argument is a keyword"


# Which core it is.

OPTIMIZERS_AS_CORES = {
    "Optax's": lambda: optax.adam(1e-3),
    "Optax's without state": lambda: optax.sgd(0.1),
    "ours": lambda: amac_jax.adam(1e-3),
    "ours with bad steps skipped": lambda: amac_jax.adam(1e-3, skip_nonfinite=True),
    "a chain of it": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    "of centralized gradients": lambda: optax.chain(amac_jax.centralize(), optax.sgd(0.1)),
    "with a rate that begins at 0": lambda: optax.adam(optax.linear_schedule(0.0, 0.1, 100)),
}
CORES = {
    "adam": optax.scale_by_adam,
    "lion": optax.scale_by_lion,
    "identity": optax.identity,
    "muon": optax.contrib.scale_by_muon,
    "ours": amac_jax.scale_by_radam,
    "with an objective": amac_jax.scale_by_newton,
    "a chain": lambda: optax.chain(optax.add_decayed_weights(1e-4), optax.trace(0.9)),
}


@pytest.mark.parametrize("name", OPTIMIZERS_AS_CORES)
def test_an_optimizer_is_not_a_core(name):
    """Times -eta its updates, which point against the gradient, would climb."""
    message = r"core must be a scale_by_\* .* got an optimizer, whose"
    for begin in (lambda tx: tx.init, lambda tx: jax.jit(tx.init)):
        with pytest.raises(ValueError, match=message):
            begin(amac_jax.compose(OPTIMIZERS_AS_CORES[name](), 1e-3))(jnp.ones(2))


def test_an_optimizer_of_ours_in_the_place_of_a_core_is_named_at_once():
    core = amac_jax.adam(1e-3, clip_norm=1.0)
    with pytest.raises(ValueError, match="got an optimizer") as error:
        amac_jax.compose(core, 1e-3)
    assert repr(core) in str(error.value)


@pytest.mark.parametrize("name", CORES)
def test_a_core_is_a_core(name):
    params = {"kernel": jnp.ones((3, 2))}
    tx = amac_jax.compose(CORES[name](), 1e-3)
    state = tx.init(params)
    chex.assert_trees_all_equal(state, jax.jit(tx.init)(params))


@pytest.mark.parametrize("core", [None, "adam", optax.scale_by_adam])
def test_what_is_not_a_transformation_is_not_a_core(core):
    with pytest.raises(ValueError, match="core must be a gradient transformation, got"):
        amac_jax.compose(core, 1e-3)


def test_a_missing_or_unknown_argument_is_said_with_the_function_and_what_it_takes():
    with pytest.raises(TypeError, match=r"skip_spikes\(\): missing .* 'factor' \(it takes tx, fac"):
        amac_jax.skip_spikes(optax.sgd(1.0))
    with pytest.raises(TypeError, match=r"scale_by_amac\(\): .* 'weight_decay' \(it takes tot"):
        amac_jax.scale_by_amac(100, weight_decay=0.1)


@pytest.mark.parametrize("optimizer", ["adamw", amac_jax.adam(0.1)], ids=["name", "made"])
def test_what_makes_no_optimizer_is_refused_by_the_range_test(optimizer):
    with pytest.raises(ValueError, match="optimizer must be a function from a learning rate"):
        amac_jax.lr_range_test(lambda w, x: w, 1.0, jnp.ones(4), optimizer=optimizer)


@pytest.mark.parametrize("mask", [0.1, "yes", {"kernel": 1}])
def test_a_mask_of_anything_but_bools_is_refused(mask):
    tx = amac_jax.adamw(0.1, decay_mask=mask)
    with pytest.raises(ValueError, match="mask must be a tree of bools, got"):
        tx.init({"kernel": jnp.ones(2)})


# What is wrong with trees is said by path.


def test_a_pattern_that_fits_no_stack_is_refused_at_init():
    params = {"layers": {"kernel": jnp.ones((2, 3, 3))}}
    message = re.escape("each fit a leaf, and 'blocks' fits none; there are 'layers/kernel'")
    stacks = amac_jax.stacked("blocks")
    for techniques in ({"centralize": True}, {"weight_decay": 0.1}):
        with pytest.raises(ValueError, match=message):
            amac_jax.adam(0.1, **techniques, fan_in_axes=stacks).init(params)
        amac_jax.adam(0.1, **techniques, fan_in_axes=amac_jax.stacked("layers")).init(params)
    with pytest.raises(ValueError, match=message):
        amac_jax.clip_by_unit_norm(0.1, fan_in_axes=stacks).init(params)


def test_the_state_of_fewer_techniques_is_refused():
    params = {"kernel": jnp.ones((2, 2))}
    state = amac_jax.adam(0.1).init(params)
    with pytest.raises(ValueError, match="shorter"):
        amac_jax.adam(0.1, sync_period=2).update(params, state, params)


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_of_another_shape_is_refused_by_path(name):
    """It would broadcast: (2, 1) and (1, 3) make (2, 3)."""
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    gradients = {"dense": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(3)}}
    tx = optax.with_extra_args_support(CASES[name].build())
    state = jax.eval_shape(tx.init, params)
    jax.eval_shape(tx.update, params, state, params)
    message = (
        "the gradient at 'dense/kernel' must have the shape of its parameter, (2, 3), got (2, 1)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(tx.update, gradients, state, params)


@pytest.mark.parametrize("name", CASES)
def test_a_python_number_that_has_a_gradient_is_refused_by_path(name):
    """It is not trained, as a dropout's rate is not; with a gradient it is meant to be."""
    params = {"dense": {"bias": jnp.ones(3)}, "temperature": 1.0}
    gradients = {"dense": {"bias": jnp.ones(3)}, "temperature": jnp.array(1.0)}
    tx = optax.with_extra_args_support(CASES[name].build())
    state = tx.init(params)
    message = "the parameter of a gradient at 'temperature' must be an array, got 1.0"
    with pytest.raises(ValueError, match=re.escape(message)):
        tx.update(gradients, state, params)


def test_reduce_on_plateau_says_that_it_needs_a_value():
    tx = amac_jax.adam(0.1, plateau=amac_jax.reduce_on_plateau())
    state = tx.init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"needs value: tx.update.*value=loss"):
        tx.update(jnp.ones(2), state, jnp.ones(2))
    with pytest.raises(ValueError, match="value must be a scalar"):
        tx.update(jnp.ones(2), state, jnp.ones(2), value=jnp.ones(3))


def test_traced_hyperparameters_pass():
    def first_update(rate, total_steps):
        tx = amac_jax.amac(rate, total_steps, noise=0.01)
        return tx.update(jnp.ones((2, 2)), tx.init(jnp.ones((2, 2))), jnp.ones((2, 2)))[0]

    assert jnp.all(jnp.isfinite(jax.jit(first_update)(0.1, 100)))
