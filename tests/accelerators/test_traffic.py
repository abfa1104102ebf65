"""What a step moves in the memory of a GPU and of a TPU, compiled for them without having them."""

import jax
import optax
import pytest

pytestmark = [pytest.mark.accelerators, pytest.mark.usefixtures("promoting")]

# 67 to 268 MB each: a TPU fetches small leaves whole into its fast memory, where nothing counts.
LARGE = {
    f"kernel_{i}": jax.ShapeDtypeStruct(shape, "float32")
    for i, shape in enumerate(
        ((4096, 4096), (4096, 8192), (8192, 4096), (8192, 8192), (4096, 16384))
    )
}


def test_adamw_moves_its_28_bytes(accelerator, place):
    """Where the scale begins: gradient read; parameters and both moments read and written."""
    program = accelerator.compile_step(optax.adamw(1e-3), LARGE, place)
    row = accelerator.facts(program, LARGE, place)
    assert row["bytes_always"] == pytest.approx(28, rel=1e-3)
    assert row["bytes_expected"] == row["bytes_dearest"] == row["bytes_always"]
    assert row["least_bytes"] == 28
    assert row["argument_bytes"] == pytest.approx(16, rel=1e-3)
    assert row["temporary_bytes"] < 0.01
    assert (row["loops"], row["copies_entry"], row["collectives"]) == (0, 0, {})
    assert row["modelled"] > 0
