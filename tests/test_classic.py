"""Each classic optimizer against its equation in NumPy, and against Optax's own."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from amac_jax.optimizers import ScaleBySophiaState
from tests.helpers import SOAK, assert_close, normals

STEPS = 100
SHAPES = {"kernel": (4, 3), "bias": (3,), "stack": (2, 3, 2), "scalar": ()}
KERNELS = ("kernel", "stack")


# The references: the parameters after each step, one leaf at a time, in the dtype they are given.
Weights = Iterator[np.ndarray]


def sgd(w, gradients, eta) -> Weights:
    for g in gradients:
        w = w - eta * g
        yield w


def momentum(w, gradients, eta, beta, dampening) -> Weights:
    v = 0
    for g in gradients:
        v = beta * v + (1 - dampening) * g
        w = w - eta * v
        yield w


def nesterov(w, gradients, eta, beta) -> Weights:
    """In terms of the point the gradient is taken at; see the test of the equivalence below."""
    v = 0
    for g in gradients:
        v = beta * v + g
        w = w - eta * (g + beta * v)
        yield w


def adagrad(w, gradients, eta, eps) -> Weights:
    s = 0
    for g in gradients:
        s = s + g**2
        w = w - eta * g / np.sqrt(s + eps)
        yield w


def rmsprop(w, gradients, eta, gamma, eps) -> Weights:
    s = 0
    for g in gradients:
        s = gamma * s + (1 - gamma) * g**2
        w = w - eta * g / np.sqrt(s + eps)
        yield w


def moments(gradients, b1, b2):
    m = v = 0
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        yield t, g, m, v


def adam(w, gradients, eta, b1, b2, eps, decay=0.0) -> Weights:
    for t, _, m, v in moments(gradients, b1, b2):
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        w = w - eta * (m_hat / (np.sqrt(v_hat) + eps) + decay * w)
        yield w


def amsgrad(w, gradients, eta, b1, b2, eps, bias_corrected) -> Weights:
    largest = 0
    for t, _, m, v in moments(gradients, b1, b2):
        largest = np.maximum(largest, v / (1 - b2**t) if bias_corrected else v)
        w = w - eta * (m / (1 - b1**t)) / (np.sqrt(largest) + eps)
        yield w


def adamax(w, gradients, eta, b1, b2, eps) -> Weights:
    s = 0
    for t, g, m, _ in moments(gradients, b1, b2):
        s = np.maximum(b2 * s, np.abs(g) + eps)
        w = w - eta / (1 - b1**t) * m / s
        yield w


def nadam(w, gradients, eta, b1, b2, eps) -> Weights:
    for t, g, m, v in moments(gradients, b1, b2):
        m_bar = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        w = w - eta * m_bar / (np.sqrt(v / (1 - b2**t)) + eps)
        yield w


def radam(w, gradients, eta, b1, b2, eps, threshold) -> Weights:
    most = 2 / (1 - b2) - 1
    for t, _, m, v in moments(gradients, b1, b2):
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        rho = most - 2 * t * b2**t / (1 - b2**t)
        if rho > threshold:
            r = np.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
            w = w - eta * r * m_hat / (np.sqrt(v_hat) + eps)
        else:
            w = w - eta * m_hat
        yield w


def adabelief(w, gradients, eta, b1, b2, eps) -> Weights:
    m = s = 0
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) ** 2
        w = w - eta * (m / (1 - b1**t)) / np.sqrt(s / (1 - b2**t) + eps)
        yield w


def published_adabelief(w, gradients, eta, b1, b2, eps) -> Weights:
    m = s = 0
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) ** 2 + eps
        w = w - eta * (m / (1 - b1**t)) / (np.sqrt(s / (1 - b2**t)) + eps)
        yield w


def lion(w, gradients, eta, b1, b2, decay) -> Weights:
    m = 0
    for g in gradients:
        w = w - eta * (np.sign(b1 * m + (1 - b1) * g) + decay * w)
        m = b2 * m + (1 - b2) * g
        yield w


def wave(params: Any) -> jax.Array:
    """An objective whose Hessian is diagonal, -sin(theta): random signs estimate it exactly."""
    return jnp.asarray(optax.tree.sum(jax.tree.map(jnp.sin, params)))


def sophia(w, gradients, eta, b1, b2, gamma, eps, interval, decay) -> Weights:
    m = h = 0
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        if t % interval == 1:
            h = b2 * h + (1 - b2) * -np.sin(w)
        w = w - eta * (np.clip(m / np.maximum(gamma * h, eps), -1, 1) + decay * w)
        yield w


def newton(w, gradients, eta, delta, saddle_free) -> Weights:
    for g in gradients:
        h = -np.sin(w)
        w = w - eta * g / ((np.abs(h) if saddle_free else h) + delta)
        yield w


class Row(NamedTuple):
    ours: Callable[[], optax.GradientTransformation]
    reference: Callable[[Any, Any, float], Weights]  # (a leaf, its gradients, decay of kernels)
    theirs: Callable[[], optax.GradientTransformation] | None = None
    decay: float = 0.0


ROWS = {
    "sgd": Row(
        lambda: amac_jax.sgd(0.01), lambda w, g, _: sgd(w, g, 0.01), lambda: optax.sgd(0.01)
    ),
    "momentum": Row(
        lambda: amac_jax.momentum(1e-3),
        lambda w, g, _: momentum(w, g, 1e-3, 0.9, 0.0),
        lambda: optax.sgd(1e-3, momentum=0.9),
    ),
    "momentum, dampened": Row(
        lambda: amac_jax.momentum(0.01, decay=0.8, dampening=0.5),
        lambda w, g, _: momentum(w, g, 0.01, 0.8, 0.5),
        lambda: optax.sgd(0.005, momentum=0.8),
    ),
    "nesterov": Row(
        lambda: amac_jax.nesterov(1e-3),
        lambda w, g, _: nesterov(w, g, 1e-3, 0.9),
        lambda: optax.sgd(1e-3, momentum=0.9, nesterov=True),
    ),
    "adagrad": Row(
        lambda: amac_jax.adagrad(0.01),
        lambda w, g, _: adagrad(w, g, 0.01, 1e-6),
        lambda: optax.adagrad(0.01, initial_accumulator_value=0.0, eps=1e-6),
    ),
    "adagrad, eps 0.3": Row(
        lambda: amac_jax.adagrad(0.01, eps=0.3),
        lambda w, g, _: adagrad(w, g, 0.01, 0.3),
        lambda: optax.adagrad(0.01, initial_accumulator_value=0.0, eps=0.3),
    ),
    "rmsprop": Row(
        lambda: amac_jax.rmsprop(1e-3),
        lambda w, g, _: rmsprop(w, g, 1e-3, 0.9, 1e-8),
        lambda: optax.rmsprop(1e-3),
    ),
    "rmsprop, eps 0.3": Row(
        lambda: amac_jax.rmsprop(1e-3, decay=0.99, eps=0.3),
        lambda w, g, _: rmsprop(w, g, 1e-3, 0.99, 0.3),
        lambda: optax.rmsprop(1e-3, decay=0.99, eps=0.3),
    ),
    "adam": Row(
        lambda: amac_jax.adam(1e-3),
        lambda w, g, _: adam(w, g, 1e-3, 0.9, 0.999, 1e-8),
        lambda: optax.adam(1e-3),
    ),
    "adam, eps 0.3": Row(
        lambda: amac_jax.adam(1e-3, b1=0.8, b2=0.99, eps=0.3),
        lambda w, g, _: adam(w, g, 1e-3, 0.8, 0.99, 0.3),
        lambda: optax.adam(1e-3, b1=0.8, b2=0.99, eps=0.3),
    ),
    "adamw": Row(
        lambda: amac_jax.adamw(1e-3),
        lambda w, g, decay: adam(w, g, 1e-3, 0.9, 0.999, 1e-8, decay),
        lambda: optax.adamw(1e-3, weight_decay=0.01, mask=amac_jax.kernel_mask),
        decay=0.01,
    ),
    "amsgrad": Row(
        lambda: amac_jax.amsgrad(1e-3),
        lambda w, g, _: amsgrad(w, g, 1e-3, 0.9, 0.999, 1e-8, False),
        lambda: optax.chain(
            optax.scale_by_amsgrad(bias_correction_nu=False), optax.scale_by_learning_rate(1e-3)
        ),
    ),
    "amsgrad, bias_corrected": Row(
        lambda: amac_jax.amsgrad(1e-3, b1=0.8, b2=0.99, eps=0.3, bias_corrected=True),
        lambda w, g, _: amsgrad(w, g, 1e-3, 0.8, 0.99, 0.3, True),
        lambda: optax.amsgrad(1e-3, b1=0.8, b2=0.99, eps=0.3),
    ),
    "adamax": Row(
        lambda: amac_jax.adamax(1e-3),
        lambda w, g, _: adamax(w, g, 1e-3, 0.9, 0.999, 1e-8),
        lambda: optax.adamax(1e-3),
    ),
    "nadam": Row(
        lambda: amac_jax.nadam(1e-3),
        lambda w, g, _: nadam(w, g, 1e-3, 0.9, 0.999, 1e-8),
        lambda: optax.nadam(1e-3),
    ),
    "radam": Row(
        lambda: amac_jax.radam(1e-3),
        lambda w, g, _: radam(w, g, 1e-3, 0.9, 0.999, 1e-8, 4.0),
    ),
    "radam, threshold 5": Row(  # in float32 Optax's rho_5 = 4.996 is 4.961
        lambda: amac_jax.radam(1e-3, b1=0.8, b2=0.99, eps=0.3, threshold=5.0),
        lambda w, g, _: radam(w, g, 1e-3, 0.8, 0.99, 0.3, 5.0),
        lambda: optax.radam(1e-3, b1=0.8, b2=0.99, eps=0.3, threshold=5.0),
    ),
    "radam, b2 0.9999": Row(  # where Optax's rho_1 = 1 is 4.3 in float32
        lambda: amac_jax.radam(1e-3, b2=0.9999),
        lambda w, g, _: radam(w, g, 1e-3, 0.9, 0.9999, 1e-8, 4.0),
    ),
    "adabelief": Row(
        lambda: amac_jax.adabelief(1e-3),
        lambda w, g, _: adabelief(w, g, 1e-3, 0.9, 0.999, 1e-8),
    ),
    "adabelief, eps 0.3": Row(
        lambda: amac_jax.adabelief(1e-3, b1=0.8, b2=0.99, eps=0.3),
        lambda w, g, _: adabelief(w, g, 1e-3, 0.8, 0.99, 0.3),
    ),
    "adabelief, eps_root": Row(
        lambda: amac_jax.adabelief(1e-3, eps=1e-3, eps_root=1e-3),
        lambda w, g, _: published_adabelief(w, g, 1e-3, 0.9, 0.999, 1e-3),
        lambda: optax.adabelief(1e-3, eps=1e-3, eps_root=1e-3),
    ),
    "lion": Row(
        lambda: amac_jax.lion(1e-3),
        lambda w, g, decay: lion(w, g, 1e-3, 0.9, 0.99, decay),
        lambda: optax.lion(1e-3, weight_decay=0.1, mask=amac_jax.kernel_mask),
        decay=0.1,
    ),
    "sophia": Row(
        lambda: amac_jax.sophia(1e-3),
        lambda w, g, decay: sophia(w, g, 1e-3, 0.96, 0.99, 0.01, 1e-12, 10, decay),
        decay=0.2,
    ),
    "sophia, seldom clipped": Row(
        lambda: amac_jax.sophia(
            1e-3, b1=0.9, b2=0.5, gamma=2.0, eps=0.3, update_interval=3, weight_decay=None
        ),
        lambda w, g, _: sophia(w, g, 1e-3, 0.9, 0.5, 2.0, 0.3, 3, 0.0),
    ),
    "newton": Row(
        lambda: amac_jax.newton(1e-3, damping=2.0),
        lambda w, g, _: newton(w, g, 1e-3, 2.0, False),
    ),
    "newton, saddle_free": Row(
        lambda: amac_jax.newton(1e-3, damping=0.5, saddle_free=True),
        lambda w, g, _: newton(w, g, 1e-3, 0.5, True),
    ),
}


def history(tx: optax.GradientTransformation, params: Any, gradients: Any) -> Any:
    """The parameters after every step; every optimizer is given the objective `wave`."""
    tx = optax.with_extra_args_support(tx)

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params, value_fn=wave)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, tx.init(params)), gradients)[1]


@functools.cache
def ours(name: str) -> Callable[[Any, Any], Any]:
    """Compiled once for the two tests that run it."""
    return jax.jit(functools.partial(history, ROWS[name].ours()))


@functools.cache
def problem(seed: int, dtype: str) -> tuple[Any, Any]:
    """Parameters, and gradients whose first axis are the steps."""
    like = {name: np.zeros(shape, dtype) for name, shape in SHAPES.items()}
    params = jax.device_get(next(normals(seed, like)))
    drawn = list(normals(seed + 1000, like, STEPS))
    # Gradients of very different sizes, and some that are exactly 0.
    sizes = {"kernel": 1.0, "bias": 30.0, "stack": 0.03, "scalar": 1.0}
    gradients = {name: np.stack([np.asarray(g[name]) for g in drawn]) for name in SHAPES}
    return params, {
        name: np.where(np.abs(g) > 0.1, g * sizes[name], 0.0).astype(dtype)
        for name, g in gradients.items()
    }


def references(row: Row, params: Any, gradients: Any) -> dict[str, np.ndarray]:
    """Leaf by leaf, in the dtype of the parameters."""
    return {
        name: np.stack(
            list(row.reference(param, gradients[name], row.decay if name in KERNELS else 0.0))
        )
        for name, param in params.items()
    }


def difference(found: Any, expected: Any) -> float:
    """The largest of any step and element, relative to the leaf's largest weight in the run."""
    relative = [
        np.max(np.abs(found[name] - whole)) / np.max(np.abs(whole))
        for name, whole in expected.items()
    ]
    return float(np.max(relative))  # NaN if any is, which Python's max would pass over


