"""`examples/gallery/compare_optimizers.py`, with fewer optimizers, steps and seeds."""

import contextlib
import inspect
import io
import json
import os
import sys

import jax
import numpy as np
import pytest

import amac_jax
from examples.gallery import compare_optimizers
from examples.gallery.compare_optimizers import GRID, TASKS, Problem
from tests import warm

DEMOS = ["accumulation", "clipping", "schedules"]
FAST = {
    "sweep": jax.jit(inspect.unwrap(compare_optimizers.sweep), static_argnames=("task", "name")),
    "measure": jax.jit(inspect.unwrap(compare_optimizers.measure), static_argnames="task"),
}


@contextlib.contextmanager
def fast_compilation():
    """That of conftest.py: the program asks XLA for more, which takes twice as long.

    The tests against NumPy compile as the program does.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, function in FAST.items():
            patch.setattr(compare_optimizers, name, function)
        yield


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    """The folder, the content of results.json, and the printed text."""
    out = tmp_path_factory.mktemp("regression") / "new" / "folder"
    arguments = ["--task=regression", "--optimizers", "sgd", "adam", "newton", "--steps=30"]
    with fast_compilation(), contextlib.redirect_stdout(io.StringIO()) as text:
        compare_optimizers.main([*arguments, "--seeds=2", "--out", str(out)])
    return out, json.loads((out / "results.json").read_text()), text.getvalue()


def stacked(task: str, steps: int, seeds: int) -> Problem:
    problems = [TASKS[task].make(seed, steps) for seed in range(seeds)]
    return jax.tree.map(lambda *arrays: np.stack(arrays), *problems)


def test_a_run_leaves_its_results_and_pictures(regression):
    out, content, _ = regression
    pictures = sorted(path.name for path in out.glob("*.png"))
    assert pictures == [f"{name}.png" for name in [*DEMOS[:2], "curves_regression", DEMOS[2]]]
    for name in pictures:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
        assert (out / name).stat().st_size < 300_000
    assert content["configuration"] == {
        "task": ["regression"],
        "optimizers": ["sgd", "adam", "newton"],
        "seeds": 2,
        "steps": 30,
    }
    assert {"python", "amac_jax", "jax", "optax", "numpy"} == set(content["versions"])
    assert content["device"]
    assert list(content["tasks"]) == ["regression"]


def test_the_best_rate_is_the_lowest_of_those_that_do_not_diverge(regression):
    rows = {row["optimizer"]: row for row in regression[1]["tasks"]["regression"]["rows"]}
    assert list(rows) == ["newton", "adam", "sgd"]  # from the lowest loss to the highest
    for row in rows.values():
        assert len(row["rates"]) == len(row["choice_loss"]) == len(GRID)
        finite = [np.inf if loss is None else loss for loss in row["choice_loss"]]
        best = int(np.argmin(finite))
        assert row["best_rate"] == row["rates"][best]
        assert [loss is None for loss in row["choice_loss"]] == row["diverged"]
        # Of this task the choice is by the reported loss.
        np.testing.assert_allclose(np.mean(row["final_loss"][best]), finite[best], rtol=1e-5)
        assert row["loss"]["mean"] == pytest.approx(np.mean(row["final_loss"][best]))
        assert row["loss"]["sd"] == pytest.approx(np.std(row["final_loss"][best], ddof=1))
    # Beyond twice the inverse of the largest curvature, near 4, gradient descent diverges.
    assert rows["sgd"]["diverged"] == [rate > 0.2 for rate in rows["sgd"]["rates"]]
    assert rows["newton"]["diverged"] == [rate > 2 for rate in rows["newton"]["rates"]]
    assert rows["newton"]["best_rate"] == 1
    assert rows["newton"]["steps_to_target"] == 1
    assert rows["sgd"]["steps_to_target"] is None


def test_newton_finds_the_solution_of_least_squares():
    problems = stacked("regression", 1, 2)
    history = compare_optimizers.sweep(TASKS["regression"], "newton", np.ones(1, "f4"), problems)
    found = np.asarray(history["weights"])  # (seeds, rates, before and after the step, 10)
    for seed in range(2):
        x, y = (part[seed].astype(float) for part in problems.train)
        solution = np.linalg.lstsq(x, y)[0]
        np.testing.assert_allclose(found[seed, 0, 1], solution, rtol=1e-3, atol=1e-3)
        assert np.abs(found[seed, 0, 0] - solution).max() > 1


def test_gradient_descent_is_that_of_numpy():
    problems = stacked("regression", 5, 1)
    task = TASKS["regression"]
    history = compare_optimizers.sweep(task, "sgd", np.array([0.01, 0.1], "f4"), problems)
    x, y = (part[0].astype(float) for part in problems.train)
    for index, rate in enumerate((0.01, 0.1)):
        weights = np.zeros(10)
        for step in range(5):
            np.testing.assert_allclose(history["weights"][0, index, step], weights, atol=1e-5)
            weights -= rate * x.T @ (x @ weights - y) / len(x)
        exact = x @ np.linalg.lstsq(x, y)[0]
        above = np.mean((x @ weights - y) ** 2) / 2 - np.mean((exact - y) ** 2) / 2
        curve, _, accuracy = compare_optimizers.measure(task, history, problems)
        np.testing.assert_allclose(curve[0, index, -1], above, rtol=1e-4)
        assert np.isnan(accuracy).all()


def test_the_table_has_a_line_an_optimizer_and_is_aligned(regression):
    lines = regression[2].split("\n\n")[0].splitlines()[1:]
    assert [line.split()[0] for line in lines[-4:]] == ["optimizer", "newton", "adam", "sgd"]
    assert len({len(line) for line in lines[-4:]}) == 1
    assert "±" in lines[-1]


def test_clipping_saves_a_run_that_explodes(regression):
    clipping = regression[1]["clipping"]
    assert 2 <= clipping["exploded_at_step"] <= 10
    assert clipping["last_loss"]["sgd"] is None
    assert clipping["last_loss"]["sgd, clip_norm=1.0"] < 0.05 * clipping["first_loss"]
    assert "ends at nan with sgd, and at 0.2 with sgd and clip_norm=1.0" in regression[2]


def test_micro_batches_give_the_weights_of_the_large_batch(regression):
    # Not 0: the two add up the same gradients in another order.
    assert 0 < regression[1]["accumulation"]["largest_difference"] <= 1e-6


@pytest.mark.parametrize("name", ["adam", "sophia"])
def test_the_digits_are_learnt_and_chosen_on_other_images(name, capsys):
    task = TASKS["digits"]
    with fast_compilation():
        row = compare_optimizers.compare(task, name, stacked("digits", 20, 2)).row
    assert 50 < row["accuracy"]["mean"] <= 100  # chance is 10
    assert row["loss"]["mean"] < 1.8 < np.log(10)
    best = row["rates"].index(row["best_rate"])
    assert row["choice_loss"][best] != pytest.approx(row["loss"]["mean"], rel=1e-6)
    compare_optimizers.print_table(task, [row], 20, 2)
    assert f"{row['accuracy']['mean']:.1f} ± " in capsys.readouterr().out


def test_the_images_of_the_three_parts_are_different_ones():
    problem = TASKS["digits"].make(0, 20)
    parts = [{image.tobytes() for image in points[0]} for points in problem[1:4]]
    assert [len(part) for part in parts] == [1137, 300, 360]
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]
    assert problem.batches.max() < 1137


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_gives_one_problem_and_another_another(task):
    one, same, other = (jax.tree.leaves(TASKS[task].make(seed, 5)) for seed in (0, 0, 1))
    assert all(map(np.array_equal, one, same))
    assert not all(map(np.array_equal, one, other))


def test_where_every_rate_diverges_the_table_and_picture_say_so(monkeypatch, capsys):
    monkeypatch.setitem(compare_optimizers.RATES, "sgd", 1e6)
    task = TASKS["regression"]
    result = compare_optimizers.compare(task, "sgd", stacked("regression", 20, 2))
    assert result.row["diverged"] == [True] * len(GRID)
    for name in ("best_rate", "loss", "accuracy", "steps_to_target"):
        assert result.row[name] is None
    json.dumps(result.row, allow_nan=False)
    compare_optimizers.print_table(task, [result.row], 20, 2)
    assert capsys.readouterr().out.splitlines()[-1].split()[:5] == ["sgd", "-", "-", "-", "8"]
    figure = compare_optimizers.draw_task(task, [result], 20)
    crosses = [line for line in figure.axes[1].lines if line.get_marker() == "x"]
    assert [len(line.get_xdata()) for line in crosses] == [len(GRID)]


@pytest.mark.parametrize("name", compare_optimizers.RATES)
def test_every_rate_is_in_the_middle_of_its_grid(name):
    rates = compare_optimizers.RATES[name] * GRID
    assert compare_optimizers.RATES[name] == pytest.approx(rates[len(GRID) // 2])


def test_every_schedule_has_a_panel_of_its_own():
    public = {name for name, _ in inspect.getmembers(amac_jax.schedules, inspect.isfunction)}
    assert public <= set(amac_jax.__all__)
    titles = [axes.get_title() for axes in compare_optimizers.schedules_figure().axes]
    titles = [title for title in titles if title]  # the last row may have empty places
    assert len(titles) == len(set(titles)) == 17
    assert public | {"reduce_on_plateau"} == {title.split("(")[0].split(",")[0] for title in titles}


@pytest.mark.parametrize(
    "argument",
    ["--task=mnist", "--optimizers=sgdd", "--seeds=1", "--steps=0", "--steps=x"],
)
def test_bad_options_are_refused_by_name(argument, capsys):
    with pytest.raises(SystemExit) as exit_info:
        compare_optimizers.main([argument])
    assert exit_info.value.code == 2
    assert argument.split("=")[0] in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as exit_info:
        compare_optimizers.main([f"--out={tmp_path / 'file'}"])
    text = str(exit_info.value.code)
    assert text.startswith("compare_optimizers.py: error: ")
    assert str(tmp_path / "file") in text
    assert "\n" not in text


def test_it_starts_as_a_program_and_explains_itself():
    done = warm.run(
        [sys.executable, "-m", "examples.gallery.compare_optimizers", "--help"],
        dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    for option in ("--task", "--optimizers", "--seeds", "--steps", "--out"):
        assert option in done.stdout
