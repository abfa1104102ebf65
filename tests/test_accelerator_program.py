"""`benchmarks/accelerator.py` compiles for CPU here; `tests/accelerators` has the other targets."""

import doctest
import json
import os
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

with mock.patch.dict(os.environ):  # targets.py sets variables for the process
    from benchmarks import accelerator, programs, targets

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the target cpu is compiled")


@pytest.fixture
def small(monkeypatch):
    """A transformer that compiles in a second."""
    monkeypatch.setitem(accelerator.SIZES, "1M", (1, 32))


@on_cpu
def test_it_prints_a_table_and_writes_figures_and_a_picture(small, tmp_path, capsys):
    out = tmp_path / "new" / "cpu.json"
    names = ["amac-adam", "amac-adam centralize=None", "optax.adamw bfloat16"]
    options = ["--targets", "cpu", "--size", "1M", "--json", str(out)]
    assert accelerator.main([*options, "--variants", *names]) == 0
    content = json.loads(out.read_text())
    assert content["parameters"] == 12 * 32**2 + 2 * 1024 * 32
    assert content["versions"]["jax"] == jax.__version__
    (result,) = content["results"]
    assert result["place"] == "cpu"
    rows = result["variants"]
    assert list(rows) == names
    for row in rows.values():
        assert row["bytes_dearest"] == pytest.approx(row["xla_bytes"], rel=1e-3)
        assert row["bytes_always"] <= row["bytes_expected"] <= row["bytes_dearest"]
        assert row["of_least"] == row["bytes_expected"] / row["least_bytes"]
        assert row["loops"] == 0
        assert row["collectives"] == {}
        assert row["kernels"] > 0
    amac, without, adamw = rows.values()
    # Parameters, gradient, both moments, slow weights, average; of the latter two a fifth is due.
    assert amac["argument_bytes"] == pytest.approx(24, rel=1e-3)
    assert amac["least_bytes"] == pytest.approx(12 + 16 + 16 / 5, rel=1e-3)
    # Slow weights are copied; their average, which nothing else has, is made in place.
    assert (amac["copies_entry"], amac["copies_branches"]) == (0, 6)
    assert sorted(size for branch in amac["branches"] for size in branch["bytes"])[:2] == [0, 0]
    assert without["bytes_always"] < amac["bytes_always"] - 2  # the gradient's second reading
    assert adamw["dtype"] == "bfloat16"
    assert adamw["ratio"] == 1  # beside itself: the baseline has the parameters' dtype
    assert adamw["argument_bytes"] == pytest.approx(8, rel=1e-3)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    text = capsys.readouterr().out
    assert all(name in text for name in names)
    assert f"XLA's own count: {amac['xla_bytes']:.3f}, ours {amac['bytes_dearest']:.3f}" in text


@on_cpu
def test_an_interrupted_run_keeps_what_it_has(small, tmp_path, monkeypatch):
    out = tmp_path / "cpu.json"

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setitem(accelerator.VARIANTS, "muon", accelerator.Variant(interrupt))
    options = ["--targets", "cpu", "--size", "1M", "--json", str(out)]
    with pytest.raises(KeyboardInterrupt):
        accelerator.main([*options, "--variants", "optax.adamw", "muon"])
    assert list(json.loads(out.read_text())["results"][0]["variants"]) == ["optax.adamw"]
    assert out.with_suffix(".png").exists()


@on_cpu
def test_a_variant_that_does_not_compile_is_a_row(small, monkeypatch, capsys):
    def refuse():
        raise ValueError("momentum must be\nin [0, 1)")

    monkeypatch.setitem(accelerator.VARIANTS, "muon", accelerator.Variant(refuse))
    options = ["--targets", "cpu", "--size", "1M", "--variants", "muon", "optax.adamw"]
    assert accelerator.main(options) == 1
    broken, adamw = capsys.readouterr().out.splitlines()[3:5]
    assert broken.split(maxsplit=1)[1] == (
        "does not compile: ValueError: momentum must be in [0, 1)"
    )
    assert adamw.startswith("optax.adamw ")


