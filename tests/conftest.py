"""One compilation cache for all processes, and how pytest-xdist shares out the tests to them."""

import os
import tempfile
from pathlib import PurePath

import pytest

# Of pytest's process alone: its workers and their children find the variables set.
CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="amac_jax_tests_", ignore_cleanup_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": CACHE.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

# What waits for other processes begins first, and is not what all wait for at the end.
FIRST = ["test_checkpoints", "test_sharding", "test_distributed_mnist", "test_optax_suite"]
# What their tests with one parameter, a case of the table or a module, share is compiled once.
BY_PARAMETER = {"test_contract", "test_bad_steps", "test_trees", "test_kernels"}


def pytest_unconfigure() -> None:
    if CACHE:
        CACHE.cleanup()


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
