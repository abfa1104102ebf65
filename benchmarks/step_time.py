"""What a step costs: update and apply in one donated jit, beside another in the same rounds.

    python -m benchmarks.step_time                        # 10M parameters, 50 leaves: 2 minutes
    python -m benchmarks.step_time --sizes 100M --json benchmarks/results/step_time-cpu-100M.json
    python -m benchmarks.step_time --variants amac 'amac, everything' --rounds 50
    python -m benchmarks.step_time --baseline optax.contrib.muon --variants muon amac
    python -m benchmarks.step_time --jobs lstm deep-mlp --rounds 100 --variants muon adamw

Variants take turns, so that what slows the machine down slows all of them; a ratio is that of two
times of one round. Every sample is five steps, of which one synchronizes and averages. On a device
whose memory does not hold all variants at once they take turns in groups, each beside the baseline.
What fails, or does not fit, is in the table with its reason; the others are still timed.
"""

import argparse
import gc
import itertools
import json
import math
import platform
import shlex
import statistics
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

import amac_jax
from amac_jax import kernel_mask
from amac_jax.optimizers import MINIMAX, NEWTON_SCHULZ, amac_techniques
from benchmarks import options, programs, steps
from benchmarks.steps import (
    BASELINE,
    STEPS,
    amac,
    bytes_per_parameter,
    count_of,
    every,
    lowered,
    optax_muon,
    share_of_steps,
)
from benchmarks.workloads import ALL

LEAST_ROUNDS = 3  # of a group, where time is short
FUSED, FOREACH = "torch.optim.AdamW(fused=True)", "torch.optim.AdamW(foreach=True)"
# The least traffic of float32 parameters, a parameter: gradient, moments and parameters; one step
# in five slow weights and average; velocity.
LEAST_BYTES = {
    **dict.fromkeys(("optax.adamw", "adamw", FUSED, FOREACH), 28.0),
    "amac, core='adam'": 31.2,
    "amac, everything": 39.2,
}


def adamw(**techniques: Any) -> optax.GradientTransformationExtraArgs:
    return amac_jax.adamw(1e-3, **techniques)


VARIANTS: dict[str, Callable[[], optax.GradientTransformation]] = {
    BASELINE: lambda: optax.adamw(1e-3),
    "amac": amac,
    "amac, core='adam'": lambda: amac(core="adam"),
    "amac, everything": every,
    "everything, noise=None": lambda: every(noise=None),
    "everything, sampler='gaussian'": lambda: every(sampler="gaussian"),
    "everything, sampler='threefry'": lambda: every(sampler="threefry"),
    "everything, no lookahead, no averaging": lambda: amac_jax.compose(
        optax.scale_by_adam(),
        1e-3,
        **amac_techniques(10**6, momentum=0.9, noise=0.01, sync_period=None, average_start=None),
        weight_decay=0.1,
    ),
    "everything, clip_norm=1": lambda: every(clip_norm=1.0),
    "everything, record_metrics=True": lambda: every(record_metrics=True),
    "everything, skip_nonfinite=True": lambda: every(skip_nonfinite=True),
    "everything, state_dtype='bfloat16'": lambda: every(state_dtype="bfloat16"),
    "optax.contrib.muon": optax_muon,
    "muon": lambda: amac_jax.muon(1e-3),
    "muon, three quintics": lambda: amac_jax.muon(1e-3, quintics=MINIMAX[3]),
    "muon, five of the first Muon": lambda: amac_jax.muon(1e-3, quintics=NEWTON_SCHULZ),
    "adamw": adamw,
    "adamw + clip_norm": lambda: adamw(clip_norm=1.0),
    "adamw + centralize": lambda: adamw(centralize=True),
    "adamw + noise": lambda: adamw(noise=0.01),
    "adamw + noise, gaussian": lambda: adamw(noise=0.01, sampler="gaussian"),
    "adamw + noise, threefry": lambda: adamw(noise=0.01, sampler="threefry"),
    "adamw + clip_value": lambda: adamw(clip_value=1.0),
    "adamw + momentum": lambda: adamw(momentum=0.9),
    "adamw + lookahead": lambda: adamw(sync_period=STEPS),
    "adamw + averaging": lambda: adamw(average_start=STEPS, average_period=STEPS),
    "adamw + record_metrics": lambda: adamw(record_metrics=True),
}


