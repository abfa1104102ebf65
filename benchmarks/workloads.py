"""Small jobs to compare optimizers on: data in three parts, a model, a budget, a target.

    python -m benchmarks.workloads      # what they are

The eleven in `WORKLOADS` cover what AMaC's authors say it is for: deep networks, noise, complex
landscapes, little data. AMaC's defaults were chosen on them. Nothing is chosen on the jobs in
`FRESH`, which differ from the eleven in model, data, length, batch and width.

Images are MNIST's at 14 x 14 pixels, so that a run takes seconds at most on a CPU core, text is
tiny Shakespeare. The training part is trained on, the validation part chooses hyperparameters, and
the test part is read once, by the runs that are reported.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from amac_jax.tools import datasets
from amac_jax.tools.landscapes import LANDSCAPES
from examples.mnist.models import Conv

CHARACTERS = 1_115_394  # of tiny Shakespeare
TRAIN_CHARACTERS = int(0.9 * CHARACTERS)


class Splits(NamedTuple):
    """Trees of arrays; of images and labels, or of characters, or None where all is known."""

    train: Any
    validation: Any
    test: Any


class Job(NamedTuple):
    """What a workload does. `train` and `split` are parts of `Splits`."""

    splits: Splits
    init: Callable[[Any], Any]  # (key) -> parameters
    batch: Callable[[Any, Any], Any]  # (key, train) -> a batch
    loss: Callable[[Any, Any], Any]  # (parameters, batch) -> ()
    score: Callable[[Any, Any, Any], Any]  # (parameters, train, split) -> (), the metric


class Length(NamedTuple):
    """How long a run is: what an optimizer may know of it beforehand."""

    steps: int
    passes: float | None  # over the training part; None where every step brings new data


@dataclass(frozen=True, eq=False)
class Workload:
    title: str
    claim: str  # what AMaC is said to be good at, and this is an example of
    steps: int
    metric: str
    sign: int  # 1 where more is better, -1 where less is
    target: float  # of the validation score, for counting the steps to it
    worst: float  # what a run counts as whose score is not finite
    make: Callable[[], Job]
    batch_size: int | None = None  # examples or characters that a step trains on; None: always new
    examples: int | None = None  # or characters, of the training part

    @property
    def unit(self) -> str:
        return " %" if self.metric == "accuracy" else ""

    @property
    def length(self) -> Length:
        if self.batch_size is None or self.examples is None:
            return Length(self.steps, None)
        return Length(self.steps, self.steps * self.batch_size / self.examples)

    @property
    def passes(self) -> float | None:
        return self.length.passes


# Images


@cache
def mnist() -> datasets.Images:
    """MNIST at 14 x 14 pixels, each the mean of 2 x 2, in a fixed random order."""
    data = datasets.load_mnist()

    def halved(images):
        blocks = images.reshape(-1, 14, 2, 14, 2).astype(np.float32)
        return np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8)

    order = np.random.default_rng(0).permutation(len(data.train_images))
    images, labels = data.train_images[order], data.train_labels[order]
    return datasets.Images(
        "mnist", halved(images), labels, halved(data.test_images), data.test_labels
    )


def mnist_splits(count: int, wrong_labels: float = 0.0) -> Splits:
    """`count` images to train on, the last 1,000 of the 60,000 to choose by, 10,000 to test."""
    data = mnist()
    labels = data.train_labels[:count].copy()
    random = np.random.default_rng(1)
    wrong = random.random(count) < wrong_labels
    labels[wrong] = (labels[wrong] + random.integers(1, 10, size=wrong.sum())) % 10
    return Splits(
        (data.train_images[:count], labels),
        (data.train_images[-1000:], data.train_labels[-1000:]),
        (data.test_images, data.test_labels),
    )


def digits_splits(count: int) -> Splits:
    """`count` of the 1,437 digits to train on, the others to choose by."""
    data = datasets.load_digits_split()
    images, labels = data.train_images, data.train_labels
    return Splits(
        (images[:count], labels[:count]),
        (images[count:], labels[count:]),
        (data.test_images, data.test_labels),
    )


class MLP(nn.Module):
    widths: tuple[int, ...]
    classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width, kernel_init=nn.initializers.he_normal())(x))
        return nn.Dense(self.classes)(x)


class SmallCNN(nn.Module):
    """Two convolutions with BatchNorm at a quarter of MNIST's resolution."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        batch = x.shape[0]
        x = x.reshape(batch, 7, 2, 7, 2).transpose(0, 1, 3, 2, 4).reshape(batch, 7, 7, 4)
        for width in (12, 16):
            # Momentum 0: the statistics are those of the last batch, see `image_job`.
            x = nn.BatchNorm(use_running_average=not train, momentum=0.0)(Conv(width)(x))
            x = nn.relu(x)
        x = jnp.max(x[:, :6, :6].reshape(batch, 3, 2, 3, 2, -1), axis=(2, 4))
        return nn.Dense(10)(x.reshape(batch, -1))


