"""The examples as programs to copy: their form, their table, and what the table says of them."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import amac_jax
from benchmarks import example_runs, records
from examples.gallery import compare_optimizers, landscapes

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("[!_]*.py"))
README = (EXAMPLES / "README.md").read_text()
program = pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)


@program
def test_a_program_reads_in_one_go(path):
    source = path.read_text()
    assert f"\n    python examples/{path.name}" in source.split('"""')[1]
    assert 30 <= len(source.splitlines()) <= 150


@program
def test_a_program_imports_nothing_from_its_neighbours(path):
    neighbours = {"examples", "benchmarks", "tests", *(other.stem for other in PROGRAMS)}
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level
            names = [node.module or ""]
        assert not neighbours & {name.split(".")[0] for name in names}


def test_every_program_has_a_row_and_its_figures_are_of_its_code():
    assert {path.name for path in PROGRAMS} == example_runs.PROGRAMS.keys()
    runs = records.recorded(example_runs.RESULTS)["runs"]
    measured = README.partition(example_runs.BEGIN)[2].partition(example_runs.END)[0]
    assert measured.strip() == example_runs.table(example_runs.up_to_date(runs))
    assert "not measured" not in measured


def rows_of(head: str) -> dict[str, list[str]]:
    """The rows of the table in the README whose first column has this name."""
    lines = README.partition(f"| {head} |")[2].splitlines()[2:]
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
        name, *rest = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name.strip("`")] = rest
    return rows


def test_every_recipe_has_a_program_that_calls_it():
    rows = rows_of("recipe")
    known = [
        name
        for name, function in vars(amac_jax.recipes).items()
        if name[0] != "_" and getattr(function, "__module__", "") == amac_jax.recipes.__name__
        if inspect.isfunction(function)
    ]
    assert set(rows) == {f"recipes.{name}" for name in known}
    for name, (cell,) in rows.items():
        (file,) = re.findall(r"`(\w+\.py)", cell)
        assert f"{name}(" in (EXAMPLES / file).read_text()


def test_every_optimizer_has_a_program_that_runs_it():
    rows = rows_of("optimizer")
    assert rows.keys() == amac_jax.OPTIMIZERS.keys()
    for name, (network, landscape) in rows.items():
        if landscape == "`landscapes`":
            assert name in landscapes.OPTIMIZERS
        if network == "`compare_optimizers`":
            assert name in compare_optimizers.RATES
        for file in re.findall(r"`(\w+\.py)", network):
            assert re.search(rf"amac_jax\.{name}\b", (EXAMPLES / file).read_text())
