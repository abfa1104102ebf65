"""A folder belongs to one run at a time: what two would write to it could not be told apart."""

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from examples.mnist.checkpoints import CheckpointError, complaints, make

PATIENCE = 2.0  # seconds: a process that is killed lives on for a moment
TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which is made if need be.

    The lock is the kernel's, on the file `lock` in the folder: it is gone with its process,
    whatever ended that. On NFS it is the server's, and holds between hosts. The file stays, and
    tells of the last holder. Of several processes the first holds it for all; all call this.

    Raises: CheckpointError in all of them, with who holds it, or if the folder cannot be written.
    """
    complaint, file = "", None
    try:
        if jax.process_index() == 0:
            make(folder)
            file = _locked(folder)
    except CheckpointError as error:
        complaint = str(error)
    if complaint := _of_the_first(complaint):
        raise CheckpointError(complaint)
    with file or contextlib.nullcontext():
        yield


def _locked(folder: Path) -> TextIO | None:
    """The file that is locked as long as it is open, or None where files cannot be."""
    until = time.monotonic() + PATIENCE
    with complaints(folder / "lock"):
        file = open(folder / "lock", "a+", encoding="utf-8")  # noqa: SIM115
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in TAKEN and time.monotonic() < until:
                time.sleep(0.05)
                continue
            file.seek(0)
            holder = file.read()
            file.close()
            if error.errno in TAKEN:
                raise CheckpointError(
                    f"{folder}: is in use by {holder or 'another run'}"
                ) from error
            print(
                f"{folder}: cannot be locked ({error.strerror}); let no other run use it",
                file=sys.stderr,
            )
            return None
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
        file.flush()
        os.fsync(file.fileno())  # on NFS others see it from then on
        return file


def _of_the_first(text: str) -> str:
    """What the first process says, in all of them."""
    room = np.zeros(1000, np.uint8)
    content = np.frombuffer(text.encode()[: len(room)], np.uint8)
    room[: len(content)] = content
    told = np.asarray(multihost_utils.broadcast_one_to_all(room))
    return told.tobytes().rstrip(b"\0").decode(errors="replace")
