"""Checkpoints of `examples/mnist/`: kill -9 at any moment, damage to every file, the program."""

import asyncio
import errno
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.mnist import checkpoints, lock, models, options, training
from examples.mnist.checkpoints import (
    CheckpointError,
    Checkpoints,
    Damaged,
    silent_leftovers,
    steps_in,
)
from tests import warm
from tests.helpers import SOAK, assert_same_bits

# Of a read that fails, TensorStore's threads may still report to Orbax's loop when it has closed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(?s).*Event loop is closed:pytest.PytestUnraisableExceptionWarning"
)

ROOT = Path(__file__).parents[1]
RUN = {"program": "a test", "configuration": {"batch_size": 4}}
STATE = {
    "float32": jnp.array([[-0.0, jnp.nan, 1e-45], [jnp.inf, 1 / 3, 1.0]]),
    "bfloat16": jnp.arange(300, dtype=jnp.bfloat16),
    "nested": (jnp.uint8(7), {"empty": {}, "count": jnp.int32(-1)}),
}
HISTORY = {"loss": np.zeros(2, np.float32)}


def save(folder: Checkpoints, epoch: int, state=STATE, run=RUN):
    history = {"loss": np.arange(3.0 * epoch, dtype=np.float32)}
    rows = [{"epoch": number, "loss": number / 3} for number in range(1, epoch + 1)]
    folder.save(epoch, state, history, rows=rows, run=run, about={})
    folder.wait()


def restored(folder: Checkpoints) -> checkpoints.Saved:
    saved = folder.restore(STATE, RUN)
    assert saved
    return saved


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    writer = Checkpoints(folder, 3, resume=False)
    save(writer, 1, jax.tree.map(lambda leaf: leaf + 1, STATE))
    save(writer, 2)
    return folder


@pytest.fixture
def folder(two_epochs, tmp_path):
    return shutil.copytree(two_epochs, tmp_path / "copy")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_is_restored_is_what_was_saved(folder):
    saved = restored(Checkpoints(folder, 3, resume=True))
    assert saved.epoch == 2
    assert_same_bits(saved.state, STATE)
    np.testing.assert_array_equal(saved.history["loss"], np.arange(6.0))
    assert saved.rows == [{"epoch": 1, "loss": 1 / 3}, {"epoch": 2, "loss": 2 / 3}]


