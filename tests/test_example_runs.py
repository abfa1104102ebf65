"""What is kept of the measured runs of examples."""

from benchmarks.example_runs import digest_of, figures_of, with_record


def record(seed, figure, digest, variant="amac"):
    figures = {"loss": figure}
    keys = {"program": "lstm.py", "variant": variant, "seed": seed}
    return {**keys, "figures": figures, "digest": digest}


def test_a_line_that_is_not_a_figure_does_not_hide_the_next():
    printed = "ROMEO:\nI\ntest accuracy: 98.31 %\nloss: 1.2e-3\nfirst: come\n"
    assert figures_of(printed) == {"test accuracy": 98.31, "loss": 0.0012}


def test_a_digest_is_of_the_code_and_not_of_its_docstring():
    assert digest_of('"one"\nx = 1') == digest_of('"two"\nx  =  1  # a comment')
    assert digest_of("x = 1") != digest_of("x = 2")
    assert digest_of('def f():\n  "one"\n  x') == digest_of('def f():\n  "two"\n  x')


def test_a_new_record_takes_the_place_of_the_former():
    before = [record(0, 1.0, "a"), record(1, 2.0, "a")]
    after = with_record(before, record(0, 1.5, "b"))
    assert sorted(r["digest"] for r in after) == ["a", "b"]
    assert {r["seed"]: r["figures"]["loss"] for r in after} == {0: 1.5, 1: 2.0}


def test_equal_figures_carry_the_other_seeds_of_the_variant_over():
    before = [record(0, 1.0, "a"), record(1, 2.0, "a"), record(2, 3.0, "old")]
    before.append(record(1, 2.0, "a", variant="adam"))
    after = with_record(before, record(0, 1.0, "b"))
    digests = {(r["variant"], r["seed"]): r["digest"] for r in after}
    assert digests == {
        ("amac", 0): "b", ("amac", 1): "b", ("amac", 2): "old", ("adam", 1): "a",
    }  # fmt: skip
