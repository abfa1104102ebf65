"""The package as a whole: names, import direction, optional dependencies, the README's code."""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import amac_jax

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "amac_jax").rglob("*.py"))

# What each part may import; a file imports from below only. Files of one folder: none of their own.
BELOW = {
    "schedules": set(),
    "precision": set(),
    "layout": set(),
    "leaves": {"layout"},
    "keys": set(),
    "moments": set(),
    "samplers": set(),
    "objective": set(),
    "rounding": {"keys", "samplers"},
    "landscapes": {"keys", "objective"},
    "plotting": set(),
    "batch_stats": set(),
    "transforms": {
        *("schedules", "precision", "layout", "leaves", "keys", "moments", "objective"),
        *("samplers", "rounding"),
    },
    "optimizers": {
        *("schedules", "precision", "layout", "leaves", "keys", "samplers", "rounding"),
        *("transforms", "optimizers"),
    },
    "inspection": {"schedules", "precision", "layout", "transforms"},
    "batches": set(),
    "range_test": {"batches", "keys", "objective", "optimizers"},
    "ablation": {"batches", "keys", "objective", "optimizers", "inspection", "schedules"},
    "__init__": None,  # the names, from everywhere
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards_and_are_public(path):
    part = path.relative_to(ROOT / "amac_jax").parts[0].removesuffix(".py")
    ours = {name for name in imported(path) if name.split(".")[0] == "amac_jax"}
    if (allowed := BELOW[part]) is not None:
        assert {name.split(".")[1] for name in ours} <= allowed
    assert not [name for name in imported(path) if "._" in name]


PUBLIC = sorted(
    {name for name, value in vars(amac_jax).items() if name[0] != "_" and inspect.isfunction(value)}
    | {"recompute_batch_stats"}
)


def test_the_public_names_are_there():
    assert len(PUBLIC) > 20


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented(name):
    docstring = inspect.getdoc(getattr(amac_jax, name)) or ""
    wanted = ["Args:", "Returns:", "Example:", ">>> "]
    assert not [part for part in wanted if part not in docstring]


def test_help_lists_the_techniques():
    for factory in (amac_jax.adam, amac_jax.amac):
        parameters = inspect.signature(factory).parameters
        assert {"sync_period", "average_start", "skip_nonfinite"} <= set(parameters)


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - {"stacked", "kernel_mask"}))
def test_no_default_is_callable(name):
    """`optax.inject_hyperparams` takes every callable argument for a schedule."""
    parameters = inspect.signature(getattr(amac_jax, name)).parameters.values()
    defaults = [p.default for p in parameters if p.default is not inspect.Parameter.empty]
    assert not [default for default in defaults if callable(default)]


@pytest.mark.parametrize("missing", ["flax", "matplotlib", "chex", "sklearn"])
def test_imports_and_trains_without_the_extras(missing):
    program = f"""
import sys
sys.modules[{missing!r}] = None  # importing it is an ImportError
import amac_jax, jax.numpy as jnp
tx = amac_jax.amac(0.1, 10)
state = tx.init(jnp.ones((2, 2)))
tx.update(jnp.ones((2, 2)), state, jnp.ones((2, 2)))
amac_jax.averaged_params(state)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_what_needs_flax_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    monkeypatch.delitem(sys.modules, "amac_jax.batch_stats", raising=False)
    with pytest.raises(ImportError, match="recompute_batch_stats needs Flax: pip install"):
        _ = amac_jax.recompute_batch_stats


def test_importing_it_does_not_import_flax():
    program = "import amac_jax, sys; assert 'flax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


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
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / example],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    errors = [float(line.split()[-1]) for line in run.stdout.splitlines()]
    assert len(errors) == 2
    assert max(errors) < 0.003
    assert len((ROOT / "examples" / "quickstart.py").read_text().splitlines()) <= 40
