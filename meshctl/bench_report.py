"""Figures of `./mesh bench` as values: percentiles, ratios, aims, and the report in JSON and Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Statistic = Literal["p50", "p99", "max"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What one side did. For rates (more is better) `p99` is the slowest of ninety-nine in a hundred."""

    p50: float
    p99: float | None
    max: float | None
    """None where it would mean nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What a row is to reach."""

    of: Statistic
    limit: float
    ratio: bool = True
    """The limit is on ours divided by the anchor's; else on ours."""
    at_least: bool = False
    """More is better; else less."""

    def text(self, unit: str) -> str:
        """The aim for a person, such as `p50 ≤ 0.2x`."""
        return f"{self.of} {'≥' if self.at_least else '≤'} {self.limit:g}{'x' if self.ratio else ' ' + unit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of the bench."""

    name: str
    group: str
    """The NAME that `./mesh bench NAME` selects it by."""
    unit: str
    ours: Figure | None
    """None: not measured; the note says why."""
    anchor: Figure | None = None
    """None: it has nothing to compare, or was not measured; the note says which."""
    beside: Mapping[str, Figure] = field(default_factory=dict)
    """The same on other paths of the same run, by name."""
    aim: Aim | None = None
    n: int = 0
    """Samples of ours."""
    note: str = ""
    more_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """Ours through the anchor's, by the statistic that the aim is about (p50 without an aim)."""
        if self.ours is None or self.anchor is None:
            return None
        statistic: Statistic = self.aim.of if self.aim else "p50"
        own, below = getattr(self.ours, statistic), getattr(self.anchor, statistic)
        return float(own) / float(below) if own is not None and below else None

    @property
    def met(self) -> bool | None:
        """Whether the aim is reached; None without an aim or a figure."""
        if self.aim is None or self.ours is None:
            return None
        value = self.ratio if self.aim.ratio else float(getattr(self.ours, self.aim.of))
        if value is None:
            return None
        return value >= self.aim.limit if self.aim.at_least else value <= self.aim.limit


def percentile(samples: Iterable[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest sample that `percent` of all do not exceed. ValueError without one."""
    ordered = sorted(samples)
    if not ordered:
        raise ValueError("a percentile of no samples, expected one at least")
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, min(len(ordered), int(rank)) - 1)]


def figure(samples: Sequence[float], *, more_is_better: bool = False) -> Figure | None:
    """p50, p99 and the largest of `samples`; None without any."""
    if not samples:
        return None
    return Figure(p50=percentile(samples, 50), p99=percentile(samples, 1 if more_is_better else 99), max=max(samples))


def difference(figure: Figure | None, base: Figure | None) -> Figure | None:
    """What `figure`'s median is above that of `base`. Of tails a difference would say nothing."""
    if figure is None or base is None:
        return None
    return Figure(p50=figure.p50 - base.p50, p99=None, max=None)


def single(value: float | None) -> Figure | None:
    """A figure that is one number; None for None."""
    return None if value is None else Figure(p50=value, p99=None, max=None)


def document(machine: Mapping[str, str], rows: Sequence[Row]) -> dict[str, Any]:
    """The contract of `--json`."""
    return {"machine": dict(machine), "rows": [_tree(row) for row in rows]}


def _tree(row: Row) -> dict[str, Any]:
    tree = asdict(row)
    tree["aim"] = row.aim.text(row.unit) if row.aim else None
    return tree | {"ratio": row.ratio, "met": row.met}


def number(value: float | None) -> str:
    """Three significant digits, thousands in full."""
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):g}"


def triple(figure: Figure | None) -> str:
    """`p50 / p99 / max`, as far as they are known."""
    if figure is None:
        return "-"
    known = [value for value in (figure.p50, figure.p99, figure.max) if value is not None]
    return " / ".join(number(value) for value in known)


def cells(row: Row) -> tuple[str, ...]:
    """The cells of a row in tables: name, unit, ours, anchor, ratio, aim, met, n."""
    verdict = {True: "yes", False: "NO", None: "-"}[row.met]
    ratio = "-" if row.ratio is None else f"{number(row.ratio)}x"
    aim = row.aim.text(row.unit) if row.aim else "-"
    return row.name, row.unit, triple(row.ours), triple(row.anchor), ratio, aim, verdict, str(row.n)


HEADINGS = ("figure", "unit", "ours p50 / p99 / max", "anchor p50 / p99 / max", "ratio", "aim", "met", "n")


INTRODUCTION = (
    "# Benchmarks",
    "",
    "Written by `./mesh bench`; do not edit. The anchor is Consul Connect as its makers ship it",
    "(`consul connect envoy`), run beside ours in the same namespaces, over the same WireGuard, with the same clients",
    "and backends, in turns.",
    "Figures hold for this machine and this run, clients and all CVMs on the same cores; ratios travel better.",
    "",
    "`./mesh bench NAME` takes a group or several, `--quick` a few samples, `--json FILE` writes the contract",
    '`{"machine": {…}, "rows": [{"name", "group", "unit", "ours", "anchor", "ratio", "beside", "aim", "met", "n",',
    '"note", "more_is_better"}]}`; `ours`, `anchor` and each of `beside` are `{"p50", "p99", "max"}` or null. `ratio`',
    "is ours through the anchor's, of the statistic that the aim names. Of rates, where more is better, p99 is what",
    "99 of 100 samples reach.",
    "",
)
"""Head of the report."""


def markdown(machine: Mapping[str, str], rows: Sequence[Row]) -> str:
    """The text of `docs/benchmarks.md`."""
    lines = [
        *INTRODUCTION,
        *(f"- {name}: {value}" for name, value in machine.items()),
        "",
        _line(HEADINGS),
        _line(["---"] * len(HEADINGS)),
        *(_line(cells(row)) for row in rows if row.ours is not None),
    ]
    lines += _section("Beside them", _beside(rows))
    lines += _section(
        "What each row compares", [f"- **{row.name}**: {row.note}" for row in rows if row.note and row.ours]
    )
    lines += _section("Aims that were missed", [f"- {row.name}: {_missed(row)}" for row in rows if row.met is False])
    lines += _section("Not measured", [f"- {row.name}: {row.note}" for row in rows if row.ours is None])
    return "\n".join(lines) + "\n"


def _beside(rows: Sequence[Row]) -> list[str]:
    lines = [_line((row.name, row.unit, name, triple(value))) for row in rows for name, value in row.beside.items()]
    return [_line(("figure", "unit", "path", "p50 / p99 / max")), _line(["---"] * 4), *lines] if lines else []


def _missed(row: Row) -> str:
    assert row.aim is not None
    assert row.ours is not None
    got = row.ratio if row.aim.ratio else float(getattr(row.ours, row.aim.of))
    return f"{number(got)}{'x' if row.aim.ratio else ' ' + row.unit}, aim {row.aim.text(row.unit)}"


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if lines else []


def _line(parts: Sequence[str]) -> str:
    return "| " + " | ".join(part.replace("|", "\\|") for part in parts) + " |"