class VisionTransformer(nn.Module):
    """16 patches of 4 x 4 pixels, after a border of a pixel, and the mean of their outputs."""

    width: int = 32
    layers: int = 2
    heads: int = 2

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-1.0)  # of background
        x = x.reshape(-1, 4, 4, 4, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 16)
        x = nn.Dense(self.width)(x)
        # The name says that it is not a kernel.
        x = x + self.param("position_embedding", nn.initializers.normal(0.02), x.shape[-2:])
        for _ in range(self.layers):
            attention = nn.MultiHeadDotProductAttention(num_heads=self.heads)
            x = x + attention(nn.LayerNorm()(x))
            hidden = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(hidden)
        return nn.Dense(10)(jnp.mean(nn.LayerNorm()(x), axis=-2))


def image_job(model: nn.Module, splits: Splits, batch_size: int) -> Job:
    def as_input(images):
        return images.astype(jnp.float32) / 127.5 - 1.0

    images = splits.train[0]
    size = len(images)

    def variables(key):
        return model.init(key, as_input(images[:2]))

    stats = jax.eval_shape(variables, jax.random.key(0)).get("batch_stats", {})

    def logits(params, x):  # as in training; with BatchNorm, by the batch's own statistics
        none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), stats)
        changes = {"params": params, "batch_stats": none}
        return model.apply(changes, x, train=True, mutable=["batch_stats"])

    def batch(key, train):
        indices = jax.random.randint(key, (batch_size,), 0, size)
        return jax.tree.map(lambda array: array[indices], train)

    def loss(params, batch):
        x, y = batch
        output, _ = logits(params, as_input(x))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(output, y))

    def score(params, train, split):
        # BatchNorm's statistics for these weights, averaged ones too, are those of 500 images.
        _, measured = logits(params, as_input(train[0][:500]))
        output: Any = model.apply({"params": params, **measured}, as_input(split[0]), train=False)
        return 100 * jnp.mean(jnp.argmax(output, axis=-1) == split[1])

    return Job(splits, lambda key: variables(key)["params"], batch, loss, score)


# Text


@cache
def shakespeare() -> tuple[np.ndarray, int]:
    """Its characters as numbers, and how many different ones there are."""
    text = datasets.load_text()
    if text.name != "shakespeare":
        raise datasets.DataError("tiny Shakespeare is nowhere, and no other text will do")
    numbers = np.concatenate([text.train, text.validation]).astype(np.uint8)
    return numbers, len(text.alphabet)


def text_splits(window: int) -> Splits:
    """The first 90 % to train on; of the rest the first half to choose by, the second to test.

    Those two are cut into rows of window + 1 characters: every eighth to choose by, every second to
    test.
    """
    text, _ = shakespeare()
    train, validation, test = np.split(text, [TRAIN_CHARACTERS, int(0.95 * CHARACTERS)])

    def rows(part, every):
        count = len(part) // (window + 1)
        return part[: count * (window + 1)].reshape(count, window + 1)[::every]

    return Splits(train, rows(validation, 8), rows(test, 2))


