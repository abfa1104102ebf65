"""The package as a whole: names, import direction, optional dependencies, the README's code."""

import ast
import inspect
import json
import os
import pydoc
import re
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from amac_jax import optimizers, schedules, techniques, tools, wrappers
from amac_jax.optimizers import EVERY_TECHNIQUE
from amac_jax.techniques import KEYWORDS, AutoTechniques, Techniques
from amac_jax.techniques import TECHNIQUES as ROWS
from tests import table, warm

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "amac_jax").rglob("*.py"))

# What each room may import; a file imports from below only.
BELOW = {
    "_core": set(),
    "kernels": {"_core"},
    "paths": {"_core"},
    "schedules": {"_core"},
    "techniques": {"_core", "kernels"},
    "wrappers": {"_core"},
    "optimizers": {"_core", "kernels", "schedules", "techniques", "wrappers"},
    "state": {"_core", "techniques", "wrappers"},
    "batch_stats": {"_core"},
    "tools": {"_core", "optimizers", "state", "techniques"},
    "__init__": None,  # the names, from everywhere
}
# What the files of a room may import of their own room: each name, what stands before it. None
# other; so a technique and a wrapper have no sibling. A room's __init__ collects its names.
BEFORE = {
    "_core": [
        *("aliases", "xla", "polar", "paths", "hyperparameters", "ranges", "objective", "draws"),
        *("leaves", "moments", "measures", "boundary", "cores", "chain", "storage"),
    ],
    "schedules": ["_progress"],
    "techniques": [],
    "wrappers": [],
    "optimizers": ["_keywords", "_compose", "_muon", "_amac"],
    "tools": [
        *(
            "datasets",
            "_aligned",
            "_batches",
            "_losses",
            "_runs",
            "_space",
            "landscapes",
            "_range_test",
            "_ablation",
        ),
        "_sweep",
    ],
}
# The tables, which name every technique and every optimizer.
COLLECTS = {"techniques/_table.py", "optimizers/_by_name.py"}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} has a relative import"
            found.add(node.module or "")
            # `from amac_jax.optimizers import recipes` imports a file; other names are not files.
            file = ROOT / (node.module or "").replace(".", "/")
            found |= {
                f"{node.module}.{alias.name}"
                for alias in node.names
                if (file / f"{alias.name}.py").exists() or (file / alias.name).is_dir()
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards_and_are_public(path):
    place = path.relative_to(ROOT / "amac_jax")
    room = place.parts[0].removesuffix(".py")
    ours = {name for name in imported(path) if name.split(".")[0] == "amac_jax"}
    foreign = imported(path) - ours
    assert not [name for name in foreign if any(part[0] == "_" for part in name.split(".")[1:])]
    if (allowed := BELOW[room]) is None:
        return
    assert {name.split(".")[1] for name in ours if name != "amac_jax"} - {room} <= allowed
    assert "amac_jax" not in ours
    others = [name.split(".") for name in ours if name.split(".")[1] not in (room, "_core")]
    assert not [name for name in others if len(name) > 2 and name[2].startswith("_")]
    siblings = {name.split(".")[2] for name in ours if name.startswith(f"amac_jax.{room}.")}
    if len(place.parts) == 1 or place.name == "__init__.py" or str(place) in COLLECTS:
        return
    name, before = place.parts[1].removesuffix(".py"), BEFORE[room]
    if room == "_core":
        assert siblings - {name} <= set(before[: before.index(name)])
    else:
        assert siblings <= set(before[: before.index(name)] if name in before else before)


def test_the_rooms_are_those_of_the_table():
    there = {path.relative_to(ROOT / "amac_jax").parts[0].removesuffix(".py") for path in SOURCES}
    assert there == BELOW.keys()
    core = {path.stem for path in (ROOT / "amac_jax" / "_core").iterdir() if path.suffix == ".py"}
    assert core | {"draws"} == {"__init__", *BEFORE["_core"]}


# The public names.

INTERNAL = {"amac_techniques"}  # public in their room alone
TABLES = {"OPTIMIZERS"}
MODULES = {"recipes", "tools", "datasets", "landscapes", "plotting"}
ON_DEMAND = [
    "ablate",
    "datasets",
    "landscapes",
    "lr_range_test",
    "plotting",
    "recompute_batch_stats",
    "sweep",
    "tools",
]


def test_every_public_function_is_listed_once():
    assert len(amac_jax.__all__) == len(set(amac_jax.__all__))
    in_rooms = {
        name
        for room in (optimizers, techniques, wrappers, schedules, tools)
        for name in room.__all__
        if inspect.isfunction(getattr(room, name))
    }
    in_files = {
        name
        for module in ("kernels", "paths", "state", "batch_stats")
        for name, function in vars(import_module(f"amac_jax.{module}")).items()
        if inspect.isfunction(function) and function.__module__ == f"amac_jax.{module}"
        if name[0] != "_" and name not in ("check_rule", "matrix_axes")
    }
    assert (in_rooms | in_files) - INTERNAL | MODULES | TABLES == set(amac_jax.__all__)
    for name in amac_jax.__all__:
        value = getattr(amac_jax, name)
        assert inspect.isfunction(value) or name in MODULES | TABLES


def test_dir_is_the_public_names():
    assert dir(amac_jax) == sorted(amac_jax.__all__)
    assert "recompute_batch_stats" in dir(amac_jax)
    listed = {n for n in dir(amac_jax) if isinstance(getattr(amac_jax, n), ModuleType)}
    assert listed == MODULES


def test_dir_without_flax_is_without_what_needs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    assert sorted({*amac_jax.__all__} - {"recompute_batch_stats"}) == dir(amac_jax)


def test_a_tool_is_loaded_when_it_is_asked_for():
    program = f"""
import sys, types
import amac_jax

LAZY = ("amac_jax.tools", "amac_jax.batch_stats", "matplotlib", "flax")
assert not [m for m in sys.modules if m.startswith(LAZY)]
for name in {ON_DEMAND}:
    for module in [m for m in sys.modules if m.startswith(LAZY[:2])]:  # as if nothing were loaded
        del sys.modules[module]
    for other in {ON_DEMAND}:
        vars(amac_jax).pop(other, None)
    assert isinstance(getattr(amac_jax, name), (types.ModuleType, types.FunctionType)), name
    assert getattr(amac_jax, name).__name__.split(".")[-1] == name
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'amac_jax' has no attribute 'adamm'"):
        _ = amac_jax.adamm


def test_help_begins_with_the_docstring_and_lists_every_function():
    text = pydoc.render_doc(amac_jax, renderer=pydoc.plaintext)
    first, _, rest = (amac_jax.__doc__ or "").partition("\n\n")
    shown = re.sub(r"\s+", " ", text)
    start = f"amac_jax NAME amac_jax - {first} DESCRIPTION {rest}"
    assert re.sub(r"\s+", " ", start) in shown[: len(start) + 100]
    functions = [n for n in amac_jax.__all__ if n not in MODULES | TABLES]
    missing = [n for n in functions if not re.search(rf"^    {n}\(", text, re.MULTILINE)]
    assert not missing


PUBLIC = sorted(set(amac_jax.__all__) - MODULES - TABLES)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented(name):
    docstring = inspect.getdoc(getattr(amac_jax, name)) or ""
    wanted = ["Args:", "Returns:", "Example:", ">>> "]
    assert not [part for part in wanted if part not in docstring]


@pytest.mark.parametrize("name", [*table.OPTIMIZERS, "compose", "amac"])
def test_help_lists_the_techniques(name):
    parameters = inspect.signature(getattr(amac_jax, name)).parameters
    assert KEYWORDS.keys() <= set(parameters)
    assert "techniques" not in parameters
    kinds = {parameters[keyword].kind for keyword in KEYWORDS}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - {"stacked", "kernel_mask"}))
def test_no_default_is_callable(name):
    """`optax.inject_hyperparams` takes every callable argument for a schedule."""
    parameters = inspect.signature(getattr(amac_jax, name)).parameters.values()
    defaults = [p.default for p in parameters if p.default is not inspect.Parameter.empty]
    assert not [default for default in defaults if callable(default)]


# The table of techniques, against literals and against the optimizers that are built from it.

OF_THE_PIPELINE = [row for row in ROWS if row.keyword not in ("core", "learning_rate")]
NUMERIC = [row for row in OF_THE_PIPELINE if row.keyword != "plateau"]
by_keyword = pytest.mark.parametrize("row", OF_THE_PIPELINE, ids=lambda row: row.keyword)


def test_every_technique_has_literals_in_the_tests_table():
    assert [*table.OFF] == [row.keyword for row in NUMERIC]
    around = ["skip_nonfinite", "skip_spikes", "record_metrics"]
    assert [*table.ON] == [row.keyword for row in OF_THE_PIPELINE] + around
    assert table.TECHNIQUES.keys() == {name for row in NUMERIC for name in row.ranges()}
    for row in NUMERIC:
        off = table.OFF[row.keyword]
        assert {name: off[name] for name in row.off} == row.off
        assert row.keyword in table.ON[row.keyword]
        assert row.companions() == [*table.COMPANIONS.get(row.keyword, {})]


def test_the_order_of_the_pipeline():
    assert [row.keyword for row in ROWS] == [
        *("clip_norm", "centralize", "core", "noise", "clip_value", "learning_rate", "momentum"),
        *("weight_decay", "layer_multipliers", "plateau", "sync_period", "average_start"),
    ]


def test_the_typed_keywords_are_those_of_the_table():
    for typed in (Techniques, AutoTechniques):
        assert typed.__optional_keys__ == KEYWORDS.keys()
        assert not typed.__required_keys__


def recorded(**keywords) -> set[str]:
    tx = amac_jax.compose(optax.identity(), 0.1, **keywords, record_metrics=True)
    params = {"dense": {"kernel": np.ones((2, 2), np.float32)}}
    return set(amac_jax.metrics(jax.eval_shape(tx.init, params)))


@by_keyword
def test_what_a_technique_records_is_in_metrics_and_nowhere_else(row):
    always = {"grad_norm", "update_norm", "param_norm", "update_ratio", "learning_rate"}
    assert recorded() == always
    on = {**table.ON, "plateau": {"plateau": amac_jax.reduce_on_plateau()}}
    assert recorded(**on[row.keyword]) == always | set(row.records)
    own = {name for other in ROWS for name in other.records}
    assert len(own) == sum(len(other.records) for other in ROWS)


def test_what_a_core_records():
    (row,) = (row for row in ROWS if row.keyword == "core")
    tx = amac_jax.adam(0.1, record_metrics=True)
    assert set(row.records) <= set(amac_jax.metrics(tx.init(jnp.ones(2))))


@by_keyword
def test_a_trial_value_puts_the_technique_in(row):
    if row.trial is None:
        return
    params = {"dense": {"kernel": jnp.ones((2, 2))}}
    plain = amac_jax.compose(optax.identity(), 0.1).init(params)
    tried = amac_jax.compose(optax.identity(), 0.1, **{row.keyword: row.trial}).init(params)
    assert len(tried.inner.stages) == len(plain.inner.stages) + 1


# What a type checker, a reader of `repr` and a reader of a traceback see.

SNIPPET = """import amac_jax
import optax
amac_jax.adamw(optax.cosine_decay_schedule(1e-3, 100))
amac_jax.adamw(amac_jax.warmup_cosine(1e-3, 100, 10))
amac_jax.compose(optax.scale_by_lion(), 1e-4, plateau=amac_jax.reduce_on_plateau())
amac_jax.adamw(1e-3, clip_norm=1.0)
amac_jax.adamw(1e-3, clip_nrom=1.0)  # wrong: No parameter named "clip_nrom"
amac_jax.adamw(1e-3, centralize=True, weight_decay=lambda count: 0.1)
amac_jax.adamw(1e-3, weight_decay="auto")  # wrong: "Literal['auto']"
amac_jax.adam(1e-3, 0.9)  # wrong: Expected 1 positional argument
amac_jax.amac(1e-3, 100, average_start=None)
amac_jax.amac(1e-3, 100, weight_decay="auto", dampening="auto", average_start="auto")
amac_jax.amac(1e-3, 100, average_start="never")  # wrong: "Literal['never']"
amac_jax.amac(1e-3, 100, warmup_steps=None)
amac_jax.amac(1e-3, 100, lookahed=True)  # wrong: No parameter named "lookahed"
"""


def test_a_type_checker_finds_what_is_wrong_and_nothing_else(tmp_path):
    (tmp_path / "snippet.py").write_text(SNIPPET)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    run = subprocess.run(
        [*command, "-p", str(tmp_path)], capture_output=True, text=True, check=False
    )
    found = {
        problem["range"]["start"]["line"]: problem["message"]
        for problem in json.loads(run.stdout)["generalDiagnostics"]
    }
    wrong = {
        number: line.partition("# wrong: ")[2]
        for number, line in enumerate(SNIPPET.splitlines())
        if "# wrong" in line
    }
    assert found.keys() == wrong.keys()
    assert all(wrong[line] in message for line, message in found.items())


def test_a_transformation_says_what_it_is():
    adamw = amac_jax.adamw(1e-3, clip_norm=1.0)
    written = "adamw(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08, {}, {})"
    orders = [("weight_decay=0.01", "clip_norm=1.0"), ("clip_norm=1.0", "weight_decay=0.01")]
    assert repr(adamw) in [written.format(*order) for order in orders]
    assert repr(amac_jax.accumulate_gradients(adamw, 4)) == (
        f"accumulate_gradients(tx={adamw!r}, steps=4)"
    )
    assert repr(amac_jax.skip_nonfinite(adamw)) == f"skip_nonfinite(tx={adamw!r})"
    assert repr(amac_jax.lookahead(7)) == "lookahead(sync_period=7, slow_step_size=0.5, key=0)"
    assert repr(amac_jax.clip_by_value(lambda count: 1.0)) == "clip_by_value(limit=<<lambda>>)"
    amac = repr(amac_jax.amac(jnp.array(5e-3), 1000, noise=0.1, average_start=None))
    assert amac.startswith("amac(learning_rate=<array>, total_steps=1000, core='muon', ")
    assert {"noise=0.1", "warmup_steps=100.0", "decay_floor=0.7", "average_start=None"} <= {
        *re.split(r"[(), ]+", amac)
    }
    assert "average_period" not in amac


@pytest.mark.parametrize("name", table.CASES)
def test_what_is_said_of_a_transformation_holds_no_address(name):
    """It is the same in every run; the transformations of `table.supplied` are not ours."""
    tx = table.CASES[name].build()
    if type(tx) is not optax.GradientTransformationExtraArgs:
        assert re.fullmatch(r"\w+\(.*\)", repr(tx))
        assert " at 0x" not in repr(tx)


def test_few_frames_are_between_a_users_and_a_cores_update(monkeypatch):
    frames = []

    def scale_by_nothing(**hyperparameters):
        def update(updates, state, params=None):
            frame = sys._getframe().f_back
            frames.append([])
            while frame is not None and frame.f_code.co_name != take_a_step.__name__:
                frames[-1].append(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")
                frame = frame.f_back
            return updates, state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    def take_a_step(params, tx):
        state = tx.init(params)
        frames.clear()
        return tx.update(params, state, params)

    monkeypatch.setattr(optax, "scale_by_adam", scale_by_nothing)
    settings = {**EVERY_TECHNIQUE, "record_metrics": True, "state_dtype": "bfloat16"}
    for techniques_in in (settings, {"record_metrics": True, "state_dtype": "bfloat16"}):
        tx = amac_jax.amac(5e-3, 1000, **techniques_in)
        # Traced, not compiled: the frames are the same.
        jax.eval_shape(partial(take_a_step, tx=tx), {"kernel": np.ones((2, 2), np.float32)})
        ((*between, users),) = frames
        assert users.endswith("boundary.py:update")
        assert 1 <= len(between) <= 5  # one of them Muon's, around the core of all other leaves


def test_imports_and_trains_without_the_extras():
    program = """
import sys
for missing in ("flax", "matplotlib", "chex", "sklearn"):
    sys.modules[missing] = None  # importing it is an ImportError
import amac_jax, jax, numpy as np
tx, params = amac_jax.amac(0.1, 10), np.ones((2, 2), np.float32)
state = jax.jit(tx.init)(params)
_, state = jax.jit(tx.update)(params, state, params)
amac_jax.averaged_params(state)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_what_needs_flax_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    monkeypatch.delitem(sys.modules, "amac_jax.batch_stats", raising=False)
    with pytest.raises(ImportError, match="recompute_batch_stats needs Flax: pip install"):
        _ = amac_jax.recompute_batch_stats


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(python_blocks())))
def test_the_readmes_code_runs(number):
    exec(compile(python_blocks()[number], f"README.md, block {number}", "exec"), {})


