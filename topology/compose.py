"""Compose files as far as the mesh reads them: services, images, what an application is started with. `parse` is pure.

Refuses what would make the measured file say less than it runs: an image that is not a literal, an owner key from the
environment; and an application that is started without the mesh's names.

Long because each refusal of a field stands beside the reading of that field.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import yaml

from topology import compose_guard, mounts
from topology.compose_guard import INSECURE, split_mount
from topology.health import START_PERIOD, HealthCheck, duration
from topology.owners import OWNERS_VARIABLE
from topology.problems import ClusterError, Problems, Where, did_you_mean

SIDECAR = "sidecar"
"""The name of the service that is the mesh: in a workload's file and in the coordinators'."""
EXEC_SH = "/run/mesh/exec.sh"
MESH_MOUNT = "/run/mesh"

MAX_NODES = 20_000
"""Values in a compose file after its aliases were replaced. A real file has some hundreds."""

_PINNED = re.compile(r"@sha256:[0-9a-f]{64}$")

Plain: TypeAlias = "str | int | float | bool | list[Plain] | dict[str, Plain] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One service. Texts are as written: pass what may hold variables through `interpolate`."""

    name: str
    image: str
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    """Short syntax, `source:target[:mode]`."""
    depends_on: tuple[str, ...] = ()
    """Services that are started before this one."""
    waits_healthy: tuple[str, ...] = ()
    """Those of them whose health check must pass first (`condition: service_healthy`)."""
    health: HealthCheck | None = None
    """None where there is no check."""
    restart: str = "no"
    network_mode: str = ""
    texts: tuple[tuple[str, str], ...] = ()
    """Field and text of everything in which Compose replaces variables, `environment` left out."""
    is_sidecar: bool = False
    line: int = 0
    """Where the service starts in the file, from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeFile:
    """A compose file that passed the checks."""

    path: Path
    text: str
    services: tuple[Service, ...]
    texts: tuple[tuple[str, str], ...] = ()
    """The same of what stands beside the services: `configs.NAME`, …"""

    @property
    def sidecar(self) -> Service:
        """The sidecar service; there is exactly one."""
        return next(service for service in self.services if service.is_sidecar)

    @property
    def applications(self) -> tuple[Service, ...]:
        """Every other service."""
        return tuple(service for service in self.services if not service.is_sidecar)


class _Loader(yaml.SafeLoader):
    """The safe loader, but a key written twice is refused as Docker Compose does, where PyYAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is written twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(path: Path, *, digests: bool = False, signed: Mapping[str, str] = {}) -> ComposeFile:
    """Reads and checks the compose file of a group, or of the coordinators. ClusterError has every problem.

    `digests`: an image that is not pinned by digest is a problem. `signed`: the group's `compose_env`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise ClusterError([f"{path}: the compose file {reason}; write it, or change compose in cluster.tf"]) from error
    return parse(text, path, digests=digests, signed=signed)


def parse(text: str, path: Path, *, digests: bool = False, signed: Mapping[str, str] = {}) -> ComposeFile:
    """As `load`, from text; `path` is for messages."""
    problems = Problems()
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_size(root)
        tree = yaml.load(text, Loader=_Loader)
        lines = _service_lines(root)
    except RecursionError:
        problems.add(Where(file=str(path), line=1), path.name, "is nested too deeply; expected a compose file")
        problems.finish()
        raise
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: a number or a date that Python has none for.
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else None
        why = getattr(error, "problem", None) or str(error)
        problems.add(Where(file=str(path), line=line), path.name, f"is not valid YAML: {why:.400}")
        problems.finish()
        raise
    if not isinstance(tree, dict) or not isinstance(tree.get("services"), dict) or not tree["services"]:
        problems.add(
            Where(file=str(path), line=1), path.name, "has no services; expected a map `services:` with the sidecar"
        )
        problems.finish()
    reader = _Reader(path, lines, problems, digests=digests, signed=signed)
    services = tuple(reader.service(str(name), body) for name, body in tree["services"].items())
    reader.check(services)
    reader.guard(tree)
    problems.finish()
    beside = tuple(
        (f"{field}.{key}" if key else str(field), found)
        for field, entries in tree.items()
        if field != "services" and not str(field).startswith("x-")
        for key, entry in (entries.items() if isinstance(entries, dict) else (("", entries),))
        for found in (*compose_guard.texts(entry), *_named_variable(entry))
    )
    return ComposeFile(path=path, text=text, services=services, texts=beside)


def _check_size(root: yaml.Node | None) -> None:
    """YAMLError for a document that grows beyond MAX_NODES: 300 bytes of aliases can stand for gigabytes."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = 0  # what leads back to itself is refused by its readers, or not read
            children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else ()
            parts = node.value if isinstance(node, yaml.SequenceNode) else children
            sizes[id(node)] = 1 + sum(map(size, parts))
            if sizes[id(node)] > MAX_NODES:
                what = f"stands for more than {MAX_NODES} values, by its aliases; write them out, or fewer"
                raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return sizes[id(node)]

    if root is not None:
        size(root)


