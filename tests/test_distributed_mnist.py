"""`examples/mnist/distributed.py`: real processes on loopback, and the death of one of them."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from examples.mnist import distributed, lock
from examples.mnist.checkpoints import steps_in
from tests import warm
from tests.helpers import SOAK

# Sums of float32 in another order: in 4 epochs (92 steps) the losses of one process and of two have
# differed by 9e-8 and 1.8e-7 of themselves. Another order of the batches changes them by 1e-2.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """With a compilation cache for all, of which no process sees more than one device."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def command(folder: Path, *more: str, epochs: int = 4) -> list[str]:
    return [
        *distributed.COMMAND, "--dataset=digits", f"--epochs={epochs}",
        "--learning-rate=0.01",  # at the rate of so few steps, last bits grow to parts of a percent
        f"--out={folder / 'out'}", f"--checkpoint-dir={folder / 'checkpoints'}", "--keep=9", *more,
    ]  # fmt: skip


def two_processes(
    folder: Path, environment, *more: str, epochs: int = 4
) -> tuple[warm.Process, warm.Process]:
    """Both processes of one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        where = f"--coordinator=localhost:{free.getsockname()[1]}"
    first, second = (
        warm.Process(
            command(folder, where, "--processes=2", f"--process={number}", *more, epochs=epochs),
            environment,
        )
        for number in (0, 1)
    )
    return first, second


def trained(folder: Path, process: warm.Process, *more: str) -> list[dict]:
    """The rows of its metrics.json."""
    out, error = process.communicate()
    assert process.returncode == 0, out + error
    assert "epoch/s" not in error  # no bar in a pipe
    lines = [line for line in out.splitlines() if re.search(r"\bepoch +\d+/", line)]
    rows = json.loads((folder / "out" / "metrics.json").read_text())["epochs"]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert len(lines) == (2 if "--resume" in more else 4)
    assert (folder / "out" / "training.png").exists()
    return rows


@pytest.fixture(scope="module")
def by_one(tmp_path_factory, environment):
    folder = tmp_path_factory.mktemp("one")
    return folder, trained(folder, warm.Process(command(folder, "--processes=1"), environment))


@pytest.fixture(scope="module")
def by_two(tmp_path_factory, environment):
    folder = tmp_path_factory.mktemp("two")
    first, second = two_processes(folder, environment)
    rows = trained(folder, first)
    assert "epoch " not in second.communicate()[0]  # process 0 alone tells
    assert second.returncode == 0
    return folder, rows


def losses(rows: list[dict]) -> np.ndarray:
    return np.array([row["loss"] for row in rows])


def test_two_processes_train_as_one_does(by_one, by_two):
    (_, one), (_, two) = by_one, by_two
    assert one[-1]["loss"] < 0.6 < one[0]["loss"]
    print("largest difference", np.max(np.abs(losses(one) / losses(two) - 1)))
    np.testing.assert_allclose(losses(two), losses(one), rtol=TOLERANCE)
    for name in ("train_accuracy", "test_accuracy", "averaged_test_accuracy"):
        a, b = ([row[name] for row in rows] for rows in (one, two))
        np.testing.assert_allclose(a, b, atol=0.3)  # one of the 360 images


def test_two_processes_that_share_the_state_go_on_from_one(tmp_path, environment, by_one):
    folder, rows = by_one
    for epoch in (1, 2):
        name = f"checkpoints/{epoch}"
        shutil.copytree(folder / name, tmp_path / name)
    first, second = two_processes(tmp_path, environment, "--resume", "--shard")
    resumed = trained(tmp_path, first, "--resume")
    second.communicate()
    assert resumed[:2] == rows[:2]  # timings too: they come from the checkpoint
    print("largest difference", np.max(np.abs(losses(resumed) / losses(rows) - 1)))
    np.testing.assert_allclose(losses(resumed), losses(rows), rtol=TOLERANCE)
    assert steps_in(tmp_path / "checkpoints") == [1, 2, 3, 4]


def until_epoch(number: int, process: warm.Process) -> list[str]:
    lines = []
    while not (lines and re.search(rf"\bepoch +{number}/", lines[-1])):
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()
    return lines


def test_when_one_is_killed_the_other_ends_and_says_so(tmp_path, environment):
    first, error = without_the_second(signal.SIGKILL, tmp_path, environment)
    assert max(steps_in(tmp_path / "checkpoints")) >= 2
    if first.returncode == 1:  # in training: the connection of their sums is gone
        last = error.splitlines()[-1]
        assert last.startswith(f"{distributed.NAME}: error: another process is gone (")
        assert "; to go on: " in last
        assert "--resume" in last
    else:  # where JAX misses its heartbeat first
        assert_ended_by_jax(first, error)


@pytest.mark.skipif(not SOAK, reason="only with AMAC_JAX_SOAK=1")
def test_when_one_hangs_the_other_ends_and_says_so_and_one_goes_on(tmp_path, environment):
    first, error = without_the_second(signal.SIGSTOP, tmp_path, environment)
    assert_ended_by_jax(first, error)
    newest = max(steps_in(tmp_path / "checkpoints"))
    alone = warm.Process(
        command(tmp_path, "--processes=1", "--resume", "--timeout=10", epochs=500),
        environment,
    )
    lines = until_epoch(newest + 1, alone)
    alone.kill()
    alone.communicate()
    assert f"going on after epoch {newest}\n" in "".join(lines)


def without_the_second(
    gone_by: signal.Signals, folder: Path, environment
) -> tuple[warm.Process, str]:
    """The first of two processes, and its stderr, ended by the end or halt of the second."""
    first, second = two_processes(folder, environment, "--timeout=10", epochs=500)
    try:
        lines = until_epoch(2, first)
        assert re.match(r"process 0 of 2 joins the others at localhost:\d+\n", lines[0])
        second.send_signal(gone_by)
        began = time.perf_counter()
        _, error = first.communicate(timeout=60)
        print(f"the survivor ended after {time.perf_counter() - began:.1f} s")
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    return first, error


def assert_ended_by_jax(process: warm.Process, error: str) -> None:
    """It cannot be caught; it names the process that is gone."""
    assert process.returncode == -signal.SIGABRT
    assert "The following tasks are unhealthy (stopped sending heartbeats):\n1\n" in error


def test_when_the_first_is_killed_its_parent_ends_the_rest_and_one_process_goes_on(
    tmp_path, environment, by_two
):
    process = warm.Process(command(tmp_path, "--spawn=2", epochs=4), environment)
    lines = until_epoch(2, process)
    ids = [int(number) for number in re.findall(r"process \d of 2 has id (\d+)", "".join(lines))]
    os.kill(ids[0], signal.SIGKILL)
    began = time.perf_counter()
    _, error = process.communicate(timeout=60)
    print(f"all ended after {time.perf_counter() - began:.1f} s")
    assert process.returncode == 1
    last, _, again = error.splitlines()[-1].partition("; to go on: ")
    assert last == (
        f"{distributed.NAME}: error: process 0 of 2 ended by SIGKILL; the others have been ended"
    )
    for number in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)
    newest = max(steps_in(tmp_path / "checkpoints"))
    assert newest in (2, 3)
    assert shlex.split(again) == [*command(tmp_path, "--spawn=2"), "--resume"]
    done = warm.run(command(tmp_path, "--processes=1", "--resume"), environment)
    assert done.returncode == 0, done.stderr
    assert f"going on after epoch {newest}" in done.stdout
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["epochs"]
    np.testing.assert_allclose(losses(rows), losses(by_two[1]), rtol=TOLERANCE)


def test_of_a_run_whose_folder_is_in_use_every_process_ends_and_says_who_has_it(
    tmp_path, environment
):
    with lock.held(tmp_path / "checkpoints"):
        done = warm.run(command(tmp_path, "--spawn=2", "--resume"), environment)
    assert done.returncode == 1
    said = f"error: {tmp_path}/checkpoints: is in use by process {os.getpid()} on "
    *_, last = lines = done.stderr.splitlines()
    assert any(line.startswith(f"{distributed.NAME}: {said}") for line in lines)
    assert " of 2 ended with status 1; the others have been ended; to go on: " in last
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["lock"]
    assert not list((tmp_path / "out").iterdir())


def test_when_the_parent_is_killed_its_processes_end_too(tmp_path, environment):
    process = warm.Process(command(tmp_path, "--spawn=2", epochs=500), environment)
    while "process 1 of 2 has id" not in process.stdout.readline():
        assert process.returncode is None
    process.kill()
    process.communicate(timeout=60)  # until the first of them has closed stderr, which it inherits
    assert process.returncode == -signal.SIGKILL


def test_a_process_that_cannot_know_the_others_says_which_options_tell(tmp_path, environment):
    done = warm.run(command(tmp_path, "--processes=2"), environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{distributed.NAME}: error: ")
    assert done.stderr.endswith(" (--coordinator, --processes and --process say it)\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--spawn=-1"], "--spawn must be at least 0, got -1"),
        (["--spawn=2", "--process=0"], "--spawn chooses --coordinator"),
        (["--coordinator=nowhere"], "must be host:port, got nowhere"),
        (["--processes=2", "--process=2"], "--process must be in [0, --processes), got 2"),
        (["--processes=0"], "--processes"),
        (["--resume"], "--resume needs --checkpoint-dir"),
        (["--dataset=digits", "--held-out=5000", "--processes=1"], "cannot hold out 5000"),
        (["--dataset=digits", "--learning-rate=-1", "--processes=1"], "[0, inf), got -1"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        distributed.main([*arguments, f"--out={tmp_path}"])
    text = capsys.readouterr().err if exit_info.value.code == 2 else str(exit_info.value.code)
    assert message in text.splitlines()[-1]
    assert text.count(f"{distributed.NAME}: error: ") == text.count("error") or "usage" in text
    assert not (tmp_path / "metrics.json").exists()
