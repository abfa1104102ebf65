"""Processes that begin with their libraries imported: those that tests start, signal and kill.

Python's fork server imports the libraries once and starts no backend. A process that it forks is a
process of its own in every other respect: environment, output, signals, exit status.
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

import jax

ROOT = Path(__file__).parents[1]
# Of the variables that tests set: those that JAX reads when it is imported.
READ_AT_IMPORT = {
    "JAX_PLATFORMS": str,
    "JAX_NUM_CPU_DEVICES": int,
    "JAX_COMPILATION_CACHE_DIR": str,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": float,
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": int,
}

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["flax.linen", "flax.nnx", "flax.serialization", "flax.training.train_state", "jax",
     "matplotlib.pyplot", "optax", "orbax.checkpoint", "sklearn.datasets", "tqdm"]
)  # fmt: skip


class Process:
    """A Python command in a warm process, with those members of `subprocess.Popen` in use.

    Args:
      command: `[sys.executable, script, *arguments]` or `[sys.executable, "-m", module, ...]`.
      env: its environment.
      cwd: its folder; the checkout, where our modules are found.
    """

    def __init__(self, command: list[Any], env: dict[str, str], cwd: str | Path = ROOT):
        assert command[0] == sys.executable
        readers, writers = zip(*(_context.Pipe(duplex=False) for _ in range(2)), strict=True)
        arguments = [os.fspath(argument) for argument in command[1:]]
        self._process = _context.Process(
            target=_become, args=(arguments, env, os.path.abspath(cwd), *writers), daemon=True
        )  # a daemon ends with the tests
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.stdout, self.stderr = (os.fdopen(os.dup(end.fileno())) for end in readers)
        for end in (*readers, *writers):
            end.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """The rest of what it writes to stdout and to stderr, until both are closed."""
        texts = ["", ""]
        if self.stdout.closed:  # all has been read
            return "", ""

        def read(index: int, file: TextIO) -> None:
            texts[index] = file.read()

        threads = [
            threading.Thread(target=read, args=pair, daemon=True)
            for pair in enumerate((self.stdout, self.stderr))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout)
            if thread.is_alive():
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        for file in (self.stdout, self.stderr):
            file.close()
        self.wait(timeout)
        return texts[0], texts[1]


def run(
    command: list[Any], env: dict[str, str], cwd: str | Path = ROOT
) -> "subprocess.CompletedProcess[str]":
    """As `subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)`."""
    process = Process(command, env, cwd)
    out, error = process.communicate()
    return subprocess.CompletedProcess(command, process.wait(), out, error)


def _become(arguments: list[str], env: dict[str, str], cwd: str, *outputs: Connection) -> None:
    """Makes the forked process the one that `python *arguments` would be."""
    for number, end in enumerate(outputs, start=1):
        os.dup2(end.fileno(), number)
        end.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a script began it
    gc.freeze()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for name, kind in READ_AT_IMPORT.items():
        if name in env:
            jax.config.update(name.lower(), kind(env[name]))
    module = arguments[0] == "-m"
    sys.argv = arguments[module:]
    sys.path[0] = os.getcwd() if module else str(Path(sys.argv[0]).parent)
    try:
        if module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()  # which multiprocessing leaves out
