"""The landscapes: their values, their minima, and the paths over them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from amac_jax.tools import landscapes
from amac_jax.tools.landscapes import LANDSCAPES, trajectory
from tests.helpers import SOAK
from tests.table import OPTIMIZERS

every_landscape = pytest.mark.parametrize("name", LANDSCAPES)


def four_normals(point):
    """The definition, with a matrix inverse."""
    covariance = np.array([[1.0, 0.5], [0.5, 1.0]])
    total = 0.0
    for mean in ([2, 2], [2, -2], [-2, 2], [-2, -2]):
        d = np.asarray(point) - mean
        exponent = -0.5 * d @ np.linalg.inv(covariance) @ d
        total += np.exp(exponent) / (2 * np.pi * np.sqrt(np.linalg.det(covariance)))
    return -total / 4


@pytest.mark.parametrize(
    ("function", "point", "expected"),
    [
        (landscapes.x_cos_pi_x, 0.5, 0.0),
        (landscapes.x_cos_pi_x, 1.0, -1.0),
        (landscapes.saddle, [3.0, 2.0], 5.0),
        (landscapes.tanh, 4.0, np.tanh(4.0)),
        (landscapes.cosh, 2.0, np.cosh(1.0)),
        (lambda x: landscapes.cosh(x, c=2.0), 2.0, np.cosh(4.0)),
        (landscapes.ill_conditioned, [-5.0, -2.0], 10.5),
        (landscapes.rosenbrock, [1.5, 1.5], 56.5),
        (landscapes.rosenbrock, [0.0, 0.0, 2.0], 1.0 + 1.0 + 400.0),
        (landscapes.rastrigin, [0.5, -1.0], 20.25 + 1.0),
        (landscapes.beale, [0.0, 0.0], 1.5**2 + 2.25**2 + 2.625**2),
        (landscapes.beale, [1.0, 1.0], 1.5**2 + 2.25**2 + 2.625**2),
        (landscapes.four_gaussians, [0.3, -1.2], four_normals([0.3, -1.2])),
        (landscapes.four_gaussians, [2.0, 2.0], four_normals([2.0, 2.0])),
    ],
)
def test_values_by_hand(function, point, expected):
    value = jax.jit(function)(np.float32(point))
    assert value.shape == ()
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@every_landscape
def test_the_minimum_is_the_least_value_within_the_bounds(name):
    """On a grid, and in the minima themselves, where the gradient is 0 if it is inside."""
    landscape = LANDSCAPES[name]
    grid = [np.linspace(low, high, 301) for low, high in landscape.bounds]
    points = np.stack([axis.ravel() for axis in np.meshgrid(*grid)], axis=-1)
    points = points[:, 0] if points.shape[1] == 1 else points

    @jax.jit
    def values_and_slopes(points, minima):
        slopes = jax.vmap(jax.grad(landscape.function))(minima)
        return [jax.vmap(landscape.function)(at) for at in (points, minima)], slopes

    with jax.enable_x64(True):
        minima = np.array(landscape.minima, float)
        (values, least), slopes = jax.device_get(values_and_slopes(points, minima))
    assert landscape.minimum <= values.min() + 1e-6
    np.testing.assert_allclose(least, landscape.minimum, atol=1e-6)
    if name not in ("saddle", "tanh"):  # whose minima are on the edge
        assert np.max(np.abs(slopes)) < 1e-3
    start = np.atleast_1d(landscape.start)
    assert all(low <= x <= high for x, (low, high) in zip(start, landscape.bounds, strict=True))


DESCENTS = [(optimizer, name) for optimizer in OPTIMIZERS for name in ("cosh", "rosenbrock")]


# By default each optimizer on one of the two, in turn.
@pytest.mark.parametrize(
    ("optimizer", "name"), DESCENTS if SOAK else DESCENTS[::4] + DESCENTS[3::4]
)
def test_every_optimizer_goes_down(optimizer, name):
    """At some of five rates; but plain Newton may go where the curvature leads it."""
    landscape, factory = LANDSCAPES[name], getattr(amac_jax, optimizer)
    arguments = {"saddle_free": True, "damping": 0.01} if optimizer == "newton" else {}

    def end(rate):
        tx = factory(rate, **arguments)
        return trajectory(tx, landscape.function, jnp.asarray(landscape.start), 60).values

    values = np.asarray(jax.jit(jax.vmap(end))(np.float32(10.0 ** np.arange(-3, 2))))
    assert values.shape == (5, 61)
    assert np.nanmin(values[:, -1]) < values[0, 0]


def test_a_trajectory_is_the_loop():
    tx, fn, point = amac_jax.adam(0.1), landscapes.beale, jnp.array([1.0, 1.0])
    path = trajectory(tx, fn, point, 20)

    @jax.jit
    def step(point, state):
        updates, state = tx.update(jax.grad(fn)(point), state, point)
        return optax.apply_updates(point, updates), state

    state, points = tx.init(point), [point]
    for _ in range(20):
        point, state = step(point, state)
        points.append(point)
    points = np.stack(points)
    np.testing.assert_allclose(path.points, points, rtol=1e-5)
    np.testing.assert_allclose(path.values, jax.jit(jax.vmap(fn))(points), rtol=1e-4)


def test_vmap_gives_bundles_of_starts_and_of_rates():
    starts = np.float32([[1.5, 1.5], [0.0, 2.0], [-0.5, 0.5]])
    tx, fn = amac_jax.momentum(1e-3), landscapes.rosenbrock
    from_start = jax.jit(lambda start: trajectory(tx, fn, start, 30).points)
    bundle = np.asarray(jax.vmap(from_start)(starts))
    for points, start in zip(bundle, starts, strict=True):
        np.testing.assert_allclose(points, from_start(start), rtol=1e-5, atol=1e-6)
    at_rate = jax.jit(lambda rate: trajectory(amac_jax.adam(rate), fn, starts[0], 30))
    bundle = jax.device_get(jax.vmap(at_rate)(np.float32([1e-3, 1e-2])))
    assert bundle.points.shape == (2, 31, 2)
    assert bundle.values[1, -1] < bundle.values[0, -1]


def test_start_may_be_a_number_or_a_tree():
    assert trajectory(optax.sgd(0.1), landscapes.cosh, 3, 5).points.shape == (6,)

    def fn(point):
        return landscapes.beale(jnp.array([point["x"], point["y"]]))

    path = trajectory(optax.sgd(0.01), fn, {"x": 1, "y": 1.0}, 5)
    same = jax.jit(lambda start: trajectory(optax.sgd(0.01), landscapes.beale, start, 5).points)
    expected = np.asarray(same(np.ones(2, np.float32)))[:, 1]
    np.testing.assert_allclose(path.points["y"], expected, rtol=1e-5)


def test_gradient_noise_has_its_standard_deviation_and_its_key():
    def flat(point):
        return 0.0 * jnp.sum(point)

    choices = [
        {"gradient_noise": 0.3},
        {"gradient_noise": 0.3, "key": 0},
        {"gradient_noise": 0.3, "key": jax.random.key(1)},
        {},
    ]

    @jax.jit
    def paths(start):
        return [trajectory(optax.sgd(1.0), flat, start, 200, **each).points for each in choices]

    noise, same, other, none = np.diff(paths(np.zeros(100, np.float32)), axis=1)
    # 20,000 numbers: five standard errors of their mean and of their deviation.
    assert abs(noise.mean()) < 5 * 0.3 / 20_000**0.5
    assert abs(noise.std() - 0.3) < 5 * 0.3 / 40_000**0.5
    np.testing.assert_array_equal(noise, same)
    assert np.all(noise != other)
    assert np.all(none == 0)

    @jax.jit
    @jax.vmap
    def points_with(key):
        start, length = jnp.zeros(2), np.int64(3)
        return trajectory(optax.sgd(1.0), flat, start, length, gradient_noise=1.0, key=key).points

    points = np.asarray(points_with(np.arange(2)))
    assert np.all(points[0, 1:] != points[1, 1:])


def test_optimizers_get_what_they_need_of_the_objective():
    """`newton` its `value_fn`, `reduce_on_plateau` its `value`, `optax.lbfgs` all of it."""

    def end(tx, fn, start, steps):
        path = jax.jit(lambda start: trajectory(tx, fn, start, steps))
        points, values = jax.device_get(path(np.float32(start)))
        return points[-1], values[-1]

    point, _ = end(amac_jax.newton(), landscapes.ill_conditioned, [1.0, 1.0], 1)
    np.testing.assert_allclose(point, 0.0, atol=1e-6)
    point, _ = end(optax.lbfgs(), landscapes.rosenbrock, [1.5, 1.5], 30)
    np.testing.assert_allclose(point, 1.0, atol=1e-2)
    tx = amac_jax.sgd(1.0, plateau=amac_jax.reduce_on_plateau(0.5, patience=1))
    point, _ = end(tx, jnp.sum, [0.0], 1)  # one step of the whole rate
    assert point[0] == -1.0
    _, zigzag = end(tx, lambda x: jnp.sum(jnp.abs(x)), [0.5], 20)
    assert zigzag < 0.01  # a constant rate of 1 would be at 0.5 for ever


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trajectory(optax.sgd(1.0), jnp.sum, 1.0, 0), r"steps must be a whole number"),
        (lambda: trajectory(optax.sgd(1.0), jnp.sum, 1.0, 2.5), r"got 2.5"),
        (lambda: trajectory(optax.sgd(1.0), lambda x: x, jnp.ones(2), 5),
         r"fn must return a scalar, got shape \(2,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_a_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
