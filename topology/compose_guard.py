"""Keeps the host and applications from the sidecar: from choosing its code, and from what is private. Pure.

All containers of a CVM share its network, and the sidecar's private folder holds the keys of the boot, Consul's API and
Envoy's: whoever reads it is the CVM, whoever writes into what the sidecar runs is the sidecar. The host sets the
environment in which Compose replaces variables, and nothing measures that.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from topology.owners import OWNER_KEY_PLACEHOLDER, OWNERS_VARIABLE

Problem: TypeAlias = "tuple[str, str, str]"
"""Service (empty: beside the services), field, the end of a sentence."""
INSECURE = "MESH_INSECURE_"
"""Variables with this beginning switch a protection off."""
MESH_SOURCE = "/tmp/dstack-runtime/mesh"
PRIVATE_SOURCE = "/tmp/dstack-runtime/mesh-private"
"""Where the files of this repository have the two folders; a sidecar may have them elsewhere."""
GUEST_AGENT = "/run/dstack.sock"
_MESH_TARGET = "/run/mesh"
_ENGINE = (
    "/run/docker.sock", "/run/docker", "/run/containerd", "/run/podman", "/var/lib/docker", "/var/lib/containerd",
)  # fmt: skip
"""An engine's API and data: who has them starts containers as root, or writes into the images of others."""
_SYSTEM = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/opt", "/root", "/run", "/sbin", "/sys", "/usr", "/var/lib",
)  # fmt: skip
"""Folders of the OS: who writes there has what the OS runs as root. Reading is another matter (`/etc/localtime`)."""
_CAPABILITIES = {
    "ALL": "all there are",
    "BPF": "programs in the kernel",
    "DAC_READ_SEARCH": "every file of the CVM",
    "NET_ADMIN": "the mesh's keys and packet filter, for all containers share the CVM's network",
    "PERFMON": "the kernel's memory",
    "SYS_ADMIN": "every file of the CVM",
    "SYS_BOOT": "another kernel",
    "SYS_MODULE": "code in the kernel",
    "SYS_RAWIO": "the CVM's memory",
}
"""Capabilities of Linux with which a container is not contained, and what each gives."""
_DEVICES = (
    "/dev/mem",
    "/dev/kmem",
    "/dev/port",
    "/dev/dm-",
    "/dev/mapper",
    "/dev/nvme",
    "/dev/sd",
    "/dev/vd",
    "/dev/zfs",
)
"""Memory and disks, by the beginning of their names."""
_HARMLESS = frozenset({
    "annotations", "container_name", "cpu_shares", "cpus", "deploy", "labels", "logging", "mem_limit",
    "mem_reservation", "stop_grace_period",
})  # fmt: skip
"""Fields of the sidecar in which a variable chooses neither code nor files."""
_CODE = re.compile(r"PATH|HOME|SHELL|ENV|LD_.*|PYTHON.*|GODEBUG|GCONV_PATH|SSL_CERT_(FILE|DIR)|OPENSSL_.*")
"""Variables by which interpreter, loader, shell and libraries choose what they run or trust."""
_PLACES = frozenset({
    "MESH_CONSUL", "MESH_DATA_DIR", "MESH_ENVOY", "MESH_GUEST_AGENT", "MESH_RUN_DIR", "MESH_STATE_DIR",
    "MESH_WIREGUARD_GO",
})  # fmt: skip
"""Variables of the mesh that name programs, folders and the guest agent."""
_BRACED = re.compile(r"\$\{[^{}]*\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Own:
    """What a file's sidecar has of the CVM."""

    private: tuple[str, ...]
    """Folders and files that are its own."""
    mesh: str
    """The folder that applications read."""


def problems(services: Mapping[str, object], beside: Mapping[str, object], sidecar: str) -> Iterator[Problem]:
    """What is wrong with these services, of which `sidecar` is the mesh, and with what stands beside them."""
    if beside.get("include"):
        yield "", "include", "adds services of files that nobody measured; write them into this file"
    bodies = {str(name): body for name, body in services.items() if isinstance(body, dict)}
    mesh = bodies.get(sidecar, {})
    own = _own(mesh)
    for name, body in bodies.items():
        yield from _outside_files(name, body)
        if name == sidecar:
            yield from _sidecar(name, body)
        else:
            yield from _application(name, body, sidecar, own)
    for kind in ("configs", "secrets", "volumes"):
        entries = beside.get(kind)
        for key, entry in entries.items() if isinstance(entries, dict) else ():
            yield from _beside(kind, str(key), entry, own)


def split_mount(text: str) -> list[str]:
    """The parts of a mount in short syntax: a colon inside of `${…}` separates nothing."""
    hidden = _BRACED.sub(lambda match: match[0].replace(":", "\0"), text)
    return [part.replace("\0", ":") for part in hidden.split(":")]


def _outside_files(name: str, body: Mapping[str, object]) -> Iterator[Problem]:
    if body.get("extends"):
        yield (
            name,
            "extends",
            "takes fields from another service or file, which a reader of this one does not see; write them here",
        )
    if body.get("provider"):
        yield name, "provider", "runs a program of the engine's host that nobody measured; remove it"


def _sidecar(name: str, body: Mapping[str, object]) -> Iterator[Problem]:
    for field, value in body.items():
        if field not in _HARMLESS and field not in ("environment", "image") and not str(field).startswith("x-"):
            found = next((text for text in texts(value) if _has_variable(text)), None)
            if found is not None:
                yield (
                    name,
                    str(field),
                    (
                        f"holds {found!r:.80}: the host sets that variable and would choose what the sidecar runs "
                        "or reads; write the value itself"
                    ),
                )
    environment = _environment(body.get("environment"))
    for key, text in environment.items():
        if _has_variable(text) and (_CODE.fullmatch(key) or key in _PLACES):
            yield (
                name,
                "environment",
                (
                    f"has {key} from the environment, so the host would choose what the sidecar runs or reads; write "
                    "the value itself"
                ),
            )
        if key.startswith(INSECURE) and not _has_variable(text) and text not in ("", "0"):
            yield (
                name,
                "environment",
                (f"has {key}, which switches a protection off; remove it (a lab sets it where it is needed)"),
            )
    if not environment.get(OWNERS_VARIABLE):
        yield (
            name,
            "environment",
            (
                f"has no {OWNERS_VARIABLE}: nobody's manifest would be believed; add "
                f'{OWNERS_VARIABLE}: "{OWNER_KEY_PLACEHOLDER}", and ./mesh keygen writes your key there'
            ),
        )


def _application(name: str, body: Mapping[str, object], sidecar: str, own: _Own) -> Iterator[Problem]:
    for field in ("privileged", "use_api_socket"):
        if body.get(field) not in (None, False, "false"):
            yield name, field, "gives the container the whole CVM, the sidecar's keys too; remove it"
    for field in ("post_start", "pre_stop"):
        hooks = body.get(field)
        items = hooks if isinstance(hooks, list) else ()
        if any(isinstance(hook, dict) and hook.get("privileged") for hook in items):
            yield name, field, "has a privileged hook, which gives it the whole CVM; remove privileged"
    for field in ("pid", "ipc", "userns_mode", "cgroup"):
        text = str(body.get(field) or "")
        if (field == "pid" and text) or text.startswith(("service:", "container:")) or _has_variable(text):
            yield name, field, f"is {text!r:.40}: the sidecar's processes and their memory would be in reach; remove it"
    if body.get("volumes_from"):
        yield name, "volumes_from", f"takes another container's folders, {sidecar}'s too; mount what it needs"
    yield from _capabilities(name, body)
    yield from _application_mounts(name, body, own)


def _application_mounts(name: str, body: Mapping[str, object], own: _Own) -> Iterator[Problem]:
    for text in _mounts(body.get("volumes")):
        if why := _why_no_mount(text, own):
            yield name, "volumes", why
    for field in ("env_file", "label_file"):
        for text in texts(body.get(field)):
            if why := _why_no_mount(f"{text}:/:ro", own):
                yield name, field, why


def _capabilities(name: str, body: Mapping[str, object]) -> Iterator[Problem]:
    for text in texts(body.get("cap_add")):
        short = text.upper().removeprefix("CAP_")
        if short in _CAPABILITIES or _has_variable(text):
            yield (
                name,
                "cap_add",
                f"holds {text!r:.40}, which gives it {_CAPABILITIES.get(short, 'what the host likes')}; remove it",
            )
    for text in texts(body.get("devices")):
        source = normal(split_mount(text)[0])
        if source.startswith(_DEVICES) or source == "/dev" or _has_variable(source):
            yield name, "devices", f"holds {text!r:.60}: memory or disks of the CVM, the sidecar's too; remove it"
    for text in texts(body.get("device_cgroup_rules")):
        if re.match(r"c\s+(?!1:)[0-9]+:", text) is None:
            yield (
                name,
                "device_cgroup_rules",
                f"holds {text!r:.60}, expected c, a number and not memory's (1), as c 195:* rmw",
            )


def _beside(kind: str, key: str, entry: object, own: _Own) -> Iterator[Problem]:
    """Files and folders that configs, secrets and named volumes stand for."""
    if not isinstance(entry, dict):
        return
    options = entry.get("driver_opts")
    paths = [entry.get("file"), options.get("device") if isinstance(options, dict) else None]
    for path in paths:
        # A secret is mounted read-only; a volume may be written to.
        mode = "ro" if path is entry.get("file") else "rw"
        if not isinstance(path, str) or not path.startswith(("/", ".", "~", "$")):
            continue
        if why := _why_no_mount(f"{path}:/:{mode}", own):
            yield "", f"{kind}.{key}", why


def _own(sidecar: Mapping[str, object]) -> _Own:
    """All that the sidecar mounts is its own, but for the guest agent, which all may ask, and the mesh's folder."""
    private, mesh = [PRIVATE_SOURCE], MESH_SOURCE
    for text in _mounts(sidecar.get("volumes")):
        parts = split_mount(text)
        source = normal(parts[0])
        if parts[1:2] == [_MESH_TARGET]:
            mesh = source
        elif source.startswith("/") and source != GUEST_AGENT:
            private.append(source)
    return _Own(private=tuple(dict.fromkeys(private)), mesh=mesh)


def _why_no_mount(text: str, own: _Own) -> str | None:
    """Why an application may not have the mount `text`, as the end of a sentence; None where it may."""
    parts = split_mount(text)
    if len(parts) < 2:
        return None
    source, said = normal(parts[0]), f"hold {parts[0]!r:.60}"
    if _has_variable(source):
        return f"{said}: the host sets that variable and would choose what is mounted; write the path itself"
    if not source.startswith("/"):
        leads_out = source.startswith((".", "~")) and ".." in source.split("/")
        return f"{said}, which leads out of the file's folder; write the whole path" if leads_out else None
    for owner, paths in (
        ("the sidecar's", own.private),
        ("the container engine's", _ENGINE),
        ("every process'", ("/proc",)),
    ):
        met = next((path for path in paths if _meets(source, path)), None)
        if met is not None:
            return f"{said}, and {met} is {owner} own; mount a folder that is the application's alone"
    if "ro" in ",".join(parts[2:]).split(","):
        return None
    if _meets(source, own.mesh):
        return f"{said} without :ro: the names and exec.sh of all containers are there; add :ro"
    # Devices and sockets are files that a container is given one by one.
    system = source in _SYSTEM or source.startswith(tuple(f"{it}/" for it in _SYSTEM if it not in ("/dev", "/run")))
    if system and source != GUEST_AGENT:
        return f"{said} without :ro: what the OS of the CVM runs is there; add :ro, or use another folder"
    return None


def _meets(source: str, path: str) -> bool:
    """Whether who has `source` has something of `path`: it is the same, below it or above it."""
    return source == path or source.startswith(f"{path}/") or path.startswith(source.rstrip("/") + "/")


def normal(path: str) -> str:
    """A path as the kernel takes it; `/var/run` is `/run` in every OS that dstack ships."""
    normal = posixpath.normpath(path) if path.startswith("/") else path
    normal = "/" + normal.lstrip("/") if normal.startswith("/") else normal
    return normal.removeprefix("/var") if normal == "/var/run" or normal.startswith("/var/run/") else normal


def _mounts(value: object) -> Iterator[str]:
    """Mounts in short syntax, whichever they are written in."""
    for item in value if isinstance(value, list) else ():
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict) and item.get("type") != "tmpfs":
            mode = "ro" if item.get("read_only") is True else "rw"
            yield f"{item.get('source') or ''}:{item.get('target') or ''}:{mode}"


def _environment(value: object) -> dict[str, str]:
    if isinstance(value, dict):
        return {str(key): f"${{{key}}}" if item is None else str(item) for key, item in value.items()}
    pairs = [str(item).partition("=") for item in value] if isinstance(value, list) else []
    return {key: text if equals else f"${{{key}}}" for key, equals, text in pairs}


def _has_variable(text: str) -> bool:
    return "$" in text.replace("$$", "")


def texts(value: object) -> tuple[str, ...]:
    """All texts in `value`, keys left out: Compose replaces variables in values only."""
    found: list[str] = []
    seen: set[int] = set()
    """An alias of YAML may lead anywhere, also back."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, dict | list) and id(item) not in seen:
            seen.add(id(item))
            rest += item.values() if isinstance(item, dict) else item
    return tuple(found)
