"""The comparison and the ablation: what is compared, how it counts, and that nothing is lost."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from matplotlib.figure import Figure
from scipy import stats

import amac_jax
from amac_jax.tools import datasets
from benchmarks import ablation, compare, comparison_report
from benchmarks.contenders import CONTENDERS, Settings, trials
from benchmarks.statistics_of_runs import holm, interval, welch
from benchmarks.workloads import (
    ALL,
    FRESH,
    POINTS,
    TABLES,
    WORKLOADS,
    Length,
    Splits,
    VisionTransformer,
    mnist_splits,
    table_splits,
    train,
)
from tests.helpers import SOAK, assert_same_bits

SMALL = ["--trials", "2", "--seeds", "2", "--width", "2"]


@pytest.fixture
def short(monkeypatch):
    """Rosenbrock's function for 40 steps, in the place of all workloads."""
    workload = dataclasses.replace(WORKLOADS["rosenbrock-20"], steps=40)
    for module in (compare, comparison_report, ablation):
        monkeypatch.setattr(module, "WORKLOADS", {"short": workload})
        monkeypatch.setattr(module, "FRESH", {"fresh": workload})
        monkeypatch.setattr(module, "ALL", {"short": workload, "fresh": workload})
    return workload


def content(folder):
    return json.loads((folder / "short.json").read_text())


# What is compared.


def test_every_contender_gets_the_same_points_of_its_own_space():
    unit = {}
    for name, contender in CONTENDERS.items():
        points = trials(contender, 24)
        assert len(set(points)) == 24
        low, high = np.array(contender.low), np.array(contender.high)
        values = np.array(points)
        assert np.all((values >= low * (1 - 1e-9)) & (values <= high * (1 + 1e-9)))
        logs = np.log(values[:, :3] / low[:3]) / np.log(high[:3] / low[:3])
        shares = (values[:, 3:] - low[3]) / (high[3] - low[3])
        unit[name] = np.hstack([logs, shares])
        quarters = np.floor(4 * unit[name].clip(0, 0.999))
        assert all(len(set(column)) == 4 for column in quarters.T)  # no part is left out
    for points in unit.values():
        np.testing.assert_allclose(points, unit["adamw"], atol=1e-6)


def test_amac_by_default_is_amac_with_a_number_of_steps_and_of_passes():
    params = {"kernel": np.ones((3, 2), np.float32), "bias": np.ones(2, np.float32)}
    contender = CONTENDERS["amac"]
    length = Length(50, 4.0)
    default = contender.default(length)
    built, plain = contender.build(default, length, 0), amac_jax.amac("auto", 50, epochs=4.0)
    one, other = (jax.jit(tx.update)(params, tx.init(params), params)[0] for tx in (built, plain))
    assert_same_bits(one, other)


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_has_its_four_hyperparameters(name):
    """Each of them changes where five steps lead, and the weights to evaluate are of its state."""
    contender = CONTENDERS[name]
    base = Settings(0.01, 0.5, 0.2, 0.2)
    first = {"kernel": np.float32([[1.0, -2.0], [0.5, 1.0]]), "bias": np.ones(2, np.float32)}
    gradients = jax.tree.map(
        lambda g: np.stack([g * (-1) ** count + np.float32(0.1) * g**2 for count in range(5)]),
        first,
    )

    def path(settings):
        tx = contender.build(settings, Length(10, None), 0)

        def step(carry, gradient):
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (jax.tree.map(jnp.add, params, updates), state), None

        params = jax.tree.map(jnp.ones_like, first)
        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), gradients)
        return contender.evaluate(state, params)["kernel"]

    other = Settings(0.02, 0.1, 0.003, 0.5)
    changes = [base, *(base._replace(**{name: v}) for name, v in other._asdict().items())]
    stacked = Settings(*(np.float32(values) for values in zip(*changes, strict=True)))
    first, *others = np.asarray(jax.jit(jax.vmap(path))(stacked))
    assert np.all(np.isfinite(first))
    for field, other in zip(Settings._fields, others, strict=True):
        assert np.any(first != other), field


