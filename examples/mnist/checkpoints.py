"""Checkpoints of a training run: written by Orbax while training goes on, the last few kept.

An epoch's checkpoint is the folder with its number. It holds what is needed to go on, to the bit
(`state`), each step's metrics so far (`history`), and in JSON the epochs' rows and what the run is
(`record`), with SHA-256 digests by which it is verified when it is read. It gets its number when
all of it is on the disk. Beside these lie `unfinished` and `trash`, which a save that was killed
leaves and the next one removes, and `refused`, where damaged checkpoints are moved.
"""

import contextlib
import gc
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

FORMAT = 1
logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells what it was told


class CheckpointError(Exception):
    """What stops a run: one line that names the checkpoint and says what is wrong with it."""


class Damaged(Exception):
    """What is wrong with a checkpoint that should be as it was written."""


class Saved(NamedTuple):
    """A run after an epoch."""

    epoch: int
    state: Any  # NumPy arrays
    history: dict[str, np.ndarray]  # metrics, each (steps so far,)
    rows: list[dict[str, Any]]  # one an epoch
    about: dict[str, Any]  # for information


def steps_in(folder: Path) -> list[int]:
    """The epochs whose folders exist, in order; unlike Orbax's list, with the damaged ones."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


class Checkpoints:
    """The last `keep` epochs of a run in `folder`; `resume` allows for those of an earlier life.

    In its methods `run` is what a run must share with one that it goes on from: "program",
    "configuration" (the value of each option) and anything else that JSON can hold. With several
    processes all call every method, the first writes, and all can see `folder`. The end of a `with`
    waits for the last save.

    Raises: CheckpointError if there are checkpoints and not `resume`, or no writing to `folder`.
    """

    def __init__(self, folder: Path, keep: int, *, resume: bool):
        self.folder, self.keep = folder.absolute(), keep
        self._saver = ThreadPoolExecutor(1, "saver")
        self._saving: Future[None] | None = None
        make(folder)
        if steps_in(folder) and not resume:
            raise CheckpointError(f"{folder}: has checkpoints; add --resume or name another folder")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        with uninterrupted():
            self.wait()
            self._saver.shutdown()

    def restore(self, like: Any, run: dict[str, Any]) -> Saved | None:
        """The newest epoch that is whole, its state as NumPy arrays in the structure of `like`.

        None if there never was one. Damaged ones on the way to it are named on stderr and moved.
        Raises: CheckpointError if all are damaged or one is another run's; nothing is moved then.
        """
        saved, refused = None, {}
        for epoch in reversed(steps_in(self.folder)):
            try:
                saved = self.read(epoch, like, run)
                break
            except Damaged as error:
                refused[epoch] = f"{self.folder / str(epoch)}: {error}"
        try:
            multihost_utils.assert_equal(saved.epoch if saved else 0)
        except AssertionError as error:
            raise CheckpointError(f"{self.folder}: not the same for all processes") from error
        if saved:
            for epoch, complaint in refused.items():
                self._move_aside(epoch, f"{complaint}; going on from epoch {saved.epoch} instead")
        elif refused:
            complaints = "; ".join(refused.values())
            raise CheckpointError(
                f"no checkpoint is whole: {complaints}; another folder begins a new run"
            )
        return saved

    def save(
        self,
        epoch: int,
        state: Any,
        history: dict[str, np.ndarray],
        *,
        rows: list[dict[str, Any]],
        run: dict[str, Any],
        about: dict[str, Any],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Copies the state and returns; what was given may change while the copy is written.

        `then` is called in the first process, from another thread, as soon as the epoch would
        survive a power failure; only after that the one that it displaces is removed. One epoch is
        written at a time: this waits for the one before.

        Raises: CheckpointError if the one before could not be written.
        """
        with uninterrupted():
            self.wait()
            arrays = on_host({"state": state, "history": history})
            record = {"format": FORMAT, "run": run, "epoch": epoch, "rows": rows, "about": about}
            record = json.loads(json.dumps(record))  # a copy, which the next epoch does not change
            if jax.process_index() == 0:
                self._saving = self._saver.submit(self._write, epoch, arrays, record, then)

    def wait(self) -> None:
        """Until no save is under way.

        Raises: CheckpointError if it could not be written.
        """
        saving, self._saving = self._saving, None
        if saving:
            saving.result()

    def _write(
        self, epoch: int, arrays: Any, record: dict[str, Any], then: Callable[[], None]
    ) -> None:
        path, unfinished = self.folder / str(epoch), self.folder / "unfinished"
        record["arrays"] = digest(arrays)
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays["state"]),
            history=ocp.args.PyTreeSave(arrays["history"]),
            record=ocp.args.JsonSave({"record": record, "sha256": json_digest(record)}),
        )
        with complaints(path):
            for name in ("unfinished", "trash"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            with alone() as writer:
                writer.save(unfinished / path.name, args=args)
            for written in (unfinished / path.name).rglob("*"):
                sync(written)
            sync(unfinished / path.name)
            (unfinished / path.name).rename(path)
            unfinished.rmdir()
            sync(self.folder)
        then()
        # Deleting is not atomic, but moving is: what is in the trash is no checkpoint.
        trash = self.folder / "trash"
        with complaints(path):
            for displaced in steps_in(self.folder)[: -self.keep]:
                trash.mkdir(exist_ok=True)
                (self.folder / str(displaced)).rename(trash / str(displaced))
        shutil.rmtree(trash, ignore_errors=True)

    def read(self, epoch: int, like: Any, run: dict[str, Any]) -> Saved:
        """One epoch, verified.

        Raises: Damaged; CheckpointError if it is another run's.
        """
        path, wrong = self.folder / str(epoch), None
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        with silent_leftovers(), alone() as reader:
            try:
                content = reader.restore(
                    path, args=ocp.args.Composite(record=ocp.args.JsonRestore())
                ).record
                if content["sha256"] != json_digest(record := content["record"]):
                    raise Damaged("its record is not what was written")
                if record["epoch"] != epoch:
                    raise Damaged(f"is of epoch {record['epoch']}")
                check_run(path, record, run)
                arrays = reader.restore(
                    path,
                    args=ocp.args.Composite(
                        state=ocp.args.PyTreeRestore(like, restore_args=as_numpy),
                        history=ocp.args.PyTreeRestore(),
                    ),
                )
                if digest({"state": arrays.state, "history": arrays.history}) != record["arrays"]:
                    raise Damaged("its arrays are not what was written")
                return Saved(epoch, arrays.state, arrays.history, record["rows"], record["about"])
            except CheckpointError:
                raise
            except Damaged as error:
                wrong = str(error)
            except Exception as error:  # whatever a file that holds anything can cause
                wrong = f"cannot be read ({first_line(error)})"
        raise Damaged(wrong)

    def _move_aside(self, epoch: int, message: str) -> None:
        if jax.process_index() == 0:
            place = self.folder / "refused"
            place.mkdir(exist_ok=True)
            place /= f"{epoch}.{len(list(place.glob(f'{epoch}.*'))) + 1}"
            (self.folder / str(epoch)).rename(place)
            sync(place.parent)
            sync(self.folder)
            print(f"{message}; it is now {place}", file=sys.stderr, flush=True)
        multihost_utils.sync_global_devices("moved aside")


def make(folder: Path) -> None:
    """Makes a folder that outlives a power failure, where it is not there.

    Raises: CheckpointError if it cannot be written.
    """
    try:
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in new:
            sync(path.parent)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def complaints(path: Path) -> Iterator[None]:
    """Raises: CheckpointError for what the file system refuses."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be written ({first_line(error)})") from error


def sync(path: Path) -> None:
    """Returns when a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def on_host(tree: Any) -> Any:
    """A copy in NumPy arrays; of what several processes share, all of it in each."""

    def copy(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            if not leaf.is_fully_replicated:
                return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
            leaf = leaf.addressable_data(0)
        return np.array(leaf)  # never the device's own memory, which the next epoch overwrites

    return jax.tree.map(copy, tree)


def alone() -> ocp.Checkpointer:
    """It reads and writes without other processes, so that none waits for one that fails."""
    process = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"process_{process}",
    )
    # Each part has to be told: by default it waits for every process, which train on.
    parts = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=options),
        state=ocp.PyTreeCheckpointHandler(multiprocessing_options=options),
        history=ocp.PyTreeCheckpointHandler(multiprocessing_options=options),
        record=ocp.JsonCheckpointHandler(multiprocessing_options=options),
    )
    return ocp.Checkpointer(parts, multiprocessing_options=options)


