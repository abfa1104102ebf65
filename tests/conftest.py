"""How programs are compiled in tests, and how pytest-xdist shares out the tests to processes."""

import gc
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path, PurePath

import pytest

# Most tests compare numbers of programs that run once, and most of their time was XLA's. So it
# optimizes less: the same operations on the same arrays, compiled three times as fast. The soak
# and .ci/accelerators compile as users do, and the gates of test_cost.py read the loops that users
# get.
FAST_COMPILATION = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
)
# XLA ends the process at a flag that it does not know, as jaxlib 0.11 and 0.12 do at the third one.
KNOWN = tuple(map(int, version("jaxlib").split(".")[:2])) <= (0, 10)
SOAK = os.environ.get("AMAC_JAX_SOAK") == "1"
AS_USERS_DO = SOAK or os.environ.get("AMAC_JAX_ACCELERATORS") == "1"
if KNOWN and not AS_USERS_DO and FAST_COMPILATION not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{FAST_COMPILATION} {os.environ.get('XLA_FLAGS', '')}"

ROOT = Path(__file__).parents[1]

# Of pytest's process alone: its workers and their children find the variables set.
CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="amac_jax_tests_", ignore_cleanup_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": CACHE.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

# Tests that wait for other processes start first, so that the run does not end with them.
FIRST = ["test_checkpoints", "test_sharding", "test_distributed_mnist", "test_optax_suite"]
# The tests of one case of the table run in one process, which compiles its step once; the tests of
# one real module do too.
BY_CASE = {"test_contract", "test_bad_steps", "test_trees"}
BY_PARAMETER = {"test_kernels"}


# `-m fast`, for every save: files and, where not all of a file is quick, the names of its tests.
FAST = {
    **dict.fromkeys(
        (
            *("test_amac_reference", "test_averaging", "test_boundary", "test_errors"),
            *("test_heavy_ball", "test_layerwise", "test_techniques_table", "test_weight_decay"),
        ),
        "",
    ),
    "test_centralization": "paper|own|itself|updates|bfloat16",
    "test_classic": r"equation_for.*float32|amsgrads|takes_momentum|refused",
    "test_clipping": "paper|equation|inf|scheduled|range|refused",
    "test_lookahead": "equals|synchronisation|bit|refused",
    "test_noise": "quantile|row_major|relative|annealing|refused",
    "test_package": "imports_run|rooms|table|listed|documented|help|callable|records|trial|says",
    "test_plateau": "by_hand|refused|anew|improve",
    "test_schedules": "by_hand|formula|plain_loop|equation|errors|int32",
    "test_state": "found|partition|joined|before|average|learning_rate_is",
}

# Tests of programs and of other libraries, which are not written for strict promotion.
PROMOTE = {
    "test_examples_gan",
    *("test_augmentation", "test_checkpoints", "test_compare_optimizers", "test_distributed_mnist"),
    *("test_landscapes_example", "test_mnist", "test_mnist_cnn"),  # examples/
    "test_examples_text",
    *("test_accelerator_program", "test_on_gpu"),  # benchmarks/
    *("test_benchmarks", "test_comparison", "test_short_runs", "test_stage_order"),
    *("test_clients", "test_frameworks", "test_optax_suite"),  # other libraries
    *("test_equinox_modules", "test_kernels"),
}


def pytest_unconfigure() -> None:
    if CACHE:
        CACHE.cleanup()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m fast` nothing else is imported, which would take longer than the tests."""
    is_test = collection_path.name.startswith("test_")
    if config.option.markexpr == "fast" and is_test and collection_path.stem not in FAST:
        return True
    return None


def changed_files() -> set[Path]:
    """What differs from the last commit, if this is a checkout and git is there."""
    command = ["git", "status", "--porcelain", "--no-renames"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return set()
    return {ROOT / line[3:] for line in listed.stdout.splitlines()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    changed = changed_files()
    for item in items:
        is_doctest = isinstance(item, pytest.DoctestItem)
        names = FAST.get(item.path.stem)
        if (
            item.path in changed
            if is_doctest
            else names is not None and re.search(names, item.name)
        ):
            item.add_marker("fast")
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else 99)


@pytest.fixture(autouse=True, scope="module")
def strictness(request: pytest.FixtureRequest) -> Iterator[None]:
    """The package promotes no dtypes implicitly; the other libraries in the tests do."""
    import jax  # which reads, when it is imported, what is set above

    with jax.numpy_dtype_promotion("standard" if request.path.stem in PROMOTE else "strict"):
        yield
    set_aside()


@pytest.fixture
def promoting() -> Iterator[None]:
    """For tests that run Optax's transformations themselves, which strict promotion refuses."""
    import jax

    with jax.numpy_dtype_promotion("standard"):
        yield


def pytest_collection_finish() -> None:
    gc.set_threshold(20_000, 50, 100)  # tracing makes many objects, and few of them cycles
    set_aside()


def set_aside() -> None:
    """Keeps what is imported and compiled by now out of all later garbage collections."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByFileOrCase(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path, _, test = nodeid.partition("::")
            parameter = test.partition("[")[2].rstrip("]")
            if parameter and PurePath(path).stem in BY_CASE:
                return parameter.partition("-")[0]  # the case's name is the first parameter
            return f"{path}[{parameter}" if PurePath(path).stem in BY_PARAMETER else path

    config.option.loadscopereorder = False
    return ByFileOrCase(config, log)