class Transformer(nn.Module):
    characters: int
    width: int = 32
    layers: int = 2
    heads: int = 2

    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(x)
        x = nn.Embed(self.characters, self.width)(x)
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape[-2:])
        for _ in range(self.layers):
            attention = nn.MultiHeadDotProductAttention(num_heads=self.heads)
            x = x + attention(nn.LayerNorm()(x), mask=mask)
            hidden = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(hidden)
        return nn.Dense(self.characters)(nn.LayerNorm()(x))


class LSTM(nn.Module):
    characters: int
    width: int = 48

    @nn.compact
    def __call__(self, x):
        x = nn.Embed(self.characters, 32)(x)
        x = nn.RNN(nn.OptimizedLSTMCell(self.width), unroll=2)(x)
        return nn.Dense(self.characters)(x)


def text_job(model_of: Callable[[int], nn.Module], batch_size: int, window: int) -> Job:
    splits = text_splits(window)
    model = model_of(shakespeare()[1])
    starts = len(splits.train) - window

    def batch(key, train):
        begin = jax.random.randint(key, (batch_size, 1), 0, starts)
        return train[begin + jnp.arange(window + 1)]

    def loss(params, rows):
        rows = rows.astype(jnp.int32)
        output: Any = model.apply({"params": params}, rows[:, :-1])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(output, rows[:, 1:]))

    def init(key):
        return model.init(key, jnp.zeros((1, window), jnp.int32))["params"]

    return Job(splits, init, batch, loss, lambda params, train, rows: loss(params, rows))


# Landscapes: the batch is the noise on the gradient, which a linear term adds to the function.


def landscape_job(
    function: Callable[[Any], jax.Array],
    gap: Callable[[Any], jax.Array],
    init: Callable[[Any], Any],
    noise: float,
) -> Job:
    like = jax.eval_shape(init, jax.random.key(0))

    def batch(key, train):
        return optax.tree.random_like(key, like, jax.random.normal)

    def loss(params, noises):
        return function(params) + noise * optax.tree.vdot(params, noises)

    def score(params, train, split):
        return gap(params)

    return Job(Splits(None, None, None), init, batch, loss, score)


SMOOTH = ("cosh", "ill_conditioned", "rosenbrock", "beale", "four_gaussians", "rastrigin")


def landscapes_job() -> Job:
    """Six of the library's landscapes side by side, from starts that the seed moves a little."""
    chosen = {name: LANDSCAPES[name] for name in SMOOTH}

    def init(key):
        starts = {name: jnp.asarray(land.start, jnp.float32) for name, land in chosen.items()}
        moves = optax.tree.random_like(key, starts, jax.random.normal)
        return jax.tree.map(lambda start, move: start + 0.1 * move, starts, moves)

    def function(points):
        return jnp.sum(jnp.stack([land.function(points[name]) for name, land in chosen.items()]))

    def gap(points):
        gaps = [land.function(points[name]) - land.minimum for name, land in chosen.items()]
        return jnp.mean(jnp.log10(jnp.maximum(jnp.stack(gaps), 1e-8)))

    return landscape_job(function, gap, init, noise=0.1)


def rosenbrock_job() -> Job:
    """Rosenbrock's function of 20 variables, from near the origin, with noise on the gradient."""

    def function(x):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    def gap(x):
        return jnp.log10(jnp.maximum(function(x), 1e-8))

    def init(key):
        return 0.1 * jax.random.normal(key, (20,))

    return landscape_job(function, gap, init, noise=1.0)


# Tables


class Table(NamedTuple):
    """A set that scikit-learn ships. A batch is a tenth of its training part."""

    classes: int
    batch_size: int
    validation: int  # rows; as many or one more are the test part


TABLES = {
    "breast_cancer": Table(2, 34, 114),
    "wine": Table(3, 10, 39),
    "iris": Table(3, 9, 30),
    "diabetes": Table(3, 26, 91),
}
BATCHES = 10  # in the training part of a table