def test_the_readme_has_code_and_what_it_names_exists():
    readme = (ROOT / "README.md").read_text()
    assert len(python_blocks()) >= 2
    links = re.findall(r"\]\((?!https?:)([^)#]+)", readme)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
    assert not [
        name for name in re.findall(r"amac_jax\.(\w+)", readme) if not hasattr(amac_jax, name)
    ]


@pytest.mark.parametrize("example", ["quickstart.py", "nnx.py"])
def test_the_short_examples_run(example):
    run = warm.run([sys.executable, ROOT / "examples" / example], dict(os.environ))
    assert run.returncode == 0, run.stderr
    errors = [float(line.split()[-1]) for line in run.stdout.splitlines()]
    assert len(errors) == 2
    assert max(errors) < 0.003
    assert len((ROOT / "examples" / "quickstart.py").read_text().splitlines()) <= 40


def python_files(*rooms: Path) -> list[Path]:
    return [path.relative_to(ROOT) for room in rooms for path in room.rglob("*.py")]


def test_no_file_is_named_as_a_module_of_the_standard_library():
    """A program's folder is where Python looks first: `random.py` there hides `random`."""
    rooms = [room for room in ROOT.iterdir() if room.is_dir() and room.name != "runs"]
    ours = python_files(*(room for room in rooms if room.name[0] != "."), ROOT / ".ci")
    assert {"amac_jax", "benchmarks", "examples", "tests"} <= {path.parts[0] for path in ours}
    names = {path: {*path.parent.parts, path.stem} for path in ours}
    assert not [path for path in ours if names[path] & sys.stdlib_module_names]


def test_no_program_changes_where_python_looks_for_modules():
    """They are called from the root of a clone, so that each module has one name for all."""
    changed = re.compile(r"sys\.path\.\w|addsitedir")
    rooms = [ROOT / room for room in ("amac_jax", "benchmarks", "examples", "tests")]
    here = Path(__file__).relative_to(ROOT)
    ours = [path for path in python_files(*rooms) if path != here]
    assert not [path for path in ours if changed.search((ROOT / path).read_text())]