def _named_variable(entry: object) -> tuple[str, ...]:
    """The variable that a config or a secret is made of, which it names without a dollar, as a reference to it."""
    name = entry.get("environment") if isinstance(entry, dict) else None
    return (f"${{{name}}}",) if isinstance(name, str) else ()


_FIELDS = frozenset({
    "annotations", "attach", "blkio_config", "build", "cap_add", "cap_drop", "cgroup", "cgroup_parent", "command",
    "configs", "container_name", "cpu_count", "cpu_percent", "cpu_period", "cpu_quota", "cpu_rt_period",
    "cpu_rt_runtime", "cpu_shares", "cpus", "cpuset", "credential_spec", "depends_on", "deploy", "develop",
    "device_cgroup_rules", "devices", "dns", "dns_opt", "dns_search", "domainname", "entrypoint", "env_file",
    "environment", "expose", "extends", "external_links", "extra_hosts", "gpus", "group_add", "healthcheck",
    "hostname", "image", "init", "ipc", "isolation", "label_file", "labels", "links", "logging", "mac_address",
    "mem_limit", "mem_reservation", "mem_swappiness", "memswap_limit", "models", "network_mode", "networks",
    "oom_kill_disable", "oom_score_adj", "pid", "pids_limit", "platform", "ports", "post_start", "pre_stop",
    "privileged", "profiles", "provider", "pull_policy", "pull_refresh_after", "read_only", "restart", "runtime",
    "scale", "secrets", "security_opt", "shm_size", "stdin_open", "stop_grace_period", "stop_signal", "storage_opt",
    "sysctls", "tmpfs", "tty", "ulimits", "use_api_socket", "user", "userns_mode", "uts", "volumes", "volumes_from",
    "working_dir",
})  # fmt: skip
"""What a service may have, by the Compose specification's schema (compose-spec/compose-spec, schema/compose-spec.json).
The engine of a CVM refuses any other name, long after the plan."""
_REFERENCE = re.compile(
    r"\$(?:(?P<escaped>\$)"
    r"|\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)(?:(?P<operator>:?[-?+])(?P<word>[^{}]*))?\}"
    r"|(?P<plain>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<wrong>))"
)


