"""Tables and pictures of what `compare.py` has recorded."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.contenders import CONTENDERS
from benchmarks.records import recorded
from benchmarks.statistics_of_runs import holm, interval, welch
from benchmarks.workloads import ALL, FRESH, POINTS, WORKLOADS, Workload

COLOURS = {"amac": "C3", "adamw": "C0", "muon": "C2"}
LEVEL = 0.05  # of significance, after Holm's correction
Cells = dict[str, dict[str, Any]]  # workload -> optimizer -> what was recorded


def read(folder: Path, workloads: dict[str, Workload]) -> Cells:
    """The recorded cells of these workloads; optimizers in the order of `CONTENDERS`."""
    cells = {}
    for name in workloads:
        content = recorded(folder / f"{name}.json")
        cells[name] = {other: content[other] for other in CONTENDERS if other in content}
    return {name: row for name, row in cells.items() if row}


def scores_of(cell: dict[str, Any], kind: str = "tuned", what: str = "test") -> list[float]:
    return [row[what] for row in cell[kind]]


def shown(cell: dict[str, Any], kind: str = "tuned", what: str = "test") -> str:
    middle, half = interval(scores_of(cell, kind, what))
    failed = sum(row["failed"] for row in cell[kind])
    digits = 2 if cell["configuration"]["metric"] == "accuracy" else 3
    return f"{middle:.{digits}f} ± {half:.{digits}f}" + (f" ({failed} failed)" if failed else "")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


class Verdicts(dict):
    """Workload -> (difference in favour of the first, half of its interval, corrected p)."""

    def __init__(self, cells: Cells, first: tuple[str, str], second: tuple[str, str]):
        pairs = {
            name: welch(scores_of(row[first[0]], first[1]), scores_of(row[second[0]], second[1]))
            for name, row in cells.items()
            if first[0] in row and second[0] in row
        }
        corrected = holm([p for _, _, p in pairs.values()]) if pairs else []
        super().__init__(
            (name, (ALL[name].sign * difference, half, p))
            for (name, (difference, half, _)), p in zip(pairs.items(), corrected, strict=True)
        )

    def names(self, sign: int) -> list[str]:
        """The workloads on which the first is significantly better (1) or worse (-1)."""
        return [name for name, (gain, _, p) in self.items() if sign * gain > 0 and p < LEVEL]

    def count(self, sign: int) -> int:
        return len(self.names(sign))

    def listed(self, sign: int) -> str:
        """Their number and their names."""
        names = self.names(sign)
        return f"{len(names)}: {', '.join(names)}" if names else "0"

    def cell(self, name: str) -> str:
        if name not in self:
            return ""
        gain, half, p = self[name]
        mark = "" if p >= LEVEL else "**" if gain > 0 else "*"
        digits = 2 if ALL[name].metric == "accuracy" else 3
        return f"{mark}{gain:+.{digits}f} ± {half:.{digits}f}{mark}"

    def p(self, name: str) -> str:
        return f"{self[name][2]:.2g}" if name in self else ""


def best_or_tied(cells: Cells) -> list[str]:
    """Workloads on which no opponent's tuned mean is significantly better than AMaC's.

    Against all opponents of a workload, with Holm's correction for their number.
    """
    names = []
    for name, row in cells.items():
        others = [other for other in row if other != "amac"]
        if "amac" not in row or not others:
            continue
        results = [welch(scores_of(row["amac"]), scores_of(row[other])) for other in others]
        corrected = holm([p for _, _, p in results])
        gains = [ALL[name].sign * gain for gain, _, _ in results]
        if not any(gain < 0 and p < LEVEL for gain, p in zip(gains, corrected, strict=True)):
            names.append(name)
    return names


WHAT = {"default": "untuned", "tuned": "tuned"}
RIVALS = {"adamw": "`adamw`", "muon": "`muon` of Optax"}


def all_verdicts(cells: Cells) -> dict[tuple[str, str], Verdicts]:
    """AMaC, untuned and tuned, against AdamW and Muon, both tuned, as far as they are recorded."""
    found = {
        (kind, other): Verdicts(cells, ("amac", kind), (other, "tuned"))
        for kind in ("default", "tuned")
        for other in RIVALS
    }
    return {pair: verdicts for pair, verdicts in found.items() if verdicts}


def main_table(cells: Cells) -> str:
    verdicts = all_verdicts(cells)
    rivals = [other for other in RIVALS if ("tuned", other) in verdicts]
    head = ["test accuracy in %, or ↓", *(f"{RIVALS[other]}, tuned" for other in rivals)]
    columns = {}
    for kind, what in WHAT.items():
        head += [f"`amac`, {what}", *(f"its gain over `{other}`" for other in rivals)]
        columns[kind] = [verdicts[kind, other] for other in rivals]
    rows = []
    for name, row in cells.items():
        if "amac" in row:
            workload = ALL[name]
            rows.append(
                [f"{name}{'' if workload.sign > 0 else f', {workload.metric} ↓'}"]
                + [shown(row[other]) if other in row else "" for other in rivals]
                + [
                    shown(row["amac"], "default"),
                    *(found.cell(name) for found in columns["default"]),
                ]
                + [shown(row["amac"]), *(found.cell(name) for found in columns["tuned"])]
            )
    tied = best_or_tied(cells)
    lines = [table(head, rows)]
    for (kind, other), found in verdicts.items():
        lines.append(
            f"{WHAT[kind].title()} `amac` against tuned `{other}`: "
            f"better on {found.count(1)} of {len(found)} workloads, worse on {found.count(-1)}."
        )
    lines.append(
        f"No opponent is better than tuned `amac` on {len(tied)}: {', '.join(tied) or 'none'}."
    )
    return lines[0] + "\n" + " ".join(lines[1:]) + "\n"


def p_table(cells: Cells) -> str:
    """The p-values of the differences in the main table, each column corrected by Holm."""
    verdicts = all_verdicts(cells)
    head = ["", *(f"{kind} against `{other}`" for kind, other in verdicts)]
    rows = [[name, *(found.p(name) for found in verdicts.values())] for name in cells]
    return table(head, rows)


def opponents_table(cells: Cells, kind: str) -> str:
    """On which workloads `amac` is significantly better or worse than each tuned opponent."""
    rows = []
    for name in CONTENDERS:
        verdicts = Verdicts(cells, ("amac", kind), (name, "tuned"))
        if (name == "amac" and kind == "tuned") or not verdicts:
            continue
        rows.append([f"`{name}`", *(verdicts.listed(sign) for sign in (1, -1))])
    return table(["tuned", f"{WHAT[kind]} `amac` is better on", "and worse on"], rows)


PAIRS = (  # what tells the share of the core, of the layout of kernels and of averaging
    (("amac-adam", "default"), ("adamw", "tuned")),
    (("amac-adam", "tuned"), ("adamw", "tuned")),
    (("amac", "default"), ("amac-adam", "default")),
    (("amac", "tuned"), ("amac-adam", "tuned")),
    (("layout-muon", "tuned"), ("muon", "tuned")),
    (("amac", "default"), ("layout-muon", "tuned")),
    (("amac", "tuned"), ("layout-muon", "tuned")),
)


def pairs_table(cells: Cells) -> str:
    """On which workloads one optimizer is significantly better or worse than another."""
    rows = []
    for pair in PAIRS:
        verdicts = Verdicts(cells, *pair)
        if verdicts:
            named = [f"`{name}`, {WHAT[kind]}" for name, kind in pair]
            rows.append([*named, *(verdicts.listed(sign) for sign in (1, -1))])
    head = ["the first", "the second", "the first is better on", "and worse on"]
    return table(head, rows) if rows else ""


def score_table(cells: Cells, kind: str) -> str:
    names = [name for name in CONTENDERS if any(name in row for row in cells.values())]
    rows = [
        [f"`{name}`", *(shown(row[name], kind) if name in row else "" for row in cells.values())]
        for name in names
    ]
    return table(["", *cells], rows)


def steps_to_target(name: str, cell: dict[str, Any]) -> float:
    """The steps after which the mean validation score of the tuned runs is at the target."""
    workload = ALL[name]
    curve = np.mean([row["validation"] for row in cell["tuned"]], axis=0)
    reached = workload.sign * curve >= workload.sign * workload.target
    return float((reached.argmax() + 1) * workload.steps / POINTS if reached.any() else np.inf)


def target_table(cells: Cells) -> str:
    def entry(workload: str, row: dict[str, Any], name: str) -> str:
        if name not in row or not np.isfinite(steps := steps_to_target(workload, row[name])):
            return "-"
        seconds = row[name]["seconds_per_run"] * steps / ALL[workload].steps
        return f"{steps:.0f} ({seconds:.2g} s)"

    names = [name for name in CONTENDERS if any(name in row for row in cells.values())]
    rows = [
        [f"`{name}`", *(entry(workload, row, name) for workload, row in cells.items())]
        for name in names
    ]
    head = [f"{name}: {ALL[name].target:g}" for name in cells]
    return table(["", *head], rows)


def settings_table(cells: Cells) -> str:
    def entry(cell: dict[str, Any]) -> str:
        chosen = cell["chosen"]
        return (
            f"{chosen['learning_rate']:.2g}, {chosen['weight_decay']:.2g}, "
            f"{1 - chosen['one_minus_b1']:.2f}, {chosen['warmup_share']:.2f}"
        )

    names = [name for name in CONTENDERS if any(name in row for row in cells.values())]
    rows = [
        [f"`{name}`", *(entry(row[name]) if name in row else "" for row in cells.values())]
        for name in names
    ]
    return table(["", *cells], rows)


def colour(name: str) -> str:
    return COLOURS.get(name, "0.45")


def draw_scores(cells: Cells) -> Figure:
    """A panel a workload: test scores of all optimizers, tuned and with their defaults."""
    columns = min(4, len(cells))
    lines = -(-len(cells) // columns)
    names = [name for name in CONTENDERS if any(name in row for row in cells.values())][::-1]
    size = (3 * columns + 1, (0.24 * len(names) + 0.9) * lines + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes in grid.ravel()[len(cells) :]:
        axes.axis("off")
    for (workload_name, row), axes in zip(cells.items(), grid.ravel(), strict=False):
        workload = ALL[workload_name]
        tuned = {}
        for height, name in enumerate(names):
            if name not in row:
                continue
            for kind, look in (("default", {"mfc": "white", "alpha": 0.6}), ("tuned", {})):
                middle, half = interval(scores_of(row[name], kind))
                lift = 0.17 if kind == "default" else -0.1
                axes.errorbar(
                    middle, height + lift, xerr=half, fmt="o", markersize=4.5, capsize=2,
                    color=colour(name), **look,
                )  # fmt: skip
                if kind == "tuned":
                    tuned[name] = (middle, half)
        middles = np.array([middle for middle, _ in tuned.values()])
        best = workload.sign * np.max(workload.sign * middles)
        # What lies far behind the middle of the field would squeeze the rest together.
        far = workload.sign * np.median(workload.sign * middles) - best
        shown_anyway = [abs(tuned[name][0] - best) for name in COLOURS if name in tuned]
        halves = [half for _, half in tuned.values()]
        width = max(
            2.5 * abs(far), 3 * np.median(halves), *(1.2 * gap for gap in shown_anyway), 1e-3
        )
        ends = sorted([best - workload.sign * width, best + workload.sign * 0.35 * width])
        axes.set_xlim(*(ends if workload.sign > 0 else ends[::-1]))
        if "adamw" in tuned:
            axes.axvline(tuned["adamw"][0], color="C0", linewidth=0.8, alpha=0.5)
        axes.set_title(workload_name, fontsize=10)
        axes.set_xlabel(workload.metric + workload.unit, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_yticks(range(len(names)), names)
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(
        "Test scores, better to the right: mean and 95 % interval of the seeds; ● tuned with the "
        "same number of trials, ○ defaults. Line: tuned adamw. What is far behind is cut off",
        fontsize=10,
    )
    return figure


def draw_profile(cells: Cells) -> Figure:
    """Dolan and Moré's performance profile of the steps to the target."""
    names = [name for name in CONTENDERS if all(name in row for row in cells.values())]
    steps = np.array([[steps_to_target(w, row[n]) for w, row in cells.items()] for n in names])
    with np.errstate(invalid="ignore"):
        ratios = steps / steps.min(axis=0) if names else steps
    ratios = np.where(np.isfinite(steps), ratios, np.inf)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    others = iter(("C1", "C4", "C5", "C6", "C7", "C8", "C9", "0.2", "0.6", "tan"))
    for number, (name, row) in enumerate(zip(names, ratios, strict=True)):
        known = np.sort(row[np.isfinite(row)])
        x = np.concatenate([[1.0], known, [4.0]])
        y = np.concatenate([[0.0], np.arange(1, len(known) + 1), [len(known)]]) / len(cells)
        width = 2.5 if name in COLOURS else 1
        dashes = ("-", "--", "-.", ":")[number % 4]
        look: dict[str, Any] = {"linestyle": dashes, "color": COLOURS.get(name) or next(others)}
        axes.step(x, y, where="post", label=name, linewidth=width, **look)
    axes.set(
        xlim=(1, 4), ylim=(0, 1.02), xlabel="steps to the target / those of the fastest",
        ylabel="part of the workloads",
    )  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right", ncols=2)
    return figure


