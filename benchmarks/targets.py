"""Devices to compile for on a machine that has none of them.

JAX compiles for a TPU with libtpu alone, and for a GPU with JAX's own CUDA plugin alone: no driver
and none of NVIDIA's libraries. Importing this module sets what both need in the environment, which
must be before JAX first asks for a device.
"""

import os
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.update(
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # two processes abort without it
    TPU_LOG_DIR="disabled",
    JAX_ENABLE_COMPILATION_CACHE="false",  # a program without its device cannot be loaded
)
# The GPU compiler writes its estimate of a kernel's time beside the kernel.
COST_MODEL = "--xla_gpu_collect_cost_model_stats=true"
if COST_MODEL not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {COST_MODEL}".strip()

import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402

TPUS = {
    "v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}  # fmt: skip
# NVIDIA's data sheets: name, bytes a second, bytes of memory.
GPUS = {
    "h100": ("NVIDIA H100 80GB HBM3", 3_352_320_000_000, 85_899_345_920),
    "h200": ("NVIDIA H200", 4_800_000_000_000, 151_397_597_184),
}
TARGETS = ("cpu", *GPUS, *TPUS)
MESHES = {"v5e": "v5e:2x4", "v6e": "v6e:2x4", "h100": "1x1x8", "h200": "1x1x8"}
"""The topologies of eight chips of a target."""


class NoCompiler(Exception):
    """The compiler for a target is not installed; the message says what to install."""


def devices(target: str, mesh: bool = False) -> list[Any]:
    """The devices of a target, none of which exists; of `mesh`, eight.

    Raises:
      NoCompiler: where the packages are missing that compile for it.
    """
    if target == "cpu":
        return jax.devices("cpu")
    try:
        if target in GPUS:
            shape = MESHES[target] if mesh else "1x1x1"
            topology = topologies.get_topology_desc(
                platform="cuda", topology_name=target, target_config=specification(target),
                topology=shape,
            )  # fmt: skip
        else:
            name = MESHES[target] if mesh else TPUS[target]
            topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except (RuntimeError, NotImplementedError) as error:
        raise NoCompiler(
            f"no compiler for {target}: install amac_jax[accelerators] ({str(error)[:200]})"
        ) from error
    return list(topology.devices)


def specification(target: str) -> str:
    """A GPU as a GpuTargetConfigProto in text, from NVIDIA's figures for it.

    Both have the Hopper chip GH100 with 132 multiprocessors.
    """
    name, bandwidth, memory = GPUS[target]
    chip = {
        "cuda_compute_capability": {"major": 9},
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "core_count": 132,
        "fpus_per_core": 128,
        "shared_memory_per_block": 48 << 10,
        "shared_memory_per_core": 228 << 10,
        "shared_memory_per_block_optin": 227 << 10,
        "registers_per_core_limit": 1 << 16,
        "registers_per_block_limit": 1 << 16,
        "block_dim_limit_x": (1 << 31) - 1,
        "block_dim_limit_y": (1 << 16) - 1,
        "block_dim_limit_z": (1 << 16) - 1,
        "memory_bandwidth": bandwidth,
        "l2_cache_size": 50 << 20,
        "clock_rate_ghz": 1.98,
        "device_memory_size": memory,
    }
    return _text_proto(
        {
            "gpu_device_info": chip,
            "platform_name": '"CUDA"',
            "dnn_version_info": {"major": 9, "minor": 10},
            "runtime_version": {"major": 12, "minor": 8},
            "device_description_str": f'"{name}"',
        }
    )


def _text_proto(fields: Mapping[str, Any]) -> str:
    return " ".join(
        f"{name} {{ {_text_proto(value)} }}" if isinstance(value, Mapping) else f"{name}: {value}"
        for name, value in fields.items()
    )