@pytest.mark.parametrize("seed", [0, 1] if SOAK else [0])
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
def test_it_is_its_equation_for_100_steps(name, dtype, tolerance, seed):
    with jax.enable_x64(dtype == "float64"):
        params, gradients = problem(seed, dtype)
        found = jax.device_get(ours(name)(params, gradients))
    expected = references(ROWS[name], params, gradients)
    assert found["kernel"].dtype == dtype
    assert difference(found, expected) <= tolerance
    # What a tolerance is worth: the parameters have moved by far more.
    assert difference(params, expected) > 1e-3


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.theirs])
@pytest.mark.parametrize("dtype", ["float32", "float64"] if SOAK else ["float64"])
def test_it_is_optaxs_for_100_steps(name, dtype):
    make = ROWS[name].theirs
    assert make is not None
    with jax.enable_x64(dtype == "float64"):
        params, gradients = problem(2, dtype)
        found = jax.device_get(ours(name)(params, gradients))
        with jax.numpy_dtype_promotion("standard"):  # Optax's own need it
            theirs = jax.device_get(jax.jit(functools.partial(history, make()))(params, gradients))
    assert difference(found, theirs) <= 1e-6


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_nesterov_is_the_gradient_taken_one_step_ahead(beta):
    """v <- beta v + grad L(w - eta beta v), w <- w - eta v, with theta = w - eta beta v."""
    eta, curvature = 0.05, np.array([1.0, 4.0, 9.0])

    def gradient(at):
        return curvature * at + np.cos(at)

    w, v, ahead = np.array([1.0, -2.0, 0.5]), 0.0, []
    for _ in range(STEPS):
        v = beta * v + gradient(w - eta * beta * v)
        w = w - eta * v
        ahead.append(w - eta * beta * v)
    with jax.enable_x64(True):
        tx = amac_jax.nesterov(eta, decay=beta)
        theta, update = jnp.array([1.0, -2.0, 0.5]), jax.jit(tx.update)
        state = tx.init(theta)
        for expected in ahead:
            updates, state = update(gradient(np.asarray(theta)), state, theta)
            theta = np.asarray(theta) + np.asarray(updates)
            np.testing.assert_allclose(theta, expected, rtol=1e-12, atol=1e-13)


