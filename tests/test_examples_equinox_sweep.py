"""`examples/equinox_sweep.py` in a short form: its search finds what its default rate does not."""

import pytest

from examples import equinox_sweep

pytestmark = pytest.mark.usefixtures("promoting")  # Optax and Equinox promote dtypes


def test_the_best_trial_is_better_than_the_default_after_a_few_epochs(tmp_path, capsys):
    result = equinox_sweep.main(trials=8, epochs=2, out=tmp_path)
    assert result["sweep"] >= 90 > 85 >= result["optax"]
    assert result["steps"] <= 8 * 2 * 2 * (1200 // 32) / 2
    printed = capsys.readouterr().out
    assert "8 trials of 2 seeds" in printed
    assert f"test accuracy of the best trial, 3 seeds: {result['sweep']:.2f} %" in printed
    assert (tmp_path / "sweep.png").stat().st_size > 0


def test_the_usual_optimizer_alone(capsys):
    result = equinox_sweep.main(optimizer="optax", epochs=1)
    assert result.keys() == {"optax"}
