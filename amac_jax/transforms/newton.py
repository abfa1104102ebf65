"""Newton's method: the gradient times the inverse of the objective's Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from amac_jax.objective import Objective, hessian_vector_product, scalar_objective
from amac_jax.precision import widen
from amac_jax.schedules import Hyperparameter, check, next_count, value_at, whole_value_at

DENSE_LIMIT = 512  # parameters, up to which the Hessian is made and decomposed
KRYLOV_SIZE = 32  # Lanczos vectors: the memory of the matrix-free, saddle-free step


class NewtonState(NamedTuple):
    """The number of updates made."""

    count: jax.Array  # () int32


def scale_by_newton(
    damping: Hyperparameter = 0.0,
    saddle_free: bool = False,
    *,
    matrix_free: bool | None = None,
    max_iterations: Hyperparameter = 100,
    tolerance: Hyperparameter = 1e-5,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the gradient by the inverse of the damped Hessian of the objective.

        d = (H + delta I)^-1 g,      saddle_free:  d = (|H| + delta I)^-1 g

    with H the Hessian of `value_fn` at the parameters, and |H| the matrix with H's eigenvectors
    and the absolute values of its eigenvalues. The objective comes with each update:
    `tx.update(g, state, params, value_fn=lambda params: loss(params, batch))`.

    Up to 512 parameters H is made and decomposed into eigenvalues; an eigenvalue that is zero to
    rounding contributes nothing, so that a singular H gives the step of least norm. Beyond that,
    H is only ever multiplied with vectors: by conjugate gradients, which stop where the curvature
    is not positive with the step they have, the gradient over |H g| / |g| if they have none; or,
    saddle-free, by 32 steps of Lanczos' method with H replaced by its projection.

    Place it first, where it sees gradients. An update costs as much as n gradients and n^3
    operations (dense), or as 2 `max_iterations` gradients (matrix-free).

    Args:
      damping: delta, in the unit of H, value per parameter squared; >= 0. It bounds the step by
        |g| / delta where H has no negative eigenvalue, or saddle-free. Off: 0.
      saddle_free: whether eigenvalues count by their absolute value, so that saddle points and
        maxima repel; without it they attract, as they do Newton's iteration.
      matrix_free: whether H is never made; None is beyond 512 parameters.
      max_iterations: of conjugate gradients and of Lanczos' method (at most 32), >= 1.
      tolerance: of conjugate gradients, on the residual relative to g; >= 0.

    Returns:
      A transformation whose updates have the shapes and dtypes of the gradients, computed in at
      least float32. State: `NewtonState`.

    Raises:
      ValueError: for an argument outside its range; for `update` without `params`, without
        `value_fn`, or with one that does not return a scalar.

    Optax has no Newton step; `optax.lbfgs` approximates one from past gradients. Do not use it
    with minibatches much smaller than the number of parameters, whose Hessian is mostly noise,
    without damping.

    Example:
      >>> tx = scale_by_newton()
      >>> params = jnp.array([3.0, 1.0])
      >>> def value_fn(x):
      ...     return 0.1 * x[0] ** 2 + 2 * x[1] ** 2
      >>> gradient = jax.grad(value_fn)(params)
      >>> tx.update(gradient, tx.init(params), params, value_fn=value_fn)[0]
      Array([3., 1.], dtype=float32)

    Reference:
      Dauphin et al., Identifying and Attacking the Saddle Point Problem in High-Dimensional
      Non-Convex Optimization, 2014, https://arxiv.org/abs/1406.2572;
      Martens, Deep Learning via Hessian-Free Optimization, 2010.
    """
    check("damping", damping, "[0, inf)")
    check("max_iterations", max_iterations, "[1, inf)", whole=True)
    check("tolerance", tolerance, "[0, inf)")

    def init(params: optax.Params) -> NewtonState:
        return NewtonState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, *, value_fn=None, **extra_args):
        objective = scalar_objective(value_fn, params, "newton")
        count = state.count
        delta, wide_params, gradient = value_at(damping, count), widen(params), widen(updates)

        def inverse(eigenvalue, size):
            return _inverse(jnp.abs(eigenvalue) if saddle_free else eigenvalue, delta, size)

        def times_hessian(vector):
            return hessian_vector_product(objective, wide_params, vector)

        size = optax.tree.size(params)
        if size == 0:
            direction = gradient
        elif not (size > DENSE_LIMIT if matrix_free is None else matrix_free):
            direction = _dense(objective, wide_params, gradient, inverse)
        elif saddle_free:
            iterations = whole_value_at(max_iterations, count)
            most = int(max_iterations) if isinstance(max_iterations, int | float) else KRYLOV_SIZE
            vectors = min(most, KRYLOV_SIZE, size)
            direction = _lanczos(times_hessian, gradient, inverse, iterations, vectors)
        else:
            direction = _conjugate_gradients(
                lambda vector: _add(times_hessian(vector), delta, vector),
                gradient,
                whole_value_at(max_iterations, count),
                value_at(tolerance, count),
            )
        return optax.tree.cast_like(direction, updates), NewtonState(next_count(count))

    return optax.GradientTransformationExtraArgs(init, update)


