"""Installs tools into the cache: its makers' archive where one can be had (`meshctl.tools_archive`), else a build
(`meshctl.tools_build`). Standard library only.

`python -m meshctl.tools_install` installs what is missing and says nothing: `./mesh` runs it beside pip.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshctl import tools, tools_archive, tools_build
from meshctl.console import Progress, Silent
from meshctl.errors import USAGE_EXIT_CODE, UserError


def install(
    wanted: Sequence[tools.Tool], environ: Mapping[str, str], progress: Progress
) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """Puts `wanted`, which are built from Go, into the cache: (paths by name, reasons by name of what cannot be had).
    UserError.
    """
    paths: dict[str, Path] = {}
    reasons: dict[str, list[str]] = {}
    for tool in wanted:
        try:
            path, reasons[tool.name] = tools_archive.fetch(tool, environ, progress)
        except OSError as error:
            raise tools_build.unwritable(environ, error) from error
        if path is not None:
            paths[tool.name] = path
        elif reasons[tool.name]:
            progress.line(f"{tool.name} is built here, for {reasons[tool.name][-1]}")
    left = [tool for tool in wanted if tool.name not in paths]
    built, failures = tools_build.build(left, environ, progress) if left else ({}, {})
    return {**paths, **built}, {name: [*reasons[name], *tried] for name, tried in failures.items()}


def main() -> int:
    """Installs what is missing, without a word; the command that runs later reports."""
    # Leaving by an exception is what ends the compiler; the default action would leave it running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    wanted = [tool for tool in tools.TOOLS.values() if tool.go_package and not tool.on_demand]
    try:
        missing = [tool for tool in wanted if tools.search(tool, os.environ).found is None]
        _, failures = install(missing, os.environ, Silent())
    except UserError:
        return USAGE_EXIT_CODE
    return USAGE_EXIT_CODE if failures else 0


if __name__ == "__main__":
    sys.exit(main())