def test_amsgrads_denominator_never_falls_and_adams_does():
    gradients = np.array([10.0] + [0.1] * 500, np.float32)

    def last_step(tx):
        def step(state, gradient):
            updates, state = tx.update(gradient, state)
            return state, updates

        _, updates = jax.jit(lambda g: jax.lax.scan(step, tx.init(g[0]), g))(gradients)
        return float(updates[-1])

    # m = 0.1 in the end, v still at least (1 - b2) 10^2 for AMSGrad: 0.1 / sqrt(10).
    assert last_step(amac_jax.amsgrad(1.0, b2=0.9)) == pytest.approx(-0.1 / 10**0.5, rel=1e-4)
    assert last_step(amac_jax.adam(1.0, b2=0.9)) == pytest.approx(-1.0, rel=1e-4)


@pytest.mark.parametrize("b2", [0.99, 0.999, 0.9999, 0.99999])
def test_radam_takes_momentum_alone_for_four_steps(b2):
    """rho_t is nearly t. `optax.radam` rectifies the first step for b2 = 0.9999."""
    tx = amac_jax.radam(1.0, b1=0.0, b2=b2)
    gradient, update, steps = np.full(1, 100.0, np.float32), jax.jit(tx.update), []
    state = tx.init(gradient)
    for _ in range(6):
        updates, state = update(gradient, state)
        steps.append(-float(np.asarray(updates)[0]))
    np.testing.assert_allclose(steps[:4], 100.0, rtol=1e-5)
    assert all(0 < step < 0.2 for step in steps[4:])


