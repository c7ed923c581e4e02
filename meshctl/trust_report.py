"""What `./mesh demo trust` shows at its end. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

WIDTH = 80
"""Columns: those of a terminal that nobody has made wider."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the table at the end."""

    what: str
    found: str
    aim: str = ""
    met: bool = True
    fatal: bool = False
    """Not meeting it fails the demo: something was lost, or let in."""


def summary(findings: list[Finding]) -> list[str]:
    """The table, in lines of `WIDTH` columns. Pure."""
    head = line_of(Finding(what="what", found="measured", aim="aim"))
    return [head.rstrip(), "-" * WIDTH, *(line_of(it).rstrip() for it in findings)]


def line_of(finding: Finding) -> str:
    """One line of it. Pure."""
    missed = "" if finding.met else "FAILED" if finding.fatal else "missed"
    return f"{finding.what:<52.52} {finding.found:<10.10} {finding.aim:<9.9}{missed:<6}"


def next_steps(name: str, folder: Path) -> str:
    """What a person may do now. Pure."""
    return (
        f"\nthe mesh runs on; its files are in {folder}\n"
        "until ./mesh down\n"
        f"go on with:  ./mesh status --name {name}\n"
        f"             ./mesh verify --name {name}\n"
        f"             ./mesh set --edit --name {name}\n"
        f"             ./mesh down --name {name}"
    )