def interpolate(text: str, env: Mapping[str, str]) -> str:
    """`text` with its variables replaced as Compose does.

    `${VAR}`, `$VAR`, `${VAR:-default}`, `${VAR-default}`, `${VAR:?error}`, `${VAR:+word}` and `$$`. An unset variable
    without default gives "". ValueError names a reference that is malformed, or demanded and missing.
    """

    def replacement(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        if match["wrong"] is not None:
            raise ValueError(
                f"{text!r} has a '$' at {match.start()} that starts no variable; expected ${{NAME}}, or $$ for a dollar"
            )
        name = match["braced"] or match["plain"]
        operator, word = match["operator"] or "", match["word"] or ""
        present = name in env and (bool(env[name]) or not operator.startswith(":"))
        if operator.endswith("+"):
            return word if present else ""
        if not present and operator.endswith("?"):
            raise ValueError(f"{name} is not set: {word or 'it is required'}; set it in compose_env")
        if not present and operator.endswith("-"):
            return word
        return env.get(name, "")

    return _REFERENCE.sub(replacement, text)


def variables(text: str) -> tuple[str, ...]:
    """The names of the variables that `text` refers to, sorted."""
    return tuple(sorted({name for match in _REFERENCE.finditer(text) if (name := match["braced"] or match["plain"])}))


def malformed(text: str) -> str | None:
    """The first place of `text` that `interpolate` refuses whatever the variables are; None when there is none."""
    found = next((match for match in _REFERENCE.finditer(text) if match["wrong"] is not None), None)
    return None if found is None else text[found.start() : found.start() + 20]


def _passes(text: str, name: str, value: str) -> bool:
    """Whether `text` is the variable `name` and nothing else, so that a container has `value` where Compose has it. A
    default counts for an empty value as Compose has it: with `:-` it takes the place of one.
    """
    whole = re.fullmatch(rf"\$(?:{name}|\{{{name}(?:(?P<operator>:?[-?])(?P<word>[^{{}}]*))?\}})", text)
    if whole is None:
        return False
    return bool(value) or whole["operator"] not in (":-", ":?") or (whole["operator"] == ":-" and not whole["word"])


def unseen(file: ComposeFile, names: Collection[str]) -> tuple[str, ...]:
    """Where `file` uses variables of `names` so that no container has them under their own name, for nothing can hold
    them against the manifest there: `services.app.command: A`. Sorted.
    """
    found: set[tuple[str, str]] = set()
    for service in file.services:
        place = f"services.{service.name}"
        for key, text in service.environment.items():
            found |= {(f"{place}.environment", name) for name in variables(text) if service.is_sidecar or key != name}
        found |= {(f"{place}.{field}", name) for field, text in service.texts for name in variables(text)}
    found |= {(place, name) for place, text in file.texts for name in variables(text)}
    return tuple(sorted(f"{place}: {name}" for place, name in found if name in names))


def referred(file: ComposeFile) -> dict[str, bool]:
    """The variables that `file` refers to anywhere; True where one place has neither default nor error for it."""
    texts = [text for service in file.services for text in service.environment.values()]
    texts += [text for service in file.services for _, text in service.texts]
    texts += [text for _, text in file.texts]
    found: dict[str, bool] = {}
    for match in (match for text in texts for match in _REFERENCE.finditer(text)):
        name = match["braced"] or match["plain"]
        if name:
            found[name] = found.get(name, False) or match["operator"] is None
    return found


def named_volume(volume: str) -> str | None:
    """The name of a volume in short syntax, when it is a named one; None for a folder or a file."""
    source, colon, _ = volume.partition(":")
    return source if colon and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", source) else None


class _Reader:
    def __init__(
        self,
        path: Path,
        lines: Mapping[tuple[str, str], int],
        problems: Problems,
        *,
        digests: bool,
        signed: Mapping[str, str],
    ) -> None:
        self._path = path
        self._digests = digests
        self._signed = signed
        self._misnamed: set[str] = set()
        """Services with a field that is none: it may be what is missing."""
        self._bare: set[tuple[str, str]] = set()
        """Service and name of each variable that is written without a value."""
        self._lines = lines
        self._problems = problems

    def service(self, name: str, body: Plain) -> Service:
        if not isinstance(body, dict):
            self._add(name, "", "is empty; expected a map with image, command and so on")
            body = {}
        for key in map(str, body):
            if key not in _FIELDS and not key.startswith("x-"):
                self._misnamed.add(name)
                self._add(name, key, f"is no field of a service; {did_you_mean(key, _FIELDS)}")
        if name == SIDECAR and body.get("env_file"):
            # All of the file's variables would get in, also those that switch a protection off.
            self._add(name, "env_file", "brings values that nobody measures; name each variable under environment")
        if body.get("image") and body.get("build"):
            self._add(name, "build", "makes an image that nobody measured, from a folder the CVM lacks; remove it")
        conditions = self._depends_on(name, body.get("depends_on"))
        return Service(
            name=name,
            image=self._image(name, body),
            entrypoint=self._words(name, "entrypoint", body.get("entrypoint")),
            command=self._words(name, "command", body.get("command")),
            environment=self._environment(name, body.get("environment")),
            volumes=self._volumes(name, body.get("volumes")),
            depends_on=tuple(conditions),
            waits_healthy=tuple(key for key, condition in conditions.items() if condition == "service_healthy"),
            health=self._health(name, body.get("healthcheck")),
            # YAML 1.1 reads a bare `no` as false.
            restart="no" if body.get("restart") in (None, False) else str(body["restart"]),
            network_mode=str(body.get("network_mode") or ""),
            texts=tuple(
                (str(field), text)
                for field, value in body.items()
                if field != "environment" and not str(field).startswith("x-")
                for text in compose_guard.texts(value)
            ),
            is_sidecar=name == SIDECAR,
            line=self._lines.get((name, ""), 0),
        )

    def check(self, services: tuple[Service, ...]) -> None:
        """What concerns the mesh: a sidecar, and applications that are started through it."""
        sidecar = next((service for service in services if service.is_sidecar), None)
        if sidecar is None:
            message = f"has no service {SIDECAR!r}; copy it from clusters/starter, it joins this CVM to the mesh"
            self._problems.add(Where(file=str(self._path), line=1), self._path.name, message)
        for service in services:
            self._check_references(service)
            if service.network_mode != "host":
                self._add(
                    service.name, "network_mode", "must be host: VIPs and the mesh address are in the CVM's own network"
                )
            if not service.is_sidecar:
                self._check_application(service, sidecar)
        self._check_shared_volumes(services)
        self._check_health(services)
        if sidecar is not None:
            coordinator = sidecar.command[:1] == ("coordinator",)
            self._faults(mounts.sidecars(SIDECAR, sidecar.volumes, sidecar.environment, coordinator=coordinator))
        for key, value in sidecar.environment.items() if sidecar is not None else ():
            if "$" in value and (key == OWNERS_VARIABLE or key.startswith(INSECURE)):
                message = f"{key} comes from the environment, which nobody measures; write the value itself here"
                self._add(SIDECAR, "environment", message)

    def guard(self, tree: Mapping[str, object]) -> None:
        """What lets the host or an application at the sidecar."""
        services = tree["services"]
        assert isinstance(services, dict)
        for service, entry, message in compose_guard.problems(services, tree, SIDECAR):
            if service:
                self._add(service, entry, message)
            else:
                self._problems.add(Where(file=str(self._path), line=1), entry, message)

    def _check_health(self, services: tuple[Service, ...]) -> None:
        """A sidecar that applications wait for has the time that a first deployment needs."""
        sidecar = next((service for service in services if service.is_sidecar), None)
        if sidecar is None or all(service.is_sidecar for service in services):
            return
        if sidecar.health is None:
            message = "is missing: applications wait for it, and without one they are never started; copy it from "
            self._add(SIDECAR, "healthcheck", f"{message}clusters/starter")
        elif sidecar.health.start_period < START_PERIOD:
            message = (
                f"gives up after {sidecar.health.gives_up_after:.0f} s, and then applications are not started until "
                "the CVM boots again, while a first deployment waits for its manifest; write start_period: 24h"
            )
            self._add(SIDECAR, "healthcheck", message)

    def _check_shared_volumes(self, services: tuple[Service, ...]) -> None:
        """dstack shows a named volume that two containers mount as empty in the second one."""
        owners: dict[str, str] = {}
        for service in services:
            for name in dict.fromkeys(filter(None, map(named_volume, service.volumes))):
                first = owners.setdefault(name, service.name)
                if first != service.name:
                    message = (
                        f"mount {name!r}, which {first!r} mounts too: dstack shows a shared named volume as empty; "
                        "share a folder below /tmp/dstack-runtime, or give each service a volume of its own"
                    )
                    self._add(service.name, "volumes", message)

    def _check_references(self, service: Service) -> None:
        fields = {
            "environment": service.environment.values(),
            "entrypoint": service.entrypoint,
            "command": service.command,
            "volumes": service.volumes,
        }
        for field_name, texts in fields.items():
            for found in filter(None, map(malformed, texts)):
                message = (
                    f"has `{found}`, which is no variable; use ${{NAME}} or ${{NAME:-default}}, and $$ for a dollar"
                )
                self._add(service.name, field_name, message)

    def _check_application(self, service: Service, sidecar: Service | None) -> None:
        if service.entrypoint[:1] != (EXEC_SH,):
            message = (
                f"skips {EXEC_SH}, so route names would not resolve; "
                f'use entrypoint: ["{EXEC_SH}"] and put the program into command'
            )
            self._add(service.name, "entrypoint", message)
        elif not service.command and len(service.entrypoint) == 1 and service.name not in self._misnamed:
            # Compose drops the image's CMD when entrypoint is set.
            self._add(service.name, "command", f"is missing: {EXEC_SH} has nothing to start; write the program here")
        targets = [parts[1] for parts in map(split_mount, service.volumes) if len(parts) > 1]
        if MESH_MOUNT not in targets:
            message = f"do not mount {MESH_MOUNT}; add - /tmp/dstack-runtime/mesh:{MESH_MOUNT}:ro"
            self._add(service.name, "volumes", message)
        self._check_signed(service)
        if sidecar is not None:
            self._faults(mounts.applications(service.name, service.volumes, sidecar.volumes))
        if sidecar is not None and SIDECAR not in service.waits_healthy:
            message = "does not wait for the mesh; add sidecar: { condition: service_healthy }"
            self._add(service.name, "depends_on", message)

    def _faults(self, found: Iterable[mounts.Fault]) -> None:
        for fault in found:
            self._add(fault.service, "volumes", fault.message)

    def _check_signed(self, service: Service) -> None:
        """A container has what the manifest says of its variables, and the host cannot leave one out."""
        for name, value in self._signed.items():
            if (service.name, name) in self._bare:
                message = (
                    f"has {name} without a value: Compose would leave it out where the host leaves it out; write "
                    f"{name}: ${{{name}}}"
                )
            elif name in service.environment and not _passes(service.environment[name], name, value):
                message = (
                    f"gives {name} another value than compose_env does, which the manifest has, so {EXEC_SH} would not "
                    f"start it; write {name}: ${{{name}}}, or use another name"
                )
            else:
                continue
            self._add(service.name, "environment", message)

    def _image(self, name: str, body: dict[str, Plain]) -> str:
        image = body.get("image")
        if not isinstance(image, str) or not image:
            self._add(name, "image", "is missing; expected a literal image reference (build is not measured)")
            return ""
        if "$" in image:
            message = (
                f"is {image!r}: a variable in an image reference is not measured, so the compose hash would not say "
                "what runs; write the reference itself, best with a digest"
            )
            self._add(name, "image", message)
        elif self._digests and not _PINNED.search(image):
            message = (
                f"is {image!r}: a tag can be moved to another image after it was measured; pin it by digest "
                "(image@sha256:…, ./mesh images pin), or set attestation.require_digests = false for a trial"
            )
            self._add(name, "image", message)
        return image

    def _words(self, name: str, field: str, value: Plain) -> tuple[str, ...]:
        if value is None:
            return ()
        if isinstance(value, str):
            try:
                return tuple(shlex.split(value))
            except ValueError as error:
                self._add(name, field, f"is {value!r}: {error}")
                return ()
        if isinstance(value, list) and all(isinstance(word, str | int | float) for word in value):
            return tuple(str(word) for word in value)
        self._add(name, field, "must be text or a list of words")
        return ()

    def _environment(self, name: str, value: Plain) -> dict[str, str]:
        if value is None:
            return {}
        if isinstance(value, list):
            pairs = [str(item).partition("=") for item in value]
            self._bare |= {(name, key) for key, equals, _ in pairs if not equals}
            # `- NAME` and `NAME:` take the value of the same name from the environment of compose.
            return {key: text if equals else f"${{{key}}}" for key, equals, text in pairs}
        if not isinstance(value, dict):
            self._add(name, "environment", "must be a map or a list of NAME=value")
            return {}
        found: dict[str, str] = {}
        self._bare |= {(name, str(key)) for key, item in value.items() if item is None}
        for key, item in value.items():
            if isinstance(item, bool | list | dict):
                self._add(name, "environment", f"{key} is {str(item).lower()}, expected text; put it in quotes")
            else:
                found[str(key)] = f"${{{key}}}" if item is None else str(item)
        return found

    def _volumes(self, name: str, value: Plain) -> tuple[str, ...]:
        if value is None:
            return ()
        if not isinstance(value, list):
            self._add(name, "volumes", "must be a list")
            return ()
        found: list[str] = []
        for item in value:
            if isinstance(item, str):
                found.append(item)
            elif isinstance(item, dict) and isinstance(item.get("target"), str):
                mode = ":ro" if item.get("read_only") is True else ""
                found.append(f"{item.get('source') or ''}:{item['target']}{mode}")
            else:
                self._add(name, "volumes", f"holds {item!r:.60}, expected source:target[:ro]")
        return tuple(found)

    def _health(self, name: str, value: Plain) -> HealthCheck | None:
        if value is None or (isinstance(value, dict) and value.get("disable") is True):
            return None
        if not isinstance(value, dict):
            self._add(name, "healthcheck", "must be a map with test, interval, retries and start_period")
            return None
        times = {key: value[key] for key in ("interval", "start_period") if value.get(key) is not None}
        found = {key: duration(text) for key, text in times.items()}
        retries = value.get("retries")
        if retries is not None and (isinstance(retries, bool) or not isinstance(retries, int) or retries < 1):
            self._add(name, "healthcheck", f"has retries {retries!r:.40}, expected a whole number from 1")
            retries = None
        for key, seconds in found.items():
            if seconds is None:
                self._add(name, "healthcheck", f"has {key} {times[key]!r:.40}, expected a duration such as 2s or 24h")
        usual = HealthCheck()
        return HealthCheck(
            interval=found.get("interval") or usual.interval,
            start_period=found.get("start_period") or usual.start_period,
            retries=usual.retries if retries is None else retries,
        )

    def _depends_on(self, name: str, value: Plain) -> dict[str, str]:
        if isinstance(value, list):
            return {str(item): "service_started" for item in value}
        if isinstance(value, dict):
            return {
                key: str(item.get("condition", "service_started")) if isinstance(item, dict) else "service_started"
                for key, item in value.items()
            }
        if value is not None:
            self._add(name, "depends_on", "must be a map or a list of services")
        return {}

    def _add(self, service: str, field: str, message: str) -> None:
        line = self._lines.get((service, field)) or self._lines.get((service, ""))
        entry = f"services.{service}.{field}" if field else f"services.{service}"
        self._problems.add(Where(file=str(self._path), line=line), entry, message)


def _service_lines(root: yaml.Node | None) -> dict[tuple[str, str], int]:
    """(service, field) to line; (service, "") is the service itself."""
    lines: dict[tuple[str, str], int] = {}
    for top, services in root.value if isinstance(root, yaml.MappingNode) else ():
        if top.value != "services" or not isinstance(services, yaml.MappingNode):
            continue
        for name, body in services.value:
            lines[name.value, ""] = name.start_mark.line + 1
            for key, _ in body.value if isinstance(body, yaml.MappingNode) else ():
                lines[name.value, str(key.value)] = key.start_mark.line + 1
    return lines
