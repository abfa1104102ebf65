"""The short runs: that every job begins, the cart, and what is recorded and reported of them."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amac_jax
from amac_jax.tools import datasets
from benchmarks import ppo_cartpole, short_report, short_runs
from benchmarks.short_jobs import JOBS, ShortJob, marked_bits, smallest_ratio, trained, upper_case
from benchmarks.short_variants import ADAMW, VARIANTS
from benchmarks.workloads import shakespeare

DISTINCT = [name for name in JOBS if name not in ("mlp-200", "mlp-400")]


# The jobs.


@pytest.mark.parametrize("name", DISTINCT)
def test_a_job_begins_steps_and_is_scored(name):
    steps = ppo_cartpole.PASSES * ppo_cartpole.PARTS if name == "ppo" else 1
    job = dataclasses.replace(JOBS[name], steps=steps, pretraining=min(JOBS[name].pretraining, 1))
    try:
        task = job.make()
    except datasets.DataError as error:
        pytest.skip(f"needs MNIST and tiny Shakespeare in AMAC_JAX_DATA: {error}")
    tx = amac_jax.sgd(0.01, average_start=1)

    @jax.jit
    def whole(data, seed):
        return task.run(data, task.start(data, seed), tx, amac_jax.averaged_params, seed)

    figures = jax.device_get(whole(jax.device_put(task.data), 3))
    other = "averaged weights" if name == "ppo" else "last weights"
    assert set(figures) == {"score", other, *(["kernels"] if job.pretraining else [])}
    assert all(np.isfinite(value) and value.shape == () for value in figures.values())
    # Sensible, and not yet what the job is for.
    assert job.sign * figures["score"] > job.sign * job.worst
    assert job.metric != "return" or figures["score"] < 60
    assert job.metric != "accuracy, %" or figures["score"] < 70
    if job.pretraining:
        assert figures["kernels"] == pytest.approx(1, abs=0.05)


def test_passes_over_the_data():
    assert JOBS["mlp-100"].epochs == pytest.approx(0.64)
    assert JOBS["finetune-rotated"].epochs == pytest.approx(300 * 32 / 500)
    assert JOBS["ppo"].epochs is JOBS["recurrent"].epochs is None


def test_the_class_is_whether_the_marked_bits_differ():
    x, labels = jax.device_get(jax.jit(marked_bits, static_argnums=1)(jax.random.key(0), 200))
    for (bits, marks), label in zip(x.transpose(0, 2, 1), labels, strict=True):
        first, second = bits[marks == 1]
        assert label == (first != second)
    assert set(np.unique(x[..., 0])) == {-1, 1}
    assert 0.4 < labels.mean() < 0.6  # p < 0.005 for a fair coin to leave it


def test_upper_case_is_that_of_the_characters():
    try:
        numbers, count = shakespeare()
    except datasets.DataError as error:
        pytest.skip(f"needs tiny Shakespeare in AMAC_JAX_DATA: {error}")
    characters = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert len(characters) == count

    def read(part):
        return "".join(characters[number] for number in part)

    assert read(numbers[:14]) == "First Citizen:"
    assert read(upper_case(numbers[:500])) == read(numbers[:500]).upper()


def test_the_smallest_ratio_is_of_kernels():
    before = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "b": {"kernel": jnp.eye(3)}}
    after = {
        "a": {"kernel": -0.5 * jnp.ones((2, 3)), "bias": 0 * jnp.ones(3)},
        "b": {"kernel": 2 * jnp.eye(3)},
    }
    assert smallest_ratio(before, after) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("state", "action", "after"),
    [
        # By hand: 10 N / 1.1 kg; the pole turns by -9.0909 / (0.5 (4/3 - 1/11)) = -14.634.
        ([0.0, 0.0, 0.0, 0.0], 1, [0.0, 0.195122, 0.0, -0.292683]),
        ([0.1, 0.2, 0.1, 0.5], 1, [0.104, 0.393581, 0.11, 0.240431]),
        ([0.0, 0.0, -0.05, -1.0], 0, [0.0, -0.194419, -0.07, -0.723429]),
    ],
)
def test_the_cart_moves_by_the_published_equations(state, action, after):
    found, lost = jax.jit(ppo_cartpole.cartpole)(jnp.asarray(state), action)
    np.testing.assert_allclose(found, after, atol=1e-6)
    assert not lost


@pytest.mark.parametrize("state", [[2.39, 1.0, 0.0, 0.0], [0.0, 0.0, -0.2, -1.0]])
def test_a_cart_is_lost_off_the_track_or_with_its_pole(state):
    _, lost = jax.jit(ppo_cartpole.cartpole)(jnp.asarray(state), 0)
    assert lost


def test_advantages_are_sums_of_discounted_surprises():
    rng = np.random.default_rng(0)
    value, ended = rng.normal(size=(6, 2)), np.zeros((6, 2), bool)
    ended[2, 0] = ended[5, 1] = True
    after = rng.normal(size=2)
    zero = np.zeros(())
    played = ppo_cartpole.Played(zero, zero, zero, jnp.asarray(value), jnp.asarray(ended))
    found = jax.jit(ppo_cartpole.advantages)(played, jnp.asarray(after))
    following = np.vstack([value[1:], after])
    surprise = 1 + 0.99 * following * ~ended - value
    for cart in range(2):
        for time in range(6):
            total = 0.0
            for later in range(time, 6):
                total += (0.99 * 0.95) ** (later - time) * surprise[later, cart]
                if ended[later, cart]:
                    break
            np.testing.assert_allclose(found[time, cart], total, rtol=1e-5)


# The variants.


def test_amac_is_called_as_it_comes(monkeypatch):
    calls = []
    monkeypatch.setattr(amac_jax, "amac", lambda *args, **given: calls.append((args, given)))
    for job in (JOBS["mlp-100"], JOBS["ppo"]):
        for name in ("amac", "amac-adam", "amac-0.0005"):
            VARIANTS[name].build(job, VARIANTS[name].rate)
    assert calls == [
        (("auto", 100), {"epochs": 0.64}),
        (("auto", 100), {"epochs": 0.64, "core": "adam"}),
        ((5e-4, 100), {}),
        (("auto", JOBS["ppo"].steps), {"epochs": None}),
        (("auto", JOBS["ppo"].steps), {"epochs": None, "core": "adam"}),
        ((5e-4, JOBS["ppo"].steps), {}),
    ]


def test_adamw_is_optax_s_with_decay_of_kernels():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    tx = VARIANTS["adamw-0.01"].build(SimpleNamespace(steps=10), 0.01)
    state = tx.init(params)
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), state, params)
    # The warm-up of a tenth is one step, whose rate is the peak; Adam's first step is the rate.
    np.testing.assert_allclose(updates["bias"], -0.01, rtol=1e-4)
    np.testing.assert_allclose(updates["kernel"], -0.01 * 1.01, rtol=1e-4)


# What is recorded and reported.


@pytest.fixture
def line(monkeypatch):
    """A straight line of slope 1 from 0, in the place of all jobs."""

    def build(job):
        def slope(params, data):
            return jnp.sum(params["kernel"])

        return trained(
            job,
            lambda key, data: {"kernel": jnp.ones((2, 2))},
            lambda key, data: jax.random.normal(key, (2, 2)),
            lambda params, noise: slope(params, None) + 0.1 * jnp.sum(noise * params["kernel"]),
            slope,
            (),
        )

    job = ShortJob("line", 20, "nats", -1, 9.0, build, pretraining=1)
    for name in list(JOBS):
        monkeypatch.delitem(JOBS, name)
    monkeypatch.setitem(JOBS, "line", job)
    return job


def test_variants_are_recorded_resumed_and_run_again(line, tmp_path, monkeypatch, capsys):
    names = ["adamw-0.001", "adamw-0.01", "amac-0.001"]
    options = ["--seeds", "2", "--out", str(tmp_path), "--variants"]
    short_runs.main([*options, *names])
    content = json.loads((tmp_path / "line.json").read_text())
    assert list(content) == names
    for cell in content.values():
        assert len(cell["figures"]["score"]) == len(cell["figures"]["kernels"]) == 2
        assert cell["failed"] == 0
    low, high = (np.mean(content[name]["figures"]["score"]) for name in names[:2])
    assert high < low < 4
    text = capsys.readouterr().out
    assert (tmp_path / "tables.md").read_text() in text
    assert "at 0.01" in text

    ran = []

    def counted(name, path, args, bar):
        ran.extend(short_runs.missing(name, path, args))

    monkeypatch.setattr(short_runs, "run_job", counted)
    short_runs.main([*options, *names, "amac-0.0005"])
    assert ran == ["amac-0.0005"]
    short_runs.main(["--seeds", "3", *options[2:], names[0]])
    short_runs.main([*options, names[1], "--again"])
    short_runs.main([*options, names[1], "--again", "--report"])
    assert ran == ["amac-0.0005", names[0], names[1]]


def test_a_run_that_fails_counts_as_the_worst(line):
    args = SimpleNamespace(seeds=2)
    figures = {"score": np.float32([1.0, np.nan]), "kernels": np.float32([1.0, np.inf])}
    cell = short_runs.cell(line, VARIANTS["amac-0.001"], figures, 1.0, args)
    assert cell["figures"] == {"score": [1.0, 9.0], "kernels": [1.0, None]}
    assert cell["failed"] == 1


def made(scores, **others):
    return {"failed": 0, "figures": {"score": scores, **others}}


def test_the_report_of_made_up_scores():
    near = {name: made([10.0, 11.0, 12.0]) for name in ADAMW}
    cells = {
        "ppo": {
            **near,
            "adamw-0.003": made([100.0, 101.0, 102.0]),
            "amac": made([9.0, 10.0, 11.0]),
        },
        "mlp-100": {**near, "adamw-0.01": made([1.0, 1.1, 0.9]), "amac": made([0.5, 0.6, 0.4])},
        "finetune-text": {
            "adamw-0.001": made([2.0, 2.1, 1.9], kernels=[0.9, 0.8, 0.95]),
            "amac": made([2.0, 2.1, 1.9], kernels=[0.3, 0.2, 0.4]),
        },
    }
    assert short_report.bar_of("ppo", cells["ppo"]) == "adamw-0.003"  # more is better
    assert short_report.bar_of("mlp-100", cells["mlp-100"]) == "adamw-0.01"  # less is better
    found = short_report.differences(cells, "amac")
    assert found["ppo"][0] == pytest.approx(-91)
    assert found["mlp-100"][0] == pytest.approx(0.5)
    assert found["finetune-text"] == (0, pytest.approx(0.2267, abs=1e-3), 1)
    # Welch of 4 degrees of freedom, t = 0.5 / 0.0816 = 6.12: 0.0036, times 2 of Holm's.
    assert found["mlp-100"][2] == pytest.approx(2 * 0.0036, abs=2e-4)
    text = short_report.tables(cells)
    assert "| ppo (return, more is better) | 101 ± 2 at 0.003 | 10 ± 2 |" in text
    assert "**-91 ± 2**, p " in text
    assert "**+0.500 ± 0.227**, p 0.0072" in text
    assert "| of all | 1 better, 1 worse |" in text
    assert "| finetune-text | 0.800 | 0.200 |" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--jobs", "cifar"], "invalid choice: 'cifar'"),
        (["--variants", "sgd"], "invalid choice: 'sgd'"),
        (["--seeds", "1"], "--seeds: must be a whole number >= 2"),
    ],
)
def test_bad_options_are_one_line(argv, message, capsys):
    with pytest.raises(SystemExit):
        short_runs.main(argv)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_broken_results_are_named(line, tmp_path):
    (tmp_path / "line.json").write_text("{")
    for option in ([], ["--report"]):
        with pytest.raises(SystemExit, match=r"short_runs.py: error: .*line.json"):
            short_runs.main(["--out", str(tmp_path), *option])
