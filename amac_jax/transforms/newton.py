"""Newton's method: the gradient times the inverse of the objective's Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

from amac_jax.leaves import floats_only
from amac_jax.objective import Objective, hessian_vector_product, scalar_objective
from amac_jax.precision import widen
from amac_jax.schedules import Hyperparameter, check, next_count, value_at, whole_value_at

DENSE_LIMIT = 512  # parameters, up to which the Hessian is made and decomposed
KRYLOV_SIZE = 32  # vectors of the matrix-free step, if their number is not a Python number


class NewtonState(NamedTuple):
    """The number of updates made."""

    count: jax.Array  # () int32


def scale_by_newton(
    damping: Hyperparameter = 0.0,
    saddle_free: bool = False,
    *,
    matrix_free: bool | None = None,
    max_iterations: Hyperparameter = 32,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the gradient by the inverse of the damped Hessian of the objective.

        d = (H + delta I)^-1 g,      saddle_free:  d = (|H| + delta I)^-1 g

    with H the Hessian of `value_fn` at the parameters, and |H| the matrix with H's eigenvectors
    and the absolute values of its eigenvalues. The objective comes with each update:
    `tx.update(g, state, params, value_fn=lambda params: loss(params, batch))`.

    Up to 512 parameters H is made and decomposed into eigenvalues; an eigenvalue that is zero to
    rounding contributes nothing, so that a singular H gives the step of least norm. Beyond that H
    is only ever multiplied with vectors: Lanczos' method gives an orthonormal basis of g, H g,
    H^2 g, ..., and d is the vector in it for which |(H + delta I) d - g| is least (the method of
    minimal residuals, conjugate gradients' relative for matrices that may be indefinite or
    singular) or, saddle-free, what H's projection on it gives. As the basis grows, both become the
    dense step.

    Place it first, where it sees gradients. An update costs as much as n gradients and n^3
    operations (dense), or as 2 `max_iterations` gradients and as many copies of the parameters
    as `max_iterations` (matrix-free).

    Args:
      damping: delta, in the unit of H, value per parameter squared; >= 0. It bounds the step by
        |g| / delta where H has no negative eigenvalue, or saddle-free. Off: 0.
      saddle_free: whether eigenvalues count by their absolute value, so that saddle points and
        maxima repel; without it they attract, as they do Newton's iteration.
      matrix_free: whether H is never made; None is beyond 512 parameters.
      max_iterations: vectors in the basis of the matrix-free step, >= 1; an array or a schedule
        may lower it from 32.

    Returns:
      A transformation whose updates have the shapes and dtypes of the gradients, computed in at
      least float32. State: `NewtonState`.

    Raises:
      ValueError: for an argument outside its range; for `update` without `params`, without
        `value_fn`, or with one that does not return a scalar; from `init`, for complex parameters.

    A NaN or infinity in one leaf of the gradient is in all updates: it is one system of equations.

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
      Paige and Saunders, Solution of Sparse Indefinite Systems of Linear Equations, 1975.
    """
    check("damping", damping, "[0, inf)")
    check("max_iterations", max_iterations, "[1, inf)", whole=True)

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
        else:
            most = int(max_iterations) if isinstance(max_iterations, int | float) else KRYLOV_SIZE
            iterations = whole_value_at(max_iterations, count)
            space = _lanczos(times_hessian, gradient, iterations, min(most, size))
            solve = _projected(inverse) if saddle_free else _minimal_residual(delta)
            direction = _combine(space.basis, space.length * solve(space))
        return optax.tree.cast_like(direction, updates), NewtonState(next_count(count))

    tx = optax.GradientTransformationExtraArgs(init, update)
    return floats_only(tx, refuses_complex="newton")


def _inverse(eigenvalues: jax.Array, damping: jax.Array, size: int) -> jax.Array:
    """1 / (lambda + delta), and 0 where that sum is 0 to rounding: the pseudo-inverse."""
    damped = eigenvalues + damping.astype(eigenvalues.dtype)
    rounding = size * jnp.finfo(damped.dtype).eps * jnp.max(jnp.abs(damped))
    usable = jnp.abs(damped) > rounding
    return jnp.where(usable, 1.0 / jnp.where(usable, damped, 1.0), 0.0)


def _dense(objective: Objective, params: Any, gradient: Any, inverse: Callable) -> Any:
    flat_params, unravel = _vector(params)
    hessian = jax.hessian(lambda flat: objective(unravel(flat)))(flat_params)
    eigenvalues, vectors = jnp.linalg.eigh(hessian)
    flat_gradient, unravel_gradient = _vector(gradient)
    along = inverse(eigenvalues, flat_params.size) * (vectors.T @ flat_gradient)
    return jax.tree.map(_sharded_as, unravel_gradient(_whole(vectors @ along)), gradient)