def made_job(name):
    try:
        return ALL[name].make()
    except datasets.DataError as error:
        pytest.skip(f"needs MNIST and tiny Shakespeare in AMAC_JAX_DATA: {error}")


# The others differ from these in their images and sizes alone.
DISTINCT = (
    "deep-mlp", "batchnorm-cnn", "transformer", "lstm", "batch-8", "digits", "landscapes",
    "rosenbrock-20", "vit", "tabular",
)  # fmt: skip


@pytest.mark.parametrize("name", ALL if SOAK else DISTINCT)
def test_a_workload_begins_with_a_loss_and_a_score(name):
    workload, job = ALL[name], made_job(name)
    key = jax.random.key(0)

    @jax.jit
    def begin(splits):
        params = job.init(key)
        score = job.score(params, splits.train, splits.validation)
        return params, job.batch(key, splits.train), score

    # In XLA's code without optimization the CNN's gradient is NaN (jax 0.10.2).
    options = {"xla_backend_optimization_level": 2} if name == "batchnorm-cnn" else {}

    @functools.partial(jax.jit, compiler_options=options)
    def differentiate(params, batch):
        loss, gradients = jax.value_and_grad(job.loss)(params, batch)
        return loss, sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradients))

    params, batch, score = begin(jax.device_put(job.splits))
    loss, size = differentiate(params, batch)
    assert np.all(np.isfinite([loss, size, score]))
    assert size > 0
    assert workload.steps % POINTS == 0
    # It is not yet where it is to get, and better than what failed.
    assert workload.sign * score < workload.sign * workload.target
    assert workload.sign * score > workload.sign * workload.worst


PASSES = {
    "deep-mlp": 6.4,
    "batchnorm-cnn": 6.4,
    "transformer": 800 * 8 * 32 / 1_003_854,
    "lstm": 1000 * 8 * 32 / 1_003_854,
    "wrong-labels": 25.6,
    "batch-8": 4.0,
    "images-500": 64.0,
    "images-2000": 32.0,
    "digits": 2000 * 32 / 1137,
    "landscapes": None,
    "rosenbrock-20": None,
    "vit": 3.2,
    "tabular": 40.0,
    "long": 6.4,
    "large-batch": 8.192,
    "wide-mlp": 7.68,
}


def test_passes_over_the_training_data():
    assert {name: workload.passes for name, workload in ALL.items()} == pytest.approx(PASSES)
    for workload in ALL.values():
        assert workload.length == Length(workload.steps, workload.passes)


@pytest.mark.parametrize("name", ALL)
def test_passes_are_of_the_data_that_a_step_draws(name):
    """Counted by labels or, in text, by characters that are predicted."""
    job = made_job(name)
    batch = jax.eval_shape(job.batch, jax.random.key(0), job.splits.train)

    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree) if leaf.ndim == 1)

    if PASSES[name] is None:
        assert job.splits.train is None
        return
    drawn = batch.size - len(batch) if name in ("transformer", "lstm") else count(batch)
    assert ALL[name].steps * drawn / count(job.splits.train) == pytest.approx(PASSES[name])


@pytest.mark.parametrize("name", FRESH)
def test_a_fresh_job_can_be_traced(name):
    """Without a compilation: what a step and an evaluation return has the right shapes."""
    workload, job = FRESH[name], made_job(name)
    key = jax.random.key(0)

    def begin(splits):
        params = job.init(key)
        gradients = jax.grad(job.loss)(params, job.batch(key, splits.train))
        scores = [job.score(params, splits.train, part) for part in splits[1:]]
        return params, gradients, scores

    params, gradients, scores = jax.eval_shape(begin, job.splits)
    assert gradients == params  # the same tree of shapes and dtypes
    assert [(score.shape, score.dtype) for score in scores] == [((), np.float32)] * 2
    assert workload.steps % POINTS == 0


