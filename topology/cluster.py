"""`load`: from `clusters/<name>/` to a checked `Cluster`, or every problem at once. IO: reads that folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from topology import compose
from topology.checks import Checker
from topology.egress import MAX_ROOTS_BYTES
from topology.expressions import Unknown
from topology.hcl import Module
from topology.model import Backend, Cluster, Group, Route
from topology.names import why_no_label
from topology.problems import ClusterError, Problems, Where
from topology.shape import Reader, whole_number

__all__ = ["Backend", "Cluster", "ClusterError", "Group", "Route", "load"]

CLUSTER_FILE = "cluster.tf"
COORDINATOR_COMPOSE = "compose/coordinator.yaml"
MAX_COORDINATORS = 9
"""Consul's servers agree on every write: more of them make it slower, not safer."""
_REPLICAS = "replicas."
_POLICY = "attestation"
_DIGESTS = "require_digests"


def load(folder: Path, overrides: Mapping[str, str] = {}, *, deployable: bool = False) -> Cluster:
    """The cluster in `folder`. `overrides` set variables, and as `replicas.<group>` and `coordinators` the counts.

    `deployable` asks for what a deployment needs on top of a mesh on one machine: images by digest, unless the
    variable `attestation` says otherwise. A mesh on one machine measures no image, and runs those of this checkout.

    ClusterError has all problems, each with file, line, entry, expectation and remedy.
    """
    problems = Problems()
    if not (folder / CLUSTER_FILE).is_file():
        raise ClusterError(
            [f"{folder}: there is no {CLUSTER_FILE}; expected a cluster folder such as clusters/starter"]
        )
    replicas = {name.removeprefix(_REPLICAS): text for name, text in overrides.items() if name.startswith(_REPLICAS)}
    module = Module(folder, problems)
    module.read()
    if not module.whole:
        # What the unreadable file defines is unknown: every further problem could be a consequence.
        problems.finish()
    free = {name: text for name, text in overrides.items() if not name.startswith(_REPLICAS)}
    coordinators_text = free.pop("coordinators", None) if "coordinators" not in module.variables else None
    module.override(free)
    reader = Reader(problems, _read_roots)
    groups = _groups(module, reader, replicas, problems)
    cluster = Cluster(
        name=_name(module, problems),
        folder=folder,
        coordinators=_coordinators(module, coordinators_text, problems),
        coordinator_compose=folder / COORDINATOR_COMPOSE,
        groups=groups,
        public=tuple(group.name for group in groups if _has_url(module, group.name)),
    )
    Checker(cluster, reader.places, problems).run()
    digests = deployable and _requires_digests(module, problems)
    _check_compose_files(cluster, reader.places, problems, digests=digests)
    problems.finish()
    return cluster


def _read_roots(path: Path) -> str:
    """The text of a file with certificates; one that is too long is cut where `roots_of` refuses it."""
    with path.open(encoding="utf-8") as file:
        return file.read(MAX_ROOTS_BYTES + 1)


def _requires_digests(module: Module, problems: Problems) -> bool:
    """The policy's word, as main.tf hands it to Terraform's module: true unless it is set to false."""
    if _POLICY not in module.variables:
        return True
    policy = module.variable(_POLICY)
    if isinstance(policy, str) or not isinstance(policy.value, dict):
        # Without a value, or refused already.
        return True
    node = policy.value.get(_DIGESTS)
    value = None if node is None else node.value
    # Terraform takes these texts for booleans.
    value = {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
    if node is not None and value is not None and not isinstance(value, bool | Unknown):
        problems.add(node.where, f"{_POLICY}.{_DIGESTS}", f"is {value!r:.40}, expected true or false")
    return value is not False


def _check_compose_files(
    cluster: Cluster, places: Mapping[str, Where], problems: Problems, *, digests: bool = False
) -> None:
    for group in cluster.groups:
        meant = cluster.folder / group.compose
        if not group.compose.exists() and not group.compose.is_absolute() and meant.exists():
            entry = f"workload_groups.{group.name}.compose"
            message = (
                f'is {str(group.compose)!r}, which is not in this folder; write "${{path.module}}/{group.compose}"'
            )
            problems.add(places[entry], entry, message)
    none: Mapping[str, str] = {}
    files = [(cluster.coordinator_compose, none), *((group.compose, group.compose_env) for group in cluster.groups)]
    for path, signed in files:
        try:
            compose.load(path, digests=digests, signed=signed)
        except ClusterError as error:
            problems.extend(error)


def _groups(module: Module, reader: Reader, replicas: Mapping[str, str], problems: Problems) -> tuple[Group, ...]:
    where = Where(file=str(module.folder / CLUSTER_FILE))
    node = module.local("workload_groups")
    if isinstance(node, str):
        problems.add(where, "workload_groups", "is missing; expected locals { workload_groups = { … } }")
        return ()
    if node.value == {}:
        problems.add(node.where, "workload_groups", "is empty; describe at least one group")
    return reader.groups(node, replicas)


def _name(module: Module, problems: Problems) -> str:
    node = module.variable("cluster_name")
    if isinstance(node, str):
        where = Where(file=str(module.folder / "variables.tf"))
        problems.add(where, "variable cluster_name", f"{node}; every cluster has a name")
        return "unnamed"
    if isinstance(node.value, str) and (why := why_no_label(node.value)) is not None:
        problems.add(node.where, "variable cluster_name", why)
    if not isinstance(node.value, str | Unknown):
        problems.add(node.where, "variable cluster_name", f"is {node.value!r:.40}, expected text")
    return str(node.value)


def _coordinators(module: Module, override: str | None, problems: Problems) -> int:
    value: object = 1
    where = Where(file="override coordinators")
    if override is not None:
        value = whole_number(override)
    elif "coordinators" in module.variables:
        node = module.variable("coordinators")
        if isinstance(node, str):
            problems.add(module.variables["coordinators"].where, "variable coordinators", node)
            return 1
        value, where = node.value, node.where
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_COORDINATORS:
        return value
    if not isinstance(value, Unknown):
        message = (
            f"is {value!r:.40}, expected a whole number from 1 to {MAX_COORDINATORS}; use 3 to survive the loss of one"
        )
        problems.add(where, "coordinators", message)
    return 1


def _has_url(module: Module, group: str) -> bool:
    return f"{group}_url" in module.outputs or f"{group.replace('-', '_')}_url" in module.outputs
