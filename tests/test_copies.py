"""What conditionals, selects and sums must not copy: gates on XLA's CPU program.

`tests/accelerators` has the same for a GPU and a TPU.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import amac_jax
from amac_jax._core.leaves import all_finite
from amac_jax._core.xla import after, one_by_one, only_when
from amac_jax.optimizers import EVERY_TECHNIQUE
from benchmarks import programs, steps
from tests.helpers import assert_same_bits

pytestmark = [
    pytest.mark.skipif(jax.default_backend() != "cpu", reason="gates on XLA's CPU program"),
    pytest.mark.usefixtures("promoting"),
]

PARAMS = steps.transformer(2, 64)
SMALLEST = min(leaf.size for leaf in jax.tree.leaves(PARAMS))
AS_USERS = {"xla_cpu_use_fusion_emitters": True, "xla_backend_optimization_level": 3}

adam = functools.partial(amac_jax.amac, 1e-3, 1000, core="adam", average_start=0)
WITHOUT_COPIES = {
    "skip_nonfinite": lambda: adam(skip_nonfinite=True),
    "skip_nonfinite, momentum": lambda: adam(skip_nonfinite=True, momentum=0.9),
    "skip_nonfinite, Muon": lambda: amac_jax.muon(1e-3, skip_nonfinite=True),
    "record_metrics": lambda: adam(record_metrics=True),
    "record_metrics=20": lambda: adam(record_metrics=20),
    "clip_norm": lambda: adam(clip_norm=1.0),
}


@functools.cache
def program(name):
    compiled = steps.lowered(WITHOUT_COPIES[name](), PARAMS).compile(AS_USERS)
    return programs.facts(compiled)


def leaf_sized(part):
    return [size for size in part.copies if size >= 4 * SMALLEST]


@pytest.mark.parametrize("name", WITHOUT_COPIES)
def test_nothing_is_copied_at_every_step(name):
    found = program(name)
    assert not leaf_sized(found)
    for conditional in found.conditionals:
        least = min(conditional.branches, key=lambda part: len(part.kernels))
        assert not leaf_sized(least), conditional.scope
        assert sum(kernel.bytes for kernel in least.kernels) < SMALLEST, conditional.scope


def test_the_clipped_gradient_is_not_written():
    """4 bytes more than without clipping: the norm reads the gradient."""
    plain = steps.lowered(adam(), PARAMS).compile(AS_USERS)
    parameters = steps.count_of(PARAMS)
    more = sum(kernel.bytes for kernel in program("clip_norm").kernels)
    more -= sum(kernel.bytes for kernel in programs.facts(plain).kernels)
    assert more / parameters == pytest.approx(4, abs=0.1)


def test_only_when_is_a_switch_whose_first_branch_keeps():
    """A `cond` copies what it keeps on a GPU with jax before 0.11."""
    jaxpr = jax.make_jaxpr(only_when, static_argnums=1)(
        jnp.array(True), lambda old, new: old + new, jnp.ones(2), jnp.ones(2)
    )
    (equation,) = [one for one in jaxpr.eqns if one.primitive.name == "cond"]
    keep, write = equation.params["branches"]
    assert not keep.jaxpr.eqns
    assert [one.primitive.name for one in write.jaxpr.eqns] == ["add"]
    (index,) = [v for v in equation.invars if v.aval.shape == () and v.aval.dtype == jnp.int32]
    assert index is equation.invars[0]


def test_after_changes_no_bit():
    tree = {"w": jnp.array([-0.0, jnp.nan, jnp.inf]), "n": jnp.arange(3), "s": jnp.array(2.0)}
    for norm in (0.0, 3.0, jnp.nan, jnp.inf):
        assert_same_bits(jax.jit(after)(jnp.array(norm), tree), tree)


@pytest.mark.parametrize("read_again", [False, True])
def test_leaves_one_by_one_change_no_bit(read_again):
    leaves = [jnp.array([x, 1.0, -0.0, 2e-38]) for x in (jnp.nan, jnp.inf, -2.0, 0.0)]
    for norm_of in (jnp.sum, jnp.linalg.norm, lambda leaf: jnp.array(jnp.nan)):
        turn = functools.partial(one_by_one, norm_of=norm_of, read_again=read_again)
        assert_same_bits(jax.jit(turn)(leaves), leaves)


def test_squares_that_overflow_are_finite_gradients():
    params = {"w": jnp.ones(3)}
    tx = amac_jax.skip_nonfinite(optax.sgd(1e-30))
    state = tx.init(params)
    for gradient, skipped in ((1e30, 0), (jnp.inf, 1), (3e38, 1), (jnp.nan, 2)):
        _, state = jax.jit(tx.update)({"w": jnp.array([1.0, gradient, 0.0])}, state, params)
        assert int(state.total_notfinite) == skipped
    assert bool(all_finite({}, {}))


def test_skipping_is_the_run_without_it_where_all_is_finite():
    """The decays of the moments are then numbers of float32, not of Python: a part in 1e5."""
    params = {"w": jnp.linspace(-1, 1, 12).reshape(4, 3)}
    ends = []
    for skip in (False, True):
        tx = amac_jax.amac(0.1, 20, **EVERY_TECHNIQUE, skip_nonfinite=skip)
        run, state = params, tx.init(params)
        for step in range(20):
            gradient = {"w": jnp.sin(step + 7 * params["w"])}
            updates, state = jax.jit(tx.update)(gradient, state, run)
            run = optax.apply_updates(run, updates)
        ends.append(run["w"])
    assert jnp.allclose(*ends, rtol=1e-4, atol=1e-5)


def test_averages_and_slow_weights_are_of_the_rounded_parameters():
    """In bfloat16 the parameters land where `apply_updates` rounds them; nothing else is there."""
    params = {"w": jnp.linspace(-1, 1, 12, dtype=jnp.bfloat16).reshape(4, 3)}
    tx = amac_jax.sgd(0.1, sync_period=1, slow_step_size=0.5, average_start=0)
    state = tx.init(params)
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    landed = optax.apply_updates(params, updates)["w"].astype(jnp.float32)
    assert_same_bits(amac_jax.slow_params(state)["w"], landed)
    assert_same_bits(amac_jax.averaged_params(state)["w"], landed)