def _inverse(eigenvalues: jax.Array, damping: jax.Array, size: int) -> jax.Array:
    """1 / (lambda + delta), and 0 where that sum is 0 to rounding: the pseudo-inverse."""
    damped = eigenvalues + damping.astype(eigenvalues.dtype)
    rounding = size * jnp.finfo(damped.dtype).eps * jnp.max(jnp.abs(damped))
    usable = jnp.abs(damped) > rounding
    return jnp.where(usable, 1.0 / jnp.where(usable, damped, 1.0), 0.0)


def _dense(objective: Objective, params: Any, gradient: Any, inverse: Callable) -> Any:
    flat_params, unravel = ravel_pytree(params)
    hessian = jax.hessian(lambda flat: objective(unravel(flat)))(flat_params)
    eigenvalues, vectors = jnp.linalg.eigh(hessian)
    flat_gradient, unravel_gradient = ravel_pytree(gradient)
    along = inverse(eigenvalues, flat_params.size) * (vectors.T @ flat_gradient)
    return unravel_gradient(vectors @ along)


def _conjugate_gradients(
    times: Callable[[Any], Any], b: Any, max_iterations: jax.Array, tolerance: jax.Array
) -> Any:
    """x with A x = b for a positive definite A; else the x at which b^T A b > 0 first fails."""
    b_squared = _dot(b, b)
    target = tolerance.astype(b_squared.dtype) ** 2 * b_squared

    def unfinished(carry):
        iteration, _, _, _, r_squared, convex = carry
        return (iteration < max_iterations) & (r_squared > target) & convex

    def iterate(carry):
        iteration, x, residual, p, r_squared, _ = carry
        a_p = times(p)
        curvature, length = _dot(p, a_p), optax.tree.norm(a_p)
        convex = curvature > 0
        # No curvature to trust: no further, but from nowhere a step along the gradient, as long
        # as 1 / |lambda| makes it where the gradient is an eigenvector.
        first = jnp.where(length > 0, jnp.sqrt(r_squared) / jnp.where(length > 0, length, 1.0), 0.0)
        step = jnp.where(convex, r_squared / jnp.where(convex, curvature, 1.0), 0.0)
        step = jnp.where(~convex & (iteration == 0), first, step)
        x, residual = _add(x, step, p), _add(residual, -step, a_p)
        r_squared, before = _dot(residual, residual), r_squared
        p = _add(residual, r_squared / before, p)
        return iteration + 1, x, residual, p, r_squared, convex

    start = (jnp.int32(0), optax.tree.zeros_like(b), b, b, b_squared, jnp.bool_(True))
    return jax.lax.while_loop(unfinished, iterate, start)[1]


def _dot(x: Any, y: Any) -> jax.Array:
    return jnp.asarray(optax.tree.vdot(x, y))


def _add(x: Any, scale: jax.Array, y: Any) -> Any:
    return jax.tree.map(lambda x, y: x + scale.astype(x.dtype) * y.astype(x.dtype), x, y)


def _lanczos(
    times: Callable[[Any], Any], b: Any, inverse: Callable, iterations: jax.Array, size: int
) -> Any:
    """inverse(A) b in the Krylov space of A and b, from the eigenvalues of A's projection on it."""
    norm = optax.tree.norm(b)
    dtype = norm.dtype
    rounding = 10 * jnp.finfo(dtype).eps

    def along(basis, vector):  # (size,)
        products = jax.tree.map(
            lambda q, v: jnp.tensordot(q, v.astype(q.dtype), axes=v.ndim), basis, vector
        )
        return sum(leaf.astype(dtype) for leaf in jax.tree.leaves(products))

    def combine(basis, coefficients):
        return jax.tree.map(lambda q: jnp.tensordot(coefficients.astype(q.dtype), q, 1), basis)

    def unit(vector, length, usable):
        scale = jnp.where(usable, 1.0 / jnp.where(usable, length, 1.0), 0.0)
        return jax.tree.map(lambda v: scale.astype(v.dtype) * v, vector)

    def iterate(i, carry):
        basis, projection, q, scale = carry
        basis = jax.tree.map(lambda rows, v: rows.at[i].set(v), basis, q)
        a_q = times(q)
        coefficients = along(basis, a_q)
        projection = projection.at[:, i].set(coefficients)
        remainder = optax.tree.sub(a_q, combine(basis, coefficients))
        # Twice, for orthogonality to rounding.
        remainder = optax.tree.sub(remainder, combine(basis, along(basis, remainder)))
        length, scale = optax.tree.norm(remainder), jnp.maximum(scale, optax.tree.norm(a_q))
        return basis, projection, unit(remainder, length, length > rounding * scale), scale

    basis = jax.tree.map(lambda v: jnp.zeros((size, *v.shape), v.dtype), b)
    carry = (basis, jnp.zeros((size, size), dtype), unit(b, norm, norm > 0), jnp.zeros([], dtype))
    basis, projection, _, _ = jax.lax.fori_loop(0, jnp.minimum(iterations, size), iterate, carry)
    # Column i was taken with the basis up to i: the upper half of a symmetric matrix.
    projection = jnp.triu(projection) + jnp.triu(projection, 1).T
    eigenvalues, vectors = jnp.linalg.eigh(projection)
    return combine(basis, norm * (vectors @ (inverse(eigenvalues, size) * vectors[0])))
