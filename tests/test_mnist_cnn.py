"""`benchmarks/mnist_cnn.py`: which runs of the example it asks for, and what it makes of them."""

import json
from pathlib import Path

import pytest

from benchmarks import mnist_cnn


def report_of(averaged: list[float]) -> dict:
    rows = [
        {"test_accuracy": value - 0.5, "averaged_test_accuracy": value, "seconds": 10.0 + i}
        for i, value in enumerate(averaged)
    ]
    return {"configuration": {"steps": 100 * len(rows)}, "epochs": rows}


def test_steps_and_seconds_to_the_target_count_whole_epochs():
    assert mnist_cnn.first_at_target(report_of([98.0, 98.99, 99.0, 98.0])) == (300, 33.0)
    assert mnist_cnn.first_at_target(report_of([98.0, 98.5])) == (0, float("inf"))


def test_the_summary_is_of_the_last_epoch_of_each_run():
    text = mnist_cnn.summary([report_of([99.5, 99.2]), report_of([98.0, 99.4]), report_of([98.0])])
    assert "averaged test accuracy  98.867 ± 1.881 %   (99.20 99.40 98.00)" in text
    assert "test accuracy           98.367 ± 1.881 %   (98.70 98.90 97.50)" in text
    assert "2 of 3 runs reach 99 %, first after 100 to 200 steps and 10 to 21 s" in text


def test_it_runs_the_example_with_each_seed_and_checkpoints(tmp_path, monkeypatch, capsys):
    commands = []

    def example(command: list[str]) -> None:
        commands.append(command)
        folder = Path(next(a for a in command if a.startswith("--out=")).removeprefix("--out="))
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(report_of([98.0, 99.0 + len(commands)])))

    monkeypatch.setattr(mnist_cnn.trainer, "main", example)
    kept = tmp_path / "all.json"
    mnist_cnn.main(
        ["--epochs=2", "--seeds", "4", "7", "--no-augment", f"--out={tmp_path}", f"--json={kept}"]
    )
    for seed, command in zip((4, 7), commands, strict=True):
        folder = tmp_path / f"2-plain-{seed}"
        expected = {"--model=cnn", "--epochs=2", f"--seed={seed}", f"--out={folder}", "--resume"}
        assert expected <= set(command)
        assert "--augment" not in command
        assert f"--checkpoint-dir={folder / 'checkpoints'}" in command
        options = mnist_cnn.options
        options.checked(options.argument_parser("", ""), command)  # it knows them all
    assert "(100.00 101.00)" in capsys.readouterr().out
    assert len(json.loads(kept.read_text())) == 2


def test_one_seed_is_refused(capsys):
    with pytest.raises(SystemExit):
        mnist_cnn.main(["--seeds", "1"])
    assert "--seeds must be at least two" in capsys.readouterr().err
