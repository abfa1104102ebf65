"""What the compiled step of a 10-leaf model moves, runs and keeps: gates that no clock can blur.

The program is XLA's for CPU; nothing is timed. For times see `benchmarks/step_time.py`.
"""

import functools
import re
from typing import Any

import jax
import numpy as np
import optax
import pytest

import amac_jax
from amac_jax._core.draws import UNROLLS_THREEFRY
from benchmarks.step_time import (
    BASELINE,
    VARIANTS,
    bytes_per_parameter,
    count_of,
    lowered,
    parameters,
)

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="gates on XLA's CPU program")

PARAMS = jax.eval_shape(functools.partial(parameters, 10**7, 10))
SIZE = count_of(PARAMS)
KERNELS = [leaf for leaf in jax.tree.leaves(PARAMS) if len(leaf.shape) == 2]
# Centralization's means, one a unit: written once and read by both moments.
MEANS = 3 * 4 * sum(kernel.shape[1] for kernel in KERNELS) / SIZE
WITH_ARRAYS = set() if UNROLLS_THREEFRY else {"adamw + noise, threefry"}
WITHOUT_EITHER = "everything, no lookahead, no averaging"


@functools.cache
def program(name: str) -> Any:
    # XLA makes other loops in the tests' fast compilation; users get these.
    return lowered(VARIANTS[name](), PARAMS).compile({"xla_cpu_use_fusion_emitters": True})


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize(
    ("name", "most"),
    [
        (BASELINE, 40),  # where the scale begins: m, v and theta, each in a loop of its own
        ("adamw", 40),
        ("adamw + noise", 40),
        ("adamw + clip_value", 40),
        ("adamw + centralize", 44 + MEANS),
        ("adamw + clip_norm", 44 + MEANS),
        ("adamw + momentum", 52),
        ("adamw + lookahead", 52),
        ("adamw + averaging", 52),
        ("adamw + record_metrics", 72.1),  # five norms, and the updates written and read twice
        (WITHOUT_EITHER, 56 + MEANS),
        ("amac, core='adam'", 72 + MEANS),  # with the norms of the decay's floor
        ("amac", 384),  # 12 products of matrices and their sums
        ("everything, noise=None", 80 + MEANS),
        ("amac, everything", 80 + MEANS),
        ("everything, sampler='gaussian'", 80 + MEANS),
    ],
)
def test_bytes_accessed_a_parameter(name, most):
    """A conditional counts at its dearer branch: a step that synchronizes and averages."""
    scalars = 10_000 / SIZE  # counters, schedules and the noise's words
    assert most - 1 < bytes_per_parameter(program(name), PARAMS) < most + scalars


def test_the_issue_s_bounds():
    assert bytes_per_parameter(program("amac, everything"), PARAMS) <= 92
    assert bytes_per_parameter(program(WITHOUT_EITHER), PARAMS) - MEANS <= 56 + 1e-3  # and scalars


@pytest.mark.parametrize(
    "name",
    [
        "amac",
        "amac, core='adam'",
        "amac, everything",
        "everything, sampler='gaussian'",
        "everything, skip_nonfinite=True",
    ],
)
def test_no_loop_and_no_callback(name):
    text = program(name).as_text()
    assert not re.search(r"\bwhile\(", text)
    assert not re.search(r'custom_call_target="[^"]*callback', text)
    assert " outfeed(" not in text
    assert " send(" not in text


def test_at_most_one_copy_a_leaf():
    """That of the parameters into the slow weights, in the branch that synchronizes."""
    copied = re.findall(r"f32\[([\d,]+)\]\S* copy\(", program("amac, everything").as_text())
    assert len(copied) <= len(jax.tree.leaves(PARAMS))


@pytest.mark.parametrize(
    "name",
    [
        "amac, core='adam'",
        "amac, everything",
        "everything, noise=None",
        "everything, sampler='gaussian'",
        WITHOUT_EITHER,
        *(name for name in VARIANTS if name.startswith("adamw +") and name not in WITH_ARRAYS),
    ],
)
def test_nothing_of_a_leaf_s_size_is_kept_between_loops(name):
    """Fresh memory costs a page fault for every 4 kB of it, five times a step's time in all."""
    memory = program(name).memory_analysis()
    leaves = 1.01 if name == "adamw + record_metrics" else 0.5  # it sums one leaf after another
    assert memory.temp_size_in_bytes < leaves * KERNELS[0].size * 4
    state = jax.eval_shape(VARIANTS[name]().init, PARAMS)
    unread = 1 + len(state.inner.metrics or {})  # the last learning rate and metrics are written
    assert memory.alias_size_in_bytes >= 4 * (count_of(state) - unread + SIZE)


def test_1000_steps_are_compiled_once():
    tx, traces = amac_jax.amac(1e-3, 1000, warmup_steps=10, average_start=500), 0
    params = parameters(1000, 4)
    state = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, gradients):
        nonlocal traces
        traces += 1
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for count in range(1000):
        gradients = jax.tree.map(lambda x, c=count: np.full_like(x, 1.0 - c / 500), params)
        params, state = step(params, state, gradients)
    assert traces == 1
    assert step._cache_size() == 1
