"""What the optimizer step is on a GPU or a TPU, compiled on a machine that has neither.

    pip install -e '.[accelerators]'   # in a new environment: the compilers, 1.7 GB, no driver
    python -m benchmarks.accelerator                                  # H100, two variants: a minute
    python -m benchmarks.accelerator --targets h100 v5e --size 100M --variants all \\
        --json benchmarks/results/accelerator.json
    python -m benchmarks.accelerator --targets v5e --mesh fsdp tensor both
    python -m benchmarks.accelerator --targets h100 v5e --optimizers all   # does each compile?
    python -m benchmarks.accelerator --targets cpu      # beside XLA's own count: nothing to install

Nothing runs and nothing is timed. A step is update and apply in one jit that donates parameters and
state. All bytes are a parameter of one device, read and written in its memory:

    always     outside the conditionals
    expected   with the branches, by the share of the steps that take them: one step in five
               synchronizes and averages, one in 20 records its metrics, each is finite
    dearest    a step that takes every dearer branch
    x adamw    expected, beside optax.adamw's with parameters of the same dtype
    x least    expected, beside what the step must move: gradient read, parameters and state read
               and written, slow weights and average in one step of five
    kernels    instructions of the entry that neither copy nor fetch
    copies     whole leaves, copied in the entry + in the branches
    temp       temporary memory
    arguments  parameters, state and gradient
    model      the compiler's estimate beside optax.adamw's: microseconds on a GPU, cycles without
               transfers on a TPU; of the entry, and with the branches as in expected
    means      the share of that estimate in the column means of centralization
"""

import argparse
import json
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import targets  # first: it sets what JAX reads

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

import amac_jax
from benchmarks import options, programs
from benchmarks.steps import (
    BASELINE,
    METRICS_PERIOD,
    STEPS,
    amac,
    count_of,
    every,
    optax_muon,
    share_of_steps,
    step_of,
    transformer,
)  # fmt: skip

SIZES = {"1M": (4, 128), "10M": (12, 256), "100M": (14, 768), "1B": (20, 2048)}
"""Layers and width of a transformer with about so many parameters."""

