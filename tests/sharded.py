"""Training on 8 devices and on one: what `test_sharding.py` runs in a process of its own."""

import functools
import os
import re
import warnings
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from amac_jax import fan_in_axes
from amac_jax._core.paths import is_masked
from tests.helpers import CACHE_WARNING
from tests.table import CASES

DEVICES = 8
STEPS = 6
FEWER_STEPS = {"newton": 2}  # every device solves with the whole Hessian
# No two of: a whole leaf, its part on one device, another leaf's part, have the same size where
# a test tells them apart by it. Fewer than 512 parameters, for a dense Newton step.
SHAPES = {
    "dense": {"kernel": (8, 16), "bias": (16,)},
    "query": {"kernel": (8, 2, 8)},
    "embed": {"embedding": (8, 8)},
    "temperature": (),
}
LARGEST_LEAF = 8 * 16


class Layout(NamedTuple):
    mesh: tuple[tuple[int, ...], tuple[str, ...]]  # sizes and names of its axes
    dense: tuple[P, P]  # kernel and bias
    query: P
    embedding: P

    def specs(self) -> Any:
        kernel, bias = self.dense
        return {
            "dense": {"kernel": kernel, "bias": bias},
            "query": {"kernel": self.query},
            "embed": {"embedding": self.embedding},
            "temperature": P(),
        }


LAYOUTS = {
    "replicated": Layout(((8,), ("x",)), (P(), P()), P(), P()),
    "FSDP": Layout(((8,), ("x",)), (P("x"), P("x")), P("x"), P("x")),
    "tensor": Layout(((8,), ("x",)), (P(None, "x"), P("x")), P(None, None, "x"), P(None, "x")),
    "mixed": Layout(((2, 4), ("x", "y")), (P("x", "y"), P()), P("y"), P(None, ("x", "y"))),
}


class Report(NamedTuple):
    """What was seen of one case, on one mesh."""

    misplaced: list[str]  # leaves of state that are not sharded as their parameter is
    unmapped: list[str]  # leaves that `optax.tree.map_params` takes for what they are not
    identical: bool  # every bit of parameters and state as on one device
    params_error: float  # the largest difference, in units of the leaf's largest element
    state_error: float
    averaged: list[int]  # the number of weights in each average
    collectives: dict[str, list[int]]  # kind -> sizes of what it moves, in elements
    per_output: list[int]  # sizes of a mean for each output unit, on one device
    whole: list[str]  # arrays as large as a whole sharded leaf in one device's program
    messages: str  # on standard error, XLA's own included


def begin(log: str) -> None:
    """8 devices for this process, warnings as errors, its standard error to a file."""
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_platforms", "cpu")
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", CACHE_WARNING)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    assert jax.device_count() == DEVICES


def report(name: str, axis_type: str, layout: str, log: str) -> Report:
    before = os.path.getsize(log)
    shape, axes = LAYOUTS[layout].mesh
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType[axis_type],) * len(axes))
    specs = LAYOUTS[layout].specs()
    tx = CASES[name].build()
    with jax.set_mesh(mesh):
        shardings = jax.tree.map(functools.partial(NamedSharding, mesh), specs)
        params = jax.device_put(initial(), shardings)
        misplaced, state, state_shardings = placement(tx, params, shardings)
        donated = {"donate_argnums": (0, 1)}
        if axis_type == "Auto":
            placed = shardings, state_shardings
            donated.update(in_shardings=(*placed, shardings), out_shardings=placed)
        step = jax.jit(step_of(tx), **donated)
        gradients = [jax.device_put(gradient, shardings) for gradient in all_gradients(name)]
        program = step.lower(params, state, gradients[0]).compile()
        for gradient in gradients:
            params, state = program(params, state, gradient)
            jax.block_until_ready(params)
        misplaced += differently_sharded(state, state_shardings)
        misplaced += differently_sharded(params, shardings)
    text = program.as_text()
    collectives = collectives_of(text)
    expected = on_one_device(name)
    identical = same_bits((params, state), expected)
    if not identical and not collectives and axis_type == "Explicit":
        # XLA folds constants across what explicit types keep apart, also on one device.
        identical = same_bits((params, state), on_one_device(name, tuple(axes), layout))
    return Report(
        misplaced=misplaced,
        unmapped=wrongly_mapped(tx),
        identical=identical,
        params_error=largest_error(params, expected[0]),
        state_error=largest_error(state, expected[1]),
        averaged=[int(count) for _, count in optax.tree.get_all_with_path(state, "averaged")],
        collectives=collectives,
        per_output=per_output(shardings),
        whole=whole_leaves(text, shardings),
        messages=messages_since(before, log),
    )


