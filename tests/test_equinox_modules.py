"""Equinox's whole modules, functions and numbers among their leaves, as parameters."""

import functools
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import amac_jax
from amac_jax.optimizers import EVERY_TECHNIQUE
from tests.helpers import assert_close, assert_same_bits
from tests.table import CASES, OPTIMIZERS

NAMES = [
    *OPTIMIZERS,
    *("compose", "amac", "amac recorded", "amac bfloat16", "accumulate_gradients amac"),
    *("store_state_in", "lookahead", "average_weights", "inject_noise", "reduce_on_plateau"),
]
STEPS = 4  # with averages, synchronisations and gathered gradients


class Model(eqx.Module):
    """With what models hold beside weights: functions, numbers, bools, integers, None, a string."""

    first: eqx.nn.Linear
    dropout: eqx.nn.Dropout  # its rate is a Python float, `inference` a bool
    last: eqx.nn.Linear
    activation: Callable
    order: jax.Array  # int32
    mask: np.ndarray  # bool
    key: jax.Array
    temperature: float
    name: str
    nothing: None = None

    def __init__(self):
        first, last = jax.random.split(jax.random.key(0))
        self.first = eqx.nn.Linear(4, 3, key=first)
        self.dropout = eqx.nn.Dropout(0.1)
        self.last = eqx.nn.Linear(3, 1, use_bias=False, key=last)
        self.activation = jnp.tanh
        self.order = jnp.array([2, 0, 1, 3])
        self.mask = np.array([True, True, False])
        self.key = jax.random.key(7)
        self.temperature = 0.5
        self.name = "small"

    def __call__(self, x, key=None):
        hidden = self.activation(self.first(x[self.order]) / self.temperature)
        return self.last(self.dropout(jnp.where(self.mask, hidden, 0.0), key=key))


FORMS = {
    "eqx.is_inexact_array": lambda model: eqx.filter(model, eqx.is_inexact_array),
    "eqx.is_array": lambda model: eqx.filter(model, eqx.is_array),
    "the whole module": lambda model: model,
}


X = np.random.default_rng(1).normal(size=(32, 4)).astype(np.float32)
Y = np.sin(X @ np.arange(1, 5, dtype=np.float32)[:, None] / 4)


def loss(model: Model, key: jax.Array) -> jax.Array:
    return jnp.mean((jax.vmap(model)(X, jax.random.split(key, len(X))) - Y) ** 2)


# The programs that all optimizers share, compiled once.
gradients_of = eqx.filter_jit(eqx.filter_grad(loss))
initial = functools.cache(Model)


@eqx.filter_jit
def evaluated(model: Model) -> jax.Array:
    return jax.vmap(eqx.nn.inference_mode(model))(X)


def step_of(tx: Any, given: Callable) -> Callable:
    """A step of the optimizer; `given` says what of the model it sees."""

    @eqx.filter_jit
    def step(model, state, gradients):
        updates, state = tx.update(gradients, state, given(model))
        return eqx.apply_updates(model, updates), state

    return step


def run(step: Callable, state: Any) -> tuple[Model, Any]:
    """The model and the state after some steps."""
    model = initial()
    for number in range(STEPS):
        model, state = step(model, state, gradients_of(model, jax.random.key(number)))
    return model, state


def arrays(model: Model) -> Model:
    """What of a model can be compared by bits."""
    return eqx.filter(model, lambda leaf: eqx.is_array(leaf) and leaf is not model.key)


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_module_is_its_trained_arrays_to_the_bit(name):
    tx, before, filtered = CASES[name].build(), initial(), FORMS["eqx.is_inexact_array"]
    model, state = run(step_of(tx, filtered), tx.init(filtered(before)))
    step = step_of(tx, FORMS["the whole module"])
    for init in FORMS.values():
        whole, whole_state = run(step, tx.init(init(before)))
        assert_same_bits(arrays(whole), arrays(model))
        assert_same_bits(whole_state, state)
        assert_same_bits(whole.order, before.order)
        assert_same_bits(whole.mask, before.mask)
        assert_same_bits(*map(jax.random.key_data, (whole.key, before.key)))
        assert (whole.dropout.p, whole.temperature, whole.name) == (0.1, 0.5, "small")
        assert whole.activation is jnp.tanh
        assert evaluated(whole).shape == (32, 1)
    if not name.startswith(("average_weights", "reduce_on_plateau")):
        with pytest.raises(AssertionError):
            assert_close(model.first.weight, before.first.weight)