@contextlib.contextmanager
def silent_leftovers() -> Iterator[None]:
    """What Orbax abandons when a read fails complains on stderr as it is collected."""
    former, sys.unraisablehook = sys.unraisablehook, lambda _: None
    log = logging.getLogger("asyncio")
    log.disabled, was_disabled = True, log.disabled
    try:
        yield
    finally:
        gc.collect()
        sys.unraisablehook, log.disabled = former, was_disabled


def check_run(path: Path, record: dict[str, Any], run: dict[str, Any]) -> None:
    """Raises: CheckpointError that names the first thing in which the two runs differ."""
    then, now = record["run"], json.loads(json.dumps(run))

    def options(run):
        return {f"--{name.replace('_', '-')}": v for name, v in run["configuration"].items()}

    for old, new in (
        ({"format": record["format"]}, {"format": FORMAT}),
        ({"program": then["program"]}, {"program": now["program"]}),
        (options(then), options(now)),
        (then, now),
    ):
        for name in new | old:
            if old.get(name) != new.get(name):
                raise CheckpointError(
                    f"{path}: is of a run with {name} {old.get(name)}, not {new.get(name)}"
                )


def digest(tree: Any) -> str:
    """SHA-256 of the leaves, NumPy arrays: path, dtype, shape and bytes."""
    sha256 = hashlib.sha256()
    for path, array in jax.tree_util.tree_leaves_with_path(tree):
        sha256.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        sha256.update(array.tobytes())
    return sha256.hexdigest()


def json_digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return textwrap.shorten(line, 200, placeholder=" ...")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as SIGINT does."""
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the body is done."""
    caught = []
    former = {
        number: signal.signal(number, lambda number, _: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])