def test_a_fresh_job_is_none_of_the_eleven():
    assert len(WORKLOADS) == 11
    assert len(FRESH) >= 4
    assert list(ALL) == [*WORKLOADS, *FRESH]
    assert compare.arguments([]).workloads == list(WORKLOADS)
    assert ablation.arguments([]).workloads == list(WORKLOADS)


@pytest.mark.parametrize("name", ["vit", "tabular"])
def test_kernels_of_the_fresh_networks_are_judged_so(name):
    """Every leaf called kernel, and the positions of the transformer are not one."""
    params = jax.eval_shape(made_job(name).init, jax.random.key(0))
    mask = amac_jax.kernel_mask(params)
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): value
        for path, value in jax.tree_util.tree_leaves_with_path(mask)
    }
    assert {path for path, value in found.items() if value} == {
        path for path in found if path.endswith("/kernel")
    }
    if name == "vit":
        assert found["position_embedding"] is False
        heads = params["MultiHeadDotProductAttention_0"]["query"]["kernel"]
        assert heads.shape == (32, 2, 16)
        names = (jax.tree_util.DictKey("query"), jax.tree_util.DictKey("kernel"))
        assert amac_jax.fan_in_axes(names, heads) == (0,)


def test_the_vision_transformer_sees_the_patches_of_an_image():
    """A pixel in a corner changes one of 16 patches, its own."""
    images = np.full((2, 14, 14), -1.0, np.float32)
    images[1, 13, 13] = 1.0
    model = VisionTransformer()
    params = model.init(jax.random.key(0), images)
    _, seen = model.apply(params, images, capture_intermediates=True)
    patches = seen["intermediates"]["Dense_0"]["__call__"][0]
    changed = np.any(patches[0] != patches[1], axis=-1)
    np.testing.assert_array_equal(changed, np.arange(16) == 15)


