"""examples/gallery/landscapes.py: what its table and its pictures say."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from amac_jax.tools.landscapes import LANDSCAPES, trajectory
from amac_jax.tools.plotting import plot_gallery, plot_paths
from examples.gallery import landscapes as example


@pytest.mark.parametrize(
    ("distances", "step"),
    [
        ([1.0, 0.0, 0.0], 1),
        ([0.0, 1.0, 0.0], 2),  # what counts is to stay
        ([0.0, 0.0, 1.0], None),
        ([0.0, np.nan, 0.0], 2),
        ([0.0, 0.0, np.nan], None),
        ([9e-4, 0.0], 0),
    ],
)
def test_settled_is_within_the_tolerance_for_good(distances, step):
    assert example.settled_at(np.array(distances)) == step


def test_only_a_saddle_may_be_left_downwards():
    below = np.array([-100.0])
    assert example.distances_from_minimum("saddle", below) == 0
    assert example.distances_from_minimum("x_cos_pi_x", below) > 90


def test_the_best_of_the_grid_is_the_soonest_there():
    result = example.run("ill_conditioned", "sgd", 200)
    landscape, steps = LANDSCAPES["ill_conditioned"], []

    @jax.jit
    def values_at(rate):
        optimizer = example.OPTIMIZERS["sgd"](rate, 200)
        return trajectory(optimizer, landscape.function, np.array(landscape.start), 200).values

    for rate in example.RATES:
        steps.append(example.settled_at(np.asarray(values_at(rate))))
    reached = [step for step in steps if step is not None]
    assert result.settled == min(reached)
    assert result.rate == pytest.approx(example.RATES[steps.index(min(reached))])
    assert result.distance <= example.TOLERANCE
    assert result.path.points.shape == (201, 2)


def test_the_program_prints_the_table_and_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(example.animate, "__defaults__", (2,))  # frames, in place of 60
    example.main(["--landscapes", "cosh", "rosenbrock", "--optimizers", "adam", "newton",
                  "--steps", "100", "--gif", "--out", str(tmp_path)])  # fmt: skip
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows.setdefault(cells[0], []).append(cells[1:])
    # Newton is at the minimum of cosh in 6 steps, of Rosenbrock's function in 3, at rate 1.
    assert [(cells[0], cells[2], cells[3]) for cells in rows["newton"]] == [
        ("1", "6", "yes"), ("1", "3", "yes")]  # fmt: skip
    assert float(rows["adam"][1][1]) < 56.5
    for name in ("cosh", "rosenbrock", "gallery", "newton_cosh"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "gallery.gif").read_bytes().startswith(b"GIF8")


def test_newtons_picture_shows_squares():
    figure = example.newton_on_cosh()
    errors = np.asarray(figure.axes[0].lines[0].get_ydata())
    small = errors[errors < 1]
    assert np.all(small[1:] <= small[:-1] ** 2)
    assert errors[-1] < 1e-6


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--landscapes", "himmelblau"], "invalid choice: 'himmelblau'"),
        (["--optimizers", "adamm"], "invalid choice: 'adamm'"),
        (["--steps", "0"], "must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        example.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_an_error_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"^landscapes.py: error: [^\n]*$"):
        example.main(["--out", str(tmp_path / "file" / "folder")])


def test_plots_have_each_path_on_the_map_and_beside_it():
    results = {name: example.run("beale", name, 30) for name in ("sgd", "adam", "lion")}
    paths = {name: result.path for name, result in results.items()}
    figure = plot_paths(LANDSCAPES["beale"], paths, "three")
    assert [axes.get_title() for axes in figure.axes[::2]] == list(paths)
    for on, beside, path in zip(figure.axes[::2], figure.axes[1::2], paths.values(), strict=True):
        drawn = max(on.lines, key=lambda line: len(line.get_xdata()))
        np.testing.assert_allclose(np.stack(drawn.get_data(), axis=1), path.points)
        np.testing.assert_allclose(beside.lines[0].get_ydata(), path.values, rtol=1e-6)
    gallery = plot_gallery({"beale": LANDSCAPES["beale"]}, {"beale": paths})
    assert [text.get_text() for text in gallery.legends[0].get_texts()] == list(paths)
    with pytest.raises(ValueError, match="paths must hold at least one trajectory"):
        plot_paths(LANDSCAPES["beale"], {})


def test_the_readmes_table_is_the_programs():
    """What the README says of Rosenbrock's function is what the command prints, to 2 digits."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    rows = re.findall(r"^\| (newton|momentum|nesterov|adamax|sgd) +\|(.*)\|$", readme, re.MULTILINE)
    for name, cells in rows:
        rate, distance, settled, *_ = (cell.strip() for cell in cells.split("|"))
        result = example.run("rosenbrock", name, 1000)
        assert result.rate == pytest.approx(float(rate), rel=0.05)
        assert result.distance == pytest.approx(float(distance), rel=0.1, abs=1e-8)
        assert result.settled is not None
        assert abs(result.settled - int(settled)) <= 2
    assert len(rows) == 5
