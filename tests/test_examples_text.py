"""examples/transformer.py and examples/lstm.py in a short form."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import amac_jax
from amac_jax import datasets
from examples import lstm, transformer

ROOT = Path(__file__).parents[1]
# Nats a character after 20 steps: AMaC is at 2.91, AdamW as usual at 3.21, and chance at 4.5.
LEARNT = 3.05
ON_8_DEVICES = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
import pytest
from tests import test_examples_text
with pytest.MonkeyPatch.context() as patch:
    test_examples_text.shorten(patch)
    print(json.dumps(test_examples_text.trained(patch, steps=2)))
"""


def shorten(patch):
    """Less text, which is there without a network."""
    text = datasets.load_text("python")
    part = text._replace(train=text.train[:50_000], validation=text.validation[:5_000])
    patch.setattr(datasets, "load_text", lambda: part)


def trained(patch, out=None, **options):
    """What the transformer returns, and the smallest share of a matrix on a device."""
    shares = {}

    def averaged_params(state, params):
        for name, tree in ("params", params), ("state", state):
            leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim == 2]
            shares[name] = min(leaf.addressable_shards[0].data.size / leaf.size for leaf in leaves)
        return real(state, params)

    real = amac_jax.averaged_params
    patch.setattr(amac_jax, "averaged_params", averaged_params)
    found = transformer.main(**{"steps": 20, "batch_size": 8, "out": out, **options})
    return {**found, **shares}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    shorten(monkeypatch)


def test_a_transformer_learns_and_writes(monkeypatch, tmp_path, capsys):
    found = trained(monkeypatch, tmp_path)
    printed = capsys.readouterr().out
    assert f"validation loss: {found['validation loss']:.3f} nats a character" in printed
    assert found["validation loss"] < LEARNT < adamw()["validation loss"]
    assert len(printed.partition("\n\nvalidation loss")[0]) == 500
    assert (tmp_path / "loss.png").stat().st_size > 5_000


def adamw():
    return transformer.main(optimizer="adamw", steps=20, batch_size=8, out=None)


def test_micro_batches_are_the_batch(monkeypatch):
    one, two = (trained(monkeypatch, steps=4, accumulate=number) for number in (1, 2))
    assert one["training loss"] == pytest.approx(two["training loss"], abs=1e-4)
    assert one["validation loss"] == pytest.approx(two["validation loss"], abs=1e-3)


def test_8_devices_share_kernels_and_state_and_do_what_one_does(monkeypatch):
    """In 2 steps, at AMaC's rate for so short a run: Muon magnifies the last bits of more."""
    command = [sys.executable, "-c", ON_8_DEVICES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    many, one = json.loads(done.stdout.splitlines()[-1]), trained(monkeypatch, steps=2)
    assert (many["params"], many["state"]) == (0.5, 0.5)
    assert (one["params"], one["state"]) == (1, 1)
    assert many["training loss"] == pytest.approx(one["training loss"], abs=1e-4)
    assert many["validation loss"] == pytest.approx(one["validation loss"], abs=1e-3)


def test_clipping_saves_an_lstm(tmp_path, capsys):
    found = lstm.main(steps=60, batch_size=8, window=64, width=64, out=tmp_path)
    printed = capsys.readouterr().out
    assert f"validation loss: {found['validation loss']:.3f} nats a character" in printed
    assert found["validation loss"] < 2.9 < found["validation loss without clipping"]
    assert (tmp_path / "lstm.png").stat().st_size > 5_000
