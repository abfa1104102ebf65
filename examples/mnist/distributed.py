"""Train the networks with several processes, each with its share of every batch.

    python -m examples.mnist.distributed --spawn 2  # two processes on this host
    python -m examples.mnist.distributed --coordinator host0:1234 --processes 2 --process 0
    srun python -m examples.mnist.distributed       # on a cluster that JAX knows, without options

The second starts one process of two, on the CPU or on all GPUs of its host; the other one, on the
same or another host, has `--process 1`. A seed gives the same batches however many there are. With
--checkpoint-dir, on a file system that all can see, --resume goes on, with any number of processes.
"""

import argparse
import contextlib
import math
import os
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from amac_jax.tools import datasets
from examples.mnist import checkpoints, lock, options, training
from examples.mnist.models import MODELS
from examples.mnist.report import Report, line

NAME = "python -m examples.mnist.distributed"
COMMAND = [sys.executable, "-m", "examples.mnist.distributed"]


def over_all(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Along the first axis that the devices divide; an array without one is on every device."""
    for axis, size in enumerate(shape):
        if size and size % mesh.size == 0:
            return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))
    return NamedSharding(mesh, PartitionSpec())


def batches(data: datasets.Images, sharding: NamedSharding, size: int, seed: int, epoch: int):
    """An epoch's (images, labels, weight), of which each process reads what its devices hold."""
    count = len(data.train_images)
    order = np.random.default_rng((seed % 2**32, epoch)).permutation(count)
    order = np.resize(order, (math.ceil(count / size), size))  # filled up with others, of weight 0
    weights = (np.arange(order.size) < count).astype(np.float32).reshape(order.shape)
    held = sharding.addressable_devices_indices_map((size,)).values()
    mine = np.unique(np.concatenate([np.arange(size)[index] for index in held]))
    for row, weight in zip(order[:, mine], weights[:, mine], strict=True):
        share = data.train_images[row], data.train_labels[row], weight
        yield tuple(jax.make_array_from_process_local_data(sharding, part) for part in share)


def train(
    args: argparse.Namespace, data: datasets.Images, folder: checkpoints.Checkpoints | None
) -> Report:
    mesh = Mesh(np.array(jax.devices()), ("data",))
    if args.batch_size % mesh.size:
        fail(f"--batch-size {args.batch_size} cannot be shared by {mesh.size} devices")
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_row = NamedSharding(mesh, PartitionSpec("data"))
    model = MODELS[args.model]()
    steps = args.epochs * math.ceil(len(data.train_images) / args.batch_size)
    try:
        rate, tx = options.optimizer_of(args, steps)
    except ValueError as error:
        fail(error)
    first = jax.process_index() == 0
    configuration = {**args.configuration, "learning_rate": rate, "steps": steps}
    report = Report(configuration, data, args.out if first else None, "examples.mnist.distributed")
    report.content["device"] += f", {mesh.size} in {jax.process_count()} processes"
    report.content["timing"] = {}

    def initial():
        return training.initial_state(model, tx, jax.random.key(args.seed), data.train_images[:1])

    like = jax.eval_shape(initial)
    sharding = jax.tree.map(
        lambda leaf: over_all(mesh, leaf.shape) if args.shard else everywhere, like
    )
    saved = report.restored(folder, like) if folder else None
    if saved is None:
        state = jax.jit(initial, out_shardings=sharding)()
    else:
        state = jax.tree.map(
            lambda a, s: jax.make_array_from_callback(a.shape, s, a.__getitem__), saved, sharding
        )

    @partial(jax.jit, donate_argnums=0, out_shardings=(sharding, everywhere))
    def step(state, epoch, images, labels, weight):
        key = jax.random.fold_in(jax.random.key(args.seed), epoch)
        return training.train_step(state, images, labels, weight, key, augment=args.augment)

    tested = jax.jit(training.tested, out_shardings=everywhere)
    epochs = range(report.epoch + 1, args.epochs + 1)
    bar = tqdm(
        total=args.epochs, initial=report.epoch, unit="epoch", disable=None if first else True
    )
    for epoch in epochs:
        began = time.perf_counter()
        done = []
        for batch in batches(data, by_row, args.batch_size, args.seed, epoch):
            state, measured = step(state, np.int32(epoch), *batch)
            done.append(measured)
        accuracies = tested(state, data.test_images, data.test_labels)
        losses, correct, metrics = jax.tree.map(
            lambda *leaves: np.stack(leaves), *jax.device_get(done)
        )
        loss = float(np.mean(losses))
        row = {
            "epoch": epoch,
            "loss": loss if math.isfinite(loss) else None,
            "train_accuracy": 100 * float(np.sum(correct)) / len(data.train_images),
            "test_accuracy": float(accuracies["test_accuracy"]),
            "averaged_test_accuracy": None,
        }
        row |= {name: float(value) for name, value in accuracies.items()}
        row["seconds"] = time.perf_counter() - began
        report.add(row, metrics)
        if row["loss"] is None:
            if folder:
                folder.wait()
            fail(f"the loss of epoch {epoch} is not finite; try a lower --learning-rate")
        bar.update()
        report.announce(line(row, args.epochs), state, folder)
    bar.close()
    return report


def join(args: argparse.Namespace) -> None:
    """The other processes, if options or environment tell of any."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if args.processes == 1:
        return
    if args.coordinator and not args.parent:
        where = f"process {args.process} of {args.processes} joins the others at {args.coordinator}"
        print(where, flush=True)
    try:
        jax.distributed.initialize(
            args.coordinator,
            args.processes,
            args.process,
            heartbeat_timeout_seconds=args.timeout,
            initialization_timeout=max(args.timeout, 60),
        )
    except ValueError as error:
        if (args.coordinator, args.processes, args.process) != (None, None, None):
            options = "--coordinator, --processes and --process say it"
            fail(f"{checkpoints.first_line(error)} ({options})")
    except RuntimeError as error:
        fail(f"the processes did not find each other: {checkpoints.first_line(error)}")


def end_with(parent: int) -> None:
    """Ends this process when its parent has ended, however that was."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # there is nobody to tell

    threading.Thread(target=watch, daemon=True).start()


def spawn(count: int, argv: list[str], advice: str) -> None:
    """Starts `count` processes here; if one fails, ends the others.

    Output has a prefix, but for the first process's stderr, where the progress bar is.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    own = ["--spawn=0", f"--coordinator={address}", f"--parent={os.getpid()}"]
    command = [sys.executable, "-u", "-m", "examples.mnist.distributed", *argv, *own]
    children, ended, threads = [], queue.Queue(), []

    def pass_on(source, target, prefix):
        with source:
            for line in source:
                # The last line of a process that is ended may lack its end.
                print(prefix + line.rstrip("\n"), file=target, flush=True)

    def wait(number, child):
        ended.put((number, child.wait()))

    for number in range(count):
        child = subprocess.Popen(
            [*command, f"--processes={count}", f"--process={number}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if number else None,
            text=True,
        )
        print(f"process {number} of {count} has id {child.pid}", flush=True)
        children.append(child)
        for source, target in ((child.stdout, sys.stdout), (child.stderr, sys.stderr)):
            if source:
                threads.append(
                    threading.Thread(target=pass_on, args=(source, target, f"[{number}] "))
                )
        threads.append(threading.Thread(target=wait, args=(number, child)))
    for thread in threads:
        thread.start()
    try:
        with checkpoints.interruptible():
            number, code = 0, 0
            for _ in children:
                number, code = ended.get()
                if code:
                    break
    except KeyboardInterrupt:
        number, code = None, None
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:  # it waits for another process, deaf to signals
            child.kill()
    for thread in threads:
        thread.join()
    if code is None:
        sys.exit(f"{NAME}: interrupted; all processes have ended{advice}")
    if code:
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        fail(f"process {number} of {count} ended {how}; the others have been ended{advice}")


def fail(error: Exception | str) -> NoReturn:
    if not jax.distributed.is_initialized():
        sys.exit(f"{NAME}: error: {error}")
    print(f"{NAME}: error: {error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)  # an orderly exit would wait for the other processes


def address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise argparse.ArgumentTypeError(f"must be host:port, got {text}")
    return text


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = options.argument_parser(NAME, "Train a small network on MNIST with several processes")
    parser.set_defaults(out=Path("runs/mnist_distributed"))
    group = parser.add_argument_group(
        "processes", "without these, what the cluster's variables say"
    )
    group.add_argument("--spawn", type=int, default=0, metavar="N", help="start N of them here")
    group.add_argument("--coordinator", type=address, help="host:port of process 0")
    group.add_argument("--processes", type=options.whole, help="how many there are")
    group.add_argument("--process", type=int, help="which one this is, from 0")
    group.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    group.add_argument(
        "--timeout", type=options.whole, default=30, help="seconds until one is dead"
    )
    group.add_argument("--shard", action="store_true", help="parameters and optimizer state too")
    args = options.checked(parser, argv)
    given = [args.coordinator, args.processes, args.process]
    if args.spawn and given != [None, None, None]:
        parser.error("--spawn chooses --coordinator, --processes and --process itself")
    if args.spawn < 0:
        parser.error(f"--spawn must be at least 0, got {args.spawn}")
    if args.process is not None and not 0 <= args.process < (args.processes or math.inf):
        parser.error(f"--process must be in [0, --processes), got {args.process}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    given = sys.argv[1:] if argv is None else argv
    again = shlex.join([*COMMAND, *given, *([] if args.resume else ["--resume"])])
    advice = f"; to go on: {again}" if args.checkpoint_dir and not args.parent else ""
    if args.spawn:
        spawn(args.spawn, given, advice)
        return
    if args.parent:
        end_with(args.parent)
    try:
        data = options.data_of(args)
        args.out.mkdir(parents=True, exist_ok=True)
    except (datasets.DataError, OSError) as error:
        fail(error)
    training.keep_compiled_programs()
    join(args)
    try:
        with checkpoints.interruptible(), contextlib.ExitStack() as stack:
            folder = None
            if args.checkpoint_dir:
                stack.enter_context(lock.held(args.checkpoint_dir))
                folder = checkpoints.Checkpoints(args.checkpoint_dir, args.keep, resume=args.resume)
                stack.enter_context(folder)
            report = train(args, data, folder)
    except checkpoints.CheckpointError as error:
        fail(error)
    except KeyboardInterrupt:
        fail(f"interrupted{advice}")
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        fail(f"another process is gone ({checkpoints.first_line(error)}){advice}")
    report.write()
    report.draw()
    report.tell(f"metrics.json and training.png are in {args.out}")


if __name__ == "__main__":
    main()
