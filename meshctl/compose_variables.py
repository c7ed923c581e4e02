"""Whether the mesh's own variables in compose files would do, by the parsers of the programs that read them. Pure.

A sidecar or coordinator refuses an unknown `MESH_` name, and a value that it cannot read, when it starts. A plan knows
both before: names are measured with the file, and so are values that no variable stands in for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from coordinator import config as coordinator
from runtime.env import UNKNOWN, ConfigError
from sidecar import config as sidecar
from topology.compose import SIDECAR, ComposeFile, interpolate, load, variables
from topology.owners import OWNER_KEY_PLACEHOLDER, OWNERS_VARIABLE, OwnerError
from topology.owners import parse as parse_owners
from topology.problems import Problems, Where

if TYPE_CHECKING:
    from topology.cluster import Cluster

Parse = Callable[[Mapping[str, str]], object]


def check(cluster: Cluster) -> None:
    """Raises ClusterError with every variable of the cluster's compose files that would not do."""
    problems = Problems()
    _check(load(cluster.coordinator_compose), coordinator.parse, problems)
    for path in dict.fromkeys(group.compose for group in cluster.groups):
        _check(load(path), sidecar.parse, problems)
    problems.finish()


def _check(file: ComposeFile, parse: Parse, problems: Problems) -> None:
    written = file.sidecar.environment
    owners = written.get(OWNERS_VARIABLE)
    if owners is not None and not variables(owners) and owners != OWNER_KEY_PLACEHOLDER:
        try:
            parse_owners(owners)
        except OwnerError as error:
            where = Where(file=str(file.path), line=_line(file, OWNERS_VARIABLE))
            message = f"{error}; ./mesh keygen writes it, in the place of {OWNER_KEY_PLACEHOLDER}"
            problems.add(where, f"services.{SIDECAR}.environment.{OWNERS_VARIABLE}", message)
    # The owners' key is a placeholder until it is made, and a lab has its own.
    literal = {name for name, text in written.items() if not variables(text) and name != OWNERS_VARIABLE}
    try:
        # What only the deployment knows is as if unset: its name counts, and no value.
        parse({name: interpolate(text, {}) if name in literal else "" for name, text in written.items()})
    except ConfigError as error:
        for problem in error.problems:
            if problem.variable in literal or (problem.variable in written and problem.message.startswith(UNKNOWN)):
                where = Where(file=str(file.path), line=_line(file, problem.variable))
                problems.add(where, f"services.{SIDECAR}.environment.{problem.variable}", problem.message)


def _line(file: ComposeFile, name: str) -> int:
    """The line of the variable; that of its service where it is written in another way than a line of its own."""
    start = file.sidecar.line
    pattern = re.compile(rf"\s*(?:-\s*)?[\"']?{re.escape(name)}[\"']?\s*[:=]")
    lines = enumerate(file.text.splitlines()[start:], start + 1)
    return next((number for number, line in lines if pattern.match(line)), start)