SCHEDULED = {
    "momentum": {"decay": 0.9, "dampening": 0.1},
    "nesterov": {"decay": 0.9},
    "adagrad": {"eps": 0.1},
    "rmsprop": {"decay": 0.9, "eps": 0.1},
    "adam": {"b1": 0.9, "b2": 0.99, "eps": 0.1},
    "amsgrad": {"b1": 0.9, "b2": 0.99, "eps": 0.1},
    "adamax": {"b1": 0.9, "b2": 0.99, "eps": 0.1},
    "nadam": {"b1": 0.9, "b2": 0.99, "eps": 0.1},
    "radam": {"b1": 0.9, "b2": 0.99, "eps": 0.1, "threshold": 5.0},
    "adabelief": {"b1": 0.9, "b2": 0.99, "eps": 0.1},
    "lion": {"b1": 0.9, "b2": 0.99, "weight_decay": 0.1},
    "sophia": {"b1": 0.9, "b2": 0.9, "gamma": 0.5, "eps": 0.1, "update_interval": 2},
    "newton": {"damping": 2.0},
}


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("name", SCHEDULED)
def test_every_hyperparameter_may_be_a_schedule(name):
    factory, values = getattr(amac_jax, name), SCHEDULED[name]
    whole, gradients = problem(3, "float32")
    params = {"kernel": whole["kernel"]}  # a hyperparameter is one number for all leaves
    gradients = {"kernel": np.concatenate(2 * [gradients["kernel"][:4]])}
    schedules = {
        argument: lambda count, v=value: v + 0.0 * count for argument, value in values.items()
    }
    settings = {"constant": values, "schedules": schedules}
    for argument, value in values.items():
        changing = {**values, argument: lambda count, v=value: jnp.where(count < 2, v, 0.7 * v)}
        if argument == "threshold":
            changing[argument] = lambda count: jnp.where(count < 2, 5.0, 1e9)
        if argument == "update_interval":
            changing[argument] = lambda count: jnp.where(count < 2, 2, 3)
        settings[argument] = changing

    @jax.jit
    def histories(params, gradients):
        return {
            which: history(factory(0.01, **hyperparameters), params, gradients)
            for which, hyperparameters in settings.items()
        }

    found = jax.device_get(histories(params, gradients))
    constant = found.pop("constant")
    assert difference(found.pop("schedules"), constant) < 1e-6
    for argument, changed in found.items():
        assert_close(changed["kernel"][:2], constant["kernel"][:2])
        assert difference(changed, constant) > 1e-6, argument


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_float64_schedule_does_not_change_the_state_of_float32_parameters(name):
    """With x64 on, schedules are float64; a state that followed them could not be scanned."""
    values = {
        argument: (lambda count, v=value: jnp.float64(v) + 0.0 * jnp.float64(count))
        for argument, value in SCHEDULED[name].items()
    }

    def trained(params):
        tx = getattr(amac_jax, name)(lambda count: jnp.float64(0.01), **values)

        def step(carry, _):
            params, state = carry
            gradient = jax.tree.map(jnp.cos, params)
            updates, state = tx.update(gradient, state, params, value_fn=wave)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=3)[0][0]

    with jax.enable_x64(True):  # dtypes are known when it is traced
        params = jax.eval_shape(trained, {"kernel": np.ones((2, 2), np.float32)})
    assert params["kernel"].dtype == jnp.float32


