"""Compilers for a GPU and a TPU that are not there.

Where they are not installed the tests of this folder skip. With AMAC_JAX_ACCELERATORS=1, which
`.ci/accelerators` sets, they fail.
"""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

INSISTED = os.environ.get("AMAC_JAX_ACCELERATORS") == "1"
COMPILERS = {"h100": "jax_cuda13_plugin", "v5e": "libtpu"}


@pytest.fixture(scope="package")
def accelerator() -> Iterator[ModuleType]:
    """`benchmarks/accelerator.py`, and the environment that its targets need."""
    import jax

    with mock.patch.dict(os.environ):
        from benchmarks import accelerator

        cached = jax.config.jax_enable_compilation_cache
        jax.config.update("jax_enable_compilation_cache", False)  # it cannot load these programs
        yield accelerator
        jax.config.update("jax_enable_compilation_cache", cached)


@pytest.fixture(scope="package", params=COMPILERS)
def place(request: pytest.FixtureRequest) -> Any:
    """One device of each kind, for `accelerator.compile_step`."""
    target = request.param
    if not INSISTED and find_spec(COMPILERS[target]) is None:
        pytest.skip(f"no compiler for {target}: {COMPILERS[target]} is not installed")
    accelerator = request.getfixturevalue("accelerator")
    try:
        return accelerator.Place(target, None, accelerator.targets.devices(target))
    except accelerator.targets.NoCompiler as error:
        if INSISTED:
            pytest.fail(str(error))
        pytest.skip(str(error))