def test_the_last_few_are_kept_and_nothing_else(tmp_path):
    writer = Checkpoints(tmp_path, 2, resume=False)
    for epoch in range(1, 6):
        save(writer, epoch)
        assert steps_in(tmp_path) == list(range(max(1, epoch - 1), epoch + 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "5"]


def test_the_displaced_one_is_moved_away_at_once_and_deleted_elsewhere(tmp_path, monkeypatch):
    writer = Checkpoints(tmp_path, 1, resume=False)
    save(writer, 1)
    before = [path.read_bytes() for path in files(tmp_path / "1")]
    monkeypatch.setattr(checkpoints.shutil, "rmtree", lambda *_, **__: None)  # killed before it
    save(writer, 2)
    assert steps_in(tmp_path) == [2]
    assert [path.read_bytes() for path in files(tmp_path / "trash" / "1")] == before


def test_what_killed_saves_leave_is_no_checkpoint_and_is_removed(folder):
    shutil.copytree(folder / "2", folder / "unfinished" / "7.orbax-checkpoint-tmp")
    shutil.copytree(folder / "2", folder / "unfinished" / "7")
    shutil.copytree(folder / "2", folder / "trash" / "2")
    resumed = Checkpoints(folder, 3, resume=True)
    assert restored(resumed).epoch == 2
    save(resumed, 3)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


def damaged(path: Path, rng: random.Random):
    """Does one thing after the other to a file, and puts it right again each time."""
    content = path.read_bytes()
    path.unlink()
    yield "removed"
    path.write_bytes(content[: rng.randrange(len(content))])
    yield "cut short"
    for _ in range(20 if SOAK else 1):
        place, bit = rng.randrange(len(content)), rng.randrange(8)
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        yield f"bit {bit} of byte {place} flipped"
    path.write_bytes(content)


@pytest.mark.parametrize("seed", range(4 if SOAK else 1))
def test_damage_to_any_file_is_found_or_harmless(folder, seed):
    rng, reader = random.Random(seed), Checkpoints(folder, 3, resume=True)
    whole = reader.read(2, STATE, RUN)
    found = {}
    for path in files(folder / "2"):
        for damage in damaged(path, rng):
            name = f"{path.relative_to(folder)}, {damage}"
            try:
                read = reader.read(2, STATE, RUN)
            except Damaged as error:
                found[name] = str(error)
            else:
                assert_same_bits((read.state, read.history), (whole.state, whole.history))
                assert read[3:] == whole[3:], name
    print(f"{len(found)} found, of {sum(1 for _ in files(folder / '2'))} files")
    assert not any("\n" in message for message in found.values())
    for part in ("state", "history", "record"):
        assert any(f"2/{part}/" in name for name in found)
    assert reader.read(2, STATE, RUN).epoch == 2  # all is right again


def test_what_a_failed_read_abandons_says_nothing(caplog):
    loop = asyncio.new_event_loop()

    def abandon():
        loop.create_future().set_exception(ValueError("abandoned"))

    with silent_leftovers():
        abandon()
    assert not caplog.text
    abandon()  # outside it would
    assert "ValueError: abandoned" in caplog.text
    loop.close()


def test_one_that_reads_well_with_other_values_is_refused(folder, tmp_path):
    other = Checkpoints(tmp_path / "other", 3, resume=False)
    save(other, 2, jax.tree.map(lambda leaf: leaf + 1, STATE))
    shutil.rmtree(folder / "2" / "state")
    shutil.copytree(tmp_path / "other" / "2" / "state", folder / "2" / "state")
    with pytest.raises(Damaged, match="arrays are not what was written"):
        Checkpoints(folder, 3, resume=True).read(2, STATE, RUN)
    (folder / "1").rename(folder / "3")
    with pytest.raises(Damaged, match="is of epoch 1"):
        Checkpoints(folder, 3, resume=True).read(3, STATE, RUN)
    (folder / "3").rename(folder / "1")
    path = folder / "1" / "record" / "metadata"
    path.write_text(path.read_text().replace('"loss": 0.3', '"loss": 0.4'))
    with pytest.raises(Damaged, match="record is not what was written"):
        Checkpoints(folder, 3, resume=True).read(1, STATE, RUN)


def empty(path: Path):
    shutil.rmtree(path)
    path.mkdir()


def foreign(path: Path):
    shutil.rmtree(path)
    with checkpoints.ocp.StandardCheckpointer() as writer:
        writer.save(path, {"weights": jnp.zeros(3)})


def without_its_marker(path: Path):
    (path / "commit_success.txt").unlink()
    (path / "record" / "metadata").unlink()


def a_file(path: Path):
    shutil.rmtree(path)
    path.write_text("not a folder")


@pytest.mark.parametrize("harm", [empty, foreign, without_its_marker, a_file])
def test_the_previous_one_is_used_and_the_damaged_one_kept(folder, capsys, harm):
    harm(folder / "2")
    left = [path.read_bytes() for path in files(folder)]
    for life in (1, 2):
        resumed = Checkpoints(folder, 3, resume=True)
        assert restored(resumed).epoch == 1
        error = capsys.readouterr().err
        assert error.startswith(f"{folder / '2'}: cannot be read (")
        place = folder / "refused" / f"2.{life}"
        assert error.endswith(f"; going on from epoch 1 instead; it is now {place}\n")
        assert error.count("\n") == 1
        assert place.exists()
        save(resumed, 2)  # the same number again
        assert steps_in(folder) == [1, 2]
        assert resumed.read(2, STATE, RUN).epoch == 2
        harm(folder / "2")
    assert {bytes(content) for content in left} <= {path.read_bytes() for path in files(folder)}


def test_where_none_is_whole_it_says_so_and_leaves_everything(folder):
    for path in (folder / "1", folder / "2"):
        (path / "record" / "metadata").write_text("{")
    before = files(folder)
    with pytest.raises(CheckpointError) as error:
        Checkpoints(folder, 3, resume=True).restore(STATE, RUN)
    text = str(error.value)
    assert "\n" not in text
    assert str(folder / "1") in text
    assert str(folder / "2") in text
    assert text.endswith("; another folder begins a new run")
    assert files(folder) == before


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"configuration": {"batch_size": 8}}, "--batch-size 4, not 8"),
        ({"configuration": {"batch_size": 4, "seed": 1}}, "--seed None, not 1"),
        ({"configuration": {}}, "--batch-size 4, not None"),
        ({"program": "another"}, "program a test, not another"),
        ({"dataset": "digits"}, "dataset None, not digits"),
    ],
)
def test_another_runs_checkpoint_is_refused_by_what_differs(folder, run, message):
    with pytest.raises(CheckpointError, match=f"^{folder}/2: is of a run with {message}$"):
        Checkpoints(folder, 3, resume=True).restore(STATE, RUN | run)
    assert steps_in(folder) == [1, 2]


