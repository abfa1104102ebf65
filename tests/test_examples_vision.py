"""Examples of images in their short form: on the 8x8 digits that scikit-learn ships."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import amac_jax
from amac_jax import datasets
from examples import cnn_nnx, finetune, mnist_linen


@pytest.fixture(autouse=True)
def digits(monkeypatch):
    split = datasets.load("digits")
    monkeypatch.setattr(datasets, "load", lambda name="mnist": split)
    with jax.numpy_dtype_promotion("standard"):  # as where the examples run
        yield


def test_the_mlp_is_better_with_averaged_weights(tmp_path, capsys):
    found = mnist_linen.main(epochs=4, batch_size=4, out=tmp_path)
    printed = capsys.readouterr().out
    assert f"test accuracy, averaged weights: {found['averaged weights']:.2f} %" in printed
    assert (tmp_path / "accuracy.png").stat().st_size
    assert found["averaged weights"] > max(found["last weights"], 97.0)


def test_the_averaged_cnn_has_statistics_of_its_own_and_the_live_one_is_left_alone():
    images, labels = datasets.load().train_images[:256], datasets.load().train_labels[:256]
    model = cnn_nnx.CNN(8, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, amac_jax.sgd(0.1, average_start=10), wrt=nnx.Param)
    for step in range(16):
        batch = slice(step % 4 * 64, step % 4 * 64 + 64)
        cnn_nnx.train_step(model, optimizer, images[batch], labels[batch], jax.random.key(step))
    kinds = nnx.Any(nnx.Param, nnx.BatchStat)
    before = jax.tree.map(np.asarray, nnx.state(model, kinds))
    average = cnn_nnx.averaged(model, optimizer, images)
    assert np.mean(cnn_nnx.guesses(average, images) == labels) > 0.5
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model, kinds))
    activations = average.convs[0](jnp.asarray(images, jnp.float32)[..., None] / 127.5 - 1.0)
    measured = activations.mean(axis=(0, 1, 2))
    np.testing.assert_allclose(average.norms[0].mean[...], measured, rtol=1e-4, atol=1e-5)


def test_fine_tuning_learns_as_much_as_adamw_and_forgets_no_more(monkeypatch, tmp_path, capsys):
    amac, adamw = finetune.RATES
    monkeypatch.setattr(finetune, "SEEDS", 2)
    monkeypatch.setattr(finetune, "RATES", {amac: (0.012,), adamw: (0.01,)})
    found = finetune.main(out=tmp_path)
    assert (
        f"new digits, amac at 0.012: {found['new digits, amac']:.2f} %" in capsys.readouterr().out
    )
    assert (tmp_path / "finetune.png").stat().st_size
    assert found["moved"] == 0
    assert found["numbers"] < 18_000
    assert found["new digits, amac"] > found["new digits, adamw"] - 0.5
    old = 2 * found["new and old digits, amac"] - found["new digits, amac"]
    assert old > 94.0  # 92.5 without layer-wise rates, 75 without frozen layers
