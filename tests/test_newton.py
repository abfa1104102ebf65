"""Newton's method against linear algebra in NumPy, on its textbook cases, and without a matrix."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import amac_jax
from amac_jax.optimizers._newton import DENSE_LIMIT, scale_by_newton
from amac_jax.tools.landscapes import cosh, saddle, trajectory


def quadratic(hessian):
    def value(x):
        with jax.default_matmul_precision("highest"):  # a GPU's products are of 11 bits without it
            return 0.5 * x @ hessian @ x

    return value


def symmetric(seed: int, eigenvalues: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2))
    return vectors * eigenvalues @ vectors.T


def unjitted_direction(hessian, gradient, **arguments):
    tx = scale_by_newton(**arguments)
    params, hessian = jnp.ones(len(gradient)), jnp.asarray(hessian)
    return tx.update(jnp.asarray(gradient), tx.init(params), params, value_fn=quadratic(hessian))[0]


# The tests have one size, 8, and name the damping also where it is 0: so they share few programs.
direction = jax.jit(unjitted_direction, static_argnames=("saddle_free", "matrix_free"))
direction_with_fixed_size = jax.jit(
    unjitted_direction, static_argnames=("saddle_free", "matrix_free", "max_iterations")
)

GRADIENT = np.random.default_rng(7).normal(size=8)
POSITIVE = symmetric(0, np.linspace(1.0, 9.0, 8))
INDEFINITE = symmetric(1, np.array([-5.0, -2.0, -1.0, 0.5, 1.0, 2.0, 4.0, 8.0]))
ABSOLUTE = symmetric(1, np.array([5.0, 2.0, 1.0, 0.5, 1.0, 2.0, 4.0, 8.0]))
matrix_free = pytest.mark.parametrize("matrix_free", [False, True], ids=["dense", "matrix-free"])


@matrix_free
@pytest.mark.parametrize("saddle_free", [False, True])
@pytest.mark.parametrize("damping", [0.0, 0.3, 10.0])
def test_of_a_positive_definite_hessian_it_is_the_inverse(matrix_free, saddle_free, damping):
    expected = np.linalg.solve(POSITIVE + damping * np.eye(8), GRADIENT)
    arguments = {"damping": damping, "saddle_free": saddle_free, "matrix_free": matrix_free}
    with jax.enable_x64(True):
        ours = direction(POSITIVE, GRADIENT, **arguments)
        np.testing.assert_allclose(ours, expected, rtol=1e-11)
    np.testing.assert_allclose(
        direction(POSITIVE, GRADIENT, **arguments), expected, rtol=1e-5, atol=1e-6
    )


@matrix_free
@pytest.mark.parametrize("saddle_free", [False, True])
def test_no_product_of_its_own_is_rounded(matrix_free, saddle_free):
    """A GPU multiplies 11 bits of float32, where nothing else is asked for."""
    tx, params = scale_by_newton(saddle_free=saddle_free, matrix_free=matrix_free), jnp.ones(8)

    def update(gradient):  # for an objective without a product of matrices
        return tx.update(gradient, tx.init(params), params, value_fn=lambda x: jnp.sum(x**4))[0]

    program = str(jax.make_jaxpr(update)(params))
    products = re.findall(r"dot_general\[.*?\n *\]", program, re.DOTALL)
    assert len(products) >= 2
    assert all("precision=(Precision.HIGHEST, Precision.HIGHEST)" in each for each in products)


@matrix_free
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_of_an_indefinite_hessian_it_is_still_the_inverse(matrix_free, damping):
    expected = np.linalg.solve(INDEFINITE + damping * np.eye(8), GRADIENT)
    with jax.enable_x64(True):
        ours = direction(INDEFINITE, GRADIENT, damping=damping, matrix_free=matrix_free)
        np.testing.assert_allclose(ours, expected, rtol=1e-10)


@matrix_free
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_saddle_free_takes_eigenvalues_by_their_absolute_value(matrix_free, damping):
    expected = np.linalg.solve(ABSOLUTE + damping * np.eye(8), GRADIENT)
    with jax.enable_x64(True):
        ours = direction(
            INDEFINITE, GRADIENT, damping=damping, saddle_free=True, matrix_free=matrix_free
        )
        np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_the_error_on_cosh_shrinks_quadratically():
    """From x = 10 it walks by 2 tanh(x / 2), then e_{t+1} <= e_t^2 (cubically: cosh is even)."""
    with jax.enable_x64(True):
        path = np.asarray(jax.jit(lambda: trajectory(amac_jax.newton(), cosh, 10.0, 9).points)())
    expected = [10.0]
    for _ in range(9):
        expected.append(expected[-1] - 2 * np.tanh(expected[-1] / 2))
    np.testing.assert_allclose(path, expected, rtol=1e-9, atol=1e-15)
    close = np.abs(path[np.abs(path) < 0.5])
    assert len(close) >= 3
    assert np.all(close[1:] <= close[:-1] ** 2)
    assert close[-1] < 1e-10


def test_from_near_the_saddle_newton_falls_into_it_and_saddle_free_leaves():
    @jax.jit
    def paths(start):
        newton, saddle_free = amac_jax.newton(0.5), amac_jax.newton(0.5, saddle_free=True)
        return [trajectory(tx, saddle, start, 50).points for tx in (newton, saddle_free)]

    attracted, repelled = map(np.asarray, paths(np.float32([1.0, 1e-3])))
    np.testing.assert_allclose(attracted[-1], 0.0, atol=1e-10)
    assert abs(repelled[-1][1]) > 1e3
    np.testing.assert_allclose(repelled[-1][0], 0.0, atol=1e-10)
    # y <- y - 0.5 (-2 y) / 2 = 1.5 y
    np.testing.assert_allclose(repelled[1:, 1], 1.5 * repelled[:-1, 1], rtol=1e-5)


@matrix_free
@pytest.mark.parametrize("saddle_free", [False, True])
@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.array([0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0]),  # singular
        np.zeros(8),  # a plateau
        np.array([1e-12, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1e6]),  # ill-conditioned
        np.array([-1.0, 1.0, -2.0, 2.0, -3.0, 3.0, -4.0, 4.0]),
        -np.array([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]),  # a maximum
    ],
    ids=["singular", "zero", "ill-conditioned", "indefinite", "negative"],
)
def test_no_hessian_breaks_it(matrix_free, saddle_free, eigenvalues):
    hessian = symmetric(3, eigenvalues)
    other = np.array([1.0, -1.0, 2.0, 0.5, 3.0, -2.0, 1.0, 0.1])
    within = hessian @ other  # what H can map to; the other is not
    for gradient in (within, other, np.zeros(8)):
        for damping in (0.0, 1e-3, 1.0):
            arguments = {"damping": damping, "saddle_free": saddle_free}
            ours = direction(hessian, gradient, matrix_free=matrix_free, **arguments)
            assert np.all(np.isfinite(ours))
            assert np.max(np.abs(ours)) < 1e4
            assert np.any(gradient) or np.all(ours == 0)


@matrix_free
@pytest.mark.parametrize("saddle_free", [False, True])
@pytest.mark.parametrize("within", [True, False])
def test_a_singular_hessian_gives_the_step_of_least_norm(matrix_free, saddle_free, within):
    hessian = symmetric(3, np.array([0.0, 0.0, 1.0, 2.0, 5.0, 5.0, 5.0, 5.0]))
    gradient = np.array([1.0, -1.0, 2.0, 0.5, 3.0, -2.0, 1.0, 0.1])
    gradient = hessian @ gradient if within else gradient
    expected = np.linalg.pinv(hessian) @ gradient
    arguments = {"damping": 0.0, "saddle_free": saddle_free, "matrix_free": matrix_free}
    ours = direction(hessian, gradient, **arguments)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    with jax.enable_x64(True):
        ours = direction(hessian, gradient, **arguments)
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


@functools.partial(jax.jit, static_argnames="saddle_free")
def norms_and_values(factor, params, *, saddle_free):
    """The norms of an update and of the parameters; the objective after the update and before."""

    def value_fn(params):
        product = jnp.matmul(factor, params["w"], precision="highest")
        return 0.5 * jnp.sum(product**2) + 0.01 * params["unused"]

    tx = amac_jax.newton(saddle_free=saddle_free)
    updates, _ = tx.update(jax.grad(value_fn)(params), tx.init(params), params, value_fn=value_fn)
    norms = optax.tree.norm(updates), optax.tree.norm(params)
    return norms, (value_fn(optax.apply_updates(params, updates)), value_fn(params))


@pytest.mark.parametrize("saddle_free", [False, True])
@pytest.mark.parametrize("rank", [2, 5, 20, 600])
def test_low_rank_and_unused_parameters_beyond_the_limit(saddle_free, rank):
    """Where conjugate gradients would divide by rounding."""
    rng = np.random.default_rng(rank)
    factor = np.zeros((600, 600), np.float32)  # rows of zeros: one program for all ranks
    factor[:rank] = rng.normal(size=(rank, 600)) / 600**0.5
    params = {"w": np.float32(rng.normal(size=600)), "unused": np.float32(0.0)}
    norms, values = norms_and_values(factor, params, saddle_free=saddle_free)
    assert float(norms[0]) < 10 * float(norms[1])
    assert float(values[0]) < (1e-6 if rank < 32 else 0.5) * float(values[1])


@matrix_free
@pytest.mark.parametrize("saddle_free", [False, True])
def test_where_there_is_no_curvature_damping_makes_it_a_gradient_step(matrix_free, saddle_free):
    arguments = {"matrix_free": matrix_free, "saddle_free": saddle_free}
    flat = direction(np.zeros((8, 8)), np.arange(8.0), damping=0.5, **arguments)
    np.testing.assert_allclose(flat, 2 * np.arange(8.0), rtol=1e-5)
    flat = direction(np.diag([0.0] * 7 + [3.5]), np.ones(8), damping=0.5, **arguments)
    np.testing.assert_allclose(flat, [2.0] * 7 + [0.25], rtol=1e-5)


@matrix_free
@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_gradients_of_any_size(matrix_free, size):
    gradient = np.array([2.0, -4.0] * 4) * size
    arguments = {"damping": 0.0, "saddle_free": False, "matrix_free": matrix_free}
    ours = direction(np.diag([2.0, 4.0] * 4), gradient, **arguments)
    np.testing.assert_allclose(ours, [size, -size] * 4, rtol=1e-5)


def test_max_iterations_is_the_size_of_the_space():
    """One vector is the gradient: the multiple of it whose residual is least."""
    h_g = POSITIVE @ GRADIENT

    def step(size, saddle_free=False):
        jitted = direction if isinstance(size, jax.Array) else direction_with_fixed_size
        arguments = {"damping": 0.0, "saddle_free": saddle_free, "matrix_free": True}
        return np.asarray(jitted(POSITIVE, GRADIENT, max_iterations=size, **arguments))

    one = step(1)
    np.testing.assert_allclose(one, GRADIENT * (h_g @ GRADIENT) / (h_g @ h_g), rtol=1e-5)
    curvature = GRADIENT @ h_g / (GRADIENT @ GRADIENT)
    np.testing.assert_allclose(step(1, saddle_free=True), GRADIENT / curvature, rtol=1e-5)
    steps = [one, step(2), step(jnp.array(3)), step(5), step(lambda count: 7)]
    residuals = [np.linalg.norm(POSITIVE @ step - GRADIENT) for step in steps]
    assert all(after < 0.9 * before for before, after in itertools.pairwise(residuals))


@pytest.mark.parametrize("saddle_free", [False, True])
@pytest.mark.parametrize("kind", [int, float, np.int64, np.int32, np.float64])
def test_a_number_of_any_kind_may_be_above_the_default(kind, saddle_free):
    """64 vectors are the whole space, and the step the inverse; the default, 32, are half of it."""
    hessian = symmetric(4, np.linspace(0.01, 100.0, 64))
    gradient = np.random.default_rng(8).normal(size=64)
    expected = np.linalg.solve(hessian, gradient)
    arguments = {"saddle_free": saddle_free, "matrix_free": True}
    with jax.enable_x64(True):
        # A program for every kind: to jit, equal static arguments of two types may be the same.
        whole = jax.jit(
            lambda *given: unjitted_direction(*given, max_iterations=kind(64), **arguments)
        )(hessian, gradient)
        np.testing.assert_allclose(whole, expected, rtol=1e-9)
        half = np.asarray(direction(hessian, gradient, **arguments))
    assert np.max(np.abs(half - expected)) > 1e-4 * np.max(np.abs(expected))


@pytest.mark.parametrize("saddle_free", [False, True])
def test_a_traced_number_of_iterations_is_that_number(saddle_free):
    arguments = {"damping": 0.7, "saddle_free": saddle_free, "matrix_free": True}
    for number in (1, 2, 5):
        fixed = direction_with_fixed_size(INDEFINITE, GRADIENT, max_iterations=number, **arguments)
        traced = direction(INDEFINITE, GRADIENT, max_iterations=jnp.array(number), **arguments)
        np.testing.assert_allclose(traced, fixed, rtol=1e-4, atol=1e-5)


def test_plain_newton_means_the_same_on_both_sides_of_the_limit():
    """Both are attracted by the saddle, for both solve H d = g."""

    def saddle_of(x):
        return 0.5 * x[0] ** 2 - 0.5 * jnp.sum(x[1:] ** 2)

    @jax.jit
    def after_a_step(params):
        tx, gradient = amac_jax.newton(), jax.grad(saddle_of)(params)
        updates, _ = tx.update(gradient, tx.init(params), params, value_fn=saddle_of)
        return params + updates

    for size in (DENSE_LIMIT, DENSE_LIMIT + 1):
        after = after_a_step(np.full(size, 0.1, np.float32))
        np.testing.assert_allclose(after, 0.0, atol=1e-5)


def chain_of_springs(params):
    """A convex objective of many parameters in two leaves."""
    x = jnp.concatenate([params["a"].ravel(), params["b"]])
    return jnp.sum(jnp.diff(x) ** 2) + 0.5 * jnp.sum(x**2) + 0.1 * jnp.sum((x - 1.0) ** 4)


@pytest.mark.parametrize("saddle_free", [False, True])
def test_beyond_the_limit_no_matrix_is_made(saddle_free):
    a = np.linspace(-1.0, 1.0, 800, dtype=np.float32).reshape(40, 20)
    params = jax.device_put({"a": a, "b": np.ones(100, np.float32)})
    tx = amac_jax.newton(saddle_free=saddle_free)

    def step(params, state):
        gradient = jax.grad(chain_of_springs)(params)
        updates, state = tx.update(gradient, state, params, value_fn=chain_of_springs)
        return optax.apply_updates(params, updates), state, optax.tree.norm(gradient)

    size = optax.tree.size(params)
    assert size > DENSE_LIMIT
    state, norms = tx.init(params), []
    lowered = jax.jit(step).lower(params, state)
    assert f"{size}x{size}" not in lowered.as_text()
    compiled = lowered.compile()
    for _ in range(6):
        params, state, norm = compiled(params, state)
        norms.append(float(norm))
    assert norms[-1] < 1e-4 * norms[0]


def test_up_to_the_limit_the_matrix_is_made():
    params, tx = jnp.ones(DENSE_LIMIT), amac_jax.newton()
    program = jax.jit(lambda p: tx.update(p, tx.init(p), p, value_fn=lambda x: jnp.sum(x**2))[0])
    assert f"{DENSE_LIMIT}x{DENSE_LIMIT}" in program.lower(params).as_text()


def test_low_precision_parameters_are_solved_for_in_float32():
    def value_fn(x):
        return 0.1 * x[0] ** 2 + 2 * x[1] ** 2

    @jax.jit
    def updates_of(gradient, params):
        tx = amac_jax.newton()
        return tx.update(gradient, tx.init(params), params, value_fn=value_fn)[0]

    updates = updates_of(jnp.array([0.6, 4.0], jnp.bfloat16), jnp.array([3.0, 1.0], jnp.bfloat16))
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(updates), [-3.0, -1.0], rtol=0.01)


@pytest.mark.parametrize("make", [amac_jax.newton, lambda: amac_jax.sophia(0.1)])
def test_the_objective_is_asked_for_by_name(make):
    tx, params = make(), jnp.ones(3)
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"needs value_fn: tx\.update") as error:
        tx.update(params, state, params)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"needs value_fn.*got value_fn=3"):
        tx.update(params, state, params, value_fn=3)
    with pytest.raises(ValueError, match=r"value_fn must return a scalar, got shape \(3,\)"):
        tx.update(params, state, params, value_fn=lambda x: x**2)
    with pytest.raises(ValueError, match="value_fn must return a scalar, got a tuple of 2 arrays"):
        tx.update(params, state, params, value_fn=lambda x: (jnp.sum(x), x))
    with pytest.raises(ValueError, match=r"needs params: tx.update\(updates, state, params\)"):
        tx.update(params, state, value_fn=jnp.sum)


@functools.cache
def step_with(make, wrap=None):
    def value_fn(params):
        return optax.tree.sum(jax.tree.map(lambda x: jnp.sum(x**2 + 0.1 * x**4), params))

    @jax.jit
    def updates_at(params):
        tx = wrap(make()) if wrap else make()
        gradient, state = jax.grad(value_fn)(params), tx.init(params)
        return tx.update(gradient, state, params, value_fn=value_fn)[0]

    return updates_at({"kernel": np.float32([[3.0, -1.0]]), "bias": np.float32([0.5])})


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize(
    "make",
    [lambda: amac_jax.newton(0.5), lambda: amac_jax.sophia(0.5, gamma=1.0, b2=0.0)],
    ids=["newton", "sophia"],
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(optax.identity(), tx),
        lambda tx: optax.masked(tx, True),
        lambda tx: optax.partition({"all": tx}, {"kernel": "all", "bias": "all"}),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
        lambda tx: amac_jax.accumulate_gradients(tx, jnp.array(1)),
        lambda tx: amac_jax.compose(
            optax.chain(tx, optax.scale(-1.0)), 1.0, record_metrics=True, skip_nonfinite=True
        ),
    ],
    ids=["chain", "masked", "partition", "apply_if_finite", "MultiSteps", "accumulate", "compose"],
)
def test_the_objective_passes_through_wrappers(make, wrap):
    wrapped = step_with(make, wrap)
    for name, update in step_with(make).items():
        np.testing.assert_allclose(wrapped[name], update, rtol=1e-5)


def test_nnx_optimizers_pass_the_objective_on():
    model = nnx.jit(lambda: nnx.Linear(3, 1, rngs=nnx.Rngs(0)))()
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    y = x @ np.float32([[1.0], [-2.0], [0.5]]) + np.float32(0.3)
    graphdef, _ = nnx.split(model, nnx.Param)

    def loss(model):
        with jax.default_matmul_precision("highest"):
            return jnp.mean((model(x) - y) ** 2)

    @nnx.jit
    def loss_after_a_step(model, optimizer):
        optimizer.update(
            model, nnx.grad(loss)(model), value_fn=lambda state: loss(nnx.merge(graphdef, state))
        )
        return loss(model)

    optimizer = nnx.Optimizer(model, amac_jax.newton(), wrt=nnx.Param)
    assert loss_after_a_step(model, optimizer) < 1e-9  # least squares, in one step