@pytest.mark.parametrize("count", [10_000, 50_000])
def test_parts_of_mnist_share_no_image(count):
    try:
        splits = mnist_splits(count)
    except datasets.DataError as error:
        pytest.skip(f"needs MNIST in AMAC_JAX_DATA: {error}")
    parts = [{image.tobytes() for image in images} for images, _ in splits]
    assert [len(images) for images, _ in splits] == [count, 1000, 10_000]
    assert parts[0].isdisjoint(parts[1])
    assert parts[0].isdisjoint(parts[2])
    assert parts[1].isdisjoint(parts[2])


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_a_table_is_in_one_part(name):
    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    splits = table_splits(name)
    table = TABLES[name]
    sizes = [len(labels) for _, labels in splits]
    assert sizes[:2] == [10 * table.batch_size, table.validation]
    assert sum(sizes) == len(y)
    assert sizes[2] - sizes[1] in (0, 1)
    np.testing.assert_allclose(splits.train[0].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(splits.train[0].std(axis=0), 1, atol=1e-4)
    # Parts that shared a row would leave another one out.
    rows, labels = (np.concatenate(arrays) for arrays in zip(*splits, strict=True))
    assert len(np.unique(rows, axis=0)) == len(np.unique(x, axis=0))
    for part in Splits(*(labels for _, labels in splits)):  # each has its share of every class
        shares = np.bincount(part, minlength=table.classes) / len(part)
        all_shares = np.bincount(labels, minlength=table.classes) / len(y)
        np.testing.assert_allclose(shares, all_shares, atol=0.02)


def test_wrong_labels_are_wrong_in_training_alone():
    try:
        right, wrong = mnist_splits(5000), mnist_splits(5000, wrong_labels=0.2)
    except datasets.DataError as error:
        pytest.skip(f"needs MNIST in AMAC_JAX_DATA: {error}")
    np.testing.assert_array_equal(right.train[0], wrong.train[0])
    assert np.mean(right.train[1] != wrong.train[1]) == pytest.approx(0.2, abs=0.02)
    assert np.all((wrong.train[1] >= 0) & (wrong.train[1] < 10))
    for part in ("validation", "test"):
        np.testing.assert_array_equal(getattr(right, part)[1], getattr(wrong, part)[1])


def test_a_run_is_scored_as_it_goes(short):
    job = short.make()
    tx = amac_jax.adam(0.05, average_start=30)

    @jax.jit
    def runs(seed):
        averaged, last = (
            train(short, job, job.splits, tx, evaluate, seed)
            for evaluate in (amac_jax.averaged_params, lambda state, params: params)
        )
        return averaged, last, job.score(averaged.evaluated, None, None)

    run, again, score = jax.device_get(runs(7))
    assert run.curve.shape == (POINTS,)
    np.testing.assert_allclose(run.curve[-1], score, rtol=1e-5)
    assert np.any(run.last != run.evaluated)
    np.testing.assert_allclose(run.curve[: POINTS // 2], again.curve[: POINTS // 2], rtol=1e-5)


# How it is counted.


def test_tests_are_those_of_scipy_and_failures_count():
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.3026527 / 3**0.5))
    difference, half, p = welch([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0])
    assert (difference, p) == (pytest.approx(-1.5), pytest.approx(0.3338, abs=1e-4))
    by_scipy: Any = stats.ttest_ind([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0], equal_var=False)
    low, high = by_scipy.confidence_interval(0.95)
    assert (half, p) == (pytest.approx((high - low) / 2), pytest.approx(by_scipy.pvalue))
    assert welch([1.0, 1.0], [1.0, 1.0]) == (0.0, 0.0, 1.0)
    assert welch([2.0, 2.0], [1.0, 1.0]) == (1.0, 0.0, 0.0)
    assert holm([0.04, 0.01, 0.5, 0.02]) == pytest.approx([0.08, 0.04, 0.5, 0.06])
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # never falling


def made(tests, **changes):
    row = {"failed": False, "validation": [0.0] * (POINTS - 1) + [-2.0]}
    rows = [{"seed": i, "test": test, **row} for i, test in enumerate(tests)]
    chosen = Settings(0.1, 0.1, 0.1, 0.1)._asdict()
    about = {"configuration": {"metric": "log10 gap"}, "chosen": chosen, "seconds_per_run": 1.0}
    return {"tuned": rows, "default": rows, **about, **changes}


def test_verdicts_follow_the_sign_of_the_metric(short):
    low, high = [-3.0, -3.1, -2.9], [-1.0, -1.1, -0.9]
    cells = {"short": {"amac": made(low), "adamw": made(high), "lion": made(low)}}
    verdicts = comparison_report.Verdicts(cells, ("amac", "tuned"), ("adamw", "tuned"))
    gain, half, p = verdicts["short"]
    assert gain == pytest.approx(2.0)  # less is better here
    assert (verdicts.count(1), verdicts.count(-1)) == (1, 0)
    assert p < 0.001 < half
    assert comparison_report.best_or_tied(cells) == ["short"]
    behind = {"short": {"amac": made(high), "adamw": made(low)}}
    assert comparison_report.best_or_tied(behind) == []
    assert comparison_report.steps_to_target("short", cells["short"]["amac"]) == 40
    assert "| `lion` | 0 | 0 |" in comparison_report.opponents_table(cells, "tuned")
    assert "| `adamw` | 1: short | 0 |" in comparison_report.opponents_table(cells, "tuned")
    assert "`amac`" not in comparison_report.opponents_table(cells, "tuned").split("---")[-1]
    assert "| `amac` | 0 | 0 |" in comparison_report.opponents_table(cells, "default")
    assert "Cores and layouts" not in comparison_report.sections(cells)
    cells["short"]["amac-adam"] = made(high)
    pairs = comparison_report.sections(cells)["Cores and layouts"]
    assert "| `amac`, tuned | `amac-adam`, tuned | 1: short | 0 |" in pairs
    assert "| `amac-adam`, tuned | `adamw`, tuned | 0 | 0 |" in pairs
    text = comparison_report.main_table(cells)
    assert "**+2.000 ± " in text
    assert "better on 1 of 1 workloads, worse on 0" in text
    never = made(low)
    never["tuned"][0]["validation"] = [9.0] * POINTS
    assert comparison_report.steps_to_target("short", never) == np.inf


def test_fresh_jobs_are_reported_apart(short, tmp_path, monkeypatch):
    """Their results change not a byte of the tables of the others, Holm's correction included."""
    near, far = [-1.0, -1.4, -0.9], [-1.2, -1.1, -1.6]
    (tmp_path / "short.json").write_text(json.dumps({"amac": made(far), "adamw": made(near)}))
    monkeypatch.setattr(comparison_report, "draw_scores", lambda cells: Figure())
    monkeypatch.setattr(comparison_report, "draw_profile", lambda cells: Figure())
    comparison_report.report(tmp_path)
    before = (tmp_path / "tables.md").read_text()
    (tmp_path / "fresh.json").write_text(json.dumps({"amac": made(near), "adamw": made(far)}))
    comparison_report.report(tmp_path)
    after = (tmp_path / "tables.md").read_text()
    assert after.startswith(before)
    _, apart = after.split("## On fresh jobs: AMaC, AdamW and Muon\n")
    assert "| fresh, log10 gap ↓ |" in apart
    assert "short" not in apart
    assert "fresh" not in before
    p = welch(near, far)[2]
    assert f"| short | {p:.2g} |" in before
    assert f"| fresh | {p:.2g} |" in apart
    (tmp_path / "short.json").unlink()
    comparison_report.report(tmp_path)
    alone = (tmp_path / "tables.md").read_text()
    assert alone == "## On fresh jobs: AMaC, AdamW and Muon\n" + apart


def test_the_readmes_tables_are_those_of_the_recorded_runs():
    cells = comparison_report.read(compare.RESULTS, WORKLOADS)
    assert list(cells) == list(WORKLOADS)
    assert all(list(row) == list(CONTENDERS) for row in cells.values())
    for workload, row in cells.items():
        for name, cell in row.items():
            args = compare.arguments([])
            wanted = compare.configuration(WORKLOADS[workload], CONTENDERS[name], args)
            assert cell["configuration"] == wanted, (workload, name)
    readme = (compare.RESULTS.parents[2] / "README.md").read_text()
    assert comparison_report.main_table(cells).strip() in readme


# Nothing is lost.


def test_a_cell_is_recorded_reported_resumed_and_checked(short, tmp_path, monkeypatch, capsys):
    out = ["--out", str(tmp_path), "--workloads", "short"]
    compare.main([*SMALL, *out, "--optimizers", "amac", "adamw"])
    cells = content(tmp_path)
    assert list(cells) == ["amac", "adamw"]
    for name, cell in cells.items():
        assert len(cell["trials"]) == len(cell["tuned"]) == len(cell["default"]) == 2
        best = min(cell["trials"], key=lambda trial: trial["validation"])
        assert {**cell["chosen"], "validation": best["validation"]} == best
        assert [row["seed"] for row in cell["tuned"]] == [100, 101]
        assert all(len(row["validation"]) == POINTS for row in cell["tuned"])
        assert cell["versions"]["jax"] == jax.__version__
        assert not any(row["failed"] for row in cell["tuned"]), name
    for name in ("tables.md", "scores.png", "profile.png"):
        assert (tmp_path / name).stat().st_size > 500
    assert "Tuned `amac` against tuned `adamw`" in capsys.readouterr().out

    ran = []

    def counted(workload, name, bar, args):
        ran.append(name)
        return cells["adamw"]

    with monkeypatch.context() as patch:
        patch.setattr(compare, "cell", counted)
        patch.setattr(compare, "report", lambda folder: None)  # drawn above
        compare.main([*SMALL, *out, "--optimizers", "amac", "adamw", "lion"])
        assert ran == ["lion"]
        assert content(tmp_path)["amac"] == cells["amac"]
        compare.main(["--trials", "3", *SMALL[2:], *out, "--optimizers", "amac"])
        assert ran == ["lion", "amac"]  # other settings, so not yet done

    capsys.readouterr()
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    compare.main([*SMALL, "--check", "short", "adamw"])
    assert capsys.readouterr().out.count("inside the interval") == 2
    altered = content(tmp_path)
    for row in altered["adamw"]["tuned"]:
        row["test"] += 10.0
    (tmp_path / "short.json").write_text(json.dumps(altered))
    monkeypatch.setattr(compare, "cell", lambda *args: cells["adamw"])  # as it came out just now
    compare.main([*SMALL, "--check", "short", "adamw"])
    assert "OUTSIDE the interval" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="has no muon"):
        compare.main([*SMALL, "--check", "short", "muon"])
    with pytest.raises(SystemExit, match="--check takes a workload and an optimizer, got a b"):
        compare.main([*SMALL, "--check", "a", "b"])


