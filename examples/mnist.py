"""Train a small network on MNIST with AMaC or another optimizer, each epoch one jitted scan.

    python examples/mnist.py                  # an MLP: 98.6 % in 40 seconds on 2 CPU cores
    python examples/mnist.py --model cnn --augment --epochs 15  # 99.6 % in 15 minutes
    python examples/mnist.py --optimizer amac_adam              # 98.2 % in 20 seconds
    python examples/mnist.py --optimizer adamw                  # 98.2 % in 16 seconds
    python examples/mnist.py --checkpoint-dir runs/checkpoints --resume  # begin, or go on

It prints a line an epoch and writes metrics.json and training.png to --out. What --resume goes on
with ends as if it had never been stopped, to the bit.
"""

import time

BEGAN = time.perf_counter()  # before JAX is imported: what a user waits for begins here

import argparse
import json
import math
import os
import platform
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from augmentation import random_affine
from flax.training import train_state
from tqdm import tqdm
from training_curves import training_curves

import amac_jax
from amac_jax.tools import datasets

if TYPE_CHECKING:
    from checkpoints import Checkpoints

# What `--optimizer` names: its learning rate, and the optimizer for a rate, steps and epochs.
OPTIMIZERS = {
    "amac": (
        "auto",  # from the number of steps, as all else but the weight decay, which is from epochs
        lambda rate, steps, epochs, **kw: amac_jax.amac(rate, steps, epochs=epochs, **kw),
    ),
    "amac_adam": (
        "auto",  # without the products of matrices, which are most of a run on a CPU
        lambda rate, steps, epochs, **kw: amac_jax.amac(
            rate, steps, core="adam", epochs=epochs, **kw
        ),
    ),
    "amac_reference": (
        1e-4,  # the published job's, with its other settings
        lambda rate, steps, epochs, **kw: amac_jax.amac_reference(
            rate,
            wd=0.001,
            clip_value=0.5,
            noise_factor=0.005,
            warmup_steps=max(min(1000, steps // 2), 1),
            total_steps=steps,
            **kw,
        ),
    ),
    "adam": (1e-3, lambda rate, steps, epochs, **kw: amac_jax.adam(schedule(rate, steps), **kw)),
    "adamw": (
        4e-3,
        lambda rate, steps, epochs, **kw: amac_jax.adamw(
            schedule(rate, steps), weight_decay=0.1, **kw
        ),
    ),
    "sgd": (
        0.1,
        lambda rate, steps, epochs, **kw: amac_jax.sgd(schedule(rate, steps), momentum=0.9, **kw),
    ),
}


def schedule(rate: float, steps: int):
    return amac_jax.warmup_cosine(rate, steps, warmup_steps=steps // 10)


class MLP(nn.Module):
    """The published job's network, with PyTorch's initial weights."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = x.reshape(x.shape[0], -1)
        for width in (128, 64, 10):
            bound = x.shape[-1] ** -0.5
            initial = partial(jax.random.uniform, minval=-bound, maxval=bound)
            x = nn.Dense(width, kernel_init=initial, bias_init=initial)(x)
            x = nn.relu(x) if width != 10 else x
        return x


class Conv(nn.Module):
    """A 3x3 convolution as the product of its patches with a matrix.

    Inside `scan`, XLA on a CPU runs the gradient of `nn.Conv` 20 to 40 times slower than outside.
    """

    features: int

    @nn.compact
    def __call__(self, x):
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        return nn.Dense(self.features, use_bias=False)(jnp.concatenate(patches, axis=-1))


class CNN(nn.Module):
    """Convolutions with BatchNorm at a half, a quarter and an eighth of the resolution."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        def blocks(x):  # of 2x2 pixels
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
            return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4, -1)

        def conv(width, x):
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(Conv(width)(x))
            return nn.relu(x)

        def pool(x):  # one more row and column where their number is odd
            _, height, width, _ = x.shape
            x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
            return jnp.max(blocks(x), axis=3)

        x = conv(32, blocks(x[..., None])[..., 0])  # (batch, 14, 14, 32), from 4 pixels each
        x = conv(64, conv(64, pool(x)))  # (batch, 7, 7, 64)
        x = conv(128, conv(128, pool(x)))  # (batch, 4, 4, 128)
        x = nn.Dropout(0.3, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(10)(x)


MODELS = {"mlp": MLP, "cnn": CNN}


class TrainState(train_state.TrainState):
    batch_stats: Any


def as_input(images):
    return images.astype(jnp.float32) / 127.5 - 1.0


def train_step(state: TrainState, images, labels, weight, key, *, augment: bool = False):
    """Returns the state and the batch's loss, number of correct guesses and optimizer metrics.

    The key is the epoch's, of dropout and, with `augment`, of what `random_affine` changes.
    """
    key = jax.random.fold_in(key, state.step)
    x = as_input(random_affine(images, jax.random.fold_in(key, 1)) if augment else images)

    def loss_of(params):
        logits, changed = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = jnp.sum((jnp.argmax(logits, -1) == labels) * weight)
        return jnp.sum(losses * weight) / jnp.sum(weight), (correct, changed)

    (loss, (correct, changed)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    state = state.apply_gradients(
        grads=grads, batch_stats=changed.get("batch_stats", state.batch_stats)
    )
    return state, (loss, correct, amac_jax.metrics(state.opt_state))


def train_epoch(state: TrainState, images, labels, key, *, batch_size: int, augment: bool = False):
    """One pass in random order. Returns the state, the epoch's totals and each step's metrics."""
    steps = math.ceil(len(images) / batch_size)
    order_key, step_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(images))
    # The last batch is filled up with other images, of weight 0: they only count in BatchNorm.
    order = jnp.pad(order, (0, steps * batch_size - len(images)), mode="wrap")
    order = order.reshape(steps, batch_size)
    weight = (jnp.arange(order.size) < len(images)).astype(jnp.float32).reshape(order.shape)

    def step(state, batch):
        indices, weight = batch
        x, y = images[indices], labels[indices]
        return train_step(state, x, y, weight, step_key, augment=augment)

    state, (losses, correct, metrics) = jax.lax.scan(step, state, (order, weight))
    return state, jnp.mean(losses), 100 * jnp.sum(correct) / len(images), metrics


def accuracy(apply_fn, variables, images, labels):
    """In percent."""

    def is_correct(example):
        image, label = example
        return jnp.argmax(apply_fn(variables, as_input(image[None]))[0]) == label

    return 100 * jnp.mean(jax.lax.map(is_correct, (images, labels), batch_size=500))


def variables_of(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def tested(state: TrainState, images, labels) -> dict[str, jax.Array]:
    """The accuracy of the last and, unless BatchNorm needs new statistics, the averaged weights."""
    weights = {"test_accuracy": variables_of(state)}
    if has_average(state) and not state.batch_stats:
        averaged = amac_jax.averaged_params(state.opt_state, state.params)
        weights["averaged_test_accuracy"] = variables_of(state) | {"params": averaged}
    return {
        name: accuracy(state.apply_fn, variables, images, labels)
        for name, variables in weights.items()
    }


@partial(jax.jit, static_argnames=("batch_size", "augment"), donate_argnames="state")
def run_epoch(state: TrainState, images, labels, test_images, test_labels, key, **options):
    """`train_epoch`, which the options are for, and `tested`: one program."""
    state, loss, trained, metrics = train_epoch(state, images, labels, key, **options)
    row = {"loss": loss, "train_accuracy": trained, **tested(state, test_images, test_labels)}
    return state, row, metrics


batch_stats_accuracy = jax.jit(accuracy, static_argnames="apply_fn")


def averaged_variables(model: nn.Module, state: TrainState, images) -> dict[str, Any]:
    """The averaged weights, and BatchNorm statistics for them from 10,000 training images."""
    variables = variables_of(state)
    variables["params"] = amac_jax.averaged_params(state.opt_state, state.params)
    batches = (as_input(images[i : i + 500]) for i in range(0, min(len(images), 10_000), 500))
    variables["batch_stats"] = amac_jax.recompute_batch_stats(model, batches, variables, train=True)
    return variables


def has_average(state: TrainState) -> bool:
    try:
        amac_jax.averaged_params(state.opt_state)
    except ValueError:
        return False
    return True


def initial_state(model: nn.Module, tx, key, images) -> TrainState:
    def create(key) -> TrainState:
        variables = model.init(key, as_input(images[:1]))
        return TrainState.create(
            apply_fn=model.apply,
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            tx=tx,
        )

    return jax.jit(create)(key)


def optimizer_of(args: argparse.Namespace, steps: int):
    """The peak learning rate, and the optimizer."""
    rate, optimizer = OPTIMIZERS[args.optimizer]
    rate = rate if args.learning_rate is None else args.learning_rate
    tx = optimizer(rate, steps, args.epochs, key=args.seed, record_metrics=True)
    return tx.resolved["learning_rate"] if rate == "auto" else rate, tx


def train(
    args: argparse.Namespace, data: datasets.Images, checkpoints: "Checkpoints | None" = None
) -> "Report":
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
    report = Report({**args.configuration, "learning_rate": rate, "steps": steps}, data, args.out)
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
        if checkpoints:
            report.save(checkpoints, state)
        report.tell(line(row, args.epochs))
    return report


def line(row: dict[str, Any], epochs: int) -> str:
    averaged = row["averaged_test_accuracy"]
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}   loss {row['loss']:.4f}   "
        f"train {row['train_accuracy']:.2f} %   test {row['test_accuracy']:.2f} %   "
        + (f"averaged weights {averaged:.2f} %   " if averaged is not None else "")
        + f"{row['seconds']:.1f} s"
    )


ABOUT = ("versions", "device", "timing")  # in a checkpoint for information


class Report:
    """What a run leaves behind; metrics.json is rewritten every epoch, so nothing is lost.

    Without `out`, nothing is written: several processes need one report.
    """

    def __init__(
        self,
        configuration: dict[str, Any],
        data: datasets.Images,
        out: Path | None,
        program: str = "mnist.py",
    ):
        device = jax.devices()[0]
        self.history: list[dict[str, np.ndarray]] = []
        self.content: dict[str, Any] = {
            "configuration": configuration,
            "dataset": {
                "name": data.name,
                "train": len(data.train_images),
                "test": len(data.test_images),
            },
            "versions": {
                "python": platform.python_version(),
                **{lib.__name__: lib.__version__ for lib in (amac_jax, jax, flax, optax, np)},
            },
            "device": f"{device.platform}, {device.device_kind}",
            "epochs": [],
        }
        self.out, self.program = out, program

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.content["epochs"])

    def add(self, row: dict[str, Any], metrics: dict[str, jax.Array]) -> None:
        self.content["epochs"].append(row)
        self.history.append(jax.device_get(metrics))
        self.write()

    def tell(self, text: str) -> None:
        """Prints a line at once, in a pipe too, and on a terminal above the bar."""
        if self.out:
            tqdm.write(text)
            sys.stdout.flush()

    def write(self) -> None:
        if not self.out:
            return
        partial_file = self.out / "metrics.json.partial"
        partial_file.write_text(json.dumps(self.content, indent=2) + "\n")
        partial_file.replace(self.out / "metrics.json")

    def steps(self) -> dict[str, np.ndarray]:
        return {
            name: np.concatenate([part[name] for part in self.history]) for name in self.history[0]
        }

    def run(self) -> dict[str, Any]:
        """What a run must share with a checkpoint that it goes on from."""
        return {
            "program": self.program,
            "configuration": self.content["configuration"],
            "dataset": self.content["dataset"],
        }

    def save(self, checkpoints: "Checkpoints", state: TrainState) -> None:
        rows, about = self.content["epochs"], {name: self.content[name] for name in ABOUT}
        checkpoints.save(self.epoch, state, self.steps(), rows=rows, run=self.run(), about=about)

    def restored(self, checkpoints: "Checkpoints", like: TrainState) -> TrainState | None:
        """The state after the epochs of a checkpoint, which become the report's; or None."""
        saved = checkpoints.restore(like, run=self.run())
        if saved is None:
            self.tell(f"{checkpoints.folder}: no checkpoint yet; starting anew")
            return None
        self.tell(f"{checkpoints.folder}: going on after epoch {saved.epoch}")
        for name in ("versions", "device"):
            if saved.about[name] != self.content[name]:
                self.tell(f"not quite to the bit: the {name} changed from {saved.about[name]}")
        self.history = [saved.history]
        self.content |= {"timing": saved.about["timing"], "epochs": saved.rows}
        return saved.state

    def draw(self) -> None:
        if not self.out:
            return
        steps = self.steps()
        c = self.content["configuration"]
        title = (
            f"{c['optimizer']}, {c['model']}, {self.content['dataset']['name']}, seed {c['seed']}"
        )
        training_curves(steps, self.content["epochs"], title).savefig(
            self.out / "training.png", dpi=120
        )


def whole(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def argument_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=f"{description}; see the top of this file for examples.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="amac", help="what trains it")
    parser.add_argument("--model", choices=MODELS, default="mlp", help="what is trained")
    parser.add_argument(
        "--dataset",
        choices=("mnist", "digits"),
        default="mnist",
        help="digits: 8x8 pixels",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="a folder with the four MNIST files; without it AMAC_JAX_DATA, a cache, or a download",
    )
    parser.add_argument(
        "--augment",
        action="store_true",
        help="turn, stretch and shift each training image a little, anew in every epoch",
    )
    parser.add_argument("--epochs", type=whole, default=10, help="passes over the data")
    parser.add_argument("--batch-size", type=whole, default=64, help="images a step")
    parser.add_argument(
        "--learning-rate",
        type=float,
        help="the peak; without it the optimizer's own: "
        + ", ".join(f"{name} {rate}" for name, (rate, _) in OPTIMIZERS.items()),
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and noise")
    parser.add_argument(
        "--held-out",
        type=int,
        default=0,
        metavar="N",
        help="test on the last N training images, untrained on: for choosing hyperparameters",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/mnist"),
        help="folder for metrics.json and training.png",
    )
    parser.add_argument(
        "--checkpoint-dir",
        type=Path,
        help="folder for a checkpoint after every epoch, with all that is needed to go on",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint that is whole, or start where there is none",
    )
    parser.add_argument("--keep", type=whole, default=3, help="how many checkpoints")
    return parser


def checked(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The arguments; `configuration` are those on which the result depends."""
    args = parser.parse_args(argv)
    if args.dataset == "digits" and args.data_dir:
        parser.error("--data-dir is for --dataset mnist")
    if args.resume and not args.checkpoint_dir:
        parser.error("--resume needs --checkpoint-dir")
    names = ("optimizer", "model", "dataset", "augment", "epochs", "batch_size")
    names += ("learning_rate", "seed", "held_out")
    args.configuration = {name: getattr(args, name) for name in names}
    return args


def data_of(args: argparse.Namespace) -> datasets.Images:
    data = datasets.load(args.dataset, args.data_dir)
    return datasets.hold_out(data, args.held_out) if args.held_out else data


def fail(error: Exception | str) -> NoReturn:
    sys.exit(f"mnist.py: error: {error}")


def keep_compiled_programs() -> None:
    """In JAX's persistent cache, so that the next run of the same job compiles nothing."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # JAX reads it; empty is none
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if cache.is_absolute():
        jax.config.update("jax_compilation_cache_dir", str(cache / "amac_jax" / "compiled"))


def train_with_checkpoints(
    args: argparse.Namespace, data: datasets.Images, argv: list[str] | None
) -> "Report":
    import checkpoints  # not at the top, because Orbax takes a while to import

    try:
        with checkpoints.interruptible():
            folder = checkpoints.Checkpoints(args.checkpoint_dir, args.keep, resume=args.resume)
            return train(args, data, folder)
    except checkpoints.CheckpointError as error:
        fail(error)
    except KeyboardInterrupt:
        command = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)]
        command += [] if args.resume else ["--resume"]
        sys.exit(f"interrupted; to go on: {shlex.join(command)}")


def main(argv: list[str] | None = None) -> None:
    args = checked(argument_parser("Train a small network on MNIST"), argv)
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


if __name__ == "__main__":
    main()