def test_a_state_of_another_structure_is_refused(folder):
    reader = Checkpoints(folder, 3, resume=True)
    for other in ({**STATE, "more": jnp.zeros(2)}, {"float32": STATE["float32"]}):
        with pytest.raises(Damaged):
            reader.read(2, other, RUN)


# The program.


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """With a compilation cache of their own for all lives, which writes in no other place."""
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def command(folder: Path, *more: str, epochs: int) -> list[str]:
    return [
        sys.executable, "-m", "examples.mnist", "--dataset=digits", f"--epochs={epochs}",
        f"--out={folder / 'out'}", f"--checkpoint-dir={folder / 'checkpoints'}", *more,
    ]  # fmt: skip


def until_an_epoch(process: warm.Process) -> str:
    """What it prints up to the line of its first epoch."""
    lines = []
    while not (lines and lines[-1].startswith("epoch ")):
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    return "".join(lines)


def announced(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^epoch +(\d+)/", text, re.MULTILINE)]


def without_timings(folder: Path) -> dict:
    report = json.loads((folder / "out" / "metrics.json").read_text())
    report.pop("timing")
    for row in report["epochs"]:
        row.pop("seconds")
    return report


class Lives:
    """One run of the example with its checkpoints, as somebody who looks at the disk sees it."""

    def __init__(self, folder: Path, epochs: int):
        self.folder, self.epochs = folder, epochs
        self.path = folder / "checkpoints"
        args = options.checked(options.argument_parser("", ""), command(folder, epochs=epochs)[3:])
        steps = epochs * 23
        rate, tx = options.optimizer_of(args, steps)
        images = jnp.zeros((1, 8, 8), jnp.uint8)
        self.like = jax.eval_shape(
            lambda key: training.initial_state(models.MLP(), tx, key, images), jax.random.key(0)
        )
        self.run = {
            "program": "examples.mnist",
            "configuration": {**args.configuration, "learning_rate": rate, "steps": steps},
            "dataset": {"name": "digits", "train": 1437, "test": 360},
        }

    def verified(self, epoch: int) -> checkpoints.Saved:
        return Checkpoints(self.path, 3, resume=True).read(epoch, self.like, self.run)

    def newest(self) -> int:
        """Of the checkpoints, every one of which must be whole."""
        steps = steps_in(self.path) if self.path.exists() else []
        for epoch in steps:
            assert self.verified(epoch).rows[-1]["epoch"] == epoch
        return max(steps, default=0)


def assert_equal_to_the_bit(one: Lives, other: Lives):
    a, b = (lives.verified(lives.epochs) for lives in (one, other))
    for part in ("params", "opt_state", "step", "batch_stats"):
        assert_same_bits(getattr(a.state, part), getattr(b.state, part))
    assert_same_bits(a.history, b.history)
    report, expected = without_timings(one.folder), without_timings(other.folder)
    assert report == expected
    assert [row["epoch"] for row in report["epochs"]] == list(range(1, one.epochs + 1))
    pictures = ((lives.folder / "out" / "training.png").read_bytes() for lives in (one, other))
    assert next(pictures) == next(pictures)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, environment):
    """A run from its start to its end, and the seconds that an epoch takes, with its save."""
    epochs = 600 if SOAK else 20
    lives = Lives(tmp_path_factory.mktemp("undisturbed"), epochs)
    process = warm.Process(command(lives.folder, epochs=epochs), environment)
    until_an_epoch(process)
    ends = [time.perf_counter()]
    while process.stdout.readline().startswith("epoch "):
        ends.append(time.perf_counter())
    process.communicate()
    assert process.returncode == 0
    return lives, float(np.median(np.diff(ends)))


