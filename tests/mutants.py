"""Mutation testing: small changes of the library, each of which some test should notice.

    python -m tests.mutants collect --count 300 --seed 0  # draws the changes
    python -m tests.mutants coverage -m fast              # which test runs which line
    python -m tests.mutants run -m fast                   # the tests against every change
    python -m tests.mutants report                        # shares killed, and the survivors

Without `-m` the tests are the default ones. A process that has imported JAX, but has not
started it, forks for every change; the fork works in a copy of the checkout. `run` goes on where it
stopped: what `runs/mutants/results.jsonl` has is not done again.
"""

import argparse
import contextlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import types
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mutation import PACKAGE, ROOT, Mutant, apply, by_hand, sample

OUT = ROOT / "runs/mutants"
IMPORTED = [
    "jax", "optax.contrib", "chex", "flax.linen", "flax.nnx", "haiku", "equinox", "diffrax",
    "optimistix", "numpyro", "orbax.checkpoint", "sklearn.datasets", "matplotlib.pyplot",
    "hypothesis.strategies", "scipy.stats", "scipy.optimize", "coverage",
]  # fmt: skip
IGNORED = shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".hypothesis", "runs")

Entry = dict[str, Any]


def read(path: Path) -> list[Entry]:
    """The entries of a file of JSON lines; one cut short by an interruption is none."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def write(path: Path, entries: Iterable[Entry], mode: str = "a") -> None:
    with path.open(mode) as file:
        file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def files_of(tests: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(test.partition("::")[0] for test in tests))


@dataclass(eq=False)
class Trial:
    """A run of pytest, of some tests until one fails or of a whole path, and its plugin."""

    path: str
    tests: list[str]
    marker: str = ""
    limit: int = 3600  # seconds of CPU time
    mutant: Mutant | None = None
    folder: Path = Path()
    tracer: Any = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # after the suite's own sorting
    def pytest_collection_modifyitems(self, items):
        result = yield
        known = {item.nodeid: item for item in items}
        items[:] = [known[test] for test in self.tests or known if test in known]
        return result

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        write(self.folder / "events", [{"started": nodeid}])
        if self.tracer:
            self.tracer.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        entry = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration}
        crash = getattr(report.longrepr, "reprcrash", None)
        words = str(crash.message if crash else report.longrepr or "")[-300:].split()
        write(self.folder / "events", [entry | {"reason": " ".join(words)[:200]}])

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            report.duration = 0.0
            self.pytest_runtest_logreport(report)

    def write_lines(self) -> None:
        """Writes the library's lines that each test ran, by file."""
        self.tracer.stop()
        data, found = self.tracer.get_data(), defaultdict(lambda: defaultdict(list))
        for file in data.measured_files():
            for line, tests in data.contexts_by_lineno(file).items():
                for test in filter(None, tests):
                    found[test][str(Path(file).relative_to(Path.cwd()))].append(line)
        entries = ({"traced": test, "lines": lines} for test, lines in found.items())
        write(self.folder / "events", entries)

    def run(self) -> int:
        """Runs pytest in this process, which becomes one that began in the folder's `tree`."""
        tree = self.folder / "tree"
        enter(tree, self.folder / "log", self.limit)
        options = [
            "-p", "no:cacheprovider", "--tb=short", "--color=no", "--hypothesis-seed=0",
            "-W", "ignore::pytest.PytestAssertRewriteWarning", f"--rootdir={tree}",
            "-c", str(tree / "pyproject.toml"), f"--basetemp={self.folder / 'tmp'}",
            *(["-m", self.marker] if self.marker else []),
        ]  # fmt: skip
        if self.tests:
            return pytest.main(["-x", *options, *files_of(self.tests)], plugins=[self])
        coverage, include = importlib.import_module("coverage"), [str(tree / PACKAGE / "*")]
        self.tracer = coverage.Coverage(data_file=None, config_file=False, include=include)
        self.tracer.start()
        code = pytest.main([*options, self.path], plugins=[self])
        self.write_lines()
        return code

    def fork(self, folder: Path) -> int:
        """Begins the run in a process with a copy of the checkout; returns the process's id."""
        self.folder = folder
        tree = Path(shutil.copytree(ROOT, folder / "tree", ignore=IGNORED))
        if self.mutant:
            file = tree / self.mutant["file"]
            file.write_bytes(apply(self.mutant, file.read_bytes()))
        sys.stdout.flush()
        pid, code = os.fork(), 70
        if pid == 0:
            try:
                code = self.run()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        return pid


