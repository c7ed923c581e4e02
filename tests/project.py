"""The project's own files, for the tests that look at the source: packages, modules, parsed trees."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from tests.support import ROOT

PACKAGES = (
    "admission", "coordinator", "dns", "evidence", "lab", "meshctl", "peer",
    "runtime", "sidecar", "topology", "vip", "workloads", "xds",
)  # fmt: skip
_NOT_OURS = {".git", ".venv", ".mesh", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", "build", "dist"}


def sources() -> list[Path]:
    """Python files of the packages, relative to the checkout."""
    return sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def suite() -> list[Path]:
    """Python files below tests/, relative to the checkout."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))


def every_text_file() -> Iterator[tuple[Path, str]]:
    """(path relative to the checkout, text) of each file that is ours and is text."""
    for top in sorted(ROOT.iterdir()):
        if top.name in _NOT_OURS or top.name.endswith(".egg-info"):
            continue
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                try:
                    yield path.relative_to(ROOT), path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue


def module_name(path: Path) -> str:
    """`xds/spec.py` → `xds.spec`; a package's `__init__.py` → the package."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree(path: Path) -> ast.Module:
    """The parsed source of `path` (relative to the checkout)."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> set[str]:
    """Everything that the file imports, at any depth: `a.b` for `import a.b`, `a.b.c` for `from a.b import c`."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found
