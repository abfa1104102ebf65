"""examples/gan.py in a short form: what training and averaging change."""

from functools import partial

import numpy as np
import pytest
from matplotlib.image import imread

import amac_jax
from examples import gan


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"WIDTH": 8, "BATCH": 16, "JUDGE_STEPS": 60, "SAMPLES": 200}.items():
        monkeypatch.setattr(gan, name, value)
    # A rate at which a few steps are enough to see.
    fast = partial(amac_jax.recipes.gan, learning_rate=2e-3)
    monkeypatch.setattr(amac_jax.recipes, "gan", fast)


def test_training_brings_the_samples_nearer_and_the_picture_is_drawn(tmp_path, capsys):
    figures = gan.main(steps=300, dataset="digits", out=tmp_path)
    untrained = gan.main(steps=1, dataset="digits", out=None)
    # The mean of so short a run lags behind its last weights: here they show what was learnt.
    name = "Frechet distance, last weights"
    assert figures[name] < 0.7 * untrained[name]
    assert figures["Frechet distance"] != figures[name]
    printed = capsys.readouterr().out
    for label, figure in figures.items():
        assert f"{label}: {figure:.2f}" in printed
    assert imread(tmp_path / "samples.png").shape[:2] == (280, 280)


def test_the_distance_is_that_between_normal_distributions():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.0, 1.0, (20_000, 3)), rng.normal(1.0, 2.0, (20_000, 3))
    assert gan.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    # Each axis: (1 - 0)^2 + (2 - 1)^2.
    assert gan.frechet_distance(a, b) == pytest.approx(6.0, rel=0.05)