def reshard(log: str) -> str:
    """What is said on standard error of a program that has to move every element."""
    before = os.path.getsize(log)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    given, wanted = (NamedSharding(mesh, spec) for spec in (P(("x", "y")), P(None, "y", "x")))
    double = jax.jit(lambda x: 2 * x, in_shardings=given, out_shardings=wanted)
    double.lower(jnp.zeros((16, 16, 16))).compile()
    return messages_since(before, log)


def messages_since(start: int, log: str) -> str:
    with open(log) as file:
        file.seek(start)
        return file.read()


def tree(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return map_shapes(lambda shape: rng.standard_normal(shape).astype(np.float32))


def initial() -> Any:
    return {**tree(0), "temperature": np.float32(5.0)}  # far from 0, where nothing is relative


def all_gradients(name: str) -> list[Any]:
    return [tree(100 + step) for step in range(FEWER_STEPS.get(name, STEPS))]


def map_shapes(function: Callable[..., Any], *rest: Any) -> Any:
    return jax.tree.map(function, SHAPES, *rest, is_leaf=lambda node: isinstance(node, tuple))


def step_of(tx: optax.GradientTransformation) -> Callable[..., Any]:
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def on_one_device(name: str, axes: tuple[str, ...] = (), layout: str | None = None) -> Any:
    """Parameters and state after the last step; with axes, on an explicit mesh of one device."""
    tx, put = CASES[name].build(), functools.partial(jax.tree.map, jnp.asarray)
    mesh = jax.make_mesh(
        (1,) * len(axes),
        axes,
        axis_types=(AxisType.Explicit,) * len(axes),
        devices=jax.devices()[:1],
    )
    if layout is not None:
        shardings = jax.tree.map(functools.partial(NamedSharding, mesh), LAYOUTS[layout].specs())
        put = functools.partial(jax.device_put, device=shardings)
    with jax.set_mesh(mesh):
        params, step = put(initial()), jax.jit(step_of(tx))
        state = jax.jit(tx.init)(params)  # one program, as on 8 devices: it rounds in its own way
        for gradient in all_gradients(name):
            params, state = step(params, state, put(gradient))
    return jax.tree.map(np.asarray, (params, state))


def placement(
    tx: optax.GradientTransformation, params: Any, shardings: Any
) -> tuple[list[str], Any, Any]:
    """Leaves of new state that are not sharded as their parameters, however it was made.

    Also new state, and the shardings that its leaves should have.
    """
    mesh = shardings["temperature"].mesh
    abstract = jax.tree.map(
        lambda p, s: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=s), params, shardings
    )
    foreseen = jax.eval_shape(tx.init, abstract)
    expected = optax.tree.map_params(
        tx,
        lambda leaf, sharding: leaf if is_masked(leaf) else sharding,
        foreseen,
        shardings,
        transform_non_params=lambda _: NamedSharding(mesh, P()),
        is_leaf=is_masked,
    )
    misplaced = differently_sharded(tx.init(params), expected)
    if AxisType.Explicit in mesh.axis_types:  # the types alone say it
        misplaced += differently_sharded(jax.jit(tx.init)(params), expected)
        misplaced += differently_sharded(foreseen, expected)
    state = jax.jit(tx.init, out_shardings=expected)(params)
    misplaced += differently_sharded(state, expected)
    return misplaced, state, expected