def adam(**techniques: Any) -> optax.GradientTransformationExtraArgs:
    return amac(core="adam", **techniques)


def muon_of_kernels() -> optax.GradientTransformation:
    """Optax's, with the matrices that ours orthogonalizes: not the embeddings."""

    def dimensions(params: Any) -> Any:
        kernels = optax.contrib.MuonDimensionNumbers()
        return jax.tree.map(lambda is_one: kernels if is_one else None, kernel_mask(params))

    return optax.contrib.muon(
        1e-3, weight_decay=0.1, consistent_rms=0.2, muon_weight_dimension_numbers=dimensions
    )


# One option more each; not among those that run where none is named.
OPTIONS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "amac, core='adam', clip_norm=1": lambda: adam(clip_norm=1.0),
    "amac, core='adam', skip_nonfinite=True": lambda: adam(skip_nonfinite=True),
    "amac, core='adam', record_metrics=True": lambda: adam(record_metrics=True),
    "amac, core='adam', record_metrics=20": lambda: adam(record_metrics=20),
    "amac, core='adam', state_dtype='bfloat16'": lambda: adam(state_dtype="bfloat16"),
    "amac, core='adam', noise=0.01": lambda: adam(noise=0.01, sampler="fast"),
    "amac, core='adam', noise=0.01, gaussian": lambda: adam(noise=0.01, sampler="gaussian"),
    "amac, core='adam', noise=0.01, threefry": lambda: adam(noise=0.01, sampler="threefry"),
    "optax.contrib.muon, kernels alone": muon_of_kernels,
}


def parameters(size: int, leaves: int, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Half of the leaves square kernels, half their biases, together about `size` elements."""
    side = max(round((size / (leaves / 2)) ** 0.5), 1)
    return {
        f"layer_{i}": {
            "kernel": jnp.full((side, side), 0.1, dtype),
            "bias": jnp.zeros((side,), dtype),
        }
        for i in range(leaves // 2)
    }


def transformer(layers: int, width: int, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The parameters of a transformer."""
    return jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, 0.1, leaf.dtype), steps.transformer(layers, width, dtype)
    )


