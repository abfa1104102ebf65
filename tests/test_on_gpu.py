"""What runs on a GPU is rehearsed on a CPU; what fails there does not take the rest with it."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks import on_gpu, programs, step_time

ROOT = Path(__file__).parents[1]


def rehearse(*arguments, **environment):
    command = ["bash", str(ROOT / "benchmarks" / "on_gpu.sh"), *arguments]
    environment = {**os.environ, "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_part_that_fails_in_the_rehearsal_is_in_the_file_and_so_are_the_others(tmp_path):
    (tmp_path / "sklearn.py").write_text("raise ImportError('it is broken here')\n")
    out = tmp_path / "out"
    ended = rehearse(
        *("--rehearse", "--parts", "sweep", "step-1B", "--out", str(out)), PYTHONPATH=str(tmp_path)
    )
    assert ended.returncode == 1
    assert "sweep failed: ImportError: it is broken here" in ended.stdout
    content = json.loads((out / "cpu.json").read_text())
    assert list(content["parts"]) == ["machine", "step-1B", "sweep"]
    assert content["parts"]["machine"]["versions"]["jax"] == jax.__version__
    broken = content["parts"]["sweep"]
    assert (broken["status"], broken["why"]) == ("failed", "ImportError: it is broken here")
    adams, muons = content["parts"]["step-1B"]["results"]
    assert list(adams["variants"]) == ["optax.adamw", "adamw", "amac, core='adam'"]
    assert adams["untimed"].keys() == step_time.TORCH.keys()
    assert list(muons["variants"]) == ["optax.adamw", "muon"]
    for name in ("amac", "optax.contrib.muon"):  # their programs are in the table all the same
        assert "do not fit into memory" in muons["untimed"][name]["not_run"]
        assert muons["untimed"][name]["kernels"] > 0
        assert f"step-1B        {name}  " in ended.stdout
    for row in (adams["variants"] | muons["variants"]).values():
        assert 0 < row["moved_share"] < math.inf
        assert row["moved_bytes_per_parameter"] > 20
    assert content["pictures"]["files"] == ["cpu-step.png", "cpu-muon.png"]
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in content["pictures"]["files"])


def test_without_a_gpu_it_says_so(tmp_path):
    ended = rehearse("--parts", "machine", "--out", str(tmp_path))
    assert ended.returncode == 1
    assert "JAX does not find a GPU; --rehearse runs on a CPU" in ended.stderr
    assert not list(tmp_path.iterdir())


def python(code, section):
    return lambda _: [sys.executable, "-c", f"import sys; out = {str(section)!r}; {code}"]


def test_parts_fail_stop_and_are_left_out_one_by_one(tmp_path, monkeypatch):
    def writing(name, then="pass"):
        section = tmp_path / f"{name}.json"
        return python(f"open(out, 'w').write('{{\"results\": []}}'); {then}", section)

    sleeps = "import os, time; open(out + '.pid', 'w').write(str(os.getpid())); time.sleep(99)"
    jobs = {
        "slow": on_gpu.Job(2, writing("slow", sleeps)),
        "good": on_gpu.Job(20, writing("good")),
        "bad": on_gpu.Job(1, writing("bad", "print(1); raise ValueError('two\\nlines')")),
        "silent": on_gpu.Job(1, python("sys.exit(3)", tmp_path / "silent.json")),
        "without data": on_gpu.Job(50, writing("without data"), "there is not any data"),
    }
    none = dict(on_gpu.run_all({"good": jobs["good"]}, tmp_path, 3.0, time.perf_counter() - 2))
    assert none == {"good": {"status": "not run", "why": "1 s were left for it"}}
    monkeypatch.setattr(on_gpu, "LEAST_SECONDS", 0.0)
    began = time.perf_counter()
    found = dict(on_gpu.run_all(jobs, tmp_path, 24.0, began))
    assert time.perf_counter() - began < 20  # the shares of the others were kept for them
    ended = {name: (part["status"], part.get("why")) for name, part in found.items()}
    slow = ended.pop("slow")
    assert ended == {
        "good": ("done", None),
        "bad": ("failed", "lines"),
        "silent": ("failed", "it ended with 3"),
        "without data": ("not run", "there is not any data"),
    }
    assert slow[0] == "stopped"
    assert str(slow[1]).startswith("it took more than")
    assert [name for name, part in found.items() if part.get("results") == []] == [
        *("slow", "good", "bad")
    ]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "slow.json.pid").read_text()), signal.SIGTERM)


def test_a_part_without_its_data_is_not_run(monkeypatch):
    monkeypatch.delenv("AMAC_JAX_DATA", raising=False)
    args = on_gpu.arguments([])
    args.sections = Path()
    without = [name for name, job in on_gpu.jobs_of(args).items() if job.not_run]
    assert without == ["sweep", "mnist"]
    args.data_dir = Path("here")
    assert not any(job.not_run for job in on_gpu.jobs_of(args).values())
    assert sum(part.seconds for part in on_gpu.PARTS.values()) == args.seconds


def test_a_variant_that_fails_and_one_that_does_not_fit_leave_the_others_timed(monkeypatch):
    def refused():
        raise ValueError("record_metrics must be True or False, got 20\nsecond line")

    class Broken:
        def init(self, params):
            return jnp.zeros(())

        def update(self, updates, state, params):
            return updates, state

    monkeypatch.setitem(step_time.OPTIONS, "refused", refused)
    monkeypatch.setitem(step_time.OPTIONS, "breaks", Broken)
    runner = step_time.jax_runner

    def breaking(made, *arguments):
        if isinstance(made.tx, Broken):
            raise MemoryError("out of memory")
        return runner(made, *arguments)

    monkeypatch.setattr(step_time, "jax_runner", breaking)
    params = step_time.parameters(2000, 2)
    saved = []
    result = step_time.measure(
        params,
        ["optax.adamw", "adamw", "refused", "breaks", "amac, core='adam'"],
        rounds=2,
        with_torch=False,
        room=4 * step_time.count_of(params) * (2 + 3 + 4) / 0.8,  # gradients too
        save=lambda result: saved.append(json.dumps(result)),
    )
    assert list(result["variants"]) == ["optax.adamw", "adamw"]
    untimed = result["untimed"]
    assert untimed["refused"] == {
        "failed": "ValueError: record_metrics must be True or False, got 20"
    }
    assert untimed["breaks"]["failed"] == "MemoryError: out of memory"
    assert "not_run" not in untimed["breaks"]
    assert "do not fit into memory" in untimed["amac, core='adam'"]["not_run"]
    first = json.loads(saved[0])  # after the first program
    assert first["untimed"]["optax.adamw"]["not_run"] == step_time.NOT_REACHED
    assert json.loads(saved[-1]) == json.loads(json.dumps(result))
    table = step_time.table(result)
    assert "failed: MemoryError: out of memory" in table
    assert "amac, core='adam'                         not run: 9" in table  # its temporaries too


def test_where_time_is_short_the_baseline_alone_is_compiled_and_rounds_are_few():
    result = step_time.measure(
        step_time.parameters(100, 2), ["optax.adamw", "adamw"], rounds=9, until=0.0
    )
    assert result["variants"]["optax.adamw"]["rounds"] == step_time.LEAST_ROUNDS
    assert result["untimed"]["adamw"] == {"not_run": "no time was left to compile it"}


def test_a_runner_that_fails_in_a_round_is_left_out_of_the_next_ones():
    calls = []

    def fails():
        calls.append("fails")
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile running")

    runners = {"fails": fails, "good": lambda: calls.append("good")}
    times, failed = step_time.timed(runners, 2, math.inf, "")
    assert calls == ["fails", *["good"] * 3]
    assert failed == {"fails": "RuntimeError: RESOURCE_EXHAUSTED: Out of memory"}
    assert [len(seconds) for seconds in times.values()] == [2]


@pytest.mark.parametrize(
    ("room", "groups", "out"),
    [
        (100, [["a", "b", step_time.FUSED, "c"]], []),
        (13, [["a", step_time.FUSED], ["a", "b"], ["a", "c"]], []),
        (9, [["a", step_time.FUSED], ["a", "b"]], ["c"]),
        (2, [["a"]], ["b", step_time.FUSED, "c"]),
    ],
)
def test_groups_fit_into_memory_and_pytorch_comes_first(room, groups, out):
    needs = {"a": 2, "b": 4, step_time.FUSED: 5, "c": 8}
    assert step_time.groups_of(needs, "a", room) == (groups, out)


def test_the_baseline_must_fit():
    with pytest.raises(MemoryError, match="a alone needs 2 GB"):
        step_time.groups_of({"a": 2e9}, "a", 1e9)


def test_conditionals_count_by_how_often_they_are_due(monkeypatch):
    def part(count, *conditionals):
        kernel = programs.Kernel("", "fusion", 8.0, 0.0)
        return programs.Part((kernel,) * count, (4,), (), 0, conditionals)

    inner = programs.Conditional("jit(step)/record_metrics/lookahead/cond", (part(0), part(3)))
    outer = programs.Conditional("jit(step)/record_metrics/cond", (part(0), part(2, inner)))
    monkeypatch.setattr(programs, "facts", lambda _: part(1, outer))
    facts = step_time.moved_by(None, jnp.zeros(4))
    kernels = 1 + (2 + 3 / 5) / 20
    assert facts["kernels"] == pytest.approx(kernels)
    assert facts["moved_bytes_per_parameter"] == pytest.approx(8 * kernels / 4)
    assert facts["copies"] == 5
    assert facts["copied_bytes_per_parameter"] == facts["copies"]


def test_optax_s_muon_of_kernels_alone_moves_an_embedding_by_adam():
    params = step_time.transformer(1, 8)
    assert step_time.count_of(params) == 12 * 64 + 2 * 8 * 1024
    gradients = jax.tree.map(jnp.ones_like, params)
    for name, by_adam in (("optax.contrib.muon", False), (on_gpu.OF_KERNELS, True)):
        tx = (step_time.VARIANTS | step_time.OPTIONS)[name]()
        updates, _ = jax.jit(tx.update)(gradients, tx.init(params), params)
        embedding = np.asarray(updates["embedding"]["embedding"])
        first = -1e-3 * (1 + 0.9 * 0.1 / (1 - 0.9**2))  # of Adam with Nesterov's momentum
        assert np.allclose(embedding, first, rtol=1e-3) is by_adam
        assert not np.allclose(updates["head"]["kernel"], first, rtol=1e-3)


def test_what_is_not_timed_has_its_line_in_the_picture(tmp_path, monkeypatch):
    row = {"ratio": 1, "ratio_low": 1, "ratio_high": 1}
    size = {"job": "", "parameters": 10, "leaves": 2, "dtype": "float32", "baseline": "muon"}
    some = {**size, "variants": {"muon": row, "adamw": row}}
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    every = {**size, "variants": {"muon": row, "amac": row, "adamw": row}}
    step_time.draw([every, some], "gpu", tmp_path / "x.png")
    texts = {text.get_text().strip(): text.get_position()[1] for text in drawn[0].axes[1].texts}
    assert texts == {"1.00": 2, "not timed": 1}


def test_the_speed_of_the_memory_is_that_of_the_faster_copy():
    result = step_time.measure(step_time.parameters(1000, 2), ["optax.adamw"], rounds=2)
    assert result["copies_GB_per_s"].keys() == {"in place", "to another"}
    assert result["copy_GB_per_s"] == max(result["copies_GB_per_s"].values())
    row, count = result["variants"]["optax.adamw"], result["parameters"]
    gigabytes_per_s = 28 * count / row["ms"] / 1e6
    assert row["copy_share"] == pytest.approx(gigabytes_per_s / result["copy_GB_per_s"])


def test_failures_names_every_part_and_every_variant_that_is_not_there():
    untimed = {"a": {"failed": "E: x"}, "b": {"not_run": "too large"}}
    results = [{"dtype": "float32", "untimed": untimed, "variants": {}}]
    parts = {
        "one": {"status": "done", "results": results},
        "two": {"status": "stopped", "why": "late"},
    }
    assert on_gpu.failures({"parts": parts}) == [
        "one, float32, a failed: E: x",
        "one, float32, b not run: too large",
        "two stopped: late",
    ]