def sections(cells: Cells) -> dict[str, str]:
    """The parts of tables.md by their titles, as far as anything is recorded for them."""
    parts = {
        "AMaC, AdamW and Muon": main_table(cells),
        "The p-values of these differences, corrected": p_table(cells),
        "Tuned AMaC and each of the others": opponents_table(cells, "tuned"),
        "Untuned AMaC and each of the others": opponents_table(cells, "default"),
        "Cores and layouts": pairs_table(cells),
        "Tuned": score_table(cells, "tuned"),
        "Defaults": score_table(cells, "default"),
        "Steps and seconds to the target, tuned": target_table(cells),
        "Chosen: learning rate, weight decay (AMaC: times the automatic ones), b1, share of "
        "warm-up": settings_table(cells),
    }
    return {title: part for title, part in parts.items() if part}


def report(folder: Path) -> None:
    """Writes tables.md, scores.png and profile.png into `folder` and prints the main tables.

    Fresh jobs have tables of their own, with p corrected for their number, and are not drawn.
    """
    cells, fresh = read(folder, WORKLOADS), read(folder, FRESH)
    if not cells and not fresh:
        print(f"{folder}: nothing is recorded yet")
        return
    parts = sections(cells) if cells else {}
    if fresh:
        parts |= {f"On fresh jobs: {title}": part for title, part in sections(fresh).items()}
    text = "\n".join(f"## {title}\n\n{part}" for title, part in parts.items())
    (folder / "tables.md").write_text(text)
    for title, part in parts.items():
        if title.endswith("AMaC, AdamW and Muon"):
            print(f"{title}\n\n{part}")
    print(f"tables.md is in {folder}")
    if cells:
        draw_scores(cells).savefig(folder / "scores.png", dpi=110)
        draw_profile(cells).savefig(folder / "profile.png", dpi=110)
        print(f"scores.png and profile.png are in {folder}")
