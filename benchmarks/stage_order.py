"""Whether the order in which `compose` chains the techniques beats eight others.

    python -m benchmarks.stage_order                       # five workloads, 15 minutes on a core
    python -m benchmarks.stage_order --workloads digits    # one of them

Every technique is on, with the same hyperparameters in every order, and larger noise than anybody
would take by default, so that its place can matter. The scores are those of the validation data:
difference to `compose`'s order, positive where the other is better, with a 95 % interval over
paired seeds, and bold where p stays below 0.05 after Holm's correction over all cells.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats
from tqdm import tqdm

import amac_jax
from amac_jax.tools import datasets
from benchmarks.comparison_report import table
from benchmarks.statistics_of_runs import holm, interval
from benchmarks.workloads import WORKLOADS, train

SETTINGS = {
    "learning_rate": 5e-3,
    "end_ratio": 0.3,
    "noise": 0.3,
    "clip_value": 1.0,
    "momentum": 0.5,
    "weight_decay": 0.2,
    "slow_step_size": 0.5,
}
COMPOSED = ("centralize", "adam", "noise", "clip", "rate", "momentum", "decay", "lookahead", "mean")


def moved(stage: str, before: str) -> tuple[str, ...]:
    others = [name for name in COMPOSED if name != stage]
    at = others.index(before)
    return (*others[:at], stage, *others[at:])


ORDERS = {
    "centralize after Adam": moved("centralize", "noise"),
    "noise before Adam": moved("noise", "adam"),
    "clip before Adam": moved("clip", "adam"),
    "clip before noise": moved("clip", "noise"),
    "momentum before the rate": moved("momentum", "rate"),
    "momentum before noise": moved("momentum", "noise"),
    "momentum after decay": moved("momentum", "lookahead"),
    "averaging before lookahead": moved("mean", "lookahead"),
}


def chained(order: tuple[str, ...], steps: int, seed) -> optax.GradientTransformation:
    """The stages in this order; noise before Adam is in units of the gradients."""
    s = SETTINGS
    rate = amac_jax.warmup_cosine(
        s["learning_rate"], steps, steps // 10, end=s["end_ratio"] * s["learning_rate"]
    )
    early = order.index("noise") < order.index("adam")
    stages = {
        "centralize": amac_jax.centralize(),
        "adam": optax.scale_by_adam(),
        "noise": amac_jax.inject_noise(
            amac_jax.linear_anneal(s["noise"], steps), key=seed, relative=early
        ),
        "clip": amac_jax.clip_by_value(s["clip_value"]),
        "rate": optax.scale_by_learning_rate(rate),
        "momentum": amac_jax.heavy_ball(s["momentum"], dampening=s["momentum"]),
        "decay": amac_jax.decay_weights(lambda count: rate(count) * s["weight_decay"]),
        "lookahead": amac_jax.lookahead(5, s["slow_step_size"]),
        "mean": amac_jax.average_weights(0.75 * steps, 5),
    }
    return optax.chain(*(stages[name] for name in order))


def scores(name: str, order: tuple[str, ...], seeds: int, width: int) -> np.ndarray:
    """On validation data, of the averaged weights, positive where better: (seeds,)."""
    workload = WORKLOADS[name]
    job = workload.make()

    @jax.jit
    def program(splits, keys):
        def run(seed):
            tx = chained(order, workload.steps, seed)
            return train(workload, job, splits, tx, amac_jax.averaged_params, seed).curve[-1]

        return jax.lax.map(run, keys, batch_size=width)

    return workload.sign * np.asarray(program(job.splits, 2000 + jnp.arange(seeds)))


def p_value(differences: np.ndarray) -> float:
    """Of Student's paired test, two-sided; 1 where no run differs."""
    if not differences.any():
        return 1.0
    t = differences.mean() / stats.sem(differences)
    return float(2 * stats.t.sf(abs(t), len(differences) - 1))


def report(found: dict[str, dict[str, np.ndarray]]) -> str:
    differences = {
        (name, order): values - row["compose"]
        for name, row in found.items()
        for order, values in row.items()
        if order != "compose"
    }
    p = holm([p_value(d) for d in differences.values()])
    corrected = dict(zip(differences, p, strict=True))

    def entry(name: str, order: str) -> str:
        middle, half = interval(differences[name, order].tolist())
        mark = "**" if corrected[name, order] < 0.05 else ""
        return f"{mark}{middle:+.2g} ± {half:.2g}{mark}"

    return table(
        ["order", *found], [[order, *(entry(name, order) for name in found)] for order in ORDERS]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="What other orders of the stages gain on validation data; see the top of "
        "this file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--workloads", nargs="+", choices=WORKLOADS, metavar="NAME",
        default=["deep-mlp", "lstm", "wrong-labels", "images-500", "rosenbrock-20"],
        help="some of: " + ", ".join(WORKLOADS),
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=10, help="of every order, >= 2")
    parser.add_argument("--width", type=int, default=10, help="runs in one vmap, >= 1")
    parser.add_argument("--json", type=Path, help="a file for every run's score")
    args = parser.parse_args()
    if args.seeds < 2 or args.width < 1:
        parser.error("--seeds must be at least 2 and --width at least 1")
    orders = {"compose": COMPOSED, **ORDERS}
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in args.workloads}
    try:
        with tqdm(total=len(found) * len(orders), unit="program", disable=None) as bar:
            for name, row in found.items():
                for order, stages in orders.items():
                    bar.set_description(f"{name}, {order}")
                    row[order] = scores(name, stages, args.seeds, args.width)
                    bar.update()
    except datasets.DataError as error:
        sys.exit(f"stage_order.py: error: {error}")
    print(report(found))
    if args.json:
        libraries = (amac_jax, jax, optax, np)
        content = {
            "settings": SETTINGS,
            "versions": {
                "python": platform.python_version(),
                **{lib.__name__: lib.__version__ for lib in libraries},
            },
            "device": jax.devices()[0].device_kind,
            "scores": {
                name: {order: values.tolist() for order, values in row.items()}
                for name, row in found.items()
            },
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
