"""Newton's method: the gradient times the inverse of the objective's Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Stage, Step, technique
from amac_jax._core.hyperparameters import Hyperparameter, is_number
from amac_jax._core.objective import Objective, check_objective, hessian_vector_product
from amac_jax._core.ranges import COUNT, NON_NEGATIVE
from amac_jax.optimizers._compose import compose
from amac_jax.optimizers._keywords import takes_techniques
from amac_jax.techniques import Techniques

DENSE_LIMIT = 512  # parameters; beyond it the Hessian is only multiplied with vectors
KRYLOV_SIZE = 32  # vectors of the matrix-free step: the default; an array may only lower it
# Of float32 a GPU multiplies 11 bits by default, and a TPU 8: too few to invert a Hessian.
EXACT = jax.lax.Precision.HIGHEST


@takes_techniques()
def newton(
    learning_rate: Hyperparameter = 1.0,
    *,
    damping: Hyperparameter = 0.0,
    saddle_free: bool = False,
    matrix_free: bool | None = None,
    max_iterations: Hyperparameter = KRYLOV_SIZE,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """Newton's method, damped or saddle-free, with a Hessian matrix or without one.

        theta <- theta - eta (H + delta I)^-1 g
        saddle_free:  theta <- theta - eta (|H| + delta I)^-1 g

    H is the Hessian of the objective. The objective is a function of the parameters alone and
    comes with each update: `tx.update(g, state, params, value_fn=...)`. Up to 512 parameters H is
    computed and decomposed. Beyond 512 it is only multiplied with vectors.

    Args:
      learning_rate: eta, dimensionless; 1 is Newton's step.
      damping: delta, in the unit of H; >= 0. Off: 0.
      saddle_free: whether saddle points and maxima repel. Without it they attract.
      matrix_free: True never computes H, False always does. None computes it up to 512 parameters.
      max_iterations: the number of vectors in the basis of the matrix-free step, >= 1. A Python or
        NumPy number sets the size of the basis. An array or a schedule may lower it from 32.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it. Its `update` needs `params` and `value_fn`. The
      core is `scale_by_newton`: its docstring says how it treats singular and indefinite Hessians.

    Raises:
      ValueError: for an argument outside its range; for `update` without `params`, without
        `value_fn`, or with one that does not return a scalar; from `init`, for complex parameters.

    Differs from Optax:
      Optax has no Newton step.

    When not to use:
      Steps must be cheap: each costs as much as n gradients of n parameters, or as
      2 `max_iterations` gradients. Far from a minimum the full step may overshoot: damp it, lower
      the learning rate, or use `optax.lbfgs`, which searches along the line.

    On a GPU or a TPU:
      By default their matrix products keep 11 or 8 bits of float32, and a singular Hessian of such
      products is not singular. `with jax.default_matmul_precision("highest"):` around the products
      in `value_fn` keeps all bits. The products of the Newton step itself do so anyway.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> def value_fn(x):
      ...     return jnp.cosh(0.5 * x)
      >>> tx, x = newton(), jnp.array(3.0)
      >>> state = tx.init(x)
      >>> for _ in range(4):
      ...     updates, state = tx.update(jax.grad(value_fn)(x), state, x, value_fn=value_fn)
      ...     x = optax.apply_updates(x, updates)
      ...     print(f"{x:.5f}")
      1.18970
      0.12295
      0.00015
      0.00000

    Reference:
      Dauphin et al., Identifying and Attacking the Saddle Point Problem in High-Dimensional
      Non-Convex Optimization, 2014, https://arxiv.org/abs/1406.2572;
      Nocedal and Wright, Numerical Optimization, 2006, chapters 3 and 7.
    """
    core = scale_by_newton(
        damping, saddle_free, matrix_free=matrix_free, max_iterations=max_iterations
    )
    return compose(core, learning_rate, **techniques)


@technique(damping=NON_NEGATIVE, max_iterations=COUNT)
def scale_by_newton(
    damping: Hyperparameter = 0.0,
    saddle_free: bool = False,
    *,
    matrix_free: bool | None = None,
    max_iterations: Hyperparameter = KRYLOV_SIZE,
) -> Stage:
    """Multiplies the gradient by the inverse of the damped Hessian of the objective.

        d = (H + delta I)^-1 g,      saddle_free:  d = (|H| + delta I)^-1 g

    H is the Hessian of `value_fn` at the parameters. |H| is the matrix with the eigenvectors of H
    and the absolute values of its eigenvalues. The objective comes with each update:
    `tx.update(g, state, params, value_fn=lambda params: loss(params, batch))`.

    Up to 512 parameters H is computed and decomposed into eigenvalues. An eigenvalue of the damped
    matrix that is zero to rounding contributes nothing, so a singular H gives the step of least
    norm.

    Beyond 512 parameters H is only multiplied with vectors. Lanczos' method gives an orthonormal
    basis of g, H g, H^2 g and so on. The step d is the vector in this basis that minimizes
    |(H + delta I) d - g|. This is the method of minimal residuals, a relative of conjugate
    gradients for matrices that may be indefinite or singular. With `saddle_free` the projection
    of H on the basis takes the place of H. As the basis grows, both become the dense step.

    On a GPU or a TPU put `value_fn` in `jax.default_matmul_precision("highest")`, as the docstring
    of `newton` says.

    Place it first, where it sees gradients. A dense update costs as much as n gradients and n^3
    operations. A matrix-free update costs as much as 2 `max_iterations` gradients, and holds
    `max_iterations` copies of the parameters.

    Args:
      damping: delta, in the unit of H, value per parameter squared; >= 0. Where H has no negative
        eigenvalue, or with `saddle_free`, the step is at most |g| / delta long. Off: 0.
      saddle_free: whether eigenvalues count by their absolute value, so that saddle points and
        maxima repel. Without it they attract, as they attract Newton's iteration.
      matrix_free: True never computes H, False always does. None computes it up to 512 parameters.
      max_iterations: the number of vectors in the basis of the matrix-free step, >= 1. A Python or
        NumPy number sets the size of the basis. An array or a schedule may lower it from 32.

    Returns:
      A transformation whose updates have the shapes and dtypes of the gradients, computed in at
      least float32. A NaN or infinity in one leaf of the gradient is in all updates, because one
      system of equations gives all of them. State: `CountedState` around `optax.EmptyState`.

    Raises:
      ValueError: for an argument outside its range; for `update` without `params`, without
        `value_fn`, or with one that does not return a scalar; from `init`, for complex parameters.

    Differs from Optax:
      Optax has no Newton step. `optax.lbfgs` approximates one from past gradients.

    When not to use:
      Minibatches are much smaller than the number of parameters, and `damping` is 0: their Hessian
      is mostly noise.

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
    most = int(max_iterations) if is_number(max_iterations) else KRYLOV_SIZE  # pyright: ignore

    def update(updates: Tree, state: Tree, params: Tree, step: Step):
        objective = check_objective(step.extra_args.get("value_fn"), params, "newton")

        def inverse(eigenvalue: jax.Array, size: int) -> jax.Array:
            return _inverse(jnp.abs(eigenvalue) if saddle_free else eigenvalue, step.damping, size)

        def times_hessian(vector: Tree) -> Tree:
            return hessian_vector_product(objective, params, vector)

        size = optax.tree.size(params)
        if size == 0:
            direction = updates
        elif not (size > DENSE_LIMIT if matrix_free is None else matrix_free):
            direction = _dense(objective, params, updates, inverse)
        else:
            space = _lanczos(times_hessian, updates, step.max_iterations, min(most, size))
            solve = _projected(inverse) if saddle_free else _minimal_residual(step.damping)
            direction = _combine(space.basis, space.length * solve(space))
        return direction, state

    return Stage(update, refuses_complex=True)


