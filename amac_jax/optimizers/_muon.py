"""Muon: the momentum of a kernel, made orthogonal; every other leaf moves by Adam."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jax.tree_util import KeyPath
from jax.typing import DTypeLike

from amac_jax._core.aliases import Tree
from amac_jax._core.boundary import Stage, Step, technique
from amac_jax._core.cores import core_stage
from amac_jax._core.hyperparameters import Hyperparameter, is_number, step_number
from amac_jax._core.leaves import each_leaf, is_explicit, zeros_like
from amac_jax._core.moments import abs_square, bias_corrected, moving_average
from amac_jax._core.paths import check_fits, check_patterns, first_fit, is_masked
from amac_jax._core.polar import MINIMAX, Quintic, polar_factor
from amac_jax._core.ranges import DECAY, NON_NEGATIVE, POSITIVE, checked
from amac_jax.kernels import FanInRule, MatrixAxes, check_rule, matrix_axes
from amac_jax.kernels import fan_in_axes as default_rule
from amac_jax.optimizers._compose import compose
from amac_jax.optimizers._keywords import core_of, takes_techniques
from amac_jax.techniques import Techniques

EPS = 1e-16
"""Added to the mean squares of units: below the squares of all but vanishing updates."""

BATCHED_BELOW = 1 << 22
"""Matrices with fewer elements than this are multiplied in one batch with others of their shape."""

BATCHED_ON_GPU_ALONE_FROM = 1 << 18
"""From here on a GPU alone has batches: one product of such matrices keeps all cores of a CPU busy,
and a TPU keeps one of them, but not a batch, in its fast memory."""


@takes_techniques(weight_decay=0.1)
@checked(learning_rate=NON_NEGATIVE)
def muon(
    learning_rate: Hyperparameter,
    *,
    b1: Hyperparameter = 0.95,
    b2: Hyperparameter | None = None,
    nesterov: bool = True,
    rms: Hyperparameter = 0.2,
    quintics: Sequence[Quintic] | None = None,
    product_dtype: DTypeLike | None = None,
    exclude: Sequence[str] = (),
    others: optax.GradientTransformation | None = None,
    others_multiplier: Hyperparameter = 1.0,
    **techniques: Unpack[Techniques],
) -> optax.GradientTransformationExtraArgs:
    """Muon: every direction of a kernel moves equally far; all other leaves move by Adam.

        M <- b1 M + (1 - b1) G;   O = U V^H of b1 M + (1 - b1) G = U S V^H
        theta <- theta - eta (r sqrt(max(fan-in, fan-out)) O + lambda theta)      kernels
        theta <- theta - eta c Adam(g)                                            all else

    `scale_by_orthogonal` explains the equations, and which leaves are kernels.

    Args:
      learning_rate: eta, as large as for AdamW; >= 0.
      b1, b2, nesterov, rms, quintics, product_dtype, exclude, others: as in
        `scale_by_orthogonal`.
      others_multiplier: c, a factor of the rate of `others`; >= 0.
      fan_in_axes: the rule that says which leaves are kernels, for the core and for techniques.
      weight_decay: lambda, of kernels, >= 0.
      momentum: heavy ball on the steps themselves, beside b1, which is Muon's own momentum; see
        `heavy_ball`. Off: None or 0.
      **techniques: keywords of `compose`: clip_norm, centralize, noise, clip_value, momentum,
        weight_decay, layer_multipliers, plateau, sync_period, average_start, state_dtype,
        skip_nonfinite, skip_spikes, record_metrics.

    Returns:
      A transformation, as `compose` returns it. The core is `scale_by_orthogonal`.

    Raises:
      ValueError: for an argument outside its range.

    Differs from Optax:
      `optax.contrib.muon` moves every leaf of two axes so, embeddings too, and no other kernel;
      its default rate is larger, because r depends on the shape there (`consistent_rms=0.2` is
      this r), and its weight decay is 0.

    Example:
      >>> tx = muon(0.02, average_start=500)

    Reference:
      Jordan et al., Muon, 2024, https://kellerjordan.github.io/posts/muon/. Liu et al., Muon is
      Scalable for LLM Training, 2025, https://arxiv.org/abs/2502.16982.
    """
    core = scale_by_orthogonal(
        b1,
        b2,
        nesterov=nesterov,
        rms=rms,
        quintics=quintics,
        product_dtype=product_dtype,
        exclude=exclude,
        others=others,
        others_multiplier=others_multiplier,
        fan_in_axes=techniques.get("fan_in_axes"),
    )
    return compose(core, learning_rate, **techniques)


class ScaleByOrthogonalState(NamedTuple):
    """The momentum of kernels, the mean squares of their units, and the state of all else."""

    mu: Tree  # the kernels' shapes, at least float32; MaskedNode for every other leaf
    nu: jax.Array | None  # (output units of all kernels,), at least float32; None without b2
    others: Tree  # the state of `others`


@technique(b1=DECAY, b2=DECAY, rms=POSITIVE, others_multiplier=NON_NEGATIVE)
def scale_by_orthogonal(
    b1: Hyperparameter = 0.95,
    b2: Hyperparameter | None = None,
    *,
    nesterov: bool = True,
    rms: Hyperparameter = 0.2,
    quintics: Sequence[Quintic] | None = None,
    product_dtype: DTypeLike | None = None,
    exclude: Sequence[str] = (),
    others: optax.GradientTransformation | None = None,
    others_multiplier: Hyperparameter = 1.0,
    fan_in_axes: FanInRule | None = None,
) -> Stage:
    """Replaces the momentum of every kernel by the nearest matrix with equal singular values.

    With G the gradient of a kernel as a matrix, fan-in x fan-out, and U S V^H its decomposition:

        M <- b1 M + (1 - b1) G;   N = b1 M + (1 - b1) G, or M without `nesterov`
        N = U S V^H;   O = U V^H                               about, see `quintics`
        d = r sqrt(max(fan-in, fan-out)) O                     the root mean square of d is r

    Every direction of a layer's input and output thus moves equally far, however small its share
    of the gradient. All other leaves (biases, scales, embeddings) are moved by `others`. With
    `b2`, every output unit o (a column of O) is first divided by its usual size:

        v_o <- b2 v_o + (1 - b2) mean over the fan-in of |O_o|^2
        O_o <- O_o / sqrt(v_o / (1 - b2^t)), then O times a number: its mean square is as before

    Place it where Adam's core stands: it sees gradients. Its direction does not depend on the
    scale of the gradient. With r = 0.2 its steps are about as large as Adam's.

    A convolution is one matrix, (height width in) x out, and so is a kernel of attention,
    in x (heads head_dim). Layers stacked along a leading axis are a matrix each if
    `fan_in_axes` is a rule made by `amac_jax.stacked`. Matrices of one shape, transposed where that
    makes the first side the smaller one, are one batched product where they are small.

    Where arrays are sharded, and the axes of the mesh have the type Explicit, a device gathers the
    momentum of each kernel, computes all of its O and keeps its part. With axes of the type Auto
    XLA chooses.

    Args:
      b1: decay of the momentum, in [0, 1).
      b2: decay of the mean squares of output units, in [0, 1), as in NorMuon, where it is 0.95; not
        Adam's, which `others` has.
        Off: None, no state.
      nesterov: whether the gradient is counted once more.
      rms: r, the root mean square of d; > 0.
      quintics: the polynomials a s + b s^3 + c s^5 that take singular values to about 1, one
        after another, as a sequence of (a, b, c). None: the four of `MINIMAX[4]` of
        `amac_jax.optimizers`, which also has `MINIMAX[3]`, `MINIMAX[5]` and `NEWTON_SCHULZ`,
        the five of the first Muon. Singular values of N / ||N||, with the norm
        (sum of s^8)^(1/8): three take [0.01, 1] to [0.73, 1.27], four take [0.004, 1] to
        [0.87, 1.13], five take [0.001, 1] to [0.89, 1.11].
      product_dtype: the dtype that factors of products are rounded to, such as "bfloat16"; sums
        are in at least float32. None: not rounded, and JAX's default precision of products.
      exclude: patterns of the paths of kernels that `others` moves too, such as ("head",); see
        `amac_jax.stacked` for what fits.
      others: the core that moves all other leaves. None is `optax.scale_by_adam()`.
      others_multiplier: a factor of what `others` returns; >= 0.
      fan_in_axes: a rule (path, leaf) -> the fan-in axes of the leaf, or None for a leaf that is
        not a kernel. None is `amac_jax.fan_in_axes`.

    Returns:
      A transformation whose updates have the shapes and dtypes of the gradients.
      State: `CountedState` around `ScaleByOrthogonalState`, 4 bytes for each weight of a kernel;
      with `b2` 4 more for each output unit, in one array.

    Raises:
      ValueError: for an argument outside its range; for `quintics` that are not triples of
        numbers; for an optimizer as `others`; from `init`, for a pattern that fits no leaf.

    Differs from Optax:
      `optax.contrib.scale_by_muon` makes every leaf of two axes orthogonal, embeddings too, and
      leaves convolutions and the kernels of attention to Adam.

    When not to use:
      A kernel whose rows are not mixed, such as a table of embeddings under another name: give
      a rule, or `exclude` it.

    Example:
      >>> tx = scale_by_orthogonal(rms=1.0)
      >>> gradients = {"kernel": jnp.array([[3.0, 0.0], [0.0, -0.1]])}
      >>> tx.update(gradients, tx.init(gradients))[0]["kernel"].round(1)
      Array([[ 1.6,  0. ],
             [ 0. , -1.2]], dtype=float32)

    Reference:
      Jordan et al., Muon, 2024, https://kellerjordan.github.io/posts/muon/. For r: Liu et al., Muon
      is Scalable for LLM Training, 2025, https://arxiv.org/abs/2502.16982. For b2: Li et al.,
      NorMuon, 2025, https://arxiv.org/abs/2510.05491.
    """
    polynomials = quintics_of(quintics)
    rule = default_rule if fan_in_axes is None else fan_in_axes
    inner = core_stage(core_of(optax.scale_by_adam) if others is None else others, "others")
    check_product_dtype(product_dtype)
    check_patterns("exclude", exclude)

    def axes_of(path: KeyPath, leaf: object) -> MatrixAxes | None:
        axes = matrix_axes(path, leaf, rule)
        return axes if axes and axes.fan_out and not first_fit(path, exclude) else None

    def init(params: Tree) -> ScaleByOrthogonalState:
        check_rule(rule, params)
        check_fits("exclude", exclude, params)
        kernels, rest = parted(params, axes_of)
        mu = zeros_like(kernels)
        nu = None if b2 is None else mean_squares(mu, axes_of)
        return ScaleByOrthogonalState(mu, nu, inner.begin(rest))

    def update(updates: Tree, state: ScaleByOrthogonalState, params: Tree, step: Step):
        gradients, rest = parted(updates, axes_of)
        mu = step.kept(moving_average(step.b1, state.mu, gradients), state.mu)
        momentum = moving_average(step.b1, mu, gradients) if nesterov else mu
        matrices = [as_matrices(*leaf) for leaf in kernels_of(momentum, axes_of)]
        factors, nu = orthogonal(matrices, polynomials, product_dtype), state.nu
        if nu is not None:
            factors, new_nu = evened(factors, nu, step)
            nu = step.kept(new_nu, nu)
        direction = jax.tree.structure(momentum).unflatten(
            from_matrices(step.rms.astype(o.dtype) * math.sqrt(larger_side(o)) * o, *leaf)
            for o, leaf in zip(factors, kernels_of(momentum, axes_of), strict=True)
        )
        rest_params = None if params is None else parted(params, axes_of)[1]
        its_step = inner.at(step._replace(entered=None), rest_params)
        rest, others_state = inner.update(rest, state.others, rest_params, its_step)
        others_state = inner.after(step, others_state, state.others)
        rest = each_leaf(lambda d, m: m * d, rest, m=step.others_multiplier)
        return joined(direction, rest), ScaleByOrthogonalState(mu, nu, others_state)

    return Stage(update, init, holds=True)


AxesOf = Callable[[KeyPath, object], Any]  # -> MatrixAxes, or None for no kernel


def parted(tree: Tree, axes_of: AxesOf) -> tuple[Tree, Tree]:
    """The kernels and the other leaves, each with MaskedNode in the places of the rest."""

    def only(kernels: bool) -> Tree:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x if bool(axes_of(path, x)) is kernels else optax.MaskedNode(), tree
        )

    return only(True), only(False)


def joined(kernels: Tree, rest: Tree) -> Tree:
    """The tree whose two parts these are."""
    return jax.tree.map(lambda k, r: r if is_masked(k) else k, kernels, rest, is_leaf=is_masked)


def kernels_of(tree: Tree, axes_of: AxesOf) -> list[tuple[jax.Array, MatrixAxes]]:
    """The leaves of a tree of kernels, with their axes."""
    return [(x, axes_of(path, x)) for path, x in jax.tree_util.tree_leaves_with_path(tree)]


def as_matrices(kernel: jax.Array, axes: MatrixAxes) -> jax.Array:
    """(number, fan-in, fan-out): a kernel as a stack of matrices, whole on each device.

    Example:
      >>> as_matrices(jnp.ones((3, 5, 4, 2)), MatrixAxes((), (0, 1, 2), (3,))).shape
      (1, 60, 2)
    """
    if is_explicit(kernel):
        kernel = jax.sharding.reshard(kernel, PartitionSpec(*[None] * kernel.ndim))
    ordered = kernel.transpose((*axes.stack, *axes.fan_in, *axes.fan_out))
    return ordered.reshape([math.prod(sizes(kernel, part)) for part in axes])


def from_matrices(matrices: jax.Array, like: jax.Array, axes: MatrixAxes) -> jax.Array:
    """The kernel whose matrices these are, placed as `like` is."""
    order = (*axes.stack, *axes.fan_in, *axes.fan_out)
    kernel = matrices.reshape(sizes(like, order)).transpose(
        sorted(range(like.ndim), key=order.__getitem__)
    )
    if is_explicit(like):
        kernel = jax.sharding.reshard(kernel, jax.typeof(like).sharding.spec)
    return kernel


def orthogonal(
    matrices: Sequence[jax.Array],
    quintics: Sequence[Quintic],
    product_dtype: DTypeLike | None = None,
) -> list[jax.Array]:
    """U V^H of each; matrices of one shape, or of transposed shapes, are a batch if small."""
    wide = [x.mT if is_tall(x) else x for x in matrices]
    alike: dict[tuple, list[int]] = {}
    for place, x in enumerate(wide):
        alike.setdefault((*x.shape[1:], x.dtype), []).append(place)

    def one_by_one(*stacks: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(polar_factor(stack, quintics, product_dtype) for stack in stacks)

    def in_one_batch(*stacks: jax.Array) -> tuple[jax.Array, ...]:
        done = polar_factor(jnp.concatenate(stacks), quintics, product_dtype)
        ends = [*itertools.accumulate(map(len, stacks))]
        return tuple(jnp.split(done, ends[:-1]))

    for (*shape, _), places in alike.items():
        stacks, size = [wide[place] for place in places], math.prod(shape)
        if size >= BATCHED_BELOW or len(places) == 1:
            done = one_by_one(*stacks)
        elif size < BATCHED_ON_GPU_ALONE_FROM:
            done = in_one_batch(*stacks)
        else:
            done = jax.lax.platform_dependent(
                *stacks, cpu=one_by_one, tpu=one_by_one, default=in_one_batch
            )
        for place, factor in zip(places, done, strict=True):
            wide[place] = factor
    return [done.mT if is_tall(x) else done for done, x in zip(wide, matrices, strict=True)]


def is_tall(matrices: jax.Array) -> bool:
    return matrices.shape[1] > matrices.shape[2]


def larger_side(matrices: jax.Array) -> int:
    return max(matrices.shape[1:])


def mean_squares(kernels: Tree, axes_of: AxesOf) -> jax.Array:
    """Zeros for the output units of all kernels, one after another."""
    leaves = kernels_of(kernels, axes_of)
    units = sum(math.prod(sizes(x, (*axes.stack, *axes.fan_out))) for x, axes in leaves)
    return jnp.zeros(units, jnp.result_type(jnp.float32, *(x.real.dtype for x, _ in leaves)))


def evened(
    matrices: Sequence[jax.Array], nu: jax.Array, step: Step
) -> tuple[list[jax.Array], jax.Array]:
    """Each O with its output units divided by their usual sizes, and the new mean squares."""
    squares = [jnp.mean(abs_square(o), axis=1) for o in matrices]
    ends = [*itertools.accumulate(x.size for x in squares)]
    parts = jnp.split(nu, ends[:-1]) if ends else []
    before = [part.astype(x.dtype).reshape(x.shape) for part, x in zip(parts, squares, strict=True)]
    after = moving_average(step.b2, before, squares)
    v_hat = bias_corrected(after, step.b2, step_number(step.count))

    def divided(o: jax.Array, v: jax.Array) -> jax.Array:
        o = o * jax.lax.rsqrt(v + EPS)[:, None].astype(o.dtype)
        # A matrix with singular values of 1 has the mean square 1 / larger side.
        mean = jnp.mean(abs_square(o), axis=(1, 2), keepdims=True)
        return o * jax.lax.rsqrt(larger_side(o) * mean + EPS).astype(o.dtype)

    nu = jnp.concatenate([nu[:0], *(x.ravel().astype(nu.dtype) for x in after)])
    return [divided(o, v) for o, v in zip(matrices, v_hat, strict=True)], nu


def sizes(kernel: jax.Array, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(kernel.shape[axis] for axis in axes)


def is_finite(value: object) -> bool:
    return is_number(value) and math.isfinite(value)


def check_product_dtype(given: DTypeLike | None) -> None:
    try:
        is_fine = given is None or jnp.issubdtype(jnp.dtype(given), jnp.floating)
    except TypeError:
        is_fine = False
    if not is_fine:
        raise ValueError(f"product_dtype must be None or a dtype of floats, got {given!r}")


def quintics_of(given: Sequence[Quintic] | None) -> Sequence[Quintic]:
    """The polynomials for an argument `quintics`."""
    if given is None:
        return MINIMAX[4]
    if (
        isinstance(given, Sequence)
        and given
        and all(
            isinstance(row, Sequence) and len(row) == 3 and all(map(is_finite, row))
            for row in given
        )
    ):
        return tuple((float(a), float(b), float(c)) for a, b, c in given)
    raise ValueError(
        "quintics must be a sequence of (a, b, c), such as amac_jax.optimizers.MINIMAX[4], or "
        f"None, got {given!r}"
    )