def table_splits(name: str) -> Splits:
    """Columns have mean 0 and variance 1 in training. Classes of diabetes: thirds of its target."""
    from sklearn import datasets as bundled
    from sklearn.model_selection import train_test_split

    x, y = getattr(bundled, f"load_{name}")(return_X_y=True)
    if name == "diabetes":
        y = np.digitize(y, np.quantile(y, [1 / 3, 2 / 3]))
    table = TABLES[name]
    rows, test = train_test_split(
        range(len(y)), train_size=BATCHES * table.batch_size + table.validation, stratify=y,
        random_state=0,
    )  # fmt: skip
    train, validation = train_test_split(
        rows, test_size=table.validation, stratify=y[rows], random_state=0
    )
    x = (x - x[train].mean(axis=0)) / x[train].std(axis=0)
    return Splits(
        *((x[part].astype("f4"), y[part].astype("i4")) for part in (train, validation, test))
    )


def tables_job() -> Job:
    """A small MLP for each of four tables, side by side in one tree of parameters."""
    models = {name: MLP((32, 32), table.classes) for name, table in TABLES.items()}
    parts = {name: table_splits(name) for name in TABLES}
    splits = Splits(
        *({name: getattr(part, field) for name, part in parts.items()} for field in Splits._fields)
    )

    def init(key):
        keys = dict(zip(models, jax.random.split(key, len(models)), strict=True))
        return {
            name: model.init(keys[name], splits.train[name][0][:2])["params"]
            for name, model in models.items()
        }

    def batch(key, train):
        keys = dict(zip(models, jax.random.split(key, len(models)), strict=True))

        def drawn(name, arrays):
            size = TABLES[name].batch_size
            indices = jax.random.randint(keys[name], (size,), 0, BATCHES * size)
            return jax.tree.map(lambda array: array[indices], arrays)

        return {name: drawn(name, train[name]) for name in models}

    def losses(params, split):
        def loss(name, model):
            x, y = split[name]
            output = model.apply({"params": params[name]}, x)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(output, y))

        return jnp.stack([loss(name, model) for name, model in models.items()])

    return Job(
        splits,
        init,
        batch,
        lambda params, batch: jnp.sum(losses(params, batch)),  # each as if it were alone
        lambda params, train, split: jnp.mean(losses(params, split)),
    )


def images(title, claim, steps, target, model, count, batch_size, splits=mnist_splits):
    return Workload(
        title, claim, steps, "accuracy", 1, target, 0.0,
        lambda: image_job(model, splits(count), batch_size), batch_size, count,
    )  # fmt: skip


def text(title, steps, target, model, batch_size, window):
    return Workload(
        title, "deep networks", steps, "nats a character", -1, target, math.log(65) + 1,
        lambda: text_job(model, batch_size, window), batch_size * window, TRAIN_CHARACTERS,
    )  # fmt: skip


def tables(title, claim, steps, target):
    batch_size = sum(table.batch_size for table in TABLES.values())
    chance = sum(math.log(table.classes) for table in TABLES.values()) / len(TABLES)
    return Workload(
        title, claim, steps, "nats a row", -1, target, chance + 1,
        tables_job, batch_size, BATCHES * batch_size,
    )  # fmt: skip