def nbytes_of(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def moved_by(program: Any, params: Any) -> dict[str, float]:
    """What `programs` reads from a compiled step, its conditionals by how often they are due."""
    part = programs.facts(program)
    everywhere = list(part.everywhere())
    return {
        "moved_bytes_per_parameter": part.expected(share_of_steps) / count_of(params),
        "kernels": part.expected(share_of_steps, lambda _: 1),
        "copies": sum(len(one.copies) for one in everywhere),
        "copied_bytes_per_parameter": sum(sum(one.copies) for one in everywhere) / count_of(params),
        "loops": sum(one.loops for one in everywhere),  # each counts once above
    }


def said(error: BaseException) -> str:
    """An error in a line, as Python prints it."""
    return traceback.format_exception_only(error)[-1].strip().splitlines()[0][:300]


Run: TypeAlias = Callable[[], None]
"""Takes the steps of a sample and returns when they are done."""


class Compiled(NamedTuple):
    tx: optax.GradientTransformation
    program: Any  # of `times` steps
    times: int
    facts: dict[str, Any]


def compiled(
    tx: optax.GradientTransformation, params: Any, models: int, times: int = 1
) -> Compiled:
    """The program of a step and what is known before it runs; nothing is allocated."""
    jax.clear_caches()
    began = time.perf_counter()
    program = lowered(tx, params, models).compile()
    compile_s = time.perf_counter() - began
    memory = program.memory_analysis()
    init = tx.init if models == 1 else jax.vmap(tx.init)
    facts = {
        "compile_s": compile_s,
        "bytes_per_parameter": bytes_per_parameter(program, params),
        "state_bytes_per_parameter": nbytes_of(jax.eval_shape(init, params)) / count_of(params),
        "temporary_bytes_per_parameter": memory.temp_size_in_bytes / count_of(params),
        "peak_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
    }
    try:
        facts |= moved_by(program, params)
    except Exception as error:  # a program whose text is not known yet is timed all the same
        facts["unread"] = said(error)
    if times > 1:
        program = lowered(tx, params, models, times).compile()
    return Compiled(tx, program, times, facts)


def jax_runner(made: Compiled, params: Any, gradients: Any, models: int) -> Run:
    init = made.tx.init if models == 1 else jax.vmap(made.tx.init)
    carry = [jax.tree.map(jnp.copy, params), init(params)]

    def run() -> None:
        for _ in range(max(STEPS // made.times, 1)):
            carry[:] = made.program(*carry, gradients)
        jax.block_until_ready(carry)

    return run


def copy_runners(params: Any) -> tuple[dict[str, Run], int]:
    """One array, scaled in place and copied to another, and the bytes that each moves.

    The faster of the two is the speed of the memory.

    It is as large as six times the parameters, so that no cache holds what AMaC's state is, and
    1 GiB on an accelerator, so that the start of a kernel does not count.
    """
    size = 6 * count_of(params)
    if jax.default_backend() != "cpu" or size > 2**28:
        size = 2**28
    carry = [jnp.ones(size), jnp.ones(size)]
    scale = jax.jit(lambda x: x * 1.0001, donate_argnums=0).lower(carry[0]).compile()
    copy = jax.jit(jnp.copy).lower(carry[1]).compile()

    def scaled() -> None:
        for _ in range(STEPS):
            carry[0] = scale(carry[0])
        jax.block_until_ready(carry[0])

    def copied() -> None:
        for _ in range(STEPS):
            carry[1] = copy(carry[1])
        jax.block_until_ready(carry[1])

    return {"in place": scaled, "to another": copied}, 2 * 4 * size * STEPS


# PyTorch's AdamW: how it is asked for, and the bytes that it holds a byte of parameters, with
# gradients and, of `foreach`, lists of intermediate results.
TORCH: dict[str, tuple[dict[str, bool], int]] = {
    FUSED: ({"fused": True}, 4),
    FOREACH: ({"foreach": True}, 7),
}


def without_torch() -> str:
    """Why PyTorch is not timed on the same GPU; "" where it is."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return "PyTorch is not installed"
    return "" if torch.cuda.is_available() else "PyTorch does not find a GPU"


def torch_runner(name: str, params: Any, steps: int) -> Run:
    """PyTorch's own AdamW on the same GPU, its step alone."""
    import torch  # pyright: ignore[reportMissingImports]

    dtype = getattr(torch, jax.tree.leaves(params)[0].dtype.name)
    tensors = [
        torch.full(x.shape, 0.1, dtype=dtype, device="cuda", requires_grad=True)
        for x in jax.tree.leaves(params)
    ]
    for tensor in tensors:
        tensor.grad = torch.full_like(tensor, 0.01)
    optimizer = torch.optim.AdamW(tensors, lr=1e-3, **TORCH[name][0])

    def run() -> None:
        for _ in range(steps):
            optimizer.step()
        torch.cuda.synchronize()

    return run


def give_memory_back() -> None:
    """What was dropped is free for the next group, PyTorch's part for JAX too."""
    gc.collect()
    if "torch" in sys.modules and not without_torch():
        sys.modules["torch"].cuda.empty_cache()


def room_of_device() -> float:
    """The bytes of memory that JAX may use of its device, if it knows."""
    return float((jax.devices()[0].memory_stats() or {}).get("bytes_limit", math.inf))


def groups_of(
    needs: Mapping[str, float], baseline: str, room: float
) -> tuple[list[list[str]], list[str]]:
    """Groups of variants that fit into memory together with the baseline, and what fits in none.

    PyTorch's are in groups of their own where not all are in one: JAX keeps the memory of a group
    for the next one, and so PyTorch's come first.

    Example:
      >>> groups_of({"a": 2, "b": 3, "c": 9, "d": 1}, "a", 6)
      ([['a', 'b', 'd']], ['c'])
    """
    room -= needs[baseline]
    if room < 0:
        raise MemoryError(f"{baseline} alone needs {needs[baseline] / 1e9:.3g} GB")
    others = [name for name in needs if name != baseline]
    if sum(needs[name] for name in others) <= room:
        return [[baseline, *others]], []
    groups: list[list[str]] = []
    for kind in (True, False):
        left = 0.0
        for name in (name for name in others if (name in TORCH) is kind and needs[name] <= room):
            if not left or needs[name] > left:
                groups.append([baseline])
                left = room
            groups[-1].append(name)
            left -= needs[name]
    return groups or [[baseline]], [name for name in others if needs[name] > room]


def parameters_of_job(name: str, dtype: Any) -> Any:
    """The parameters of a job of `compare.py`."""
    params = jax.jit(ALL[name].make().init)(jax.random.key(0))
    return jax.tree.map(lambda x: x.astype(dtype), params)


def timed(
    runners: dict[str, Run], rounds: int, until: float, what: str
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of every runner, round by round, and what went wrong in those that are left out."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    failed: dict[str, str] = {}
    for round_number in tqdm(range(rounds + 1), desc=f"{what}: rounds", **BAR):
        if round_number > LEAST_ROUNDS and time.perf_counter() > until:
            break
        for name in list(times):
            began = time.perf_counter()
            try:
                runners[name]()
            except Exception as error:  # out of memory, in the first round
                failed[name] = said(error)
                del times[name], runners[name]
                continue
            if round_number:  # the first one warms up
                times[name].append(time.perf_counter() - began)
    return times, failed


BAR: dict[str, Any] = {"leave": False, "disable": None}  # on a terminal alone
NOT_REACHED = "the program ended before its rounds"


def measure(
    params: Any,
    names: list[str],
    *,
    job: str = "",
    dtype: str = "float32",
    models: int = 1,
    rounds: int = 20,
    program_steps: int = 1,
    baseline: str = BASELINE,
    with_torch: bool = True,
    room: float | None = None,
    until: float = math.inf,
    compile_share: float = 0.85,
    save: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """One configuration: every variant's times, round by round.

    Args:
      params: on the device.
      names: of `VARIANTS` and `OPTIONS`, the baseline among them.
      program_steps: the steps of one program, 1 or a multiple of `STEPS`. With 1 a sample is
        `STEPS` programs, and the start of each is in its time; else a sample is one program.
      with_torch: whether PyTorch's AdamW is timed too.
      room: the bytes that all may use together; None: what the device has.
      until: of `time.perf_counter`, when rounds end.
      compile_share: the share of the time until then after which no variant begins to compile.
      save: called with the result as far as it is, after every program and every group.
    """
    began = time.perf_counter()
    leaves = len(jax.tree.leaves(params))
    if models > 1:
        params = jax.tree.map(lambda x: jnp.repeat(x[None], models, axis=0), params)
    key = jax.random.key(0)
    gradients = jax.tree.map(lambda x: 0.01 * jax.random.normal(key, x.shape, x.dtype), params)
    count = count_of(params)
    what = f"{size_text(count)} parameters, {leaves} leaves, {dtype}, {models} models"
    rows: dict[str, dict[str, Any]] = {}
    untimed: dict[str, dict[str, Any]] = {}
    result: dict[str, Any] = {
        "job": job,
        "parameters": count,
        "leaves": leaves,
        "dtype": dtype,
        "models": models,
        "baseline": baseline,
        "rounds": rounds,
        "program_steps": program_steps,
        "variants": rows,
        "untimed": untimed,
    }
    made: dict[str, Compiled] = {}
    for name in tqdm(names, desc=f"{what}: compiling", **BAR):
        if made and time.perf_counter() > began + compile_share * (until - began):
            untimed[name] = {"not_run": "no time was left to compile it"}
            continue
        try:
            made[name] = compiled((VARIANTS | OPTIONS)[name](), params, models, program_steps)
        except Exception as error:
            untimed[name] = {"failed": said(error)}
            continue
        untimed[name] = {"not_run": NOT_REACHED, **made[name].facts}
        save(result)
    if baseline not in made:
        raise RuntimeError(f"the baseline {baseline} did not compile: {untimed[baseline]}")
    needs = {name: one.facts["peak_bytes"] - nbytes_of(gradients) for name, one in made.items()}
    for name, (_, share) in TORCH.items() if with_torch else ():
        untimed[name] = {"not_run": without_torch() or NOT_REACHED}
        if not without_torch():
            untimed[name]["version"] = sys.modules["torch"].__version__
            needs[name] = share * nbytes_of(params)
    shared = nbytes_of(params) + nbytes_of(gradients)
    if jax.default_backend() != "cpu":
        shared += 2**32  # what is copied
    room = 0.8 * (room_of_device() if room is None else room) - shared
    groups, too_large = groups_of(needs, baseline, room)
    for name in too_large:
        gigabytes = (needs[name] + needs[baseline] + shared) / 1e9
        untimed[name]["not_run"] = f"{gigabytes:.3g} GB with the baseline do not fit into memory"
    copies, moved = copy_runners(params)
    bandwidth = 0.0
    for number, group in enumerate(groups):
        now = time.perf_counter()
        times, failed = in_turns(
            copies, group, made, params, gradients, models, program_steps, rounds,
            now + (until - now) / (len(groups) - number), what,
        )  # fmt: skip
        for name, reason in failed.items():
            if name in untimed:
                del untimed[name]["not_run"]
                untimed[name]["failed"] = reason
        if baseline not in times:
            raise RuntimeError(f"the baseline {baseline} did not run: {failed[baseline]}")
        if copies:  # in the first group alone
            speeds = {
                name: moved / statistics.median(times[name]) for name in copies if name in times
            }
            result["copies_GB_per_s"] = {name: speed / 1e9 for name, speed in speeds.items()}
            bandwidth, copies = max(speeds.values()), {}
            result["copy_GB_per_s"] = bandwidth / 1e9
        for name in group:
            if name in times and name in untimed:
                facts = {key: x for key, x in untimed.pop(name).items() if key != "not_run"}
                steps_taken = max(STEPS, program_steps)
                rows[name] = row_of(times[name], times[baseline], steps_taken) | facts
                shares(rows[name], name, dtype, count, bandwidth)
        save(result)
        give_memory_back()
    return result


def in_turns(
    copies: dict[str, Run],
    group: list[str],
    made: dict[str, Compiled],
    params: Any,
    gradients: Any,
    models: int,
    program_steps: int,
    rounds: int,
    until: float,
    what: str,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """What `timed` finds of copies and a group, whose arrays live no longer than this call."""
    runners: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for name in sorted(group, key=lambda name: name not in TORCH):  # before JAX takes its part
        try:
            if name in TORCH:
                runners[name] = torch_runner(name, params, max(STEPS, program_steps))
            else:
                runners[name] = jax_runner(made[name], params, gradients, models)
        except Exception as error:
            failed[name] = said(error)
    order = {name: runners[name] for name in group if name in runners}
    del runners
    times, more = timed(copies | order, rounds, until, what)
    return times, failed | more


def row_of(seconds: list[float], baseline: list[float], steps_taken: int) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(seconds, baseline, strict=True)]
    return {
        "ms": 1e3 * statistics.median(seconds) / steps_taken,
        "baseline_ms": 1e3 * statistics.median(baseline) / steps_taken,  # in the same rounds
        "rounds": len(ratios),
        "ratio": statistics.median(ratios),
        "ratio_low": statistics.quantiles(ratios, n=10, method="inclusive")[0],
        "ratio_high": statistics.quantiles(ratios, n=10, method="inclusive")[-1],
    }


def shares(row: dict[str, Any], name: str, dtype: str, count: int, bandwidth: float) -> None:
    """Adds the shares of a copy's speed at which the least bytes, and the program's, are moved."""
    speed = count / (row["ms"] / 1e3) / bandwidth
    if dtype == "float32" and name in LEAST_BYTES:
        row["copy_share"] = LEAST_BYTES[name] * speed
    if "moved_bytes_per_parameter" in row:
        row["moved_share"] = row["moved_bytes_per_parameter"] * speed


def table(result: dict[str, Any]) -> str:
    header = (
        f"{result['job'] and result['job'] + ': '}{size_text(result['parameters'])} parameters, "
        f"{result['leaves']} leaves, {result['dtype']}, {result['models']} model(s); "
        f"copy {result['copy_GB_per_s']:.1f} GB/s\n"
        f"{'':41s}    ms   ratio  10 % .. 90 %  bytes  state  of copy  compile s"
    )
    lines = [header]
    for name, row in result["variants"].items():
        share = f"{100 * row['copy_share']:5.0f} %" if "copy_share" in row else " " * 7
        compiled = (
            f"{row['bytes_per_parameter']:6.1f} {row['state_bytes_per_parameter']:6.1f}  "
            f"{share}  {row['compile_s']:8.2f}"
            if "compile_s" in row
            else f"{'':15s}{share}".rstrip()
        )
        lines.append(
            f"{name:41s} {row['ms']:6.2f}  {row['ratio']:6.2f}   "
            f"{row['ratio_low']:4.2f} .. {row['ratio_high']:4.2f}  {compiled}".rstrip()
        )
    for name, row in result["untimed"].items():
        lines.append(f"{name:41s} {why_untimed(row)}")
    return "\n".join(lines)


def why_untimed(row: dict[str, Any]) -> str:
    return f"failed: {row['failed']}" if "failed" in row else f"not run: {row['not_run']}"


COLUMNS = 4  # panels in a line of the picture


def draw(results: list[dict[str, Any]], device: str, path: Path) -> None:
    """A panel a configuration, a bar a variant."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for result in results for name in result["variants"]))
    tallest = len(names)
    columns = min(len(results), COLUMNS)
    lines = math.ceil(len(results) / columns)
    figure, panels = plt.subplots(
        lines,
        columns,
        figsize=(3.4 + 4.2 * columns, 0.4 + lines * (1.2 + 0.28 * tallest)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    note = ""
    for panel, result in itertools.zip_longest(panels.flat, results):
        if result is None:
            panel.set_axis_off()
            continue
        rows = result["variants"]
        places = [names.index(name) for name in rows]
        ratios = [row["ratio"] for row in rows.values()]
        # Other work may stop a program for a few rounds: the edge is not at their times.
        edge = min(max(row["ratio_high"] for row in rows.values()), 1.8 * max(ratios))
        errors = [
            [row["ratio"] - row["ratio_low"] for row in rows.values()],
            [min(row["ratio_high"], edge) - row["ratio"] for row in rows.values()],
        ]
        colours = ["tab:red" if name.startswith("amac") else "tab:blue" for name in rows]
        panel.barh(places, ratios, xerr=errors, color=colours, ecolor="black", capsize=2)
        for y, row in zip(places, rows.values(), strict=True):
            past = f" → {row['ratio_high']:.1f}" if row["ratio_high"] > edge else ""
            at = min(row["ratio_high"], edge)
            panel.text(at, y, f"  {row['ratio']:.2f}{past}", va="center", fontsize=7)
        for y in set(range(tallest)) - set(places):
            panel.text(0, y, "  not timed", va="center", fontsize=7, color="dimgray")
        panel.set_yticks(range(tallest), names)
        panel.set_ylim(tallest - 0.4, -0.6)  # the first at the top
        panel.set_xlim(0, 1.25 * edge)  # room for the numbers
        panel.axvline(1, color="black", linewidth=0.8)
        adam = BASELINE in rows and "amac, core='adam'" in rows
        if adam and result["dtype"] == "float32" and result["baseline"] == BASELINE:
            least = LEAST_BYTES["amac, core='adam'"] / LEAST_BYTES[BASELINE]
            panel.axvline(least, color="tab:red", linestyle=":", linewidth=1)
            note = "; dotted: ratio of the least bytes of amac, core='adam'"
        panel.set_xlabel(f"time of a step / {result['baseline']}'s")
        what = f"{size_text(result['parameters'])} parameters, {result['leaves']} leaves"
        title = f"{result['job'] or what}, {result['dtype']}"
        panel.set_title(title, fontsize=9)
    title = f"{device}: median and 10 % .. 90 % of paired ratios{note}"
    width = int(14 * figure.get_figwidth())  # characters of the title's size in a line
    figure.suptitle("\n".join(textwrap.wrap(title, width)), fontsize=9)
    figure.savefig(path, dpi=110)


def size_text(size: int) -> str:
    """The inverse of `size_of`, in three digits.

    Example:
      >>> size_text(9_985_625), size_text(10**9)
      ('9.99M', '1B')
    """
    unit, name = (1e9, "B") if size >= 999.5e6 else (1e6, "M")
    return f"{size / unit:.3g}{name}"


def size_of(text: str) -> int:
    units = {"K": 10**3, "M": 10**6, "B": 10**9}
    try:
        size = int(float(text.rstrip("KMB")) * units.get(text[-1:], 1))
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"must be a number such as 10M, got {text!r}")
    return size


def configurations(args: argparse.Namespace) -> list[tuple[str, Callable[[Any], Any]]]:
    """The name of a job, or "", and its parameters for a dtype."""
    if args.jobs:
        return [(name, partial(parameters_of_job, name)) for name in args.jobs]
    return [
        ("", partial(parameters, size // args.models, leaves))
        for leaves in args.leaves
        for size in args.sizes
    ]


def main(argv: list[str] | None = None) -> None:
    parser = options.parser("Times of optimizer steps beside optax.adamw's.")
    parser.add_argument("--sizes", type=size_of, nargs="+", default=[10**7], help="parameters")
    parser.add_argument(
        "--leaves",
        type=options.at_least(2),
        nargs="+",
        default=[50],
        help="half kernels, half biases",
    )
    parser.add_argument(
        "--jobs", nargs="+", choices=ALL, metavar="NAME",
        help="in their place, the parameters of jobs of compare.py: " + ", ".join(ALL),
    )  # fmt: skip
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument(
        "--models",
        type=options.at_least(1),
        default=1,
        help="divide the parameters among so many models, stepped by vmap",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(map(repr, VARIANTS))}; None: all of these; "
        f"more: {', '.join(map(repr, OPTIONS))}",
    )
    parser.add_argument(
        "--baseline", default=BASELINE, metavar="NAME", help="the variant that others are beside"
    )
    parser.add_argument(
        "--rounds", type=options.at_least(2), default=20, help="how often each is timed"
    )
    parser.add_argument(
        "--program-steps",
        type=options.at_least(1),
        default=1,
        metavar="N",
        help=f"steps of one program, a multiple of {STEPS}: the start of a program, which a "
        "training step hides, then counts little; 1: each step is a program",
    )
    parser.add_argument(
        "--json", type=Path, help="a .json file for the figures; a .png goes beside it"
    )
    args = parser.parse_args(argv)
    named = list(VARIANTS) if args.variants is None else args.variants
    names = [args.baseline, *named]
    known = [*VARIANTS, *OPTIONS]
    if args.program_steps > 1 and args.program_steps % STEPS:
        parser.error(f"--program-steps must be a multiple of {STEPS}, got {args.program_steps}")
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no variant {unknown[0]!r}; there are: {', '.join(map(repr, known))}")
    if args.json and (args.json.suffix != ".json" or args.json.is_dir()):
        parser.error(f"--json must be a file whose name ends in .json, got '{args.json}'")
    device = jax.devices()[0]
    content: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.step_time", *(argv or sys.argv[1:])]),
        "device": f"{device.platform}, {device.device_kind}",
        "versions": {
            "python": platform.python_version(),
            **{library.__name__: library.__version__ for library in (amac_jax, jax, optax)},
        },
        "results": [],
    }
    names = list(dict.fromkeys(names))
    for dtype, (job, make) in itertools.product(args.dtypes, configurations(args)):
        found = measure(
            make(dtype), names, job=job, dtype=dtype, models=args.models, rounds=args.rounds,
            baseline=args.baseline, program_steps=args.program_steps,
        )  # fmt: skip
        content["results"].append(found)
        print(table(found), end="\n\n", flush=True)
        give_memory_back()
        if args.json:  # after every configuration, so that an interrupted run has some
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(content, indent=2) + "\n")
    if args.json:
        picture = args.json.with_suffix(".png")
        draw(content["results"], content["device"], picture)
        print(f"wrote {args.json} and {picture}")
    if any("failed" in row for found in content["results"] for row in found["untimed"].values()):
        sys.exit("step_time.py: error: some variants failed; the tables say why")


if __name__ == "__main__":
    main()
