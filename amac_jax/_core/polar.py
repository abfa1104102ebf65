"""The polar factor of matrices, by a few odd polynomials: products alone, no decomposition."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Quintic: TypeAlias = tuple[float, float, float]
"""a, b, c of the polynomial a s + b s^3 + c s^5."""

NEWTON_SCHULZ: tuple[Quintic, ...] = ((3.4445, -4.775, 2.0315),) * 5
"""The five equal steps of the first Muon, which do not converge: s in [0.01, 1] -> [0.68, 1.13]."""

# Step by step the quintic with the smallest largest |1 - p(s)| on the interval that the steps
# before it have left of [low, 1].
MINIMAX: Mapping[int, tuple[Quintic, ...]] = MappingProxyType(
    {
        3: (  # low = 0.01 -> [0.730, 1.270]
            (8.09337, -23.62043, 17.44615),
            (3.63659, -2.72193, 0.53655),
            (2.66157, -1.97738, 0.45264),
        ),
        4: (  # low = 0.004 -> [0.873, 1.127]
            (8.34098, -24.59737, 18.22303),
            (3.97801, -2.96545, 0.56427),
            (3.32782, -2.49549, 0.51084),
            (2.30889, -1.67629, 0.41961),
        ),
        5: (  # low = 0.001 -> [0.886, 1.114]
            (8.47033, -25.10808, 18.62928),
            (4.18284, -3.1087, 0.58061),
            (3.96286, -2.95477, 0.56306),
            (3.2896, -2.46697, 0.50761),
            (2.27626, -1.64693, 0.41644),
        ),
    }
)
"""The number of steps -> that many quintics (Amsel et al., 2025, with these intervals)."""


def polar_factor(
    matrices: jax.Array, quintics: Sequence[Quintic], product_dtype: DTypeLike | None = None
) -> jax.Array:
    """About U V^H of matrices U S V^H: their singular values become about 1.

        X <- M / (sum of s^8)^(1/8);   for each quintic   X <- a X + (b A + c A^2) X,   A = X X^H

    The first A^2 has the Schatten norm of order 8 in it, whose division costs no product and
    leaves the largest singular value between k^(-1/8) and 1 for k of them. A zero matrix stays.

    Where n > 2 m, a CPU applies the same polynomials to A alone:

        P = a + b A + c A^2;   Q <- P Q;   A <- P A P;   and O = Q X at the end

    These are 2 m^2 n + (4 k - 3) m^3 multiplications for k quintics, not k (2 m^2 n + m^3). They
    lose half of the digits of small singular values: 4e-4 of O in float32. Products that are
    rounded to fewer digits, as accelerators do and as `product_dtype` asks for, would lose all.

    Args:
      matrices: (..., m, n), at least float32; fastest for m <= n.
      quintics: the polynomials, in their order.
      product_dtype: the dtype that the factors of products are rounded to. Sums are in at least
        float32. None: not rounded.

    Returns:
      An array like `matrices`.

    Example:
      >>> polar_factor(jnp.array([[3.0, 0.0], [0.0, -0.5]]), MINIMAX[5]).round(1)
      Array([[ 1.1,  0. ],
             [ 0. , -1. ]], dtype=float32)

    Reference:
      Amsel et al., The Polar Express, 2025, https://arxiv.org/abs/2505.16932.
    """

    def times(first: jax.Array, second: jax.Array) -> jax.Array:
        if product_dtype is None:
            return first @ second
        return jnp.matmul(
            first.astype(product_dtype),
            second.astype(product_dtype),
            preferred_element_type=first.dtype,
        )

    def size(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.square(jnp.abs(x)), axis=(-2, -1), keepdims=True))

    def inverse(norm: jax.Array) -> jax.Array:
        return jnp.where(norm > 0, 1.0 / jnp.where(norm > 0, norm, 1.0), 0.0).astype(x.dtype)

    # The largest element first: the squares of huge and of tiny elements leave the range of floats.
    x = matrices
    x = x * inverse(jnp.max(jnp.abs(matrices), axis=(-2, -1), keepdims=True, initial=0.0))
    x = x * inverse(size(x))
    gram = times(x, adjoint(x))
    square = times(gram, gram)
    scale = inverse(jnp.sqrt(jnp.sqrt(size(square))))
    x, gram, square = scale * x, scale**2 * gram, scale**4 * square

    def by_products(x: jax.Array, gram: jax.Array, square: jax.Array) -> jax.Array:
        for number, (a, b, c) in enumerate(quintics):
            if number:
                gram = times(x, adjoint(x))
                square = times(gram, gram)
            x = a * x + times(b * gram + c * square, x)
        return x

    def by_gram(x: jax.Array, gram: jax.Array, square: jax.Array) -> jax.Array:
        identity = jnp.eye(x.shape[-2], dtype=x.dtype)
        factor = done = identity
        for number, (a, b, c) in enumerate(quintics):
            if number:
                gram = factor @ gram @ factor
                square = gram @ gram
            factor = a * identity + b * gram + c * square
            done = factor @ done if number else factor
        return done @ x

    if product_dtype is None and x.shape[-1] > 2 * x.shape[-2]:
        return jax.lax.platform_dependent(x, gram, square, cpu=by_gram, default=by_products)
    return by_products(x, gram, square)


def adjoint(x: jax.Array) -> jax.Array:
    return x.mT.conj()