@on_cpu
def test_it_says_which_optimizers_compile(tmp_path, capsys):
    out = tmp_path / "cpu.json"
    options = ["--targets", "cpu", "--json", str(out)]
    assert accelerator.main([*options, "--optimizers", "sgd", "newton"]) == 0
    rows = json.loads(out.read_text())["results"][0]["optimizers"]
    assert list(rows) == ["sgd float32", "sgd bfloat16", "newton float32", "newton bfloat16"]
    assert rows["sgd float32"]["bytes_expected"] == pytest.approx(12, rel=1e-2)
    assert rows["sgd bfloat16"]["bytes_expected"] == pytest.approx(6, rel=1e-2)
    assert (rows["sgd float32"]["loops"], rows["sgd float32"]["custom_calls"]) == (0, [])
    assert rows["newton float32"]["loops"] > 0
    assert rows["newton float32"]["custom_calls"]
    assert "compiles in" in capsys.readouterr().out


def test_the_optimizers_are_all_that_begin_with_a_learning_rate():
    names = accelerator.optimizers()
    assert {"amac", "amac_reference", "adamw", "muon", "sophia", "newton"} <= names.keys()
    assert not {"compose", "scale_by_orthogonal", "recipes"} & names.keys()


def test_every_variant_can_be_built():
    params = accelerator.transformer(*accelerator.SIZES["1M"], "bfloat16")
    for make, _ in accelerator.VARIANTS.values():
        jax.eval_shape(make().init, params)


def test_a_missing_compiler_is_one_line_before_anything_is_compiled(monkeypatch, capsys):
    def missing(*_, **__):
        raise RuntimeError("JAX TPU support\nnot installed")

    monkeypatch.setattr(targets.topologies, "get_topology_desc", missing)
    monkeypatch.setattr(accelerator, "compile_step", lambda *_, **__: pytest.fail("compiled"))
    assert accelerator.main(["--targets", "cpu", "v5e"]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error == (
        "no compiler for v5e: install amac_jax[accelerators] (JAX TPU support not installed)\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variants", "adamv"], "no variant 'adamv'; there are: 'optax.adamw', 'adamw'"),
        (["--optimizers", "adamv"], "no optimizer 'adamv'; there are: 'amac'"),
        (["--targets", "h300"], "invalid choice: 'h300' (choose from"),
        (["--targets", "cpu", "--mesh", "fsdp"], "no mesh of 'cpu'; there are: v5e"),
        (["--json", "x.png"], "must be a file whose name ends in .json, got 'x.png'"),
    ],
)
def test_bad_options_are_one_line(options, message, capsys):
    with pytest.raises(SystemExit):
        accelerator.main(options)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_examples_of_the_docstrings():
    found = doctest.testmod(accelerator)
    assert found.failed == 0
    assert found.attempted > 0


def test_parameters_are_sharded_by_fan_in_by_columns_and_rows_or_both(monkeypatch):
    monkeypatch.setattr(accelerator, "Mesh", lambda devices, names: (devices.shape, names))
    monkeypatch.setattr(accelerator, "NamedSharding", lambda mesh, spec: (mesh[0], tuple(spec)))
    params = accelerator.transformer(*accelerator.SIZES["1M"], "float32")

    def of(mesh):
        shardings, other = accelerator.Place("v5e", mesh, list(range(8))).shardings(params)
        layer = shardings["layer_0"]
        kernels = [layer[name]["kernel"] for name in ("qkv", "out", "up", "down")]
        sizes = dict(zip(("data", "model"), kernels[0][0], strict=True))
        assert other == (kernels[0][0], ())
        return [tuple(sizes[axis] for axis in spec) for _, spec in kernels]

    assert of("fsdp") == [(8, 1)] * 4
    assert of("tensor") == [(1, 8), (8, 1)] * 2
    assert of("both") == [(2, 4), (4, 2)] * 2


def test_the_share_of_the_estimate_in_the_column_means():
    def kernel(scope):
        return programs.Kernel(scope, "fusion", 0.0, 1.0)

    assert accelerator.is_mean(kernel("jit(step)/centralize/reduce_sum"))
    assert not accelerator.is_mean(kernel("jit(step)/centralize/sub"))
    assert not accelerator.is_mean(kernel("jit(step)/clip_norm/reduce_sum"))


def test_the_least_of_state_in_bfloat16():
    params = {"kernel": jnp.zeros((10, 10))}
    state = accelerator.amac_adam(decay_floor=None, state_dtype="bfloat16").init(params)
    assert accelerator.least_bytes(params, state) == pytest.approx(12 + 8 + 8 / 5)
