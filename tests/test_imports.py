"""Which way imports point (docs/architecture.md), which modules may touch the world, and whose the names are."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from tests.project import PACKAGES, imports, module_name, sources
from tests.support import ROOT

LEAVES = frozenset({"topology", "evidence", "xds", "dns", "vip", "peer"})
_SHARED = {"runtime.secret", "runtime.backoff", "runtime.tasks", "runtime.jsons"}

ALLOWED: dict[str, set[str]] = {
    "runtime": set(),
    "topology": _SHARED,
    "evidence": _SHARED,
    "xds": _SHARED,
    "dns": _SHARED,
    "vip": _SHARED,
    "peer": _SHARED,
    "admission": {"runtime", "evidence", "topology"},
    "coordinator": {"runtime", "admission", *LEAVES},
    "sidecar": {"runtime", "admission", *LEAVES},
    "workloads": set(),
    "lab": set(PACKAGES) - {"meshctl"},
    "meshctl": set(PACKAGES),
}
"""Per package: what of ours it may import beside itself; a name allows everything below it."""

EXCEPTIONS: dict[str, set[str]] = {
    # A process of its own on a public host: it verifies coordinators, and no leaf or sidecar imports it.
    "peer.rendezvous": {"runtime", "admission", "topology"},
    # The one translation of a manifest's demands, for the coordinator, the sidecar and the rendezvous.
    "evidence.manifest": {"topology"},
    # What is verified from outside is held against a manifest, and its history.
    "evidence.bundle": {"topology"},
    "evidence.outside": {"topology"},
    "evidence.documents": {"topology"},
    # Reads the environment of the three programs that need to know the owners.
    "topology.given": {"runtime"},
    # The database's supervisor is a part of the mesh in an application's container.
    **{
        f"workloads.patroni.{name}": {"runtime"}
        for name in (
            "__main__",
            "config",
            "database",
            "life",
            "moves",
            "passwords",
            "publisher",
            "sessions",
            "settings",
            "supervisor",
        )
    },
}
"""Modules that may import more, and why."""

WORLD = frozenset({
    "aiohttp", "asyncio", "consul", "ctypes", "fcntl", "grpc", "http", "logging", "multiprocessing", "os", "psutil",
    "pyroute2", "random", "secrets", "select", "selectors", "shutil", "signal", "socket", "socketserver", "ssl",
    "subprocess", "tempfile", "threading", "time", "urllib.request",
})  # fmt: skip
"""Modules that reach out of the process, or bring in time or chance."""
PURE_NAMES = frozenset({"random.Random"})
"""The type of an argument, not a source of chance."""

EDGES = frozenset({
    "admission.client", "admission.offers",
    "coordinator.__main__", "coordinator.app", "coordinator.attest", "coordinator.bodies", "coordinator.chronicle",
    "coordinator.circle",
    "coordinator.disk",
    "coordinator.disk_probe", "coordinator.documents", "coordinator.estate",
    "coordinator.feed", "coordinator.formation", "coordinator.head", "coordinator.heir", "coordinator.identity",
    "coordinator.ledger", "coordinator.link", "coordinator.records", "coordinator.rotator", "coordinator.server",
    "coordinator.server_process", "coordinator.sessions", "coordinator.siblings", "coordinator.waiting",
    "dns.server", "dns.tcp", "dns.upstream",
    "evidence.collateral",
    "peer.driver", "peer.half_open_ends", "peer.prober", "peer.relay", "peer.rendezvous", "peer.routes",
    "peer.service", "peer.watch", "peer.wireguard",
    "runtime.children", "runtime.consul", "runtime.guest", "runtime.heap", "runtime.http_server", "runtime.init",
    "runtime.keyring", "runtime.log", "runtime.output", "runtime.premises", "runtime.status", "runtime.tasks",
    "runtime.watchdog",
    "sidecar.__main__", "sidecar.admission", "sidecar.agent", "sidecar.effects", "sidecar.envoy",
    "sidecar.files", "sidecar.health", "sidecar.link", "sidecar.listed", "sidecar.losing", "sidecar.membership",
    "sidecar.memory", "sidecar.process", "sidecar.modules", "sidecar.refusing", "sidecar.registrar",
    "sidecar.supervisor", "sidecar.watches", "sidecar.workload_api", "vip.netlink", "vip.nftables",
    "xds.server",
})  # fmt: skip
"""Modules that may import WORLD. Every other module of these packages is pure."""
PURE_BY_DEFAULT = LEAVES | {"admission", "coordinator", "runtime", "sidecar"}


def _is_below(name: str, parents: set[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_point_one_way(package: str) -> None:
    """A package imports of ours only what the architecture allows it."""
    wrong = []
    for path in (path for path in sources() if path.parts[0] == package):
        allowed = {package, *ALLOWED[package], *EXCEPTIONS.get(module_name(path), ())}
        ours = {name for name in imports(path) if name.split(".")[0] in PACKAGES}
        wrong += [f"{path} imports {name}" for name in sorted(ours) if not _is_below(name, allowed)]
    assert not wrong, "\n".join(wrong)


def test_pure_modules_touch_nothing() -> None:
    """A module that is not listed as an edge imports no IO, no clock and no chance."""
    wrong = []
    for path in sources():
        if path.parts[0] in PURE_BY_DEFAULT and module_name(path) not in EDGES:
            world = {name for name in imports(path) if _is_below(name, set(WORLD)) and name not in PURE_NAMES}
            wrong += [f"{path} imports {name}" for name in sorted(world)]
    assert not wrong, "\n".join(wrong)


def test_edges_are_edges() -> None:
    """Each module on the list of edges exists and touches the world: a list that is too long guards nothing."""
    by_name = {module_name(path): path for path in sources()}
    stale = [
        name for name in sorted(EDGES)
        if name not in by_name or not any(_is_below(item, set(WORLD)) for item in imports(by_name[name]))
    ]  # fmt: skip
    assert not stale, stale


def test_command_line_starts_without_the_heavy_packages() -> None:
    """The entry of the command line imports neither gRPC, aiohttp nor any command."""
    import subprocess

    code = "import sys, meshctl.__main__; print(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"grpc", "aiohttp", "rich", "asyncio", "meshctl.lab_commands", "meshctl.tools", "cryptography"}
    assert heavy & set(result.stdout.split()) == set()


def test_set_up_needs_the_standard_library_only() -> None:
    """What `./mesh` runs before there is an environment imports nothing that pip installs."""
    tooling = ("tools", "tools_archive", "tools_build", "tools_install")
    modules = ("stamp", "setup", "console", "errors", "locks", "requirements", *tooling)
    allowed = {*sys.stdlib_module_names, "meshctl"}
    for name in modules:
        foreign = {item.split(".")[0] for item in imports(Path("meshctl") / f"{name}.py")} - allowed
        assert foreign == set(), f"meshctl.{name} imports {foreign}"


def test_no_other_distribution_provides_our_names() -> None:
    """No installed distribution has a top-level name of ours: dnspython and xds-protos would shadow `dns` and `xds`."""
    providers = importlib.metadata.packages_distributions()
    foreign = {name: set(providers.get(name, ())) - {"cvm-mesh"} for name in PACKAGES}
    assert {name: found for name, found in foreign.items() if found} == {}


def test_nothing_on_the_path_shadows_our_names() -> None:
    """No folder or module elsewhere on sys.path carries a name of ours, whoever put it there."""
    places = [Path(entry).resolve() for entry in sys.path if entry and Path(entry).is_dir()]
    others = [place for place in dict.fromkeys(places) if place != ROOT]
    shadows = [
        str(place / shape) for place in others for name in PACKAGES for shape in (name, f"{name}.py")
        if (place / shape).exists()
    ]  # fmt: skip
    assert not shadows, shadows
