"""What `sweep` saves beside a Python loop, and what its best is worth, with and without halving.

    python -m benchmarks.sweep_search                  # two jobs of compare.py
    python -m benchmarks.sweep_search --workloads wrong-labels

32 trials of AdamW in the search space of `compare.py`, one seed each: by one call of `sweep`, by
one call with halving, and by a loop that trains them one by one in a program that takes
hyperparameters as arguments, in turns. A loop that builds each optimizer from numbers compiles it
each time; it is timed on a few trials. The best of each search is run with 20 other seeds and reads
the test data, beside the best of the 24 trials that results/compare has.
"""

import argparse
import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from amac_jax.tools import Sweep, datasets, sweep
from amac_jax.tools.plotting import plot_sweep
from benchmarks import options
from benchmarks.compare import FIRST_SEED, RESULTS, SEEDS, WIDTH, final_rows, programs
from benchmarks.comparison_report import table
from benchmarks.contenders import CONTENDERS, Settings
from benchmarks.records import RecordError, circumstances, recorded, write
from benchmarks.statistics_of_runs import interval, welch
from benchmarks.workloads import ALL, Job, Workload

TRIALS, JOBS = 32, ("digits", "rosenbrock-20")
ADAMW = CONTENDERS["adamw"]
COMPILING = "/jax/core/compile/backend_compile_duration"


class Clock:
    """How many seconds a call takes, and for how many of them XLA compiles."""

    def __init__(self) -> None:
        self.compiling = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILING:
            self.compiling += duration_secs

    def __call__(self, function, *arguments) -> tuple[Any, dict[str, float]]:
        self.compiling, began = 0.0, time.perf_counter()
        result = function(*arguments)
        return result, {"wall_s": time.perf_counter() - began, "compiling_s": self.compiling}


def searched(workload: Workload, job: Job, halving: bool, args: argparse.Namespace) -> Sweep:
    splits = jax.device_put(job.splits)

    def adamw(learning_rate, weight_decay, one_minus_b1, warmup_share):
        settings = Settings(learning_rate, weight_decay, one_minus_b1, warmup_share)
        return ADAMW.build(settings, workload.length, None)

    space = {
        name: (low, high) if name == "warmup_share" else (low, high, "log")
        for name, low, high in zip(Settings._fields, ADAMW.low, ADAMW.high, strict=True)
    }
    return sweep(
        job.loss, job.init, lambda key: job.batch(key, splits.train), adamw,
        space=space, trials=args.trials, seeds=1, steps=workload.steps, halving=halving,
        score_fn=lambda params: job.score(params, splits.train, splits.validation),
        higher_is_better=workload.sign > 0,
    )  # fmt: skip


def alone(workload: Workload, job: Job):
    """The program of one run: (splits, settings, key) -> its validation score."""

    def run(splits, settings, key):
        init_key, data_key = jax.random.split(key)
        params = job.init(init_key)
        tx = ADAMW.build(settings, workload.length, None)

        def step(carry, key):
            params, state = carry
            gradients = jax.grad(job.loss)(params, job.batch(key, splits.train))
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(data_key, workload.steps)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
        return job.score(params, splits.train, splits.validation)

    return run


def looped(workload: Workload, job: Job, trials: list[dict[str, float]]) -> list[float]:
    """One run after another, in one program."""
    program, splits = jax.jit(alone(workload, job)), jax.device_put(job.splits)
    key = jax.random.key(0)
    settings = [Settings(**{k: jnp.float32(v) for k, v in trial.items()}) for trial in trials]
    return [float(program(splits, one, key)) for one in settings]


def rebuilt(workload: Workload, job: Job, trials: list[dict[str, float]]) -> list[float]:
    """One run after another, each compiled with its own numbers."""
    splits, scores = jax.device_put(job.splits), []
    for trial in trials:
        program = jax.jit(partial(alone(workload, job), settings=Settings(**trial)))
        scores.append(float(program(splits, key=jax.random.key(0))))
    return scores


