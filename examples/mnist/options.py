"""What a run may be told, and the optimizers that `--optimizer` names."""

import argparse
from pathlib import Path

import amac_jax
from amac_jax.tools import datasets
from examples.mnist.models import MODELS

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


def optimizer_of(args: argparse.Namespace, steps: int):
    """The peak learning rate, and the optimizer."""
    rate, optimizer = OPTIMIZERS[args.optimizer]
    rate = rate if args.learning_rate is None else args.learning_rate
    tx = optimizer(rate, steps, args.epochs, key=args.seed, record_metrics=True)
    return tx.resolved["learning_rate"] if rate == "auto" else rate, tx


def whole(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def argument_parser(program: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=f"{description}; examples/mnist/__init__.py has examples.",
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
