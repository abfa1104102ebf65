"""AMaC beside ten optimizers on small jobs, each tuned with the same number of trials.

    python -m benchmarks.compare                    # all that is not yet in --out: two hours
    python -m benchmarks.compare --workloads digits --optimizers amac adamw   # some of it
    python -m benchmarks.compare --workloads vit tabular    # fresh jobs, which are reported apart
    python -m benchmarks.compare --check digits amac    # run a recorded cell again: is it so?
    python -m benchmarks.compare --report               # tables and pictures of what is recorded

The protocol. Every optimizer gets 24 quasi-random points of a search space of its own in learning
rate, weight decay, 1 - b1 and share of warm-up, the same points of the unit cube. The point whose
run scores best on validation data is run again with 20 other seeds, beside 20 runs of the
optimizer's defaults, and only these read the test data, once. Runs are vmapped, eight at a time, in
one jitted program. A run that ends with weights that are not finite counts, as the worst score.

Every finished cell, an optimizer on a workload, is written at once; what is there is not run again
unless its settings have changed. Several of these commands may run side by side on different
workloads.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from amac_jax.tools import datasets
from benchmarks import options
from benchmarks.comparison_report import report
from benchmarks.contenders import CONTENDERS, Contender, Settings, trials
from benchmarks.records import RecordError, circumstances, recorded, write
from benchmarks.statistics_of_runs import interval
from benchmarks.workloads import ALL, FRESH, WORKLOADS, Job, Splits, Workload, train

TRIALS, SEEDS, WIDTH = 24, 20, 8
TRIAL_SEED, FIRST_SEED = 0, 100  # seeds of the trials, which share one, and of the runs reported
RESULTS = Path(__file__).parent / "results" / "compare"


class Programs(NamedTuple):
    """Of a workload and an optimizer, for `width` runs at a time."""

    train: Any  # (splits, settings, seeds) -> Run
    score: Any  # (splits, part, weights) -> scores, and whether weights are finite


def programs(workload: Workload, job: Job, contender: Contender) -> Programs:
    @jax.jit
    def train_all(splits, settings, seeds):
        def run(settings, seed):
            tx = contender.build(settings, workload.length, seed)
            return train(workload, job, splits, tx, contender.evaluate, seed)

        return jax.vmap(run)(settings, seeds)

    @jax.jit
    def score_all(splits, part, weights):
        def score(weights):
            leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(weights)]
            return job.score(weights, splits.train, part), jnp.all(jnp.stack(leaves))

        return jax.lax.map(score, weights)  # one at a time: test data are large

    return Programs(train_all, score_all)


def run_all(run, settings: list[Settings], seeds: list[int], bar: tqdm, width: int):
    """`run` on `width` settings and seeds at a time; NumPy arrays with one row a run."""
    parts = []
    for start in range(0, len(seeds), width):
        chosen = [min(i, len(seeds) - 1) for i in range(start, start + width)]  # filled up
        stacked = Settings(
            *(jnp.asarray(c) for c in zip(*(settings[i] for i in chosen), strict=True))
        )
        part = jax.device_get(run(stacked, jnp.asarray([seeds[i] for i in chosen])))
        parts.append(part)
        bar.update(len(seeds[start : start + width]))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(seeds)], *parts)


def cell(workload: Workload, name: str, bar: tqdm, args: argparse.Namespace) -> dict[str, Any]:
    """What one optimizer does on one workload."""
    contender, job = CONTENDERS[name], workload.make()
    splits = jax.device_put(job.splits)
    program = programs(workload, job, contender)
    points = trials(contender, args.trials)

    def tune(settings, seeds):
        run = program.train(splits, settings, seeds)
        _, finite = program.score(splits, splits.validation, run.evaluated)
        return run.curve[:, -1], finite

    began = time.perf_counter()
    scores, finite = run_all(tune, points, [TRIAL_SEED] * args.trials, bar, args.width)
    scores = np.where(finite & np.isfinite(scores), scores, workload.worst)
    best = points[int(np.argmax(workload.sign * scores))]
    both = [best, contender.default(workload.length)]
    began_final = time.perf_counter()
    tuned, default = final_rows(workload, program, splits, both, bar, args)
    seconds = time.perf_counter() - began_final  # nothing compiles but the two evaluations
    return {
        "configuration": configuration(workload, contender, args),
        **circumstances(),
        "seconds": time.perf_counter() - began,
        "seconds_per_run": seconds / (2 * args.seeds),
        "trials": [
            {**point._asdict(), "validation": float(score)}
            for point, score in zip(points, scores, strict=True)
        ],
        "chosen": best._asdict(),
        "tuned": tuned,
        "default": default,
    }


def final_rows(
    workload: Workload,
    program: Programs,
    splits: Splits,
    settings: list[Settings],
    bar: tqdm,
    args: argparse.Namespace,
) -> list[list[dict[str, Any]]]:
    """For each of these settings, what its runs score on test data, a row a seed."""

    def final(settings, seeds):
        run = program.train(splits, settings, seeds)
        score, finite = program.score(splits, splits.test, run.evaluated)
        last, _ = program.score(splits, splits.test, run.last)
        return run.curve, score, last, finite

    seeds = [args.first_seed + i for i in range(args.seeds)]
    repeated = [one for one in settings for _ in seeds]
    runs = run_all(final, repeated, seeds * len(settings), bar, args.width)

    def known(score: Any, is_finite: Any) -> float:
        value = score if is_finite and np.isfinite(score) else workload.worst
        return float(f"{value:.6g}")  # float32 knows no more

    rows = [
        {
            "seed": seed,
            "test": known(test, fine),
            "test_of_last_weights": known(last, fine),
            "failed": not (fine and np.isfinite(test)),
            "validation": [known(value, True) for value in curve],
        }
        for seed, curve, test, last, fine in zip(seeds * len(settings), *runs, strict=True)
    ]
    return [rows[start : start + len(seeds)] for start in range(0, len(rows), len(seeds))]


def configuration(workload: Workload, contender: Contender, args: argparse.Namespace):
    """What a recorded cell must have been run with to be taken as done."""
    return {
        "title": workload.title,
        "steps": workload.steps,
        "metric": workload.metric,
        "trials": args.trials,
        "seeds": args.seeds,
        "first_seed": args.first_seed,
        "default": contender.default(workload.length)._asdict(),
        "low": contender.low._asdict(),
        "high": contender.high._asdict(),
    }


def compare(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    for workload_name in args.workloads:
        workload, path = ALL[workload_name], args.out / f"{workload_name}.json"
        for name in args.optimizers:
            wanted = configuration(workload, CONTENDERS[name], args)
            done = recorded(path).get(name)
            if done and done["configuration"] == wanted and name not in args.again:
                continue
            title = f"{workload_name}, {name}"
            runs = args.trials + 2 * args.seeds
            with tqdm(total=runs, desc=title, unit="run", disable=None) as bar:
                result = cell(workload, name, bar, args)
            write(path, {**recorded(path), name: result})
            tests = [row["test"] for row in result["tuned"]]
            middle, half = interval(tests)
            print(f"{title}: {middle:.3f} ± {half:.3f} {workload.metric}", flush=True)


def check(args: argparse.Namespace) -> None:
    """Runs a recorded cell again from nothing and says whether it comes out as recorded."""
    workload_name, name = args.check
    if workload_name not in ALL or name not in CONTENDERS:
        fail(f"--check takes a workload and an optimizer, got {workload_name} {name}")
    before = recorded(RESULTS / f"{workload_name}.json").get(name)
    if before is None:
        fail(f"{RESULTS / workload_name}.json has no {name}")
    workload = ALL[workload_name]
    with tqdm(total=args.trials + 2 * args.seeds, unit="run", disable=None) as bar:
        after = cell(workload, name, bar, args)
    for kind in ("tuned", "default"):
        middle, half = interval([row["test"] for row in before[kind]])
        now, _ = interval([row["test"] for row in after[kind]])
        inside = abs(now - middle) <= max(half, 1e-6)
        print(
            f"{kind:8s} recorded {middle:.3f} ± {half:.3f}, now {now:.3f} {workload.metric}: "
            + ("inside the interval" if inside else "OUTSIDE the interval")
        )
    print(f"{after['seconds']:.0f} s")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = options.parser("Compare optimizers, each tuned with the same number of trials.")
    options.add_choice(parser, "--workloads", ALL, WORKLOADS, f"; fresh ones: {', '.join(FRESH)}")
    options.add_choice(parser, "--optimizers", CONTENDERS)
    parser.add_argument(
        "--again", nargs="+", choices=CONTENDERS, default=[], metavar="NAME",
        help="optimizers to run even if they are recorded",
    )  # fmt: skip
    add_protocol(parser)
    options.add_records(parser, "runs/comparison")
    parser.add_argument(
        "--check", nargs=2, metavar=("WORKLOAD", "OPTIMIZER"),
        help="run a cell of benchmarks/results/compare again",
    )  # fmt: skip
    return parser.parse_args(argv)


def add_protocol(to: argparse.ArgumentParser) -> None:
    """The numbers of trials and of runs."""
    positive = options.at_least(1)
    to.add_argument("--trials", type=positive, default=TRIALS, help="points of a search space")
    options.add_seeds(to, SEEDS)
    to.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the seeds")
    to.add_argument("--width", type=positive, default=WIDTH, help="runs in one vmap")


def fail(error: Exception | str) -> NoReturn:
    sys.exit(f"compare.py: error: {error}")


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    try:
        if args.check:
            check(args)
        elif args.report:
            report(args.out)
        else:
            compare(args)
            report(args.out)
    except (datasets.DataError, RecordError, OSError) as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on after the last finished cell")


if __name__ == "__main__":
    main()
