"""BatchNorm statistics for weights that no training step has seen, in one pass over the data."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from jax.tree_util import DictKey, KeyPath, tree_flatten_with_path, tree_map_with_path

from amac_jax._core.aliases import Tree, promoted

# `step(stats, inputs)` runs the model once and returns the statistics as its layers leave them.
# Statistics are a pytree of nested dictionaries: a Linen collection or an `nnx.State`.
_Step = Callable[[Tree, tuple[Tree, ...]], Tree]
_Name = tuple[Tree, ...]  # the keys from the root to a leaf, such as ("BatchNorm_0", "mean")

# Far above any statistic, so that float32 rounds m 2^100 + (1 - m) b to m 2^100 exactly.
_FAR = 2.0**100


@overload
def recompute_batch_stats(
    model: nn.Module,
    batches: Iterable[Tree],
    variables: Mapping[str, Tree],
    **call_kwargs: Any,
) -> Tree: ...
@overload
def recompute_batch_stats(
    model: nnx.Module,
    batches: Iterable[Tree],
    variables: None = None,
    **call_kwargs: Any,
) -> None: ...
def recompute_batch_stats(
    model: nn.Module | nnx.Module,
    batches: Iterable[Tree],
    variables: Mapping[str, Tree] | None = None,
    **call_kwargs: Any,
) -> Tree:
    """Recomputes the running statistics of every BatchNorm in one pass over the data.

    Averaged weights (stochastic weight averaging, Polyak averaging, the slow weights of lookahead)
    give activations with means and variances that none of the weights that were averaged give. The
    running statistics gathered in training are therefore wrong for them. Each batch is run through
    the model with BatchNorm in training mode and dropout off. The statistics measured by the layers
    are pooled:

        mean = sum_b n_b mean_b / N
        var  = sum_b n_b (var_b + (mean_b - mean)^2) / N        N = sum_b n_b

    Here n_b is the number of examples in batch b, and mean_b and var_b are the statistics by which
    a layer normalized this batch. The momenta of the layers, the order of the batches and the old
    statistics do not change the result.

    It does not belong in a chain: call it once, outside `jit`, on the weights to be evaluated.

    It serves any layer that keeps `mean` and `var` side by side (in the `batch_stats` collection,
    or as `nnx.BatchStat`) and moves each, s, to m s + (1 - m) b. Anything else that is kept there,
    and every other collection or variable, stays as it is.

    Args:
      model: a Linen module, or an NNX module, whose statistics are updated in place.
      batches: any iterable of inputs, without their labels. A tuple holds the positional arguments
        of one call. Anything else is the only argument of a call. All are arrays or pytrees of
        arrays (flags are `call_kwargs`). An array of shape (batches, examples, ...) is such an
        iterable. The size of a batch is the leading axis of its first array. One compilation serves
        all batches of equal shape. Take batches as large as in training: deeper layers see inputs
        normalized by their own batch.
      variables: Linen only: `{"params": ..., "batch_stats": ..., ...}` as `model.apply` takes them,
        with the averaged weights under `params`.
      **call_kwargs: passed on in every call, to `model.apply` or to the NNX model. A Linen model
        needs the keywords that put its BatchNorm in training mode (`train=True`, say). An NNX model
        is put in this mode here, on a copy that shares its arrays, so that the mode of the model
        itself does not change.

    Returns:
      Linen: the new `batch_stats`, in the structure, shapes and dtypes of the old ones.
      NNX: None.

    Raises:
      ValueError: for a model without BatchNorm statistics; for a layer whose statistics do not
        move, because its momentum is 1 or the call does not run it in training mode; for `batches`
        that are empty or hold no array with a batch axis; for `variables` missing with Linen or
        given with NNX.
      TypeError: for a model that is neither a Linen nor an NNX module.

    Differs from PyTorch:
      `torch.optim.swa_utils.update_bn` leaves dropout on, gives a small last batch the weight of a
      full one, and averages variances without the spread between batches.

    When not to use:
      The normalization does not have running statistics (LayerNorm, GroupNorm, RMSNorm).
      A batch masks part of its positions: examples are still weighted by batch size.
      A layer runs several times in one call: calls are still weighted by the layer's own update.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn, nnx
      >>> from amac_jax.batch_stats import recompute_batch_stats
      >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[4.0], [8.0]])]
      >>> model = nn.BatchNorm(use_running_average=False)
      >>> variables = model.init(jax.random.key(0), batches[0])
      >>> recompute_batch_stats(model, batches, variables)
      {'mean': Array([4.], dtype=float32), 'var': Array([6.5], dtype=float32)}

      >>> model = nnx.BatchNorm(num_features=1, rngs=nnx.Rngs(0))
      >>> recompute_batch_stats(model, batches)
      >>> model.mean[...], model.var[...]
      (Array([4.], dtype=float32), Array([6.5], dtype=float32))

    Reference:
      Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018,
      https://arxiv.org/abs/1803.05407, section 3.
    """
    if isinstance(model, nnx.Module):
        if variables is not None:
            raise ValueError("variables must be None for an NNX model, which holds its own")
        step, stats = _nnx_step(model, call_kwargs)
        nnx.update(model, _pooled(step, stats, batches))
        return None
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a flax.linen.Module or flax.nnx.Module, got {type(model)}")
    if not isinstance(variables, Mapping) or "batch_stats" not in variables:
        raise ValueError(
            "variables must be a dictionary with 'params' and 'batch_stats' for a Linen model, got "
            f"{sorted(variables) if isinstance(variables, Mapping) else type(variables)}; a model "
            "that has no 'batch_stats' has no BatchNorm, and nothing to recompute"
        )
    step, stats = _linen_step(model, variables, call_kwargs)
    return _pooled(step, stats, batches)


def _pooled(step: _Step, stats: Tree, batches: Iterable[Tree]) -> Tree:
    """`stats` with every layer's mean and variance over all of `batches`.

    Neither Linen nor NNX shows the statistic b that a layer measured on a batch. They show only the
    statistic to which the layer moved, s' = m s + (1 - m) b. From s = 0 this is (1 - m) b, free of
    cancellation. m is measured once.
    """
    leaves = _named_leaves(stats)
    layers = [n[:-1] for n in leaves if n[-1:] == ("mean",) and (*n[:-1], "var") in leaves]
    if not layers:
        raise ValueError("the model has no BatchNorm statistics: nothing to recompute")
    measured = {(*layer, statistic) for layer in layers for statistic in ("mean", "var")}

    def filled(value: float) -> Tree:
        def fill(path: KeyPath, leaf: Tree) -> Tree:
            if _name(path) not in measured:
                return leaf
            return jnp.full_like(leaf, value, dtype=promoted(leaf.dtype, jnp.float32))

        return tree_map_with_path(fill, stats)

    at_zero, far = filled(0.0), filled(_FAR)
    # Pooled on the host in float64: the arrays are small, and rounding must not grow with the data.
    pooled = {name: np.zeros(np.shape(leaves[name])) for name in measured}
    momentum: dict[_Name, np.ndarray] = {}
    total = 0
    for batch in batches:
        inputs = batch if isinstance(batch, tuple) else (batch,)
        size = _batch_size(inputs)
        if not momentum:
            momentum = _momenta(step(far, inputs), measured)
        moved = _named_leaves(jax.device_get(step(at_zero, inputs)))
        seen = {n: np.asarray(moved[n], np.float64) / (1 - momentum[n]) for n in measured}
        total += size
        weight = size / total
        # The law of total variance, one batch at a time; a variance can never become negative.
        for layer in layers:
            mean, var = (*layer, "mean"), (*layer, "var")
            shift = seen[mean] - pooled[mean]
            pooled[var] += weight * (seen[var] - pooled[var] + (1 - weight) * shift**2)
            pooled[mean] += weight * shift
    if not total:
        raise ValueError("batches must hold at least one example, got none")

    def new(path: KeyPath, leaf: Tree) -> Tree:
        name = _name(path)
        return jnp.asarray(pooled[name], leaf.dtype) if name in measured else leaf

    return tree_map_with_path(new, stats)


def _momenta(moved: Tree, measured: set[_Name]) -> dict[_Name, np.ndarray]:
    """The m of each statistic, from the value to which it moves when it starts far away."""
    momentum = {}
    for name, leaf in _named_leaves(jax.device_get(moved)).items():
        if name in measured:
            # The result is m rounded to float32. 1 - m would magnify the error (1e-5 for
            # m = 0.999). Momenta are written in few digits, which the string restores.
            momentum[name] = np.asarray(leaf / _FAR).astype(str).astype(np.float64)
            if np.any(momentum[name] == 1):
                raise ValueError(
                    f"the statistic {'/'.join(map(str, name))} does not move: momentum must be "
                    "below 1, got 1; or the call does not run this layer in training mode "
                    "(a Linen model needs its own argument for this, such as train=True)"
                )
    return momentum


def _linen_step(
    model: nn.Module, variables: Mapping[str, Tree], call_kwargs: Mapping[str, Any]
) -> tuple[_Step, Tree]:
    others = {name: tree for name, tree in variables.items() if name != "batch_stats"}
    # A training pass may write to the other collections too. Their new values are dropped.
    mutable = [name for name in variables if name != "params"]

    @jax.jit
    def step(others: Tree, stats: Tree, inputs: tuple[Tree, ...]) -> Tree:
        with nn.intercept_methods(_without_dropout):
            _, written = model.apply(
                {**others, "batch_stats": stats}, *inputs, mutable=mutable, **call_kwargs
            )
        return written["batch_stats"]

    return functools.partial(step, others), variables["batch_stats"]


def _without_dropout(next_fun: Tree, args: Tree, kwargs: Any, context: Tree) -> Tree:
    module = context.module
    if context.method_name == "__call__":
        if isinstance(module, nn.Dropout):
            return args[0] if args else kwargs["inputs"]
        # Attention drops weights without nn.Dropout, and takes the flag in only one of two places.
        if isinstance(module, nn.MultiHeadDotProductAttention) and module.deterministic is None:
            kwargs = {**kwargs, "deterministic": True}
    return next_fun(*args, **kwargs)


def _nnx_step(model: nnx.Module, call_kwargs: Mapping[str, Any]) -> tuple[_Step, Tree]:
    # Modes are set on a copy, which shares the arrays: the model keeps its modes, even on errors.
    copy = nnx.clone(model)
    set_all = functools.partial(copy.set_attributes, raise_if_not_found=False)
    set_all(use_running_average=False, deterministic=True)
    # A call's own `deterministic=False` overrides the attribute, but not a rate of 0.
    set_all(nnx.Dropout, rate=0.0)
    set_all(nnx.MultiHeadAttention, dropout_rate=0.0)
    graphdef, stats, others = nnx.split(copy, nnx.BatchStat, ...)

    @jax.jit
    def step(others: Tree, stats: Tree, inputs: tuple[Tree, ...]) -> Tree:
        module = nnx.merge(graphdef, stats, others)
        module(*inputs, **call_kwargs)
        return nnx.state(module, nnx.BatchStat)

    return functools.partial(step, others), stats


def _batch_size(inputs: tuple[Tree, ...]) -> int:
    for leaf in jax.tree.leaves(inputs):
        if np.ndim(leaf):
            return np.shape(leaf)[0]
    raise ValueError(f"batches must hold arrays with a leading batch axis, got {inputs}")


def _named_leaves(tree: Tree) -> dict[_Name, Tree]:
    return {_name(path): leaf for path, leaf in tree_flatten_with_path(tree)[0]}


def _name(path: tuple[Tree, ...]) -> _Name:
    # Dictionary keys only: an NNX variable, or Linen's box around an array, adds an attribute.
    return tuple(key.key for key in path if isinstance(key, DictKey))
