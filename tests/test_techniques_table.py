"""The table of techniques: the README shows it, and every row has literals in `table.py`."""

from pathlib import Path

import pytest

import amac_jax
from amac_jax.techniques import AROUND, KEYWORDS, TECHNIQUES

README = Path(__file__).parents[1] / "README.md"
FACTORIES = {"plateau": "reduce_on_plateau"}  # the keyword takes the transformation itself


def markdown() -> str:
    """The table as the README shows it, from the rows alone."""
    lines = ["| keyword | technique | what it does | range | default | off |", "|" + "---|" * 6]
    for row in TECHNIQUES:
        if row.keyword in ("core", "learning_rate"):
            lines.append(f"| {row.keyword} | | {row.equation} | | | |")
            continue
        names = [row.keyword, *row.companions()]
        ranges = row.ranges()
        cells = [
            ", ".join(f"`{name}`" for name in names),
            f"`{FACTORIES.get(row.keyword, row.factory.__name__)}`",
            row.equation,
            ", ".join(f"`{name}` {ranges[name]}" for name in names if name in ranges),
            ", ".join(f"`{name}={row.default(name)!r}`" for name in row.companions()),
            ", ".join(f"`{name}={value:g}`" for name, value in row.off.items()),
        ]
        lines.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    for keyword, text in AROUND.items():
        default = f"`{keyword}={KEYWORDS[keyword]!r}`"
        lines.append(f"| `{keyword}` | | {text} | | {default} | {default} |")
    return "\n".join(lines)


def test_the_readme_shows_the_table():
    assert markdown() in README.read_text(), f"the README should have:\n{markdown()}"


def test_the_default_of_lookahead_is_written_once():
    """`help` of every optimizer and `compose` follow the factory."""
    (row,) = [row for row in TECHNIQUES if row.keyword == "sync_period"]
    assert row.default("slow_step_size") == 0.5 == KEYWORDS["slow_step_size"]
    assert "slow_step_size=0.5" in repr(amac_jax.lookahead())


@pytest.mark.parametrize("row", TECHNIQUES, ids=lambda row: row.keyword)
def test_an_off_value_is_in_its_range(row):
    for keyword, off in row.off.items():
        assert off in row.ranges()[keyword]
