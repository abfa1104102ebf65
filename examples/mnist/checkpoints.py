"""Checkpoints of a training run: written by Orbax, atomic, the last few kept, verified when read.

An epoch's checkpoint is the folder with its number. It holds what is needed to go on, to the bit
(`state`), each step's metrics so far (`history`), and in JSON the epochs' rows and what the run is
(`record`), with SHA-256 digests. Beside these lie the unfinished folders of saves that were killed
and `trash`, which the next save removes, and `refused`, where damaged checkpoints are moved.
"""

import contextlib
import gc
import hashlib
import json
import logging
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Iterator
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
    processes all call every method, and `folder` is on a file system that they share.

    Raises: CheckpointError if there are checkpoints and not `resume`, or no writing to `folder`.
    """

    def __init__(self, folder: Path, keep: int, *, resume: bool):
        self.folder, self.keep = folder.absolute(), keep
        self._manager = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be written ({error.strerror})") from error
        if steps_in(folder) and not resume:
            raise CheckpointError(f"{folder}: has checkpoints; add --resume or name another folder")

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
    ) -> None:
        """Returns when the epoch is on disk and the one that it displaces is not.

        Raises: CheckpointError if it cannot be written.
        """
        record = {"format": FORMAT, "run": run, "epoch": epoch, "rows": rows, "about": about}
        record["arrays"] = digest({"state": state, "history": history})
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            history=ocp.args.PyTreeSave(history),
            record=ocp.args.JsonSave({"record": record, "sha256": json_digest(record)}),
        )
        try:
            with uninterrupted():
                self._writer().save(epoch, args=args)
                self._empty_trash()
        except (OSError, ValueError) as error:
            path = self.folder / str(epoch)
            raise CheckpointError(f"{path}: cannot be written ({first_line(error)})") from error

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
            print(f"{message}; it is now {place}", file=sys.stderr, flush=True)
        multihost_utils.sync_global_devices("moved aside")

    def _writer(self) -> ocp.CheckpointManager:
        """Made with the first save: making it removes what a save that was killed has left."""
        if self._manager is None:
            self._empty_trash()
            options = ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(self.keep),
                # Deleting is not atomic, but moving is; what is in the trash is no checkpoint.
                todelete_subdir="trash",
                cleanup_tmp_directories=True,
                # The state is donated to the next epoch: what is saved must not still be in use.
                enable_async_checkpointing=False,
                save_root_metadata=False,
                lightweight_initialize=True,
            )
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager

    def _empty_trash(self) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self.folder / "trash", ignore_errors=True)
        multihost_utils.sync_global_devices("trash emptied")


def alone() -> ocp.Checkpointer:
    """A reader that waits for no other process, so that none waits for one that fails."""
    process = jax.process_index()
    return ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(),
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=process,
            active_processes={process},
            barrier_sync_key_prefix=f"process_{process}",
        ),
    )


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
    """SHA-256 of the leaves: path, dtype, shape and bytes; the same however they are sharded."""
    sha256 = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(leaf)
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
