"""What each technique of AMaC is worth on eleven workloads: in AMaC, and added to its core alone.

    python -m benchmarks.ablation                      # all that is not yet in --out
    python -m benchmarks.ablation --core adam          # around Adam; the default is Muon
    python -m benchmarks.ablation --workloads digits   # some of it
    python -m benchmarks.ablation --workloads vit      # a fresh job, which is reported apart
    python -m benchmarks.ablation --report             # tables and heat map of what is recorded

Each workload is one vmapped program of 26 variants times 20 seeds: AMaC as it is, at its automatic
learning rate, each of its techniques switched (those it has on off, those it has off on), its core
at a constant rate with nothing around it, and that with each technique added. Variants share seeds,
so that differences are paired. A finished workload is written at once, to the folder of its core in
--out, and what is there is not run again unless its settings have changed. The scores are those of
the test data. `--report` also reads recordings that lie in --out itself: the first ones, around
Adam at a rate of 0.005 for all jobs.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from amac_jax.tools import Ablation, ablate, datasets
from amac_jax.tools._ablation import TECHNIQUES, effects_of, plain_of
from amac_jax.tools.plotting import plot_ablation
from benchmarks import options
from benchmarks.comparison_report import table
from benchmarks.contenders import automatic
from benchmarks.records import RecordError, circumstances, recorded, write
from benchmarks.statistics_of_runs import holm
from benchmarks.workloads import ALL, FRESH, WORKLOADS, Workload

SEEDS = 20
CORES = ("muon", "adam")


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    workload = ALL[name]
    job = workload.make()
    splits = jax.device_put(job.splits)
    began = time.perf_counter()
    found = ablate(
        job.loss,
        job.init,
        lambda key: job.batch(key, splits.train),
        core=args.core,
        epochs=workload.passes,
        steps=workload.steps,
        score_fn=lambda params: job.score(params, splits.train, splits.test),
        higher_is_better=workload.sign > 0,
        seeds=args.seeds,
        width=args.width,
    )
    return {
        "configuration": configuration(name, args),
        **circumstances(),
        "seconds": time.perf_counter() - began,
        "failed": found.failed,
        "scores": {
            variant: [float(f"{score:.6g}") for score in scores]  # float32 knows no more
            for variant, scores in found.scores.items()
        },
    }


def configuration(name: str, args: argparse.Namespace) -> dict[str, Any]:
    workload = ALL[name]
    switches = {
        technique: [repr(dict(switch.on)), repr(dict(switch.off))]
        for technique, switch in TECHNIQUES.items()
    }
    return {
        "title": workload.title,
        "steps": workload.steps,
        "metric": workload.metric,
        "seeds": args.seeds,
        "core": args.core,
        "epochs": workload.passes,
        "automatic": dict(automatic(args.core, workload.length)),
        "switches": switches,
    }


def read(folder: Path, workloads: dict[str, Workload]) -> dict[str, Ablation]:
    found = {}
    for name, workload in workloads.items():
        if content := recorded(folder / f"{name}.json"):
            scores = {variant: np.asarray(row) for variant, row in content["scores"].items()}
            effects = effects_of(scores, higher_is_better=workload.sign > 0)
            found[name] = Ablation(scores, effects, content["failed"])
    return found


def effect_tables(found: dict[str, Ablation]) -> str:
    """A table for each context; bold where p, corrected for all of its cells, is below 0.05."""
    effects = [effect for one in found.values() for effect in one.effects]
    techniques = dict.fromkeys(effect.technique for effect in effects)
    parts = []
    for around in ("amac", core_of(found)):
        heading = "In AMaC, all else as it is" if around == "amac" else f"Added to {around.title()}"
        chosen = {
            name: {effect.technique: effect for effect in one.effects if effect.around == around}
            for name, one in found.items()
        }
        everything = [effect for effects in chosen.values() for effect in effects.values()]
        corrected = dict(
            zip(map(id, everything), holm([effect.p for effect in everything]), strict=True)
        )

        def entry(effect, corrected=corrected) -> str:
            mark = "**" if corrected[id(effect)] < 0.05 else ""
            return f"{mark}{effect.mean:+.2g} ± {effect.half_width:.2g}{mark}"

        seeds = (str(len(one.scores["amac"])) for one in found.values())
        rows = [["seeds", *seeds]] + [
            [technique, *(entry(effects[technique]) for effects in chosen.values())]
            for technique in techniques
        ]
        parts.append(f"### {heading}\n\n" + table(["technique", *found], rows))
    return "\n".join(parts)


def core_of(found: dict[str, Ablation]) -> str:
    return plain_of(next(iter(found.values())).scores)


def report(folder: Path) -> None:
    found, fresh = read(folder, WORKLOADS), read(folder, FRESH)
    if not found and not fresh:
        print(f"{folder}: nothing is recorded yet")
        return
    parts = [effect_tables(found)] if found else []
    if fresh:
        parts.append("## On fresh jobs\n\n" + effect_tables(fresh))
    text = "\n".join(parts)
    (folder / "tables.md").write_text(text)
    print(text)
    print(f"tables.md is in {folder}")
    if found:
        core = core_of(found).title()
        title = f"What a technique adds to the test score around {core}: green helps, pink hurts"
        plot_ablation(found, title).savefig(folder / "effects.png", dpi=110)
        print(f"effects.png is in {folder}")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = options.parser(
        "What each technique of AMaC is worth. For your own loss function there is "
        "amac_jax.tools.ablate."
    )
    options.add_choice(parser, "--workloads", ALL, WORKLOADS, f"; fresh ones: {', '.join(FRESH)}")
    parser.add_argument("--core", choices=CORES, default="muon", help="what AMaC stands on")
    options.add_seeds(parser, SEEDS)
    parser.add_argument("--width", type=options.at_least(1), default=8, help="runs in one vmap")
    options.add_records(parser, "runs/ablation")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    folder = args.out / args.core
    try:
        if args.report:
            folders = [args.out, *(args.out / core for core in CORES)]
            for one in [one for one in folders if any(one.glob("*.json"))] or [folder]:
                report(one)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name in tqdm(args.workloads, unit="workload", disable=None):
            path = folder / f"{name}.json"
            if recorded(path).get("configuration") != configuration(name, args):
                write(path, run(name, args))
        report(folder)
    except (datasets.DataError, RecordError, OSError) as error:
        sys.exit(f"ablation.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on after the last finished workload")


if __name__ == "__main__":
    main()
