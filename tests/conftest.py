"""How pytest-xdist shares out the tests: what can use each other's compiled programs, together."""

from pathlib import PurePath

import pytest

# What waits for other processes begins first, and is not what all wait for at the end.
FIRST = ["test_checkpoints", "test_sharding", "test_distributed_mnist", "test_optax_suite"]
# Their parameter, a case of the table or a module, has much that its tests share, the rest nothing.
BY_PARAMETER = {"test_contract", "test_bad_steps", "test_trees", "test_layout"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else 99)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByFileOrParameter(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path, _, test = nodeid.partition("::")
            parameter = test.partition("[")[2] if PurePath(path).stem in BY_PARAMETER else ""
            return f"{path}[{parameter}"

    config.option.loadscopereorder = False
    return ByFileOrParameter(config, log)
