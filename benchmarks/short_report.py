"""Tables of what `short_runs.py` has recorded."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparison_report import table
from benchmarks.records import recorded
from benchmarks.short_jobs import JOBS
from benchmarks.short_variants import ADAMW, AMAC, VARIANTS
from benchmarks.statistics_of_runs import holm, interval, welch

LEVEL = 0.05  # of significance, after Holm's correction
Cells = dict[str, dict[str, Any]]  # job -> variant -> what was recorded


def read(folder: Path) -> Cells:
    """What is recorded, in the order of `JOBS` and `VARIANTS`."""
    cells = {}
    for name in JOBS:
        content = recorded(folder / f"{name}.json")
        cells[name] = {other: content[other] for other in VARIANTS if other in content}
    return {name: row for name, row in cells.items() if row}


def shown(name: str, one: dict[str, Any] | None, figure: str = "score") -> str:
    values = [] if one is None else one["figures"].get(figure, [])
    if len(values) < 2 or None in values:
        return ""
    middle, half = interval(values)
    digits = digits_of(name)
    failed = f" ({one['failed']} failed)" if one and one["failed"] else ""
    return f"{middle:.{digits}f} ± {half:.{digits}f}{failed}"


def digits_of(name: str) -> int:
    return {"accuracy, %": 2, "return": 0}.get(JOBS[name].metric, 3)


def bar_of(name: str, row: dict[str, Any]) -> str | None:
    """AdamW's best variant by its mean score."""
    means = {other: np.mean(row[other]["figures"]["score"]) for other in ADAMW if other in row}
    return max(means, key=lambda other: JOBS[name].sign * means[other]) if means else None


def scores_table(cells: Cells) -> str:
    rows = []
    for name, row in cells.items():
        best = bar_of(name, row)
        first = f"{shown(name, row[best])} at {VARIANTS[best].rate:g}" if best else ""
        job = f"{name} ({JOBS[name].metric}, {'more' if JOBS[name].sign > 0 else 'less'} is better)"
        rows.append([job, first, *(shown(name, row.get(other)) for other in AMAC)])
    return table(["job", "AdamW's best", *AMAC], rows)


def differences(cells: Cells, other: str) -> dict[str, tuple[float, float, float]]:
    """Job -> (difference to AdamW's best in favour of `other`, half of its interval, p)."""
    found = {}
    for name, row in cells.items():
        best = bar_of(name, row)
        if best and other in row:
            pair = [row[which]["figures"]["score"] for which in (other, best)]
            difference, half, p = welch(*pair)
            found[name] = JOBS[name].sign * difference, half, p
    corrected = holm([p for *_, p in found.values()])
    return {
        name: (difference, half, p)
        for (name, (difference, half, _)), p in zip(found.items(), corrected, strict=True)
    }


def differences_table(cells: Cells) -> str:
    columns = {other: differences(cells, other) for other in AMAC}

    def entry(name: str, other: str) -> str:
        if name not in columns[other]:
            return ""
        difference, half, p = columns[other][name]
        digits, mark = digits_of(name), "**" if p < LEVEL else ""
        return f"{mark}{difference:+.{digits}f} ± {half:.{digits}f}{mark}, p {p:.2g}"

    rows = [[name, *(entry(name, other) for other in AMAC)] for name in cells]
    counts = [
        f"{sum(d > 0 and p < LEVEL for d, _, p in column.values())} better, "
        f"{sum(d < 0 and p < LEVEL for d, _, p in column.values())} worse"
        for column in columns.values()
    ]
    return table(["job", *AMAC], [*rows, ["of all", *counts]])


def rates_table(cells: Cells) -> str:
    rows = [
        [name, *(shown(name, row.get(other)) for other in ADAMW)] for name, row in cells.items()
    ]
    return table(["job", *ADAMW], rows)


def kernels_table(cells: Cells) -> str:
    rows = []
    for name, row in cells.items():
        best = bar_of(name, row)

        def least(other: str | None, row=row) -> str:
            values = row[other]["figures"].get("kernels", []) if other in row else []
            known = [value for value in values if value is not None]
            return f"{min(known):.3f}" if known else ""

        if JOBS[name].pretraining:
            rows.append([name, least(best), *(least(other) for other in AMAC)])
    return table(["job", "AdamW's best", *AMAC], rows)


def other_weights_table(cells: Cells) -> str:
    rows = []
    for name, row in cells.items():
        figure = "averaged weights" if name == "ppo" else "last weights"
        entries = (shown(name, row.get(other), figure) for other in AMAC)
        rows.append([f"{name}, {figure}", *entries])
    return table(["job", *AMAC], rows)


def tables(cells: Cells) -> str:
    parts = {
        "Scores: mean and 95 % interval of the seeds": scores_table,
        "Difference to AdamW's best, positive where AMaC is better; bold: p < 0.05, corrected for "
        "the jobs by Holm": differences_table,
        "AdamW at each rate": rates_table,
        "Fine-tuning: norm after / norm before of the kernel that lost most, least of the "
        "seeds": kernels_table,
        "The scores that the other weights of AMaC have": other_weights_table,
    }
    return "\n".join(f"### {heading}\n\n{part(cells)}" for heading, part in parts.items())


def report(folder: Path) -> None:
    cells = read(folder)
    if not cells:
        print(f"{folder}: nothing is recorded yet")
        return
    text = tables(cells)
    (folder / "tables.md").write_text(text)
    print(text)
    print(f"tables.md is in {folder}")
