"""The second half of each run of test_resume.py, in a process of its own and on eight devices.

python resume_child.py FOLDER CASE... restores each case's parameters and state from FOLDER, in
every format and sharding that they were saved for, takes the last steps and writes the ends.
"""

import sys
import warnings
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.helpers import CACHE_WARNING, assert_same_bits
from tests.resume import HALF, WHOLE, advance, begin, slug


def sharded(tree, mesh):
    """Every axis that eight divides over all devices, in the abstract."""

    def leafwise(leaf):
        axes = ["devices" if size % 8 == 0 and size else None for size in leaf.shape]
        first = axes.index("devices") if "devices" in axes else None
        spec = PartitionSpec(*[axis if i == first else None for i, axis in enumerate(axes)])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(leafwise, tree)


def main(folder: Path, names: list[str]) -> None:
    begun = {slug(name): jax.eval_shape(lambda name=name: begin(name)[1]) for name in names}
    with ocp.CheckpointManager(folder / "orbax") as manager:
        restored = manager.restore(HALF, args=ocp.args.StandardRestore(begun))
        mesh = Mesh(np.array(jax.devices()), ("devices",))
        elsewhere = sharded(begun, mesh)
        spread = manager.restore(HALF, args=ocp.args.StandardRestore(elsewhere))
    from_flax = flax.serialization.from_bytes(begun, (folder / "flax.msgpack").read_bytes())
    assert_same_bits(from_flax, restored)
    assert_same_bits(spread, restored)
    asked = jax.tree.map(lambda leaf: leaf.sharding, elsewhere)
    assert jax.tree.map(lambda leaf: leaf.sharding, spread) == asked
    assert any(
        len(leaf.sharding.spec) and any(leaf.sharding.spec) for leaf in jax.tree.leaves(spread)
    )
    ends = {}
    for name in names:
        step, _ = begin(name)
        ends[slug(name)] = advance(step, restored[slug(name)], range(HALF, WHOLE))
    (folder / "ends.msgpack").write_bytes(flax.serialization.to_bytes(ends))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", CACHE_WARNING)
    main(Path(sys.argv[1]), sys.argv[2:])