def sophias_state(state) -> ScaleBySophiaState:
    def is_sophia(node):
        return isinstance(node, ScaleBySophiaState)

    [found] = filter(is_sophia, jax.tree.leaves(state, is_leaf=is_sophia))
    return found


def test_sophias_estimate_is_the_hessians_diagonal_on_average():
    """Of a Hessian with off-diagonals twice as large, over 4,000 keys."""
    hessian = jnp.array([[1.0, 2.0, -2.0], [2.0, 3.0, 2.0], [-2.0, 2.0, 5.0]])
    params = jnp.ones(3)

    def estimate(key):
        tx = amac_jax.sophia(1.0, b1=0.0, b2=0.0, gamma=1.0, eps=1e-6, weight_decay=None, key=key)
        state = tx.init(params)
        _, state = tx.update(params, state, params, value_fn=lambda x: 0.5 * x @ hessian @ x)
        return sophias_state(state).hessian

    estimates = np.asarray(jax.jit(jax.vmap(estimate))(jnp.arange(4000)))
    # Each row's variance is 4 + 4; six standard errors fail once in 2e8 runs for each.
    np.testing.assert_allclose(estimates.mean(axis=0), [1.0, 3.0, 5.0], atol=6 * (8 / 4000) ** 0.5)
    np.testing.assert_allclose(estimates.std(axis=0), 8**0.5, rtol=0.1)


