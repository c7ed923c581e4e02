"""What a compose file has to mount for the mesh, and from where: faults that only a CVM would show. Pure.

In a CVM of dstack /tmp is memory, and named volumes are on the disk. A lab mounts by itself: a wrong line works there.
What an application must not mount is `topology.compose_guard`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from topology.compose_guard import normal, split_mount

AGENT = "/var/run/dstack.sock"
"""The guest agent's socket, in the CVM and in the sidecar."""
SHARED = "/run/mesh"
"""What the sidecar writes and applications read."""
PRIVATE = "/run/mesh-private"
"""Keys and sockets of the sidecar alone."""
DATA = "/mesh-data"
"""A coordinator's records."""
MEMORY = PurePosixPath("/tmp")
"""Below it, folders of a CVM are memory: they outlive a container, and no boot."""
_SOURCES = {SHARED: "/tmp/dstack-runtime/mesh", PRIVATE: "/tmp/dstack-runtime/mesh-private"}
_OTHERWISE = {AGENT: "MESH_GUEST_AGENT", SHARED: "MESH_RUN_DIR", PRIVATE: "MESH_STATE_DIR", DATA: "MESH_DATA_DIR"}
"""Variable of the sidecar with which it looks elsewhere. Whoever sets one has mounts of their own."""
_WHY = {
    AGENT: "the sidecar asks the guest agent who it is",
    SHARED: "applications find names and exec.sh there",
    PRIVATE: "the keys of this boot would be lost when the container restarts, and its slot with them",
    DATA: "what coordinators have acknowledged would be lost at the next boot",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of `volumes`."""

    source: str
    """A path of the CVM, or the name of a volume."""
    target: str
    read_only: bool

    @property
    def on_the_machine(self) -> bool:
        """Whether `source` is a path, and no named volume."""
        return self.source.startswith("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with the `volumes` of one service."""

    service: str
    message: str
    """The end of a sentence."""


def mounts(volumes: Iterable[str]) -> tuple[Mount, ...]:
    """Those of `volumes`, `source:target[:mode]`, whose places are known without the environment."""
    found = []
    for text in volumes:
        source, *rest = split_mount(text)
        if rest and "$" not in text:
            found.append(Mount(source=normal(source), target=normal(rest[0]), read_only="ro" in rest[-1].split(",")))
    return tuple(found)


def sidecars(
    name: str, volumes: Sequence[str], environment: Mapping[str, str], *, coordinator: bool
) -> Iterator[Fault]:
    """What the sidecar called `name` lacks or has wrong."""
    if any("$" in text for text in volumes):
        return
    found = {mount.target: mount for mount in mounts(volumes)}
    for target in (AGENT, SHARED, PRIVATE, *((DATA,) if coordinator else ())):
        if _OTHERWISE[target] in environment:
            continue
        mount = found.get(normal(target))
        line = f"- {AGENT if target == AGENT else _SOURCES.get(target, 'mesh-data')}:{target}"
        if mount is None:
            yield Fault(service=name, message=f"do not mount {target}: {_WHY[target]}; add {line}")
        elif (why := _wrong(target, mount)) is not None:
            yield Fault(service=name, message=f"mount {mount.source} at {target}, {why}; write {line}")
    shared, private = found.get(SHARED), found.get(PRIVATE)
    if shared is not None and private is not None and _within(private.source, shared.source):
        message = f"have {private.source} below {shared.source}, which applications mount; take {_SOURCES[PRIVATE]}"
        yield Fault(service=name, message=message)


def applications(name: str, volumes: Sequence[str], sidecar: Sequence[str]) -> Iterator[Fault]:
    """What the application called `name` mounts wrongly, beside a sidecar with the volumes `sidecar`."""
    shared = next((mount for mount in mounts(sidecar) if mount.target == SHARED), None)
    for mount in mounts(volumes):
        if mount.target == SHARED and shared is not None and mount.source != shared.source:
            yield Fault(
                service=name,
                message=f"mount {mount.source} at {SHARED}, and the sidecar writes to {shared.source}; write "
                f"- {shared.source}:{SHARED}:ro",
            )


def _wrong(target: str, mount: Mount) -> str | None:
    if target == AGENT:
        return None if normal(mount.source) == normal(AGENT) else "where the guest agent's socket has to be"
    if mount.read_only:
        return "read-only, and the sidecar writes there"
    memory = mount.on_the_machine and _within(mount.source, str(MEMORY))
    if target == DATA:
        return "which is memory: it is empty after each boot" if memory else None
    if not mount.on_the_machine:
        return "a named volume, which is on the disk and, where two services mount it, empty in one of them"
    return None if memory else "which is not below /tmp: only that is memory, and what lies there ends with the boot"


def _within(path: str, folder: str) -> bool:
    return PurePosixPath(path).is_relative_to(folder)
