"""Functions that show how optimizers behave, their minima, and the paths of optimizers over them.

A landscape takes a point, which is a number or an array of coordinates, and returns a scalar.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from amac_jax._core.aliases import Tree
from amac_jax._core.draws.keys import Key, as_key_data, typed_key
from amac_jax._core.objective import Objective, check_objective


class Landscape(NamedTuple):
    """A function of a point, (n,) or (), and the facts about it."""

    function: Objective
    start: float | tuple[float, ...]  # the first point of a path
    bounds: tuple[tuple[float, float], ...]  # the range of each coordinate in pictures
    minimum: float  # the least value within the bounds
    minima: tuple[Tree, ...]  # the points where the function has its least value
    shows: str  # the difficulty that the function is known for


class Trajectory(NamedTuple):
    """The points of a path, the start first, and the objective at each point."""

    points: Tree  # (steps + 1, ...), a tree if the start is a tree
    values: jax.Array  # (steps + 1,)


def trajectory(
    tx: optax.GradientTransformation,
    fn: Objective,
    start: Tree,
    steps: int,
    *,
    gradient_noise: float | jax.Array = 0.0,
    key: Key = 0,
) -> Trajectory:
    """The path of an optimizer over a function, as one `lax.scan`.

        theta_0 = start,   theta_{t+1} = theta_t + u_t

    The update u_t is the output of `tx` for the gradient of `fn` at theta_t. `tx` also receives
    the extra args `value`, `grad` and `value_fn`, which `newton`, `sophia`, `reduce_on_plateau`
    and `optax.lbfgs` need. `vmap` over starts, or over a learning rate from which `tx` is made,
    gives a bundle of paths in one program.

    Args:
      tx: any Optax transformation.
      fn: a function of a point that returns a scalar.
      start: the first point: an array, a number, or a tree of arrays and numbers.
      steps: the number of updates, >= 1.
      gradient_noise: the standard deviation of normal noise that is added to every element of the
        gradient. Off: 0.
      key: an integer seed or a JAX key for the noise.

    Returns:
      A `Trajectory` of steps + 1 points.

    Raises:
      ValueError: for fewer than one step, a function that does not return a scalar, or a key that
        is not a key.

    Example:
      >>> path = trajectory(optax.sgd(0.4), ill_conditioned, jnp.array([-5.0, -2.0]), 20)
      >>> path.points.shape, float(path.values[0])
      ((21, 2), 10.5)
      >>> rates = jnp.logspace(-3, 0, 4)
      >>> bundle = jax.vmap(lambda rate: trajectory(optax.adam(rate), beale, jnp.ones(2), 50))
      >>> bundle(rates).values.shape
      (4, 51)
    """
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be a whole number in [1, inf), got {steps!r}")
    tx = optax.with_extra_args_support(tx)
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf) * 1.0, start)
    check_objective(fn, start, "trajectory", name="fn")
    key = typed_key(as_key_data(key), like=key)

    def step(carry, step_key):
        point, state = carry
        value, gradient = jax.value_and_grad(fn)(point)
        noise = optax.tree.random_like(step_key, gradient, jax.random.normal)
        gradient = jax.tree.map(lambda g, n: g + gradient_noise * n, gradient, noise)
        updates, state = tx.update(gradient, state, point, value=value, grad=gradient, value_fn=fn)
        return (optax.apply_updates(point, updates), state), (point, value)

    carry, (points, values) = jax.lax.scan(
        step, (start, tx.init(start)), jax.random.split(key, int(steps))
    )
    last = carry[0]
    points = jax.tree.map(lambda path, end: jnp.concatenate([path, end[None]]), points, last)
    return Trajectory(points, jnp.append(values, fn(last)))


def x_cos_pi_x(x: float | jax.Array) -> jax.Array:
    """x cos(pi x): on [-1, 2] a local minimum at -0.274 and the global minimum at 1.0904.

    Example:
      >>> round(float(x_cos_pi_x(1.0904)), 4)
      -1.0467
    """
    return x * jnp.cos(jnp.pi * x)


def saddle(point: jax.Array) -> jax.Array:
    """x^2 - y^2: flat at the origin, which is a saddle point, and unbounded below.

    Example:
      >>> float(saddle(jnp.array([1.0, 2.0])))
      -3.0
    """
    x, y = point
    return x**2 - y**2


def tanh(x: float | jax.Array) -> jax.Array:
    """tanh x: at x = 4 the gradient has almost vanished, to 0.0013.

    Example:
      >>> round(float(jax.grad(tanh)(4.0)), 5)
      0.00134
    """
    return jnp.tanh(x)


def cosh(x: float | jax.Array, c: float | jax.Array = 0.5) -> jax.Array:
    """cosh(c x): convex, with the minimum 1 at 0. Newton's method shows its speed here.

    A larger `c` makes the curvature at the minimum, c^2, and the growth of the gradient larger.

    Example:
      >>> float(cosh(0.0))
      1.0
    """
    return jnp.cosh(c * x)


def ill_conditioned(point: jax.Array) -> jax.Array:
    """0.1 x^2 + 2 y^2: curvatures 0.2 and 4, so that a learning rate that suits y crawls along x.

    The argument `gradient_noise` of `trajectory` makes its gradients noisy.

    Example:
      >>> float(ill_conditioned(jnp.array([-5.0, -2.0])))
      10.5
    """
    x, y = point
    return 0.1 * x**2 + 2.0 * y**2


def rosenbrock(point: jax.Array) -> jax.Array:
    """The sum of 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2: a bent valley.

    The minimum is 0, at (1, ..., 1). A point has two or more coordinates.

    Example:
      >>> float(rosenbrock(jnp.array([1.5, 1.5])))
      56.5

    Reference:
      Rosenbrock, An Automatic Method for Finding the Greatest or Least Value of a Function, 1960.
    """
    return jnp.sum(100.0 * (point[1:] - point[:-1] ** 2) ** 2 + (1.0 - point[:-1]) ** 2)


def rastrigin(point: jax.Array) -> jax.Array:
    """The sum of 10 + x_i^2 - 10 cos(2 pi x_i): a local minimum near every point of whole numbers.

    The global minimum is 0, at the origin. A point has any number of coordinates.

    Example:
      >>> float(rastrigin(jnp.zeros(3)))
      0.0

    Reference:
      Rastrigin, Systems of Extremal Control, 1974.
    """
    return jnp.sum(10.0 + point**2 - 10.0 * jnp.cos(2.0 * jnp.pi * point))


def beale(point: jax.Array) -> jax.Array:
    """(1.5 - x + x y)^2 + (2.25 - x + x y^2)^2 + (2.625 - x + x y^3)^2: flat valleys.

    The minimum is 0, at (3, 0.5).

    Example:
      >>> float(beale(jnp.array([3.0, 0.5])))
      0.0

    Reference:
      Beale, On an Iterative Method for Finding a Local Minimum of a Function of More than One
      Variable, 1958.
    """
    x, y = point
    terms = 1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3
    return jnp.sum(jnp.square(jnp.array(terms)))


def four_gaussians(point: jax.Array) -> jax.Array:
    """The negated density of four equal normal distributions: four minima, of which two are global.

    The means are (+-2, +-2) and the covariance is [[1, 1/2], [1/2, 1]]. The minima at (2, 2) and
    (-2, -2) are deeper than the two others by one part in 40,000.

    Example:
      >>> round(float(four_gaussians(jnp.array([2.0, 2.0]))), 5)
      -0.04595
    """
    offsets = point - jnp.array([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]])
    x, y = offsets[:, 0], offsets[:, 1]
    # The covariance has the determinant 3/4 and the inverse [[4, -2], [-2, 4]] / 3.
    densities = jnp.exp(-(4.0 * x**2 - 4.0 * x * y + 4.0 * y**2) / 6.0) / (jnp.pi * 3.0**0.5)
    return -jnp.mean(densities)


LANDSCAPES: dict[str, Landscape] = {
    "x_cos_pi_x": Landscape(
        x_cos_pi_x,
        start=-0.9,
        bounds=((-1.0, 2.0),),
        minimum=-1.0467211,
        minima=(1.0904082,),
        shows="a local and a global minimum",
    ),
    "saddle": Landscape(
        saddle,
        start=(1.5, 1e-3),
        bounds=((-2.0, 2.0), (-2.0, 2.0)),
        minimum=-4.0,
        minima=((0.0, -2.0), (0.0, 2.0)),
        shows="a saddle point: who leaves it?",
    ),
    "tanh": Landscape(
        tanh,
        start=4.0,
        bounds=((-5.0, 5.0),),
        minimum=-0.9999092,
        minima=(-5.0,),
        shows="a vanishing gradient",
    ),
    "cosh": Landscape(
        cosh,
        start=10.0,
        bounds=((-11.0, 11.0),),
        minimum=1.0,
        minima=(0.0,),
        shows="a gradient that grows exponentially",
    ),
    "ill_conditioned": Landscape(
        ill_conditioned,
        start=(-5.0, -2.0),
        bounds=((-5.5, 2.0), (-3.0, 3.0)),
        minimum=0.0,
        minima=((0.0, 0.0),),
        shows="curvatures that differ by 20",
    ),
    "rosenbrock": Landscape(
        rosenbrock,
        start=(1.5, 1.5),
        bounds=((-0.6, 2.0), (-0.6, 3.0)),
        minimum=0.0,
        minima=((1.0, 1.0),),
        shows="a bent, flat valley",
    ),
    "rastrigin": Landscape(
        rastrigin,
        start=(2.3, -1.6),
        bounds=((-3.5, 3.5), (-3.5, 3.5)),
        minimum=0.0,
        minima=((0.0, 0.0),),
        shows="a minimum near every whole point",
    ),
    "beale": Landscape(
        beale,
        start=(1.0, 1.6),
        bounds=((-1.0, 4.5), (-2.0, 2.5)),
        minimum=0.0,
        minima=((3.0, 0.5),),
        shows="flat valleys between steep corners",
    ),
    "four_gaussians": Landscape(
        four_gaussians,
        start=(-0.3, 0.6),
        bounds=((-4.5, 4.5), (-4.5, 4.5)),
        minimum=-0.0459473,
        minima=((2.0, 2.0), (-2.0, -2.0)),
        shows="four minima around a hill",
    ),
}
