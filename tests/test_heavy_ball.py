"""`heavy_ball` against the equation in NumPy and against `optax.trace`."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from amac_jax import heavy_ball, sgd
from tests.helpers import assert_close, float64, normals, train

LIKE = {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}
STEPS = 12


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("mu", "dampening"), [(0.9, 0.0), (0.9, 0.9), (0.5, 0.25), (0.0, 0.0)])
def test_equals_the_equation(seed, mu, dampening):
    velocity = weights = 0.0
    updates = list(normals(seed, LIKE, STEPS))
    steps = train(heavy_ball(mu, dampening=dampening), LIKE, updates)
    for update, (params, state) in zip(updates, steps, strict=True):
        velocity = mu * velocity + (1 - dampening) * float64(update)["kernel"]
        weights = weights + velocity
        assert_close(state.inner.velocity["kernel"], velocity)
        assert_close(params["kernel"], weights, 3e-6)


@pytest.mark.parametrize("mu", [0.0, 0.3, 0.99])
def test_without_dampening_it_is_optax_trace(mu):
    updates = list(normals(0, LIKE, STEPS))
    ours, theirs = train(heavy_ball(mu), LIKE, updates), train(optax.trace(mu), LIKE, updates)
    for (params, _), (expected, _) in zip(ours, theirs, strict=True):
        assert_close(params, expected)


@pytest.mark.parametrize(("dampening", "limit"), [(0.9, 1.0), (0.0, 10.0), (0.5, 5.0)])
def test_limit_of_a_constant_update(dampening, limit):
    update = next(normals(0, LIKE))
    *_, (_, state) = train(heavy_ball(0.9, dampening=dampening), LIKE, [update] * 200)
    assert_close(state.inner.velocity["bias"], limit * float64(update["bias"]))


def test_schedules_are_read_at_the_count_of_updates():
    mu, dampening = [0.0, 0.5, 0.9, 0.1], [0.5, 0.0, 0.9, 1.0]
    tx = heavy_ball(
        lambda count: jnp.asarray(mu)[count], dampening=lambda count: jnp.asarray(dampening)[count]
    )
    velocity = 0.0
    updates = list(normals(1, LIKE, 4))
    for t, (_, state) in enumerate(train(tx, LIKE, updates)):
        assert int(state.count) == t + 1
        velocity = mu[t] * velocity + (1 - dampening[t]) * float64(updates[t]["bias"])
        assert_close(state.inner.velocity["bias"], velocity)


def test_of_gradients_or_of_updates_is_the_same_at_a_constant_rate_alone():
    """The technique's velocity holds updates, eta g; Optax's holds gradients.

    In both, the k-th step is the sum over i <= k of mu^(k - i) g_i times a rate: the rate of step
    i, which made its update, or the rate of step k, which uses the velocity.
    """
    mu, rates = 0.9, np.array([0.1] * 4 + [0.02] * 4)
    start, *gradients = normals(2, LIKE, 9)
    g = np.stack([float64(gradient)["kernel"] for gradient in gradients])
    weight = mu ** np.maximum(np.subtract.outer(range(8), range(8)), 0) * np.tri(8)

    def steps(rate_of_steps):
        return np.einsum("ki,i...->k...", weight * rate_of_steps, g)

    def landings(tx):
        return np.stack([float64(p["kernel"]) for p, _ in train(tx, start, gradients)])

    def landed(steps):
        return float64(start)["kernel"] - np.cumsum(steps, axis=0)

    constant = landings(sgd(0.1, momentum=mu)), landings(optax.sgd(0.1, momentum=mu))
    assert_close(constant[0], constant[1])
    assert_close(constant[0], landed(steps(0.1)))

    ours = landings(sgd(lambda count: jnp.asarray(rates)[count], momentum=mu))
    theirs = landings(optax.sgd(lambda count: jnp.asarray(rates)[count], momentum=mu))
    assert_close(ours, landed(steps(rates)))
    assert_close(theirs, landed(steps(rates[:, None])))
    assert_close(ours[:4], theirs[:4])
    assert np.all(np.max(np.abs(ours - theirs)[4:], axis=(1, 2)) > 0.1)  # of weights of size 1


def test_velocity_of_bfloat16_updates_is_float32():
    like = jnp.zeros(3, jnp.bfloat16)
    # One that is in bfloat16 itself stops growing at 256.
    *_, (params, state) = train(heavy_ball(0.999), like, [jnp.ones_like(like)] * 2000)
    assert params.dtype == jnp.bfloat16
    assert state.inner.velocity.dtype == jnp.float32
    assert_close(state.inner.velocity, np.full(3, (1 - 0.999**2000) / (1 - 0.999)), 1e-4)
    *_, (_, trace) = train(optax.trace(0.999), like, [jnp.ones_like(like)] * 2000)
    assert_close(trace.trace, np.full(3, 256.0))
