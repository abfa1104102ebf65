"""Optax's own shipped tests on our factories; `optax_suite` says how."""

import ast

import pytest

from tests.compatibility import optax_suite
from tests.compatibility.optax_suite import FILES

AliasTest = optax_suite.load("alias_test")
ContribTest = optax_suite.load("_common_test")
Float64Test = optax_suite.load("float64_test")


def test_sharding():
    """In a process of its own, for 8 devices; none of its tests skips itself."""
    outcomes = optax_suite.run_apart("sharding_test")
    assert len(outcomes) == sum(FILES["sharding_test"].counts.values())
    expected = (["passed"], ["skipped", optax_suite.LEFT_TO_SOAK])
    assert {test: came for test, came in outcomes.items() if came not in expected} == {}
    assert outcomes["test_state_sharding_type_init_match_update_amac"] == ["passed"]


@pytest.mark.parametrize(
    ("theirs", "changed", "message"),
    [
        ("_OPTIMIZERS_UNDER_TEST = (", "_TABLE = (", "assigns no _OPTIMIZERS_UNDER_TEST"),
        ("def _get_opt(", "def _find(", "has no function _get_opt"),
        ("def test_preserve_dtype(", "def test_new(", "neither run nor kept out: ['test_new']"),
        ("class LBFGSTest(", "class OtherTest(", "not there: ['LBFGSTest']"),
    ],
)
def test_a_file_of_another_structure_is_an_error(theirs, changed, message):
    shipped = FILES["alias_test"]
    source = optax_suite.installed(shipped).read_text()
    assert source.count(theirs) == 1
    with pytest.raises(AssertionError) as error:
        optax_suite.checked_structure(
            ast.parse(source.replace(theirs, changed)), shipped, ["_OPTIMIZERS_UNDER_TEST"]
        )
    assert message in str(error.value)
