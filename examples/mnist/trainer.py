"""One process trains: each epoch is one program, after which it reports and saves."""

import argparse
import math
import shlex
import statistics
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import jax
from tqdm import tqdm

from amac_jax.tools import datasets
from examples.mnist import BEGAN
from examples.mnist.models import MODELS
from examples.mnist.options import argument_parser, checked, data_of, optimizer_of
from examples.mnist.report import Report, line
from examples.mnist.training import (
    averaged_variables,
    batch_stats_accuracy,
    has_average,
    initial_state,
    keep_compiled_programs,
    run_epoch,
)

if TYPE_CHECKING:
    from examples.mnist.checkpoints import Checkpoints

NAME = "python -m examples.mnist"


def train(
    args: argparse.Namespace, data: datasets.Images, checkpoints: "Checkpoints | None" = None
) -> Report:
    """Trains, from where the newest of the checkpoints ends, and saves one after every epoch."""
    model = MODELS[args.model]()
    # On the device once; every batch is gathered there.
    arrays = jax.device_put(data[1:])
    images, _, test_images, test_labels = arrays
    steps = args.epochs * math.ceil(len(images) / args.batch_size)
    try:
        rate, tx = optimizer_of(args, steps)
    except ValueError as error:  # a learning rate or a length outside its range
        fail(error)
    init_key, epochs_key = jax.random.split(jax.random.key(args.seed))
    initial = partial(initial_state, model, tx, init_key, images)
    configuration = {**args.configuration, "learning_rate": rate, "steps": steps}
    report = Report(configuration, data, args.out, "examples.mnist")
    state = None
    if checkpoints:
        state = report.restored(checkpoints, jax.eval_shape(initial))
    if report.epoch == args.epochs:
        print("the run is complete; nothing is left to train")
        return report
    state = initial() if state is None else jax.device_put(state)
    began = time.perf_counter()
    options = {"batch_size": args.batch_size, "augment": args.augment}
    epoch_of = run_epoch.lower(state, *arrays, epochs_key, **options).compile()
    timing = {
        "compile_seconds": time.perf_counter() - began,
        "first_step_seconds": time.perf_counter() - BEGAN,
    }
    report.content["timing"] = timing
    bar = tqdm(
        range(report.epoch + 1, args.epochs + 1),
        desc=f"{args.model}, {args.optimizer}",
        unit="epoch",
        initial=report.epoch,
        total=args.epochs,
        disable=None,  # in a pipe, which would keep every state of it
    )
    report.tell(
        f"first step {timing['first_step_seconds']:.1f} s after the start, "
        f"{timing['compile_seconds']:.1f} s of it compilation"
    )
    for epoch in bar:
        began = time.perf_counter()
        state, measured, metrics = epoch_of(state, *arrays, jax.random.fold_in(epochs_key, epoch))
        row: dict[str, Any] = {"epoch": epoch}
        for name in ("loss", "train_accuracy", "test_accuracy", "averaged_test_accuracy"):
            row[name] = float(measured[name]) if name in measured else None
        if state.batch_stats and has_average(state):
            variables = averaged_variables(model, state, images)
            averaged = batch_stats_accuracy(model.apply, variables, test_images, test_labels)
            row["averaged_test_accuracy"] = float(averaged)
        row["loss"] = row["loss"] if math.isfinite(row["loss"]) else None
        row["seconds"] = time.perf_counter() - began
        report.add(row, metrics)
        if row["loss"] is None:
            fail(f"the loss of epoch {epoch} is not finite; try a lower --learning-rate")
        report.announce(line(row, args.epochs), state, checkpoints)
    return report


def fail(error: Exception | str) -> NoReturn:
    sys.exit(f"{NAME}: error: {error}")


def train_with_checkpoints(
    args: argparse.Namespace, data: datasets.Images, argv: list[str] | None
) -> Report:
    from examples.mnist import checkpoints, lock  # only here: importing Orbax takes a while

    folder = args.checkpoint_dir
    try:
        with (
            checkpoints.interruptible(),
            lock.held(folder),
            checkpoints.Checkpoints(folder, args.keep, resume=args.resume) as kept,
        ):
            return train(args, data, kept)
    except checkpoints.CheckpointError as error:
        fail(error)
    except KeyboardInterrupt:
        command = [sys.executable, "-m", "examples.mnist"]
        command += sys.argv[1:] if argv is None else argv
        command += [] if args.resume else ["--resume"]
        sys.exit(f"interrupted; to go on: {shlex.join(command)}")


def main(argv: list[str] | None = None) -> None:
    args = checked(argument_parser(NAME, "Train a small network on MNIST"), argv)
    try:
        data = data_of(args)
        args.out.mkdir(parents=True, exist_ok=True)
    except (datasets.DataError, OSError) as error:
        fail(error)
    keep_compiled_programs()
    report = train_with_checkpoints(args, data, argv) if args.checkpoint_dir else train(args, data)
    report.write()
    report.draw()
    seconds = sum(row["seconds"] for row in report.content["epochs"])
    print(f"trained in {seconds:.1f} s; metrics.json and training.png are in {args.out}")
    if report.pauses:
        pause = 1000 * statistics.median(report.pauses)
        print(f"for its checkpoint an epoch made training wait {pause:.1f} ms (the median)")