def test_a_run_interrupted_and_killed_at_random_moments_ends_as_if_it_had_not_been(
    tmp_path, environment, undisturbed
):
    expected, an_epoch = undisturbed
    kills, seed = (200, 1) if SOAK else (6, 0)
    rng = random.Random(seed)
    lives = Lives(tmp_path, expected.epochs)
    arguments = interrupted_twice(lives, environment)
    newest, in_a_save, in_start_up, lost = lives.newest(), 0, 0, 0
    for kill in range(kills):
        process = warm.Process(arguments, environment)
        in_training = kill % 5 != 4
        text = until_an_epoch(process) if in_training else ""
        # The moment: in the epoch after the first one or soon after it, or anywhere in the start.
        delay = rng.uniform(0, 1.5 * an_epoch if in_training else 2)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(delay)
        process.kill()
        text += process.communicate()[0]
        assert process.returncode == -signal.SIGKILL
        done = announced(text)
        assert done == list(range(newest + 1, newest + 1 + len(done)))
        before, newest = newest, lives.newest()
        # What was announced is there, and at most one more.
        assert newest - before - len(done) in (0, 1)
        in_start_up += not done
        leftovers = {path.name for path in lives.path.glob("*[!0-9]")} - {"lock"}
        assert "refused" not in leftovers
        if done:  # a life without a save has left what an earlier one had left
            in_a_save += bool(leftovers)
            lost += "unfinished" in leftovers
    print(
        f"{kills} kills, {in_start_up} before an epoch, {in_a_save} in a save or a removal, "
        f"{lost} unfinished saves, epoch {newest} reached"
    )
    assert in_a_save >= kills // 5
    assert newest < lives.epochs
    warm.run(arguments, environment).check_returncode()
    assert_equal_to_the_bit(lives, expected)
    assert sorted(path.name for path in lives.path.iterdir()) == [
        *(str(epoch) for epoch in range(lives.epochs - 2, lives.epochs + 1)),
        "lock",
    ]


def interrupted_twice(lives: Lives, environment) -> list[str]:
    """Begins the run, once interrupted and once terminated; the command that it says goes on."""
    arguments = command(lives.folder, epochs=lives.epochs)
    for number in (signal.SIGINT, signal.SIGTERM):
        process = warm.Process(arguments, environment)
        text = until_an_epoch(process)
        process.send_signal(number)
        out, error = process.communicate()
        assert process.returncode == 1
        assert "Traceback" not in error
        message = error.splitlines()[-1]
        assert message.startswith("interrupted; to go on: ")
        assert lives.newest() - max(announced(text + out)) in (0, 1)
        assert [path.name for path in lives.path.glob("*[!0-9]")] == ["lock"]  # no save was cut off
        arguments = shlex.split(message.removeprefix("interrupted; to go on: "))
    assert "--resume" in arguments
    return arguments


@pytest.fixture
def _heeding_interrupts():
    """In the background of a script Python is started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeding_interrupts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_save_waits_until_it_is_done(tmp_path, monkeypatch, number):
    """The signal reaches the main thread while it trains on, or while it waits for the save."""
    saves = checkpoints.ocp.Checkpointer.save

    def disturbed(*args, **kwargs):
        os.kill(os.getpid(), number)
        time.sleep(0.2)
        return saves(*args, **kwargs)

    monkeypatch.setattr(checkpoints.ocp.Checkpointer, "save", disturbed)
    told = []

    def train():
        with checkpoints.interruptible(), Checkpoints(tmp_path, 3, resume=False) as writer:
            writer.save(1, STATE, HISTORY, rows=[], run=RUN, about={}, then=lambda: told.append(1))
            time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert told == [1]
    assert checkpoints.steps_in(tmp_path) == [1]
    assert not (tmp_path / "unfinished").exists()


def test_a_save_goes_on_beside_training_and_one_alone_at_a_time(tmp_path, monkeypatch):
    saves, go_on, events = checkpoints.ocp.Checkpointer.save, threading.Event(), []

    def slow(*args, **kwargs):
        events.append("begins")
        assert go_on.wait(60)
        saves(*args, **kwargs)
        events.append("ends")

    monkeypatch.setattr(checkpoints.ocp.Checkpointer, "save", slow)
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0, state), donate_argnums=0)
    state = jax.tree.map(jnp.array, STATE)
    with Checkpoints(tmp_path, 3, resume=False) as writer:
        rows = [{"epoch": 1}]
        writer.save(
            1, state, HISTORY, rows=rows, run=RUN, about={}, then=lambda: events.append("told")
        )
        state = step(state)  # which takes the place of what is saved, as the next epoch does
        rows.append({"epoch": 2})
        jax.block_until_ready(state)
        assert "told" not in events
        assert steps_in(tmp_path) == []
        threading.Timer(0.2, go_on.set).start()
        writer.save(
            2, state, HISTORY, rows=rows, run=RUN, about={}, then=lambda: events.append("told")
        )
        assert events[:3] == ["begins", "ends", "told"]
    assert events == ["begins", "ends", "told"] * 2
    reader = Checkpoints(tmp_path, 3, resume=True)
    assert_same_bits(reader.read(1, STATE, RUN).state, STATE)
    assert [reader.read(epoch, STATE, RUN).rows[-1]["epoch"] for epoch in (1, 2)] == [1, 2]


def test_an_epoch_is_told_when_its_files_and_names_are_on_the_disk(tmp_path, monkeypatch):
    """And has its number only then, and what it displaces is removed only after that."""
    events, folder = [], tmp_path / "new" / "folder"

    def noting(module, name, path_of):
        does = getattr(module, name)

        def noted(*args):
            path = Path(path_of(*args))
            names = {inner.name for inner in path.iterdir()} if path.is_dir() else set()
            events.append((name, path.relative_to(tmp_path), names))
            return does(*args)

        monkeypatch.setattr(module, name, noted)

    noting(os, "fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    noting(Path, "rename", lambda path, _: path)
    with Checkpoints(folder, 1, resume=False) as writer:
        assert [event[:2] for event in events] == [("fsync", Path("new")), ("fsync", Path("."))]
        for epoch in (1, 2):
            events.clear()
            writer.save(epoch, STATE, HISTORY, rows=[], run=RUN, about={},
                        then=lambda: events.append(("told", None, set())))  # fmt: skip
            writer.wait()
            unfinished, final = Path(f"new/folder/unfinished/{epoch}"), folder / str(epoch)
            written = {unfinished / path.relative_to(final) for path in [final, *final.rglob("*")]}
            numbered = [event[:2] for event in events].index(("rename", unfinished))
            assert {path for name, path, _ in events[:numbered] if name == "fsync"} == written
            (name, path, names), told, *removed = events[numbered + 1 :]
            assert (name, path, told[0]) == ("fsync", Path("new/folder"), "told")
            assert str(epoch) in names
            assert [event[:2] for event in removed] == [("rename", Path("new/folder/1"))][
                : epoch - 1
            ]


# The lock.


def held_elsewhere(folder: Path) -> subprocess.Popen:
    """A process that holds the lock of a folder until it is killed."""
    code = f"""