Result = tuple[Trial, int, list[Entry], str]


def run_all(trials: Iterable[Trial], jobs: int) -> Iterator[Result]:
    """Runs trials, some at a time; yields each with its exit code, its events and its output."""
    running: dict[int, Trial] = {}

    def finished() -> Result:
        pid, status = os.wait()
        end(pid)  # what its tests have started
        trial = running.pop(pid)
        events, log = read(trial.folder / "events"), trial.folder / "log"
        text = " ".join(log.read_text(errors="replace").split())
        shutil.rmtree(trial.folder, ignore_errors=True)
        return trial, os.waitstatus_to_exitcode(status), events, text

    with tempfile.TemporaryDirectory(prefix="mutants_", ignore_cleanup_errors=True) as name:
        try:
            for number, trial in enumerate(trials):
                if len(running) == jobs:
                    yield finished()
                running[trial.fork(Path(name).resolve() / str(number))] = trial
            while running:
                yield finished()
        finally:
            for pid in running:
                end(pid)


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def enter(tree: Path, log: Path, limit: int) -> None:
    """Makes this process one that began in a folder and that may take some seconds of CPU time."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    sys.argv, sys.modules["__main__"] = ["pytest"], types.ModuleType("__main__")
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_DATA, (12 << 30, resource.RLIM_INFINITY))
    signal.alarm(5 * limit)  # for what waits and takes no CPU time


def start(smallest: str) -> None:
    """Imports what tests import, but starts no backend and imports nothing of the checkout."""
    sys.path[:] = [path for path in sys.path if path not in ("", str(ROOT))]
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": str(OUT / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": smallest,
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if importlib.import_module("jax._src.xla_bridge").backends_are_initialized():
        raise SystemExit("An import has started JAX: a fork would not be safe.")


def coverage(options: argparse.Namespace) -> None:
    """Measures every test of a tier on the unchanged library."""
    start("0")
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")]
    trials = [Trial(path, [], options.marker) for path in [PACKAGE, *sorted(files)]]
    found: dict[str, Entry] = {}
    for trial, code, events, _ in run_all(trials, options.jobs):
        tests: dict[str, Entry] = {}
        for event in events:
            if "test" in event:
                test = tests.setdefault(event["test"], {"seconds": 0.0, "failed": False})
                test["seconds"] += event["seconds"]
                test["failed"] |= event["outcome"] != "passed"
            elif event.get("traced") in tests:
                tests[event["traced"]]["lines"] = event["lines"]
        found |= tests
        failed = [name for name, test in tests.items() if test["failed"]]
        print(f"{trial.path}: code {code}, {len(tests)} tests, left out: {failed}", flush=True)
    write(OUT / f"coverage_{options.tier}.jsonl", [found], "w")


def plan(tests: dict[str, Entry], mutant: Mutant, budget: float) -> list[str]:
    """The tests that fit into a budget of seconds, the likeliest files and tests first."""
    lines = {test: entry.get("lines", {}).get(mutant["file"], []) for test, entry in tests.items()}
    exact = anywhere = {test for test in tests if lines[test]}
    for first, last in (mutant["statement"], mutant["lines"]):
        exact = {t for t in exact if any(first <= n <= last for n in lines[t])} or exact
    kills = Counter(r.get("by") for r in read(OUT / "results.jsonl") if r["file"] == mutant["file"])
    files, turns, ranks = set(files_of(exact)), Counter(), {}
    for test in sorted(tests, key=lambda test: tests[test]["seconds"]):
        [file] = files_of([test])
        near = [test in exact, file in files, test in anywhere, True].index(True)
        turns[file, near] += 1  # each file's cheapest test, then its second
        ranks[test] = (near, -kills[test], turns[file, near])
    chosen = []
    for test in sorted(ranks, key=lambda test: ranks[test]):
        if tests[test]["seconds"] <= budget:
            budget -= tests[test]["seconds"]
            chosen.append(test)
    return [test for file in files_of(chosen) for test in chosen if files_of([test]) == [file]]


def judged(code: int, events: list[Entry], text: str) -> Entry:
    """Whether tests noticed a change, and which."""
    for event in events:
        if event.get("outcome") == "failed":
            return {"outcome": "killed", "by": event["test"], "reason": event["reason"]}
    if code in (0, 5):
        return {"outcome": "survived"}
    by = next((event["started"] for event in events[::-1] if "started" in event), "collection")
    if code in (-signal.SIGXCPU, -signal.SIGALRM):
        return {"outcome": "timeout", "by": by, "reason": signal.Signals(-code).name}
    return {"outcome": "killed", "by": by, "reason": f"code {code}: {text[-200:]}"}


def run(options: argparse.Namespace) -> None:
    """Tries the mutants that have no result yet, for ten seconds; then again those that survive."""
    found = read(OUT / f"coverage_{options.tier}.jsonl")
    if not found:
        raise SystemExit("Run `coverage` first.")
    tests = {name: entry for name, entry in found[0].items() if not entry["failed"]}

    def trials(number: int) -> Iterator[Trial]:
        for mutant in mutants(options):
            verdict = verdict_of(results(), mutant, options.tier) or {"outcome": "", "stage": -1}
            if verdict["outcome"] in ("", "survived") and verdict["stage"] < number:
                part = plan(tests, mutant, options.budget if number else 10)
                limit = 30 + 6 * sum(tests[test]["seconds"] for test in part)
                yield Trial("", part or list(tests)[:1], limit=int(limit), mutant=mutant)

    start("1e9")  # mutants only read the cache: one that is ended leaves nothing half-written
    for number in (0, 1):
        for trial, code, events, text in run_all(trials(number), options.jobs):
            mutant, ran = trial.mutant or {}, sum("started" in event for event in events)
            name = {"mutant": mutant["id"], "file": mutant["file"], "tier": options.tier}
            result = {**name, "stage": number, **judged(code, events, text), "ran": ran}
            write(OUT / "results.jsonl", [result])
            print(result, flush=True)


def mutants(options: argparse.Namespace) -> list[Mutant]:
    """The mutants that were drawn, or the changes by hand."""
    by_hands = read(options.changes) if options.changes else []
    return [by_hand(**change) for change in by_hands] or read(OUT / "mutants.jsonl")


def results() -> dict[tuple[str, str], Entry]:
    return {(result["mutant"], result["tier"]): result for result in read(OUT / "results.jsonl")}


def verdict_of(known: dict[tuple[str, str], Entry], mutant: Mutant, tier: str) -> Entry | None:
    """What became of a mutant; the default tier has the tests of the others."""
    kills = [r for (name, _), r in known.items() if name == mutant["id"] and "by" in r]
    return kills[0] if kills and tier == "default" else known.get((mutant["id"], tier))


def collect(options: argparse.Namespace) -> None:
    """Draws mutants."""
    write(OUT / "mutants.jsonl", sample(options.count, options.seed), "w")


def report(options: argparse.Namespace) -> None:
    """Prints the shares killed, by tier and kind, and the survivors."""
    found, known = mutants(options), results()
    why = {e["mutant"]: e["why"] for e in read(ROOT / "tests/equivalent_mutants.jsonl")}
    for tier in sorted({tier for _, tier in known}, key=lambda tier: tier == "default"):
        survivors, counts = [], defaultdict(Counter)
        for mutant in found:
            verdict = verdict_of(known, mutant, tier) or {"outcome": "not run"}
            survivors += [(mutant, verdict)] if verdict["outcome"] == "survived" else []
            for kind in ("all", mutant["kind"]):
                counts[kind][verdict["outcome"]] += 1
        for kind, number in sorted(counts.items()):
            killed = number["killed"] + number["timeout"]
            share = f"{killed} of {killed + number['survived']} killed"
            print(f"{tier:>8} {kind:>10}: {share}, {number['timeout']} of them by timeout")
        for m, verdict in survivors:
            print(f"\n{m['file']}:{m['line']} {m['kind']} in {m['where']} [{m['id']}], tier {tier}")
            print(f"  - {m['before']}\n  + {m['after']}\n  {verdict['ran']} tests;", end=" ")
            print(why.get(m["id"], "not known to be equivalent"))


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    commands = {"collect": collect, "coverage": coverage, "run": run, "report": report}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--count", type=int, default=300, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("-m", "--marker", default="", help="the tier, as pytest's -m")
    parser.add_argument("--jobs", type=int, default=2, help="forks at a time")
    parser.add_argument("--budget", type=float, default=90, help="seconds of tests for a mutant")
    parser.add_argument("--changes", type=Path, help='lines {"file": …, "old": …, "new": …}')
    options = parser.parse_args()
    options.tier = options.marker or "default"
    OUT.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    commands[options.command](options)


if __name__ == "__main__":
    main()