def test_a_run_that_diverges_counts_as_the_worst(short, tmp_path, monkeypatch):
    sgd = CONTENDERS["sgd"]
    wild = sgd._replace(low=sgd.high._replace(learning_rate=10.0), high=sgd.high)
    monkeypatch.setitem(CONTENDERS, "sgd", wild)
    out = ["--out", str(tmp_path), "--workloads", "short", "--optimizers", "sgd"]
    compare.main([*SMALL, *out])
    cell = content(tmp_path)["sgd"]
    assert all(row["failed"] for row in cell["tuned"])
    assert {row["test"] for row in cell["tuned"]} == {short.worst}
    assert {trial["validation"] for trial in cell["trials"]} == {short.worst}


def test_the_ablation_is_recorded_reported_and_resumed(short, tmp_path, monkeypatch, capsys):
    arguments = ["--seeds", "2", "--out", str(tmp_path), "--workloads", "short"]
    ablation.main(arguments)
    recorded = content(tmp_path / "muon")
    assert len(recorded["scores"]) == 26
    assert (tmp_path / "muon" / "effects.png").stat().st_size > 1000
    text = capsys.readouterr().out
    assert "| centralize | +0 ± 0 |" in text  # a vector has no fan-in
    assert "| seeds | 2 |" in text
    assert "### Added to Muon" in text
    monkeypatch.setattr(ablation, "run", None)
    monkeypatch.setattr(ablation, "report", lambda folder: None)  # drawn above
    ablation.main(arguments)
    assert content(tmp_path / "muon") == recorded