def tested(workload: Workload, job: Job, best: dict[str, float], args) -> list[float]:
    """Test scores of the best trial with other seeds, as `compare.py` has them."""
    splits = jax.device_put(job.splits)
    program = programs(workload, job, ADAMW)
    rows = final_rows(workload, program, splits, [Settings(**best)], tqdm(disable=True), args)
    return [row["test"] for row in rows[0]]


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    workload, clock = ALL[name], Clock()
    job = workload.make()
    times: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    found: dict[str, Sweep] = {}
    trials: list[dict[str, float]] = []
    with tqdm(total=3 * args.rounds + 1, desc=name, unit="search", disable=None) as bar:
        for _ in range(args.rounds):  # in turns; each compiles anew
            for kind, halving in (("sweep", False), ("halving", True)):
                found[kind], seconds = clock(searched, workload, job, halving, args)
                times[kind].append(seconds)
                bar.update()
            trials = found["sweep"].trials
            _, seconds = clock(looped, workload, job, trials)
            times["loop"].append(seconds)
            bar.update()
        some = trials[: args.rebuilt]
        _, seconds = clock(rebuilt, workload, job, some)
        factor = len(trials) / len(some)
        times["loop, rebuilt"].append({part: factor * s for part, s in seconds.items()})
        bar.update()
    if name == args.draw:
        plot_sweep(found["halving"], f"AdamW on {name}, halving", f"validation {workload.metric}")\
            .savefig(args.out / f"sweep_{name}.png", dpi=110)  # fmt: skip
    return {
        **circumstances(),
        "metric": workload.metric,
        "trials": args.trials,
        "times": times,
        "steps": {kind: one.total_steps for kind, one in found.items()},
        "best": {kind: one.best for kind, one in found.items()},
        "validation": {kind: float(one.scores[one.ranking[0], 0]) for kind, one in found.items()},
        "test": {kind: tested(workload, job, one.best, args) for kind, one in found.items()},
    }


KINDS = ("sweep", "halving", "loop", "loop, rebuilt")


def report(results: dict[str, Any]) -> str:
    walls, scores = [], []
    for name, content in results.items():

        def median(kind: str, part: str, content=content) -> float:
            return float(np.median([one[part] for one in content["times"][kind]]))

        def running(kind: str) -> float:
            return median(kind, "wall_s") - median(kind, "compiling_s")

        for kind in KINDS:
            per_round = zip(content["times"]["loop"], content["times"][kind], strict=False)
            ratios = [loop["wall_s"] / one["wall_s"] for loop, one in per_round]
            walls.append([
                name, kind, f"{median(kind, 'wall_s'):.1f}", f"{running(kind):.1f}",
                f"{np.median(ratios):.2f}", f"{running('loop') / running(kind):.2f}",
            ])  # fmt: skip
        before = [row["test"] for row in recorded(RESULTS / f"{name}.json")["adamw"]["tuned"]]
        tests = {"24 trials of compare.py": before, **content["test"]}
        whole = content["steps"]["sweep"]
        for kind, values in tests.items():
            middle, half = interval(values)
            gain, error, _ = welch(values, before)
            share = f"{content['steps'][kind] / whole:.2f}" if kind in content["steps"] else "-"
            scores.append([
                name, kind, share, f"{middle:.3f} ± {half:.3f}", f"{gain:+.3f} ± {error:.3f}"
            ])  # fmt: skip
    heads = ["workload", "32 trials by", "s", "s without XLA's compiling", "loop / it", "without"]
    best = ["workload", "best of", "steps", "test score, 20 seeds", "over compare.py's"]
    return table(heads, walls) + "\n" + table(best, scores)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = options.parser("What `sweep` saves beside a loop, and what its best is worth.")
    options.add_choice(parser, "--workloads", ALL, JOBS)
    parser.add_argument("--trials", type=options.at_least(4), default=TRIALS, help="of each search")
    parser.add_argument("--rounds", type=options.at_least(1), default=3, help="of the timing")
    parser.add_argument(
        "--rebuilt", type=options.at_least(1), default=3, help="trials compiled anew"
    )
    options.add_seeds(parser, SEEDS)
    parser.add_argument("--draw", default="digits", metavar="NAME", help="workload of the picture")
    options.add_records(parser, "runs/sweep")
    args = parser.parse_args(argv)
    args.first_seed, args.width = FIRST_SEED, WIDTH
    return args


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    path = args.out / "sweep_search.json"
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if not args.report:
            for name in args.workloads:
                write(path, {**recorded(path), name: measure(name, args)})
        print(report(recorded(path)))
    except (datasets.DataError, RecordError, OSError) as error:
        sys.exit(f"sweep_search.py: error: {error}")


if __name__ == "__main__":
    main()
