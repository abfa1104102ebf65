"""What AMaC's options move, run and keep on an H100 and a TPU v5e, compiled without them.

The bounds are bytes a parameter and step, with what is due one step in five, and metrics and norms
one in twenty. XLA's choices depend on sizes: these hold for large leaves.
"""

import functools

import jax
import optax
import pytest

import amac_jax
from tests.accelerators.test_traffic import LARGE

pytestmark = [pytest.mark.accelerators, pytest.mark.usefixtures("promoting")]

NARROW = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "bfloat16"), LARGE)
adam = functools.partial(amac_jax.amac, 1e-3, 10**6, core="adam", average_start=0)

# name: the optimizer, the parameters, and the most bytes on an H100 and on a v5e
GATES = {
    "amac": (adam, LARGE, 40.3, 40.5),
    "clip_norm": (functools.partial(adam, clip_norm=1.0), LARGE, 44.4, 44.6),
    "skip_nonfinite": (functools.partial(adam, skip_nonfinite=True), LARGE, 44.4, 44.6),
    "record_metrics=20": (functools.partial(adam, record_metrics=20), LARGE, 42.2, 42.4),
    "state_dtype": (functools.partial(adam, state_dtype="bfloat16"), LARGE, 29.2, 37.0),
    "bfloat16 parameters": (adam, NARROW, 31.5, 39.8),
}


# A step that measures, one in twenty, writes the core's direction of two leaves at a time.
LARGEST = 4 * 2 * max(x.size for x in LARGE.values()) / sum(x.size for x in LARGE.values())


@pytest.fixture(params=GATES)
def gate(request, accelerator, place):
    build, params, *most = GATES[request.param]
    program = accelerator.compile_step(build(), params, place)
    row = accelerator.facts(program, params, place)
    measures = request.param.startswith("record_metrics")
    return row, most[0] if place.target == "h100" else most[1], measures


def test_an_option_costs_its_bytes_and_copies_nothing(gate):
    row, most, measures = gate
    assert 0.7 * most < row["bytes_expected"] <= most
    assert row["copies_entry"] == 0
    assert row["loops"] == 0
    assert row["temporary_bytes"] < 0.1 + (LARGEST if measures else 0)
    for branch in row["branches"]:
        assert min(branch["bytes"]) < 0.01, branch


def test_a_tpu_s_estimate_beside_adamw_s(accelerator, place):
    """The compiler's cycles of a step with its branches, without the transfers."""
    if place.target != "v5e":
        pytest.skip("an estimate of a TPU's compiler")
    params = accelerator.transformer(6, 768)
    cycles = {
        name: accelerator.facts(accelerator.compile_step(tx, params, place), params, place)
        for name, tx in {
            "adamw": optax.adamw(1e-3),
            "amac": adam(),
            "clip_norm": adam(clip_norm=1.0),
        }.items()
    }
    ratios = {name: row["modelled"] / cycles["adamw"]["modelled"] for name, row in cycles.items()}
    assert ratios["amac"] <= 1.18
    assert ratios["clip_norm"] <= 1.4


def test_orthogonalizing_beside_optax_s_muon(accelerator, place):
    """A GPU starts half as many kernels; a TPU moves and takes, by its compiler, about as much."""
    params = accelerator.transformer(6, 256)
    ours, theirs = (
        accelerator.facts(accelerator.compile_step(tx, params, place), params, place)
        for tx in (
            amac_jax.muon(1e-3),
            optax.contrib.muon(1e-3, weight_decay=0.1, consistent_rms=0.2),
        )
    )
    if place.target == "h100":
        assert ours["kernels"] <= 0.5 * theirs["kernels"]
        assert ours["bytes_expected"] <= 0.75 * theirs["bytes_expected"]
    else:
        assert ours["modelled"] <= 1.06 * theirs["modelled"]
        assert ours["bytes_expected"] <= 1.05 * theirs["bytes_expected"]
