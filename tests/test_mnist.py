"""The main job, `examples/mnist/`, on scikit-learn's small digits."""

import contextlib
import functools
import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amac_jax
from amac_jax.tools import datasets
from examples.mnist import models, trainer, training
from examples.mnist.report import Report
from tests import warm

ROOT = Path(__file__).parents[1]
FIELDS = ["epoch", "loss", "train_accuracy", "test_accuracy", "averaged_test_accuracy", "seconds"]


@pytest.fixture
def pictures():
    """Asked for by tests that look at a run's picture."""


@pytest.fixture(autouse=True)
def without_pictures(request, monkeypatch):
    """A picture takes longer than a run."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(Report, "draw", lambda report: None)


digits = functools.cache(datasets.load_digits_split)


@pytest.fixture(autouse=True)
def digits_read_once(monkeypatch):
    monkeypatch.setattr(datasets, "load_digits_split", digits)


def run(out: Path, *arguments: str) -> dict:
    trainer.main(["--dataset", "digits", "--out", str(out), *arguments])
    return json.loads((out / "metrics.json").read_text())


def test_the_default_run_learns_and_reports(tmp_path, capsys, monkeypatch, pictures):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    report = run(tmp_path / "new" / "folder", "--seed", "3")
    picture = (tmp_path / "new" / "folder" / "training.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    epochs = report["epochs"]
    assert [list(epoch) for epoch in epochs] == [FIELDS] * 10
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, 11))
    assert epochs[-1]["loss"] < 0.5 < epochs[0]["loss"]
    for name in FIELDS[2:5]:
        assert 90 < epochs[-1][name] <= 100
    assert report["dataset"] == {"name": "digits", "train": 1437, "test": 360}
    assert report["configuration"]["optimizer"] == "amac"
    assert report["configuration"]["seed"] == 3
    assert report["configuration"]["steps"] == 10 * 23
    assert {"jax", "flax", "optax", "amac_jax", "python"} <= set(report["versions"])
    assert report["device"]
    out, err = capsys.readouterr()
    assert len([line for line in out.splitlines() if "averaged weights" in line]) == 10
    assert "mlp, amac" in err  # the progress bar


def test_a_pipe_gets_each_epochs_line_at_once_and_no_bar(tmp_path, capsys, monkeypatch):
    read, write = os.pipe()
    os.set_blocking(read, False)
    add, seen = Report.add, []

    def add_and_look(report, row, metrics):
        seen.append(os.read(read, 10_000).decode())  # at the end of an epoch, before its line
        add(report, row, metrics)

    monkeypatch.setattr(Report, "add", add_and_look)
    with os.fdopen(write, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)  # which keeps 8 KiB before it writes them
        run(tmp_path, "--optimizer", "sgd", "--epochs", "3")
    seen.append(os.read(read, 10_000).decode())
    os.close(read)
    assert [re.findall(r"^epoch (\d)/3", text, re.MULTILINE) for text in seen] == [
        [], ["1"], ["2"], ["3"]
    ]  # fmt: skip
    assert seen[0].startswith("first step")
    assert capsys.readouterr().err == ""


def test_with_checkpoints_a_line_comes_when_its_epoch_is_saved_and_no_later(
    tmp_path, capsys, monkeypatch
):
    """From the thread that saves; the save before has ended when the next one begins."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    folder, add, seen, text = tmp_path / "checkpoints", Report.add, [], ""

    def look():
        nonlocal text
        with contextlib.suppress(BlockingIOError):
            text += os.read(read, 10_000).decode()
        said = re.findall(r"^epoch (\d)/4", text, re.MULTILINE)
        assert set(said) <= {path.name for path in folder.iterdir()}
        return len(said)

    def add_and_look(report, row, metrics):
        seen.append(look())
        add(report, row, metrics)

    monkeypatch.setattr(Report, "add", add_and_look)
    with os.fdopen(write, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        arguments = ["--optimizer=sgd", "--epochs=4", "--keep=9", f"--checkpoint-dir={folder}"]
        run(tmp_path, *arguments)
        seen.append(look())  # before the pipe is closed, which would write what is left
    os.close(read)
    assert all(number - 2 <= said < number for number, said in enumerate(seen[:4], 1))
    assert seen[4] == 4
    assert capsys.readouterr().err == ""


def test_a_seed_gives_one_run_and_another_another(tmp_path):
    one, same, other = (
        run(tmp_path / name, "--epochs", "1", "--seed", seed)["epochs"][0]["loss"]
        for name, seed in (("one", "0"), ("same", "0"), ("other", "1"))
    )
    assert one == same != other


@pytest.mark.parametrize("optimizer", ["amac_adam", "amac_reference", "adam", "adamw", "sgd"])
def test_every_optimizer_runs(tmp_path, optimizer):
    epochs = run(tmp_path, "--optimizer", optimizer, "--epochs", "2")["epochs"]
    assert epochs[1]["loss"] < epochs[0]["loss"]
    averaged = epochs[-1]["averaged_test_accuracy"]
    assert (averaged is not None) == optimizer.startswith("amac")


def test_the_convolutions_learn_and_batch_norm_follows_the_average(tmp_path):
    epochs = run(tmp_path, "--model", "cnn", "--epochs", "5", "--batch-size", "32")["epochs"]
    assert epochs[-1]["test_accuracy"] > 90
    assert epochs[-1]["averaged_test_accuracy"] > 90


def test_augmentation_changes_what_is_trained_on_and_not_what_is_tested(tmp_path):
    still = ("--optimizer", "sgd", "--learning-rate", "1e-12", "--epochs", "2")
    plain, augmented = (
        run(tmp_path / str(len(extra)), *still, *extra)["epochs"] for extra in ((), ("--augment",))
    )
    for before, after in zip(plain, augmented, strict=True):
        assert before["test_accuracy"] == after["test_accuracy"]
        assert abs(before["loss"] - after["loss"]) > 1e-4
    changes = [abs(one["loss"] - two["loss"]) for one, two in (plain, augmented)]
    assert changes[1] > 2 * changes[0]  # anew in every epoch; without, only the order changes


def test_the_last_batch_is_not_filled_up_with_images():
    images = np.arange(5 * 64, dtype=np.uint8).reshape(5, 8, 8)
    # 5 images in batches of 4: two steps, and all 5 labels wrong or right, never more.
    model, tx = models.MLP(), amac_jax.sgd(0.0, record_metrics=True)

    @jax.jit
    def trained(key):
        state = training.initial_state(model, tx, key, images)
        logits = model.apply({"params": state.params}, models.as_input(images))
        guesses = jnp.argmax(logits, -1)
        return training.train_epoch(state, jnp.asarray(images), guesses, key, batch_size=4)

    _, _, accuracy, metrics = trained(jax.random.key(0))
    assert float(accuracy) == 100.0
    assert metrics["grad_norm"].shape == (2,)


def test_held_out_images_are_tested_on_and_not_trained_on(tmp_path):
    report = run(tmp_path, "--optimizer", "sgd", "--epochs", "1", "--held-out", "437")
    assert report["dataset"] == {"name": "digits", "train": 1000, "test": 437}


@pytest.fixture
def mnist_like(tmp_path):
    """Files with MNIST's names that are not MNIST."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in datasets.SHA256:
        with gzip.open(folder / f"{name}.gz", "wb") as file:
            file.write(b"\0\0\x08\1\0\0\0\2ab")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-dir", "{folder}/absent"], "{folder}/absent"),
        (["--data-dir", "{folder}"], "train-images-idx3-ubyte.gz"),
        (["--dataset", "digits", "--learning-rate", "-1"], "[0, inf), got -1"),
        (["--dataset", "digits", "--held-out", "5000"], "cannot hold out 5000"),
    ],
    ids=["no folder", "wrong content", "negative rate", "too many held out"],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, mnist_like, arguments, message):
    out = tmp_path / "out"
    filled = [argument.format(folder=mnist_like) for argument in arguments]
    with pytest.raises(SystemExit) as exit_info:
        trainer.main([*filled, "--out", str(out)])
    text = str(exit_info.value.code)
    assert text.startswith("python -m examples.mnist: error: ")
    assert message.format(folder=mnist_like) in text
    assert "\n" not in text
    assert not (out / "metrics.json").exists()


def test_a_run_that_diverges_stops_and_says_so(tmp_path):
    arguments = ["--dataset=digits", "--optimizer=sgd", "--learning-rate=1e30", "--epochs=2"]
    with pytest.raises(SystemExit, match="epoch 1 is not finite; try a lower --learning-rate"):
        trainer.main([*arguments, f"--out={tmp_path}"])
    text = (tmp_path / "metrics.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["epochs"][0]["loss"] is None


def test_a_folder_that_would_not_be_read_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        trainer.main(["--dataset=digits", f"--data-dir={tmp_path}"])
    assert "--data-dir is for --dataset mnist" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["--epochs=0", "--batch-size=-1", "--model=rnn", "--epochs=x"])
def test_bad_options_are_refused_by_name(argument, capsys):
    with pytest.raises(SystemExit):
        trainer.main([argument])
    assert argument.split("=")[0] in capsys.readouterr().err


def test_without_a_network_it_says_so_and_trains_on_the_digits(tmp_path):
    nowhere = "http://127.0.0.1:9"  # nothing listens on the discard port
    environment = {name: value for name, value in os.environ.items() if name != "AMAC_JAX_DATA"}
    done = warm.run(
        [sys.executable, "-m", "examples.mnist", "--epochs=1", "--out", tmp_path / "out"],
        {**environment, "https_proxy": nowhere, "HTTPS_PROXY": nowhere, "no_proxy": "",
         "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stderr.splitlines() if "digits instead" in line]) == 1
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["dataset"]["name"] == "digits"


def test_without_checkpoints_orbax_is_not_imported():
    code = "import sys, examples.mnist.trainer; sys.exit('orbax.checkpoint' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_what_a_folder_with_checkpoints_may_be_used_for(tmp_path, capsys, monkeypatch, pictures):
    folder = tmp_path / "checkpoints"

    def again(*arguments):
        return run(
            tmp_path, "--optimizer=adam", f"--checkpoint-dir={folder}", "--keep=2", *arguments
        )

    with monkeypatch.context() as patch:
        patch.setattr(Report, "draw", lambda report: None)
        report = again("--epochs=3", "--resume")
    out = capsys.readouterr().out
    assert "no checkpoint yet; starting anew" in out
    assert out.splitlines()[-1].startswith("for its checkpoint an epoch made training wait ")
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3", "lock"]
    for arguments, message in (
        (["--epochs=3"], "has checkpoints; add --resume or name another folder"),
        (["--epochs=4", "--resume"], f"{folder}/3: is of a run with --epochs 3, not 4"),
        (["--epochs=3", "--resume", "--seed=1"], "--seed 0, not 1"),
        (["--epochs=3", "--resume", "--learning-rate=0.5"], "--learning-rate 0.001, not 0.5"),
        (["--epochs=3", "--resume", "--held-out=437"], "--held-out 0, not 437"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            again(*arguments)
        text = str(exit_info.value.code)
        assert text.startswith("python -m examples.mnist: error: ")
        assert message in text
        assert "\n" not in text
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3", "lock"]
    (tmp_path / "metrics.json").unlink()
    assert again("--epochs=3", "--resume") == report
    assert (tmp_path / "training.png").exists()
    assert "the run is complete" in capsys.readouterr().out


def test_a_checkpoint_folder_that_cannot_be_written_ends_the_run_before_it_begins(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="file/below: cannot be written") as exit_info:
        run(tmp_path, f"--checkpoint-dir={tmp_path}/file/below")
    assert "\n" not in str(exit_info.value.code)
    assert not (tmp_path / "metrics.json").exists()


def test_resume_needs_a_folder(capsys):
    with pytest.raises(SystemExit):
        trainer.main(["--resume"])
    assert "--resume needs --checkpoint-dir" in capsys.readouterr().err