CHIPS = 8
MESHES = {"fsdp": (CHIPS, 1), "tensor": (1, CHIPS), "both": (2, CHIPS // 2)}
"""The devices along the mesh's axes "data" and "model"."""


class Variant(NamedTuple):
    make: Callable[[], optax.GradientTransformation]
    dtype: str | None = None  # of the parameters; None: what --dtype says


amac_adam = partial(amac, core="adam", average_start=0)
OPTIONS: dict[str, dict[str, Any]] = {
    "clip_norm=1": {"clip_norm": 1.0},
    "skip_nonfinite": {"skip_nonfinite": True},
    "record_metrics": {"record_metrics": True},
    f"record_metrics={METRICS_PERIOD}": {"record_metrics": METRICS_PERIOD},
    "clip, skip, metrics": {"clip_norm": 1.0, "skip_nonfinite": True, "record_metrics": True},
    "state_dtype=bfloat16": {"state_dtype": "bfloat16"},
    "decay_floor=None": {"decay_floor": None},
    "centralize=None": {"centralize": None},
    "sync_period=None": {"sync_period": None},
    "average_start=None": {"average_start": None},
    "momentum=0.9": {"momentum": 0.9},
    **{
        f"noise, {sampler}": {"noise": 0.01, "sampler": sampler}
        for sampler in ("fast", "gaussian", "threefry")
    },
}
VARIANTS = {
    BASELINE: Variant(lambda: optax.adamw(1e-3)),
    "adamw": Variant(lambda: amac_jax.adamw(1e-3)),
    "amac-adam": Variant(amac_adam),
    **{
        f"amac-adam {name}": Variant(partial(amac_adam, **keywords))
        for name, keywords in OPTIONS.items()
    },
    "amac-everything": Variant(partial(every, average_start=0)),
    "amac": Variant(partial(amac, average_start=0)),
    "muon": Variant(lambda: amac_jax.muon(1e-3)),
    "optax.contrib.muon": Variant(optax_muon),
    f"{BASELINE} bfloat16": Variant(lambda: optax.adamw(1e-3), "bfloat16"),
    "amac-adam bfloat16": Variant(amac_adam, "bfloat16"),
}


def optimizers() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """Every factory of the library that begins with a learning rate."""
    found = {}
    for name in amac_jax.optimizers.__all__:
        factory = getattr(amac_jax.optimizers, name)
        is_function = callable(factory) and not isinstance(factory, type)
        if is_function and next(iter(signature(factory).parameters)) in ("learning_rate", "lr"):
            found[name] = factory
    return found


class Place(NamedTuple):
    """Where a step runs: a kind of device, alone or eight of them."""

    target: str
    mesh: str | None
    devices: list[Any]

    def __str__(self) -> str:
        return self.target if self.mesh is None else f"{CHIPS} x {self.target}, {self.mesh}"

    def chips(self) -> int:
        return 1 if self.mesh is None else CHIPS

    def shardings(self, params: Any) -> tuple[Any, Sharding]:
        """The shardings of the parameters, and the sharding of all else."""
        if self.mesh is None:
            alone = SingleDeviceSharding(self.devices[0])
            return jax.tree.map(lambda _: alone, params), alone
        mesh = Mesh(np.array(self.devices).reshape(MESHES[self.mesh]), ("data", "model"))

        def sharding(path: Any, _: Any) -> NamedSharding:
            # Fan-in is along "data", but in the second of two products along "model".
            is_second = any(name in jax.tree_util.keystr(path) for name in ("out", "down"))
            axes = ("model", "data") if is_second and self.mesh != "fsdp" else ("data", "model")
            return NamedSharding(mesh, P(*axes))

        return jax.tree.map_with_path(sharding, params), NamedSharding(mesh, P())


def placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


class Program(NamedTuple):
    compiled: Any
    state: Any  # abstract
    seconds: float  # of compilation


def compile_step(
    tx: optax.GradientTransformation, params: Any, place: Place, **extra_args: Any
) -> Program:
    """The donated step for a place, state placed as the parameters that it belongs to."""
    shardings, other = place.shardings(params)
    state = jax.eval_shape(tx.init, params)
    of_state = optax.tree.map_params(
        tx,
        lambda leaf, sharding: leaf if is_masked(leaf) else sharding,
        state,
        shardings,
        transform_non_params=lambda _: other,
        is_leaf=is_masked,
    )
    arguments = placed((params, state, params), (shardings, of_state, shardings))
    step = jax.jit(
        step_of(tx, **extra_args), donate_argnums=(0, 1), out_shardings=(shardings, of_state)
    )
    lowered = step.lower(*arguments)
    began = time.perf_counter()
    compiled = lowered.compile()
    return Program(compiled, state, time.perf_counter() - began)


def least_bytes(params: Any, state: Any) -> float:
    """The least that a step moves a parameter: each float once, what is due in time in its share.

    Example:
      >>> params = {"kernel": jnp.zeros((10, 10))}
      >>> least_bytes(params, optax.adamw(1e-3).init(params))
      28.0
      >>> least_bytes(params, amac_adam(decay_floor=None).init(params))
      31.2
    """
    least = 3.0 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    for path, leaf in jax.tree.leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim:
            is_due = re.search(r"\.(slow|average)\b", jax.tree_util.keystr(path))
            least += 2 * leaf.size * leaf.dtype.itemsize / (STEPS if is_due else 1)
    return least / count_of(params)


def is_mean(kernel: programs.Kernel) -> bool:
    """Whether a kernel computes the column means of centralization."""
    return bool(re.search("/centralize/.*(reduce|dot_general)", kernel.scope))


def facts(program: Program, params: Any, place: Place) -> dict[str, Any]:
    """The figures of a program; bytes are a parameter of one device."""
    found = programs.facts(program.compiled)
    memory = program.compiled.memory_analysis()
    count = count_of(params) / place.chips()
    floats = [
        leaf
        for leaf in jax.tree.leaves((params, program.state))
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim == 2
    ]
    small = min(leaf.size * leaf.dtype.itemsize for leaf in floats) / place.chips()
    branches = [branch for part in found.everywhere() for branch in part.conditionals]
    modelled = found.expected(share_of_steps, lambda kernel: kernel.modelled)
    means = found.expected(
        share_of_steps, lambda kernel: kernel.modelled if is_mean(kernel) else 0.0
    )
    collectives: dict[str, dict[str, int]] = {}
    for part in found.everywhere():
        for kind, size in part.collectives:
            row = collectives.setdefault(kind, {"count": 0, "bytes": 0})
            row["count"] += 1
            row["bytes"] += size
    copied = [sum(size >= small for size in part.copies) for part in found.everywhere()]
    return {
        "bytes_always": sum(kernel.bytes for kernel in found.kernels) / count,
        "bytes_expected": found.expected(share_of_steps) / count,
        "bytes_dearest": found.expected(lambda _: 1.0) / count,
        "branches": [
            {
                "scope": scope,
                "share": share_of_steps(scope),
                "bytes": [part.expected(share_of_steps) / count for part in parts],
            }
            for scope, parts in branches
        ],
        "least_bytes": least_bytes(params, program.state),
        "kernels": sum(kernel.opcode not in ("copy", "slice") for kernel in found.kernels),
        "copies_entry": copied[0],
        "copies_branches": sum(copied[1:]),
        "temporary_bytes": memory.temp_size_in_bytes / count,
        "argument_bytes": memory.argument_size_in_bytes / count,
        "loops": sum(part.loops for part in found.everywhere()),
        "modelled_entry": sum(kernel.modelled for kernel in found.kernels),
        "modelled": modelled,
        "means_share": means / modelled if modelled else 0.0,
        "collectives": collectives,
        "compile_s": program.seconds,
    } | (
        {"xla_bytes": program.compiled.cost_analysis()["bytes accessed"] / count}
        if place.target == "cpu"
        else {}
    )


def beside(row: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """The row with its ratios to the baseline's."""
    ratios = {"of_least": row["bytes_expected"] / row["least_bytes"]}
    for name, of in (
        ("ratio", "bytes_expected"),
        ("modelled_ratio", "modelled"),
        ("modelled_entry_ratio", "modelled_entry"),
    ):
        if baseline.get(of):
            ratios[name] = row[of] / baseline[of]
    return row | ratios


HEADER = (
    f"{'bytes a parameter':36s} always expected dearest x adamw x least kernels  copies   temp"
    " arguments loops  model: entry, all  means  compile s"
)


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table, and lines below it for what only some have."""
    if "error" in row:
        return f"{name:36s} does not compile: {row['error']}"

    def number(key: str, form: str) -> str:
        return format(row[key], form) if key in row else "–".rjust(int(form.split(".")[0]))

    text = (
        f"{name:36s} {row['bytes_always']:6.2f} {row['bytes_expected']:8.2f}"
        f" {row['bytes_dearest']:7.2f} {number('ratio', '7.2f')} {row['of_least']:7.2f}"
        f" {row['kernels']:7d} {row['copies_entry']:3d} +{row['copies_branches']:3d}"
        f" {row['temporary_bytes']:6.2f} {row['argument_bytes']:9.2f} {row['loops']:5d}"
        f"       {number('modelled_entry_ratio', '5.2f')} {number('modelled_ratio', '5.2f')}"
        f"  {100 * row['means_share']:3.0f} % {row['compile_s']:10.1f}"
    )
    more = [
        f"{'/'.join(branch['scope'].split('/')[1:])}: "
        + " or ".join(f"{size:.2f}" for size in branch["bytes"])
        + f", the dearer in {branch['share']:.0%} of the steps"
        for branch in row["branches"]
    ]
    more += [
        f"{kind}: {found['count']}, {found['bytes']:,} bytes"
        for kind, found in row["collectives"].items()
    ]
    if "xla_bytes" in row:
        more.append(f"XLA's own count: {row['xla_bytes']:.3f}, ours {row['bytes_dearest']:.3f}")
    return "\n".join([text, *(f"    {one}" for one in more)])


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def compile_variants(
    place: Place, names: list[str], args: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every variant's name and row, the baseline's first."""
    baselines: dict[str, dict[str, Any]] = {}
    for name in names:
        make, dtype = VARIANTS[name]
        dtype = dtype or args.dtype
        params = transformer(*SIZES[args.size], dtype)
        try:
            if dtype not in baselines:
                program = compile_step(VARIANTS[BASELINE].make(), params, place)
                baselines[dtype] = facts(program, params, place)
            is_baseline = make is VARIANTS[BASELINE].make
            row = (
                baselines[dtype]
                if is_baseline
                else facts(compile_step(make(), params, place), params, place)
            )
            yield name, {"dtype": dtype, **beside(row, baselines[dtype])}
        except Exception as error:  # one variant's failure is a row
            yield name, {"dtype": dtype, "error": one_line(error)}


def sum_of_squares(params: Any) -> jax.Array:
    return sum(
        (jnp.sum(x.astype(jnp.float32) ** 2) for x in jax.tree.leaves(params)), jnp.zeros(())
    )


def compile_optimizers(place: Place, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Whether every optimizer compiles, for a kernel and a bias, and what is in its program."""
    for name in names:
        factory = optimizers()[name]
        needs_steps = "total_steps" in signature(factory).parameters
        for dtype in ("float32", "bfloat16"):
            params = {
                "kernel": jax.ShapeDtypeStruct((256, 384), jnp.dtype(dtype)),
                "bias": jax.ShapeDtypeStruct((384,), jnp.dtype(dtype)),
            }
            row: dict[str, Any] = {"dtype": dtype}
            try:
                tx = factory(1e-3, **({"total_steps": 10**6} if needs_steps else {}))
                program = compile_step(tx, params, place, value_fn=sum_of_squares)
                found = programs.facts(program.compiled)
                calls = re.findall(r'custom_call_target="([^"]+)"', program.compiled.as_text())
                row |= {
                    "loops": sum(part.loops for part in found.everywhere()),
                    "custom_calls": sorted(set(calls)),
                    "bytes_expected": found.expected(share_of_steps) / count_of(params),
                    "compile_s": program.seconds,
                }
            except Exception as error:  # one optimizer's failure is a row
                row["error"] = one_line(error)
            yield f"{name} {dtype}", row


def optimizer_line(name: str, row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{name:36s} does not compile: {row['error']}"
    calls = ", ".join(row["custom_calls"]) or "none"
    return (
        f"{name:36s} compiles in {row['compile_s']:5.1f} s, {row['bytes_expected']:7.1f} bytes, "
        f"loops {row['loops']}, custom calls: {calls}"
    )


def draw(results: list[dict[str, Any]], size: str, path: Path) -> None:
    """A panel a place, a bar a variant: what it moves, and the mark of the least."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [
        {name: row for name, row in result["variants"].items() if "error" not in row}
        for result in results
    ]
    tallest = max(map(len, shown))
    figure, panels = plt.subplots(
        1,
        len(results),
        figsize=(2.6 + 4.2 * len(results), 1.5 + 0.28 * tallest),
        squeeze=False,
        layout="constrained",
    )
    for panel, result, rows in zip(panels[0], results, shown, strict=True):
        colours = ["tab:red" if name.startswith("amac") else "tab:blue" for name in rows]
        always = [row["bytes_always"] for row in rows.values()]
        expected = [row["bytes_expected"] for row in rows.values()]
        panel.barh(list(rows), expected, color=colours, alpha=0.4)
        panel.barh(list(rows), always, color=colours)
        for y, row in enumerate(rows.values()):
            panel.plot([row["least_bytes"]] * 2, [y - 0.4, y + 0.4], color="black", linewidth=1.5)
            ratio = f" = {row['ratio']:.2f} x adamw" if "ratio" in row else ""
            text = f"  {row['bytes_expected']:.1f}{ratio}"
            panel.text(row["bytes_expected"], y, text, va="center", fontsize=7)
        panel.set_xlim(0, 1.6 * max(expected, default=1))  # room for the numbers
        panel.invert_yaxis()
        panel.set_xlabel("bytes read and written, a parameter and step")
        panel.set_title(f"{result['place']}, {size} parameters", fontsize=9)
    figure.suptitle(
        "solid: at every step; pale: branches, by their share of the steps; red: AMaC;\n"
        "black line: the least that the step must move; x adamw: with parameters of its dtype",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("amac_jax", "jax", "jaxlib", "optax", "libtpu", "jax-cuda13-pjrt"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def some_of(known: dict[str, Any], names: list[str], what: str, parser: Any) -> list[str]:
    """The names, all for "all"; an unknown one ends the program."""
    if names == ["all"]:
        return list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no {what} {unknown[0]!r}; there are: {', '.join(map(repr, known))}")
    return list(dict.fromkeys(names))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = options.parser(
        "The optimizer step, compiled for devices that are not there.",
        (__doc__ or "").partition("\n\n")[2],
    )
    parser.add_argument(
        "--targets", nargs="+", choices=targets.TARGETS, default=["h100"], metavar="NAME",
        help=f"some of: {', '.join(targets.TARGETS)}",
    )  # fmt: skip
    parser.add_argument("--size", choices=SIZES, default="10M", help="parameters")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32",
        help="of the parameters of variants without one of their own",
    )  # fmt: skip
    parser.add_argument(
        "--variants", nargs="+", metavar="NAME", default=[BASELINE, "amac-adam"],
        help=f"all, or of {', '.join(map(repr, VARIANTS))}",
    )  # fmt: skip
    parser.add_argument(
        "--mesh", nargs="+", choices=MESHES,
        help=f"shard over {CHIPS} chips: fsdp by fan-in, tensor by columns and then rows, or both",
    )  # fmt: skip
    parser.add_argument(
        "--optimizers", nargs="+", metavar="NAME",
        help="in place of variants, whether these of the library compile: all, or of "
        + ", ".join(optimizers()),
    )  # fmt: skip
    parser.add_argument(
        "--json", type=Path, help="a .json file for the figures; a .png of variants goes beside it"
    )
    args = parser.parse_args(argv)
    args.variants = some_of(VARIANTS, args.variants, "variant", parser)
    if args.optimizers:
        args.optimizers = some_of(optimizers(), args.optimizers, "optimizer", parser)
    if args.mesh and (without := [name for name in args.targets if name not in targets.MESHES]):
        parser.error(f"no mesh of {without[0]!r}; there are: {', '.join(targets.MESHES)}")
    if args.json and (args.json.suffix != ".json" or args.json.is_dir()):
        parser.error(f"--json must be a file whose name ends in .json, got '{args.json}'")
    if args.json and not args.optimizers and find_spec("matplotlib") is None:
        parser.error("--json needs matplotlib, for the picture beside the figures")
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    try:
        places = [
            Place(target, mesh, targets.devices(target, mesh is not None))
            for target in args.targets
            for mesh in args.mesh or [None]
        ]
    except targets.NoCompiler as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    content: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.accelerator", *(argv or sys.argv[1:])]),
        "versions": versions(),
        "size": args.size,
        "parameters": count_of(transformer(*SIZES[args.size], args.dtype)),
        "results": [],
    }
    kind, names = (
        ("optimizers", args.optimizers) if args.optimizers else ("variants", args.variants)
    )
    in_all = len(places) * len(names) * (2 if args.optimizers else 1)
    failed = False
    with tqdm(total=in_all, leave=False, disable=None) as bar:  # on a terminal alone
        for place in places:
            rows: dict[str, Any] = {}
            content["results"].append(
                {"place": str(place), "target": place.target, "mesh": place.mesh, kind: rows}
            )
            bar.set_description(str(place))
            header = f"\n{place}" if args.optimizers else f"\n{place}, {args.size}\n{HEADER}"
            tqdm.write(header, file=sys.stdout)
            found = (
                compile_optimizers(place, names)
                if args.optimizers
                else compile_variants(place, names, args)
            )
            for name, row in found:
                rows[name] = row
                failed |= "error" in row
                shown = optimizer_line(name, row) if args.optimizers else line(name, row)
                tqdm.write(shown, file=sys.stdout)
                write(content, args)  # after each, so that an interrupted run has some
                bar.update()
    if args.json:
        print(f"\nwrote {args.json}" + ("" if args.optimizers else f" and {args.json.stem}.png"))
    return int(failed)


def write(content: dict[str, Any], args: argparse.Namespace) -> None:
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(content, indent=2) + "\n")
        if not args.optimizers:
            draw(content["results"], args.size, args.json.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(main())