@pytest.mark.parametrize("name", ["adam", "amac", "amac bfloat16", "amac recorded"])
def test_the_average_of_a_module_is_a_module_that_can_be_called(name):
    techniques = {"average_start": 2, "average_period": 1, "sync_period": 2, "slow_step_size": 0.5}
    tx = CASES[name].build(**techniques)
    whole = FORMS["the whole module"]
    model, state = run(step_of(tx, whole), tx.init(initial()))
    average = amac_jax.averaged_params(state, model)
    assert isinstance(average, Model)
    assert average.activation is jnp.tanh
    assert average.dropout.p == 0.1
    assert_same_bits(average.order, model.order)
    assert np.all(np.isfinite(evaluated(average)))
    with pytest.raises(AssertionError):
        assert_close(average.first.weight, model.first.weight, 1e-4)
    # It is the average on the filtered tree, which `eqx.combine` completes.
    alone = amac_jax.averaged_params(state, eqx.filter(model, eqx.is_inexact_array))
    assert_same_bits(arrays(eqx.combine(alone, model)), arrays(average))
    slow = eqx.combine(amac_jax.slow_params(state), model)
    assert np.all(np.isfinite(evaluated(slow)))


def test_before_the_first_average_it_is_the_module():
    model = initial()
    average = amac_jax.averaged_params(amac_jax.adam(0.1, average_start=9).init(model), model)
    assert_same_bits(arrays(average), arrays(model))
    assert average.activation is jnp.tanh


def test_a_whole_module_is_trained():
    every = {**EVERY_TECHNIQUE, "end_ratio": 0.5, "skip_nonfinite": True, "record_metrics": True}
    tx = amac_jax.amac(0.02, 300, **every)
    model = initial()
    state = tx.init(model)

    @eqx.filter_jit
    def steps(model, state):
        arrays_of, rest = eqx.partition(model, eqx.is_inexact_array)

        def step(carry, key):
            whole = eqx.combine(carry[0], rest)
            gradients = eqx.filter_grad(loss)(whole, key)
            updates, state = tx.update(gradients, carry[1], whole)
            return (eqx.apply_updates(carry[0], updates), state), None

        keys = jax.random.split(jax.random.key(2), 300)
        (trained, state), _ = jax.lax.scan(step, (arrays_of, state), keys)
        return eqx.combine(trained, rest), state

    trained, state = steps(model, state)
    average = eqx.nn.inference_mode(amac_jax.averaged_params(state, trained))
    loss_of, key = eqx.filter_jit(loss), jax.random.key(0)
    before, after = (loss_of(m, key) for m in (eqx.nn.inference_mode(model), average))
    assert after < 0.3 * before
    assert_close(amac_jax.learning_rate(state), np.float32(0.01))
    assert float(amac_jax.metrics(state)["skipped_steps"]) == 0


@pytest.mark.parametrize("what", ["a module", "an optimizer"])
def test_an_nnx_module_is_not_parameters_and_the_error_says_what_is(what):
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, amac_jax.adam(0.1, average_start=1), wrt=nnx.Param)
    params = model if what == "a module" else optimizer
    remedy = "params must be the tree that the optimizer was given at init (for Flax NNX nnx.state("
    with pytest.raises(ValueError, match=re.escape(remedy)):
        amac_jax.averaged_params(optimizer, params)
    good = amac_jax.averaged_params(optimizer, nnx.state(model, nnx.Param))
    assert_same_bits(good["kernel"][...], model.kernel[...])
