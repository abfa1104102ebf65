"""Does AMaC do harm where runs are short, or where trained weights go on with another task?

    python -m benchmarks.short_runs                       # all that is not yet in --out
    python -m benchmarks.short_runs --jobs ppo mlp-100    # some of it
    python -m benchmarks.short_runs --variants amac amac-adam --again    # after a change of AMaC
    python -m benchmarks.short_runs --report              # tables of what is recorded

Nine small jobs (`python -m benchmarks.short_jobs` lists them), ten seeds, twelve variants. The bar
is `optax.adamw` with weight decay 0.01 on kernels, warm-up and a cosine to 0, at the best of seven
rates by its mean score on these runs. AMaC is run as it comes: with the rate "auto", the same with
Adam as its core, and at three rates around the usual ones. A run of AMaC is scored with its
averaged weights, the policies of reinforcement learning with the weights they act with.

Differences are tested with Welch's test, p corrected by Holm over the jobs. For fine-tuning the
tables also say what is left of the kernels: norm after / norm before, of the one that lost most.

Time: every job is compiled four times, 15 to 60 seconds each on a core with other work beside it;
two seeds of a variant then took 0.3 to 5 seconds. Every finished variant of a job is written at
once. What is there is not run again unless its settings have changed. The library's version is one
of them; its code between two versions is not, see `--again`.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import amac_jax
from amac_jax.tools import datasets
from benchmarks import options
from benchmarks.records import RecordError, circumstances, recorded, write
from benchmarks.short_jobs import JOBS, ShortJob, Task
from benchmarks.short_report import report
from benchmarks.short_variants import VARIANTS, Variant

# Runs


def program(job: ShortJob, task: Task):
    """(build, evaluate, data, starts, rate, seeds) -> the figures of all seeds.

    The rates of one optimizer share a compilation.
    """

    @partial(jax.jit, static_argnums=(0, 1))
    def run_all(build, evaluate, data, starts, rate, seeds):
        def run(start, seed):
            return task.run(data, start, build(job, rate), evaluate, seed)

        return jax.vmap(run)(starts, seeds)

    return run_all


def run_job(name: str, path: Path, args: argparse.Namespace, bar: tqdm) -> None:
    """What is still to be run of a job; pre-training is done once for all variants."""
    job = JOBS[name]
    task = job.make()
    data, seeds = jax.device_put(task.data), jnp.arange(args.seeds)
    starts = jax.jit(jax.vmap(task.start, (None, 0)))(data, seeds)
    run_all = program(job, task)
    for other in missing(name, path, args):
        variant = VARIANTS[other]
        bar.set_description(f"{name}, {other}")
        began = time.perf_counter()
        figures = jax.device_get(
            run_all(variant.build, variant.evaluate, data, starts, variant.rate, seeds)
        )
        seconds = time.perf_counter() - began
        write(path, {**recorded(path), other: cell(job, variant, figures, seconds, args)})
        bar.update()


def cell(job: ShortJob, variant: Variant, figures, seconds: float, args: argparse.Namespace):
    scores = np.asarray(figures["score"], float)
    finite = np.isfinite(scores)

    def known(value: float) -> float | None:  # float32 knows no more
        return float(f"{value:.6g}") if np.isfinite(value) else None

    return {
        "configuration": configuration(job, variant, args),
        **circumstances(),
        "seconds": round(seconds, 1),  # with compilation, where the program was new
        "failed": int(np.sum(~finite)),
        "figures": {
            "score": [known(score) for score in np.where(finite, scores, job.worst)],
            **{
                name: [known(value) for value in np.asarray(values, float)]
                for name, values in figures.items()
                if name != "score"
            },
        },
    }


def configuration(job: ShortJob, variant: Variant, args: argparse.Namespace) -> dict[str, Any]:
    """What a recorded variant must have been run with to be taken as done."""
    return {
        "title": job.title,
        "steps": job.steps,
        "epochs": job.epochs,
        "pretraining": job.pretraining,
        "metric": job.metric,
        "seeds": args.seeds,
        "rate": variant.rate,
        "amac_jax": amac_jax.__version__,
    }


def missing(name: str, path: Path, args: argparse.Namespace) -> list[str]:
    done = {} if args.again else recorded(path)
    return [
        other
        for other in args.variants
        if done.get(other, {}).get("configuration")
        != configuration(JOBS[name], VARIANTS[other], args)
    ]


def measure(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    paths = {name: args.out / f"{name}.json" for name in args.jobs}
    todo = {name: len(missing(name, path, args)) for name, path in paths.items()}
    with tqdm(total=sum(todo.values()), unit="variant", disable=None) as bar:
        for name, path in paths.items():
            if todo[name]:
                run_job(name, path, args, bar)


# Command line


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = options.parser("AMaC beside AdamW where runs are short or go on from trained weights.")
    options.add_choice(parser, "--jobs", JOBS)
    options.add_choice(parser, "--variants", VARIANTS)
    options.add_seeds(parser, 10)
    parser.add_argument("--again", action="store_true", help="run even what is recorded")
    options.add_records(parser, "runs/short_runs")
    return parser.parse_args(argv)


def fail(error: Exception | str) -> NoReturn:
    sys.exit(f"short_runs.py: error: {error}")


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    try:
        if not args.report:
            measure(args)
        report(args.out)
    except (datasets.DataError, RecordError, OSError) as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on after the last finished variant")


if __name__ == "__main__":
    main()