def _vector(tree: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """`ravel_pytree`, whole on every device: XLA would spread the Hessian in odd pieces."""
    flat, unravel = ravel_pytree(jax.tree.map(_whole, tree))
    return _whole(flat), unravel


def _whole(leaf: jax.Array) -> jax.Array:
    """The leaf on every device of the mesh, if there is one."""
    mesh = jax.typeof(leaf).sharding.mesh
    if mesh.empty:
        return leaf
    everywhere = NamedSharding(mesh, PartitionSpec())
    # The first is for a mesh's explicit axes, the second for its automatic ones.
    leaf = jax.sharding.reshard(leaf, everywhere)
    return jax.lax.with_sharding_constraint(leaf, everywhere)


def _sharded_as(leaf: jax.Array, like: jax.Array) -> jax.Array:
    sharding = jax.typeof(like).sharding
    return leaf if sharding.mesh.empty else jax.sharding.reshard(leaf, sharding)


class _Krylov(NamedTuple):
    basis: Any  # (k, ...) a leaf: orthonormal; rows of zeros beyond the iterations
    used: jax.Array  # (k,) 1 for the rows of the basis, 0 beyond
    projection: jax.Array  # (k + 1, k): column i is A q_i in terms of q_0, ..., q_{i + 1}
    length: jax.Array  # () of the vector it begins with


def _lanczos(times: Callable[[Any], Any], b: Any, iterations: jax.Array, size: int) -> _Krylov:
    """A basis of b, A b, A^2 b, ..., kept orthogonal to rounding; ends early where that is all."""
    largest = optax.tree.norm(b, ord="inf")
    usable = largest > 0
    b = _scaled(b, jnp.where(usable, 1.0 / jnp.where(usable, largest, 1.0), 0.0))
    norm = optax.tree.norm(b)  # of numbers up to 1, whose squares are in range
    dtype = norm.dtype
    rounding = 10 * jnp.finfo(dtype).eps

    def along(basis, vector):  # (size,)
        def product(q, v):  # on every device: with explicit sharding that has to be said
            everywhere = NamedSharding(jax.typeof(v).sharding.mesh, PartitionSpec(None))
            return jnp.tensordot(q, v.astype(q.dtype), axes=v.ndim, out_sharding=everywhere)

        products = jax.tree.map(product, basis, vector)
        return sum((p.astype(dtype) for p in jax.tree.leaves(products)), jnp.zeros(size, dtype))

    def unit(vector, length, usable):
        return _scaled(vector, jnp.where(usable, 1.0 / jnp.where(usable, length, 1.0), 0.0))

    def iterate(i, carry):
        basis, used, projection, q, scale = carry
        basis = jax.tree.map(lambda rows, v: _with_row(rows, i, v), basis, q)
        used = used.at[i].set(jnp.round(optax.tree.norm(q)).astype(dtype))
        a_q = times(q)
        coefficients = along(basis, a_q)
        remainder = optax.tree.sub(a_q, _combine(basis, coefficients))
        # Twice, for orthogonality to rounding.
        remainder = optax.tree.sub(remainder, _combine(basis, along(basis, remainder)))
        length, scale = optax.tree.norm(remainder), jnp.maximum(scale, optax.tree.norm(a_q))
        more = length > rounding * scale
        projection = projection.at[:-1, i].set(coefficients)
        projection = projection.at[i + 1, i].set(jnp.where(more, length, 0.0))
        return basis, used, projection, unit(remainder, length, more), scale

    basis = jax.tree.map(lambda v: jnp.broadcast_to(jnp.zeros_like(v), (size, *v.shape)), b)
    projection = jnp.zeros((size + 1, size), dtype)
    carry = basis, jnp.zeros(size, dtype), projection, unit(b, norm, norm > 0), jnp.zeros([], dtype)
    last = jax.lax.fori_loop(0, jnp.minimum(iterations, size), iterate, carry)
    return _Krylov(*last[:3], length=largest.astype(dtype) * norm)


def _minimal_residual(damping: jax.Array) -> Callable[[_Krylov], jax.Array]:
    def solve(space):
        projection, size = space.projection, space.projection.shape[1]
        delta = damping.astype(projection.dtype)
        damped = projection + delta * jnp.eye(size + 1, size) * space.used
        first = jnp.zeros(size + 1, projection.dtype).at[0].set(1.0)
        return jnp.linalg.lstsq(damped, first, rcond=size * jnp.finfo(projection.dtype).eps)[0]

    return solve


def _projected(inverse: Callable[[jax.Array, int], jax.Array]) -> Callable[[_Krylov], jax.Array]:
    def solve(space):
        # Column i was taken with the basis up to i: the upper half of a symmetric matrix.
        upper = jnp.triu(space.projection[:-1])
        eigenvalues, vectors = jnp.linalg.eigh(upper + jnp.triu(upper, 1).T)
        return vectors @ (inverse(eigenvalues, len(eigenvalues)) * vectors[0])

    return solve


def _with_row(rows: jax.Array, i: jax.Array, row: jax.Array) -> jax.Array:
    # `rows.at[i].set(row)` counts the elements of a row in int32.
    return jax.lax.dynamic_update_index_in_dim(rows, row, i, axis=0)


def _combine(basis: Any, coefficients: jax.Array) -> Any:
    return jax.tree.map(lambda q: jnp.tensordot(coefficients.astype(q.dtype), q, 1), basis)


def _scaled(tree: Any, scale: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: scale.astype(leaf.dtype) * leaf, tree)