def test_sophias_signs_are_not_those_of_the_noise():
    zeros = np.zeros(2000, np.float32)

    def value_fn(x):  # m / max(h, eps) with m = 1 and h = z * sum(z): its sign is that of z
        return 0.5 * jnp.sum(x) ** 2

    tx = amac_jax.sophia(1.0, b1=0.0, b2=0.0, gamma=1.0, weight_decay=None)
    noise = amac_jax.inject_noise(1.0, key=0, sampler="threefry")

    @jax.jit
    def draws(zeros):
        _, state = tx.update(zeros, tx.init(zeros), zeros, value_fn=value_fn)
        return sophias_state(state).hessian, noise.update(zeros, noise.init(zeros))[0]

    hessian, xi = map(np.asarray, draws(zeros))
    assert abs(np.corrcoef(np.sign(hessian), xi)[0, 1]) < 6 / 2000**0.5


@pytest.mark.parametrize("name", ["adabelief", "newton", "radam", "sophia"])
def test_a_core_has_the_defaults_of_its_optimizer(name):
    optimizer = inspect.signature(getattr(amac_jax, name)).parameters
    core = inspect.signature(getattr(amac_jax, f"scale_by_{name}")).parameters
    assert core
    for argument, parameter in core.items():
        assert parameter.default == optimizer[argument].default
