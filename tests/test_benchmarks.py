"""The benchmark programs run, at sizes that take seconds, and their figures are what they say."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks import step_time


def test_step_time_prints_a_table_and_writes_figures_and_a_picture(tmp_path, capsys):
    out = tmp_path / "new" / "cpu.json"
    names = ["amac", "amac, core='adam'", "amac, everything", "adamw + lookahead"]
    size = ["--sizes", "20K", "--leaves", "2", "--rounds", "3"]
    step_time.main(
        [*size, "--dtypes", "float32", "bfloat16", "--json", str(out), "--variants", *names]
    )
    content = json.loads(out.read_text())
    assert [result["dtype"] for result in content["results"]] == ["float32", "bfloat16"]
    for result in content["results"]:
        assert result["parameters"] == 141 * 141 + 141
        assert list(result["variants"]) == ["optax.adamw", *names]
        assert result["variants"]["optax.adamw"]["ratio"] == 1
        for row in result["variants"].values():
            assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
            assert row["ms"] > 0
    # Momentum and average; both moments, slow weights and average; those and velocity.
    for name, state_bytes in zip(names, (8, 16, 20), strict=False):
        row = content["results"][0]["variants"][name]
        assert row["state_bytes_per_parameter"] == pytest.approx(state_bytes, rel=0.01)
    assert content["versions"]["jax"] == jax.__version__
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    text = capsys.readouterr().out
    assert all(name in text for name in names)


def test_an_interval_that_other_work_stretches_does_not_squeeze_the_picture(tmp_path, monkeypatch):
    def row(ratio, high):
        return {"ratio": ratio, "ratio_low": ratio / 2, "ratio_high": high}

    size = {"parameters": 10, "leaves": 2, "dtype": "float32", "baseline": "muon"}
    usual = {"job": "usual", **size, "variants": {"muon": row(1, 1), "amac": row(1.2, 1.5)}}
    stretched = {"job": "hit", **size, "variants": {"muon": row(1, 1), "amac": row(1.2, 30)}}
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    step_time.draw([usual] * step_time.COLUMNS + [stretched], "cpu", tmp_path / "x.png")
    first, *_, hit = [panel for panel in drawn[0].axes if panel.axison]
    assert first.get_xlim()[1] == pytest.approx(1.25 * 1.5)
    assert hit.get_xlim()[1] == pytest.approx(1.25 * 1.8 * 1.2)
    assert [text.get_text() for text in hit.texts] == ["  1.00", "  1.20 → 30.0"]
    assert len(drawn[0].axes) == 2 * step_time.COLUMNS


def test_the_step_it_times_is_the_optimizer_s():
    params = step_time.parameters(1000, 4)
    gradients = jax.tree.map(lambda x: jnp.full_like(x, 0.5), params)
    tx = step_time.VARIANTS["adamw"]()
    program = step_time.lowered(tx, params).compile()
    after, _ = program(jax.tree.map(jnp.copy, params), tx.init(params), gradients)
    # Adam's first step is the learning rate, on top of which kernels lose 1e-3 x 0.01.
    np.testing.assert_allclose(after["layer_0"]["bias"], -1e-3, rtol=1e-5)
    np.testing.assert_allclose(after["layer_0"]["kernel"], 0.1 * (1 - 1e-5) - 1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "adamv"], "no variant 'adamv'; there are: 'optax.adamw', 'amac'"),
        (["--sizes", "1e400"], "must be a number such as 10M, got '1e400'"),
        (["--json", "x.png"], "must be a file whose name ends in .json, got 'x.png'"),
        (["--sizes", "10Q"], "must be a number such as 10M, got '10Q'"),
        (["--rounds", "1"], "must be a whole number >= 2, got '1'"),
        (["--leaves", "many"], "must be a whole number >= 2, got 'many'"),
    ],
)
def test_bad_options_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit):
        step_time.main(arguments)
    assert message in capsys.readouterr().err.splitlines()[-1]