def differently_sharded(state: Any, shardings: Any) -> list[str]:
    def differs(leaf, sharding):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            spec = leaf.sharding.spec if leaf.sharding is not None else P()
            leaf_sharding = NamedSharding(sharding.mesh, spec)
        else:
            leaf_sharding = leaf.sharding
        types = AxisType.Explicit in sharding.mesh.axis_types
        typed = not types or same_spec(jax.typeof(leaf).sharding.spec, sharding.spec, leaf.ndim)
        return not (typed and leaf_sharding.is_equivalent_to(sharding, leaf.ndim))

    return paths_where(jax.tree.map(differs, state, shardings))


def same_spec(one: P, other: P, ndim: int) -> bool:
    def padded(spec):
        return (*spec, *[None] * (ndim - len(spec)))

    return padded(one) == padded(other)


def wrongly_mapped(tx: optax.GradientTransformation) -> list[str]:
    """Leaves that are mapped as a parameter of another shape, or could be one and are not."""
    params = map_shapes(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32))
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)} - {()}
    wrong = optax.tree.map_params(
        tx,
        lambda leaf, param: not is_masked(leaf) and leaf.shape != param.shape,
        jax.eval_shape(tx.init, params),
        params,
        transform_non_params=lambda leaf: leaf.shape in shapes,
        is_leaf=is_masked,
    )
    return paths_where(wrong)


def paths_where(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(tree) if leaf]


def same_bits(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def largest_error(tree: Any, expected: Any) -> float:
    """The largest difference, in units of its leaf's largest expected element."""
    worst = 0.0
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for leaf, right in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(leaf, np.float64), np.asarray(right, np.float64)
        same = a == e  # infinities too
        difference = np.abs(np.where(same, 0.0, a) - np.where(same, 0.0, e))
        assert not np.isnan(difference).any()
        largest = max(np.max(np.abs(e), initial=0.0), np.finfo(np.float32).tiny)
        worst = max(worst, float(np.max(difference, initial=0.0) / largest))
    return worst


COLLECTIVE = re.compile(
    r"= (?P<type>\S.*?) (?P<kind>all-gather|all-reduce|ragged-all-to-all|all-to-all"
    r"|collective-permute|collective-broadcast|reduce-scatter)(-start)?\("
)
ARRAY = re.compile(r"\b[a-z]+\d*\[(?P<shape>[\d,]*)\]")


def collectives_of(text: str) -> dict[str, list[int]]:
    found: dict[str, set[int]] = {}
    for match in COLLECTIVE.finditer(text):
        found.setdefault(match["kind"], set()).update(map(size, ARRAY.finditer(match["type"])))
    return {kind: sorted(sizes) for kind, sizes in found.items()}


def size(array: re.Match) -> int:
    return prod(int(length) for length in array["shape"].split(",") if length)


def per_output(shardings: Any) -> list[int]:
    sizes = set()
    for path, shape in jax.tree.leaves_with_path(
        SHAPES, is_leaf=lambda node: isinstance(node, tuple)
    ):
        leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
        fan_in = fan_in_axes(path, leaf)
        sharding = functools.reduce(lambda node, key: node[key.key], path, shardings)
        if fan_in is not None:
            local = sharding.shard_shape(shape)
            sizes.add(prod(local[axis] for axis in range(len(shape)) if axis not in fan_in))
    return sorted(sizes)


def whole_leaves(text: str, shardings: Any) -> list[str]:
    parts = map_shapes(lambda shape, sharding: prod(sharding.shard_shape(shape)), shardings)
    whole = map_shapes(lambda shape: prod(shape))
    sizes = set(jax.tree.leaves(whole)) - set(jax.tree.leaves(parts))
    return sorted({match[0] for match in ARRAY.finditer(text) if size(match) in sizes})