USUAL = MLP((128, 64))
WORKLOADS = {
    "deep-mlp": images(
        "MLP of 20 layers of 32, without normalisation; 20,000 MNIST images",
        "deep networks", 2000, 93.0, MLP((32,) * 19), 20_000, 64,
    ),
    "batchnorm-cnn": images(
        "small CNN with BatchNorm; 5,000 MNIST images",
        "deep networks", 1000, 95.5, SmallCNN(), 5_000, 32,
    ),
    "transformer": text(
        "transformer of 2 layers, on characters of tiny Shakespeare",
        800, 2.3, Transformer, 8, 32,
    ),
    "lstm": text("LSTM of 48 units, on characters of tiny Shakespeare", 1000, 2.1, LSTM, 8, 32),
    "wrong-labels": images(
        "MLP; 5,000 MNIST images, 20 % of their labels wrong",
        "noise", 2000, 90.0, USUAL, 5_000, 64,
        partial(mnist_splits, wrong_labels=0.2),
    ),
    "batch-8": images(
        "MLP; 10,000 MNIST images in batches of 8",
        "noise", 5000, 95.0, USUAL, 10_000, 8,
    ),
    "images-500": images(
        "MLP; 500 MNIST images", "limited data", 1000, 86.0, USUAL, 500, 32,
    ),
    "images-2000": images(
        "MLP; 2,000 MNIST images",
        "limited data", 2000, 92.0, USUAL, 2_000, 32,
    ),
    "digits": images(
        "MLP; scikit-learn's 1,137 digits of 8 x 8 pixels",
        "limited data", 2000, 96.0, MLP((64, 32)), 1_137, 32, digits_splits,
    ),
    "landscapes": Workload(
        "six landscapes at once, gradients with noise of 0.1",
        "complex landscapes", 20_000, "log10 gap", -1, -2.0, 4.0, landscapes_job,
    ),
    "rosenbrock-20": Workload(
        "Rosenbrock's function of 20 variables, gradients with noise of 1",
        "complex landscapes", 20_000, "log10 gap", -1, -1.0, 4.0, rosenbrock_job,
    ),
}  # fmt: skip

# Nothing was chosen on these, and nothing is to be.
FRESH = {
    "vit": images(
        "vision transformer of 2 layers; 10,000 MNIST images",
        "another model", 1000, 92.0, VisionTransformer(), 10_000, 32,
    ),
    "tabular": tables(
        "four small MLPs at once; breast cancer, wine, iris, thirds of diabetes",
        "other data", 400, 0.28,
    ),
    "long": images(
        "MLP; 50,000 MNIST images", "a longer run", 10_000, 97.0, USUAL, 50_000, 32,
    ),
    "large-batch": images(
        "MLP; 50,000 MNIST images in batches of 1,024",
        "a larger batch", 400, 96.0, USUAL, 50_000, 1024,
    ),
    "wide-mlp": images(
        "MLP of 3 layers of 512; 5,000 MNIST images",
        "a wider net", 600, 95.0, MLP((512,) * 3), 5_000, 64,
    ),
}  # fmt: skip
ALL = WORKLOADS | FRESH


class Run(NamedTuple):
    """What one training leaves; scores of the weights that the optimizer would have evaluated."""

    curve: jax.Array  # (points,) validation score after every steps / points steps
    last: Any  # the last weights
    evaluated: Any  # those to evaluate: averaged ones, where the optimizer keeps any


POINTS = 20  # at which a run is evaluated on validation data


def train(workload: Workload, job: Job, splits: Splits, tx, evaluate, seed) -> Run:
    """One run, as a function to `jit` and `vmap`.

    Args:
      workload, job: what is trained, and how.
      splits: the arrays of `job.splits`, as an argument lest they become constants.
      tx: the optimizer.
      evaluate: (optimizer state, parameters) -> the weights to evaluate.
      seed: of initial weights and order of data; may be traced.
    """
    init_key, data_key = jax.random.split(jax.random.key(seed))
    params = job.init(init_key)

    def step(carry, count):
        params, state = carry
        batch = job.batch(jax.random.fold_in(data_key, count), splits.train)
        updates, state = tx.update(jax.grad(job.loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    def block(carry, counts):
        carry, _ = jax.lax.scan(step, carry, counts)
        params, state = carry
        return carry, job.score(evaluate(state, params), splits.train, splits.validation)

    counts = jnp.arange(workload.steps).reshape(POINTS, -1)
    (params, state), curve = jax.lax.scan(block, (params, tx.init(params)), counts)
    return Run(curve, params, evaluate(state, params))


def main() -> None:
    for heading, workloads in (("", WORKLOADS), ("\nFresh\n", FRESH)):
        print(heading, end="")
        for name, workload in workloads.items():
            passes = "-" if workload.passes is None else f"{workload.passes:.3g}"
            print(
                f"{name:15s}{workload.steps:5d} steps {passes:>5s} passes  "
                f"{workload.claim:20s}{workload.title}"
            )


if __name__ == "__main__":
    main()
