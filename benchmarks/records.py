"""What benchmarks write down: a JSON file a job, whole or not at all, and where it was measured."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax

import amac_jax


class RecordError(ValueError):
    """A file that no benchmark has written."""


def recorded(path: Path) -> dict[str, Any]:
    """The content of a file, and nothing if there is none."""
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise RecordError(f"{path}: not what this program writes ({error}); delete it") from error


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes a file that an interruption leaves as it was."""
    partial_file = path.with_suffix(".json.partial")
    partial_file.write_text(json.dumps(content, allow_nan=False) + "\n")
    partial_file.replace(path)


def circumstances() -> dict[str, Any]:
    """The versions and the machine of a run."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{lib.__name__: lib.__version__ for lib in (amac_jax, jax, flax, optax, np)},
        },
        "device": f"{jax.devices()[0].device_kind}, {cores()} cores",
    }


def cores() -> int | None:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