import pathlib, time
from examples.mnist import lock
with lock.held(pathlib.Path({str(folder)!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_says_who_has_the_folder_and_one_that_follows_a_kill_goes_on(
    tmp_path, environment
):
    lives = Lives(tmp_path, 500)
    first = warm.Process(command(tmp_path, "--resume", epochs=500), environment)
    text = until_an_epoch(first)
    second = warm.run(command(tmp_path, "--resume", epochs=500), environment)
    assert (second.returncode, second.stdout) == (1, "")
    assert re.fullmatch(
        rf"python -m examples.mnist: error: {lives.path}: is in use by process {first.pid} "
        rf"on {re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\S+\n",
        second.stderr,
    )
    text += until_an_epoch(first)  # it has not noticed
    first.kill()
    third = warm.Process(command(tmp_path, "--resume", epochs=500), environment)
    text += first.communicate()[0]
    resumed = until_an_epoch(third)
    third.kill()
    third.communicate()
    after = int(re.findall(r"going on after epoch (\d+)", resumed)[0])
    assert after - max(announced(text)) in (0, 1)
    assert lives.newest() >= max(announced(resumed))


def test_the_lock_is_gone_with_its_process_and_only_then(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.0)
    holder = held_elsewhere(tmp_path)
    with (
        pytest.raises(CheckpointError, match=f"is in use by process {holder.pid} on"),
        lock.held(tmp_path),
    ):
        pass
    holder.kill()
    holder.communicate()
    with lock.held(tmp_path):  # though its file is there, and names the dead
        assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()
        with pytest.raises(CheckpointError, match=f"process {os.getpid()} on"), lock.held(tmp_path):
            pass
    with lock.held(tmp_path):
        pass


def test_one_that_is_just_ending_is_waited_for(tmp_path):
    holder = held_elsewhere(tmp_path)
    threading.Timer(0.3, holder.kill).start()
    with lock.held(tmp_path):
        pass
    holder.communicate()


def test_where_files_cannot_be_locked_it_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    def refused(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", refused)
    with lock.held(tmp_path / "new"):
        pass
    assert capsys.readouterr().err == (
        f"{tmp_path}/new: cannot be locked (Operation not supported); let no other run use it\n"
    )


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(CheckpointError, match=r"lock: cannot be written \(.*\)$"):
        lock.held(tmp_path).__enter__()


def test_a_save_that_fails_is_one_line(tmp_path):
    writer = Checkpoints(tmp_path / "folder", 3, resume=False)
    save(writer, 1)
    shutil.rmtree(tmp_path / "folder")
    (tmp_path / "folder").write_text("")
    with pytest.raises(CheckpointError, match=r"^\S+/folder/2: cannot be written \(.*\)$"):
        save(writer, 2)
