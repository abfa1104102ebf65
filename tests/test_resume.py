"""A run that is saved, ended and resumed in another process is the undisturbed run, bit for bit."""

import os
import sys
from pathlib import Path

import flax.serialization
import jax
import orbax.checkpoint as ocp
import pytest

from tests import warm
from tests.helpers import assert_same_bits
from tests.resume import HALF, WHOLE, advance, begin, slug
from tests.table import CASES

ROOT = Path(__file__).parents[1]
GROUPS = [list(CASES)[first::2] for first in range(2)]


@pytest.mark.parametrize("names", GROUPS, ids=[f"{len(names)} cases" for names in GROUPS])
def test_a_resumed_run_is_the_undisturbed_one(names, tmp_path):
    """Through Orbax, saved asynchronously, as it was and on eight devices, and through Flax.

    tests/resume_child.py restores all three, compares them, and takes the last ten steps.
    """
    steps = {name: begin(name) for name in names}
    halves = {slug(name): advance(*run, range(HALF)) for name, run in steps.items()}
    with ocp.CheckpointManager(
        tmp_path / "orbax", options=ocp.CheckpointManagerOptions(enable_async_checkpointing=True)
    ) as manager:
        manager.save(HALF, args=ocp.args.StandardSave(halves))
    (tmp_path / "flax.msgpack").write_bytes(flax.serialization.to_bytes(halves))
    ends = {
        slug(name): advance(step, halves[slug(name)], range(HALF, WHOLE))
        for name, (step, _) in steps.items()
    }
    command = [sys.executable, "-m", "tests.resume_child", tmp_path, *names]
    done = warm.run(command, dict(os.environ), ROOT)
    assert done.returncode == 0, done.stderr
    resumed = flax.serialization.from_bytes(ends, (tmp_path / "ends.msgpack").read_bytes())
    for name in names:
        assert_same_bits(resumed[slug(name)], ends[slug(name)])
        with pytest.raises(AssertionError):  # the last ten steps did something
            assert_same_bits(ends[slug(name)], halves[slug(name)])
    assert jax.device_count() == 1