def _inverse(eigenvalues: jax.Array, damping: jax.Array, size: int) -> jax.Array:
    """1 / (lambda + delta), and 0 where lambda + delta is 0 to rounding: the pseudo-inverse."""
    damped = eigenvalues + damping.astype(eigenvalues.dtype)
    rounding = size * jnp.finfo(damped.dtype).eps * jnp.max(jnp.abs(damped))
    usable = jnp.abs(damped) > rounding
    return jnp.where(usable, 1.0 / jnp.where(usable, damped, 1.0), 0.0)


def _dense(objective: Objective, params: Tree, gradient: Tree, inverse: Callable) -> Tree:
    flat_params, unravel = _vector(params)
    hessian = jax.hessian(lambda flat: objective(unravel(flat)))(flat_params)
    eigenvalues, vectors = jnp.linalg.eigh(hessian)
    flat_gradient, unravel_gradient = _vector(gradient)
    along = inverse(eigenvalues, flat_params.size) * _times(vectors.T, flat_gradient)
    return jax.tree.map(_sharded_as, unravel_gradient(_whole(_times(vectors, along))), gradient)


def _times(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    return jnp.matmul(matrix, vector, precision=EXACT)


def _vector(tree: Tree) -> tuple[jax.Array, Callable[[jax.Array], Tree]]:
    """`ravel_pytree`, whole on every device: XLA would spread the Hessian in odd pieces."""
    flat, unravel = ravel_pytree(jax.tree.map(_whole, tree))
    return _whole(flat), unravel


def _whole(leaf: jax.Array) -> jax.Array:
    """The leaf on every device of the mesh, if there is one."""
    mesh = jax.typeof(leaf).sharding.mesh
    if mesh.empty:
        return leaf
    everywhere = NamedSharding(mesh, PartitionSpec())
    # `reshard` is for the explicit axes of a mesh, the constraint for its automatic axes.
    leaf = jax.sharding.reshard(leaf, everywhere)
    return jax.lax.with_sharding_constraint(leaf, everywhere)


def _sharded_as(leaf: jax.Array, like: jax.Array) -> jax.Array:
    sharding = jax.typeof(like).sharding
    return leaf if sharding.mesh.empty else jax.sharding.reshard(leaf, sharding)


class _Krylov(NamedTuple):
    basis: Tree  # (k, ...) a leaf: orthonormal; rows of zeros beyond the iterations
    used: jax.Array  # (k,) 1 for the rows of the basis, 0 beyond
    projection: jax.Array  # (k + 1, k): column i is A q_i in terms of q_0, ..., q_{i + 1}
    length: jax.Array  # () the norm of the vector that the basis begins with


def _lanczos(times: Callable[[Tree], Tree], b: Tree, iterations: jax.Array, size: int) -> _Krylov:
    """An orthonormal basis of b, A b, A^2 b, ..., up to rounding.

    Rows of zeros follow where A times the basis adds nothing new.
    """
    largest = optax.tree.norm(b, ord="inf")
    usable = largest > 0
    b = _scaled(b, jnp.where(usable, 1.0 / jnp.where(usable, largest, 1.0), 0.0))
    norm = optax.tree.norm(b)  # of numbers up to 1: their squares are in range
    dtype = norm.dtype
    rounding = 10 * jnp.finfo(dtype).eps

    def along(basis, vector):  # (size,)
        def product(q, v):  # on every device: with explicit sharding this must be stated
            everywhere = NamedSharding(jax.typeof(v).sharding.mesh, PartitionSpec(None))
            v = v.astype(q.dtype)
            return jnp.tensordot(q, v, v.ndim, precision=EXACT, out_sharding=everywhere)

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
        # A second time, for orthogonality to rounding.
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
        # Column i was computed with the basis up to i: the upper half of a symmetric matrix.
        upper = jnp.triu(space.projection[:-1])
        eigenvalues, vectors = jnp.linalg.eigh(upper + jnp.triu(upper, 1).T)
        return _times(vectors, inverse(eigenvalues, len(eigenvalues)) * vectors[0])

    return solve


def _with_row(rows: jax.Array, i: jax.Array, row: jax.Array) -> jax.Array:
    # `rows.at[i].set(row)` counts the elements of a row in int32.
    return jax.lax.dynamic_update_index_in_dim(rows, row, i, axis=0)


def _combine(basis: Tree, coefficients: jax.Array) -> Tree:
    def combined(q):
        return jnp.tensordot(coefficients.astype(q.dtype), q, 1, precision=EXACT)

    return jax.tree.map(combined, basis)


def _scaled(tree: Tree, scale: jax.Array) -> Tree:
    return jax.tree.map(lambda leaf: scale.astype(leaf.dtype) * leaf, tree)