def test_an_ablation_outside_the_folders_of_cores_is_reported(short, tmp_path, capsys):
    scores = {"amac": [3, 4], "adam": [5, 6], "amac with noise": [2, 4], "adam with noise": [5, 5]}
    (tmp_path / "short.json").write_text(json.dumps({"scores": scores, "failed": {}}))
    ablation.main(["--report", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    in_amac, added = text.split("### Added to Adam")
    assert "| noise | +0.5 ± 6.4 |" in in_amac  # Rosenbrock's loss: less is better
    assert "| noise | +0.5 ± 6.4 |" in added
    assert "clip_norm" not in text


@pytest.mark.parametrize(
    ("program", "argv", "message"),
    [
        (compare, ["--workloads", "cifar"], "invalid choice: 'cifar'"),
        (ablation, ["--workloads", "cifar"], "invalid choice: 'cifar'"),
        (compare, ["--seeds", "1"], "--seeds: must be a whole number >= 2"),
        (compare, ["--trials", "0"], "must be a whole number >= 1, got '0'"),
        (ablation, ["--seeds", "1"], "--seeds: must be a whole number >= 2"),
        (ablation, ["--core", "lion"], "invalid choice: 'lion'"),
    ],
)
def test_bad_options_are_one_line(program, argv, message, capsys):
    with pytest.raises(SystemExit):
        program.main(argv)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_broken_results_are_named(short, tmp_path):
    (tmp_path / "short.json").write_text("{")
    with pytest.raises(SystemExit, match=r"compare.py: error: .*short.json"):
        compare.main([*SMALL, "--out", str(tmp_path), "--workloads", "short"])
