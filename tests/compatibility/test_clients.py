"""Optimizers of ours in client libraries, unmodified: Optimistix, NumPyro and Diffrax.

Flax Linen's `TrainState`, `nnx.Optimizer`, Equinox and Haiku are in tests/test_frameworks.py.
"""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import optimistix
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import amac_jax

TECHNIQUES = {"sync_period": 5, "average_start": 200, "average_period": 1, "record_metrics": True}


def rosenbrock(y, args):
    return (1 - y["a"]) ** 2 + args * (y["b"] - y["a"] ** 2) ** 2


def minimised(tx, *, tolerance=1e-9, max_steps=2_000):
    """The solution by Optimistix from (-1, 1), whether it meets the tolerance or not."""
    return optimistix.minimise(
        rosenbrock,
        optimistix.OptaxMinimiser(tx, rtol=tolerance, atol=tolerance),
        {"a": jnp.array(-1.0), "b": jnp.array(1.0)},
        args=10.0,
        max_steps=max_steps,
        throw=False,
    )


@pytest.mark.parametrize(
    "factory", [amac_jax.adam, amac_jax.nesterov, amac_jax.sophia, amac_jax.amac]
)
def test_optimistix_minimises(factory):
    steps = 1_000
    settings = {
        amac_jax.nesterov: {"learning_rate": 3e-3},
        amac_jax.amac: {"learning_rate": 0.05, "total_steps": steps, "momentum": None},
    }
    tx = factory(**{"learning_rate": 0.05, **settings.get(factory, {}), **TECHNIQUES})
    found = minimised(tx, tolerance=0.0, max_steps=steps)
    assert rosenbrock(found.value, 10.0) < 1e-3 * rosenbrock({"a": -1.0, "b": 1.0}, 10.0)
    metrics = amac_jax.metrics(found.state)
    assert metrics["averaged_count"] == steps - 199
    # The last step was a landing: parameters are where the slow weights are.
    for slow, last in zip(
        jax.tree.leaves(amac_jax.slow_params(found.state)),
        jax.tree.leaves(found.value),
        strict=True,
    ):
        assert slow == last
    average = amac_jax.averaged_params(found.state, found.value)
    assert average["a"] != found.value["a"]
    assert rosenbrock(average, 10.0) < 0.01


def test_optimistix_hands_newton_its_objective():
    found = minimised(amac_jax.newton())
    assert int(found.stats["num_steps"]) < 15
    np.testing.assert_allclose(jax.tree.leaves(found.value), 1.0, rtol=1e-6)


def test_optimistix_hands_plateaus_their_value():
    plateau = amac_jax.reduce_on_plateau(factor=0.5, patience=50)
    constant = minimised(amac_jax.lion(0.1), max_steps=1_000)
    reduced = minimised(amac_jax.lion(0.1, plateau=plateau), max_steps=1_000)
    # Lion's steps are as long as its rate, and it comes no closer than that.
    assert rosenbrock(reduced.value, 10.0) < 0.01 * rosenbrock(constant.value, 10.0)


OBSERVED = np.random.default_rng(0).normal(2.0, 1.0, 50).astype(np.float32)


def model(observed):
    """A normal of unknown mean, which has a standard normal prior."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(observed)):
        numpyro.sample("observed", dist.Normal(mean, 1.0), obs=observed)


def inferred(tx, steps):
    svi = SVI(model, AutoNormal(model), tx, Trace_ELBO())
    # Outside jit, each operation of its beginning is a program.
    run = jax.jit(lambda key: svi.run(key, steps, OBSERVED, progress_bar=False))
    return svi, run(jax.random.key(0))


@pytest.mark.parametrize(
    "build",
    [
        lambda steps: amac_jax.adam(0.01, **{**TECHNIQUES, "average_start": 1_000}),
        lambda steps: amac_jax.amac(0.02, steps, **{**TECHNIQUES, "average_start": 1_000}),
    ],
    ids=["adam", "amac"],
)
def test_numpyro_infers_the_posterior(build):
    """The conjugate one: normal, of mean sum(x) / (n + 1) and variance 1 / (n + 1)."""
    n, steps = len(OBSERVED), 3_000
    svi, result = inferred(build(steps), steps)
    params = svi.optim.get_params(result.state.optim_state)
    assert svi.constrain_fn is not None
    average = svi.constrain_fn(amac_jax.averaged_params(result.state, params))
    mean, scale = OBSERVED.sum() / (n + 1), (n + 1) ** -0.5
    np.testing.assert_allclose(average["mean_auto_loc"], mean, atol=0.1 * scale)
    np.testing.assert_allclose(average["mean_auto_scale"], scale, rtol=0.1)
    assert average["mean_auto_loc"] != result.params["mean_auto_loc"]
    assert amac_jax.metrics(result.state)["averaged_count"] == steps - 999


def test_numpyro_hands_plateaus_their_value():
    plateau = amac_jax.reduce_on_plateau(factor=0.5, patience=5, accumulation_size=20)
    _, result = inferred(amac_jax.adam(0.1, plateau=plateau), 1_000)
    scale = optax.tree.get(result.state, "scale")
    assert scale is not None
    assert scale <= 0.25


def test_numpyro_has_no_objective_for_newton():
    with pytest.raises(ValueError, match="newton needs value_fn"):
        inferred(amac_jax.newton(), 1)


def positions(params):
    """Where the oscillator is at 20 times."""

    def acceleration(t, y, params):
        x, v = y
        return v, -params["stiffness"] * x - params["damping"] * v

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(acceleration),
        diffrax.Tsit5(),
        t0=0.0,
        t1=2.0,
        dt0=0.1,
        y0=(np.float32(1.0), np.float32(0.0)),
        args=params,
        saveat=diffrax.SaveAt(ts=np.linspace(0.0, 2.0, 20, dtype=np.float32)),
    )
    assert solution.ys is not None
    return solution.ys[0]


@jax.jit  # once for both optimizers: the solver's gradient is by far the largest program
def loss_and_gradients(params, measured):
    def loss_of(params):
        found = positions(params)
        return jnp.mean((found - measured) ** 2), found

    (loss, found), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    return loss, found, gradients


@pytest.mark.parametrize(
    "build",
    [
        lambda steps: amac_jax.adamw(0.05, **TECHNIQUES),
        lambda steps: amac_jax.amac(0.1, steps, momentum=None, **TECHNIQUES),
    ],
    ids=["adamw", "amac"],
)
def test_diffrax_fits_an_oscillator(build):
    """Stiffness and damping, from positions at 20 times, through a solver of 2 s."""
    truth = {"stiffness": np.float32(4.0), "damping": np.float32(0.5)}
    _, measured, _ = loss_and_gradients(truth, np.zeros(20, np.float32))
    params = {"stiffness": np.float32(2.0), "damping": np.float32(0.0)}
    steps, losses = 300, []
    tx = build(steps)
    state = tx.init(params)

    @jax.jit
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        loss, _, gradients = loss_and_gradients(params, measured)
        params, state = step(params, state, gradients)
        losses.append(float(loss))
    assert losses[-1] < 1e-4 * losses[0]
    assert amac_jax.metrics(state)["averaged_count"] == 101  # steps 200, 201, ..., 300
    average = amac_jax.averaged_params(state, params)
    for name, value in truth.items():
        np.testing.assert_allclose(average[name], value, rtol=0.05)
        assert average[name] != params[name]
