"""What would let the host or an application at the sidecar is refused, by file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.topology.support import COMPOSE, only
from tests.topology.test_compose import refused
from topology import compose
from topology.compose_guard import split_mount

APP = "    network_mode: host\n    volumes:\n"
MOUNTS = "      - /tmp/dstack-runtime/mesh:/run/mesh:ro\n"
SIDECAR = '    command: ["sidecar"]\n'


def app(text: str) -> str:
    """The good file, whose application has `text` as well."""
    return COMPOSE.replace(APP, f"    {text}\n{APP}")


def mounting(*mounts: str) -> str:
    """The good file, whose application has these mounts as well."""
    return COMPOSE.replace(MOUNTS, MOUNTS + "".join(f"      - {mount}\n" for mount in mounts))


def mesh(text: str) -> str:
    """The good file, whose sidecar has `text` as well."""
    return COMPOSE.replace(SIDECAR, f"{SIDECAR}    {text}\n")


def setting(text: str) -> str:
    """The good file, whose sidecar has the variable `text` as well."""
    return COMPOSE.replace("    environment:\n      MESH", f"    environment:\n      {text}\n      MESH")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("privileged: true", "privileged"),
        ('privileged: "true"', "privileged"),
        ("use_api_socket: true", "use_api_socket"),
        ("pid: host", "pid"),
        ("pid: service:sidecar", "pid"),
        ("ipc: service:sidecar", "ipc"),
        ("ipc: container:x", "ipc"),
        ('userns_mode: "${A}"', "userns_mode"),
        ("volumes_from: [sidecar]", "volumes_from"),
        ("cap_add: [SYS_ADMIN]", "cap_add"),
        ("cap_add: [cap_net_admin]", "cap_add"),
        ("cap_add: [ALL]", "cap_add"),
        ('cap_add: ["${A}"]', "cap_add"),
        ("devices: [/dev/mem]", "devices"),
        ('devices: ["/dev/vda1:/dev/x"]', "devices"),
        ("devices: [/dev]", "devices"),
        ('device_cgroup_rules: ["a *:* rwm"]', "device_cgroup_rules"),
        ('device_cgroup_rules: ["c 1:1 rw"]', "device_cgroup_rules"),
        ("post_start: [{ command: [x], privileged: true }]", "post_start"),
        ("pre_stop: [{ command: [x], privileged: true }]", "pre_stop"),
        ("extends: sidecar", "extends"),
        ("extends: { file: other.yaml, service: x }", "extends"),
        ("provider: { type: x }", "provider"),
        ("env_file: /tmp/dstack-runtime/mesh-private/x", "env_file"),
        ('env_file: "${A}"', "env_file"),
        ("label_file: [../../tmp/x]", "label_file"),
    ],
)
def test_an_application_that_is_not_contained_is_refused(text: str, field: str) -> None:
    """Whatever gives it the CVM's processes, memory, devices, engine or the sidecar's folders."""
    only(refused(app(text)), "c.yaml:13:", f"services.app.{field}")


@pytest.mark.parametrize(
    "mount",
    [
        "/tmp/dstack-runtime/mesh-private:/x:ro",
        "/tmp/dstack-runtime/mesh-private/consul:/x:ro",
        "/tmp/dstack-runtime:/x:ro",
        "/tmp:/x",
        "/:/x:ro",
        "/tmp/../tmp//dstack-runtime/./mesh-private:/x:ro",
        "//tmp/dstack-runtime/mesh-private:/x:ro",
        "../../tmp/dstack-runtime/mesh-private:/x:ro",
        "/tmp/dstack-runtime/mesh:/run/mesh",
        "/tmp/dstack-runtime/mesh:/x:rw,z",
        "/tmp/dstack-runtime/mesh/secrets:/x",
        "/var/run/docker.sock:/var/run/docker.sock",
        "/run/docker.sock:/x:ro",
        "/var/run:/x:ro",
        "/run/containerd/containerd.sock:/x",
        "/var/lib/docker/volumes:/x",
        "/proc:/host/proc:ro",
        "/etc:/x",
        "/usr/local/bin:/x",
        "/dev:/x",
        '"${A}:/x:ro"',
        '"${A:-/srv/data}:/x:ro"',
        '"/srv/${A}:/x:ro"',
        "{ type: bind, source: /tmp/dstack-runtime/mesh-private, target: /x, read_only: true }",
        "{ type: bind, source: /tmp/dstack-runtime/mesh, target: /run/mesh }",
    ],
)
def test_a_mount_that_reaches_too_far_is_refused(mount: str) -> None:
    """The private folder from above and below, engine, processes and OS of the CVM; the mesh's folder, to write."""
    only(refused(mounting(mount)), "c.yaml:14:", "services.app.volumes", "hold ")


@pytest.mark.parametrize(
    "mount",
    [
        "/tmp/dstack-runtime/mine:/x",
        "/tmp/dstack-runtime/mesh-private-not:/x",
        "/srv/data:/x",
        "/var/run/dstack.sock:/var/run/dstack.sock",
        "/etc/localtime:/etc/localtime:ro",
        "/usr/share/zoneinfo:/x:ro",
        "/dev/dri:/dev/dri",
        "data:/x",
        "./conf:/x:ro",
        "/x",
        '"data:${A}"',
        '"/srv/a$$b:/x"',
        "{ type: tmpfs, target: /x }",
        "{ type: volume, source: data, target: /x }",
    ],
)
def test_what_an_application_needs_is_taken(mount: str) -> None:
    """Folders and volumes of its own, the guest agent, the OS's files to read."""
    assert compose.parse(mounting(mount), Path("c.yaml")).applications
    for text in ("devices: [/dev/nvidia0]", "cap_add: [SYS_PTRACE, IPC_LOCK]", "ipc: private", "privileged: false"):
        assert compose.parse(app(text), Path("c.yaml")).applications


def test_what_the_sidecar_mounts_is_its_own() -> None:
    """Wherever the sidecar has its folders: who could write there would have its code or keys."""
    own = "/tmp/own/keys:/run/mesh-private, /tmp/own/names:/run/mesh"
    moved = f"volumes: [{own}, /run/dstack.sock:/var/run/dstack.sock]"
    text = mesh(moved).replace(MOUNTS, "      - /tmp/own/names:/run/mesh:ro\n")
    assert compose.parse(text, Path("c.yaml")).applications
    for mount in ("/tmp/own/keys:/x:ro", "/tmp/own:/x:ro", "/tmp/own/names/secrets:/x"):
        bent = text.replace("/tmp/own/names:/run/mesh:ro\n", f"/tmp/own/names:/run/mesh:ro\n      - {mount}\n")
        only(refused(bent), "services.app.volumes", "hold ")


@pytest.mark.parametrize(
    "text",
    [
        'entrypoint: ["sh", "-c", "${A}"]',
        'volumes: ["${A}:/opt/mesh"]',
        'volumes: ["/x:${A}"]',
        'volumes: [{ type: bind, source: "$A", target: /x }]',
        'working_dir: "${A:-/}"',
        'configs: [{ source: c, target: "${A}" }]',
        'devices: ["${A}"]',
        'post_start: [{ command: ["${A}"] }]',
        'user: "${A}"',
        'security_opt: ["${A}"]',
        'tmpfs: ["${A}"]',
    ],
)
def test_the_host_does_not_choose_what_the_sidecar_runs(text: str) -> None:
    """A variable in any field that decides about code or files is refused; what is literal is measured."""
    only(refused(mesh(text)), "c.yaml:5:", f"services.sidecar.{text.partition(':')[0]}", "the host sets that variable")
    only(refused(COMPOSE.replace('["sidecar"]', '["sidecar", "${A}"]')), "c.yaml:4:", "services.sidecar.command")
    assert compose.parse(mesh('labels: { a: "${A}" }'), Path("c.yaml")).sidecar
    assert compose.parse(mesh('entrypoint: ["sh", "-c", "echo $$A"]'), Path("c.yaml")).sidecar


@pytest.mark.parametrize(
    "name", ["PYTHONPATH", "PYTHONHOME", "LD_PRELOAD", "PATH", "HOME", "SSL_CERT_FILE", "MESH_ENVOY", "MESH_STATE_DIR"]
)
def test_the_host_does_not_choose_by_a_variable_either(name: str) -> None:
    """Names by which interpreter, loader and sidecar find their code; the mesh's other settings may be the host's."""
    for text in (f"{name}: ${{A:-}}", f"{name}:"):
        only(refused(setting(text)), "c.yaml:6:", "services.sidecar.environment", name, "the host would choose")
    assert compose.parse(setting(f"{name}: /opt/x"), Path("c.yaml")).sidecar
    assert compose.parse(setting("MESH_GROUP: ${MESH_GROUP}"), Path("c.yaml")).sidecar


def test_a_protection_is_not_switched_off_in_a_file() -> None:
    """A literal is measured, and proves that nothing is proven."""
    only(refused(setting('MESH_INSECURE_UNSIGNED_MANIFEST: "1"')), "c.yaml:6:", "switches a protection off")
    assert compose.parse(setting('MESH_INSECURE_UNSIGNED_MANIFEST: "0"'), Path("c.yaml")).sidecar


def test_a_sidecar_without_owners_is_refused() -> None:
    """Nobody's manifest would be believed, which shows only after the CVM was paid for."""
    only(refused(COMPOSE.replace("MESH_OWNERS:", "OTHER:")), "services.sidecar.environment", "has no MESH_OWNERS")
    only(refused(COMPOSE.replace('"REPLACE_WITH_YOUR_OWNER_KEY"', '""')), "has no MESH_OWNERS")


@pytest.mark.parametrize(
    ("written", "entry"),
    [
        ("include: [other.yaml]\n", "include"),
        ("secrets:\n  s: { file: /tmp/dstack-runtime/mesh-private/boot }\n", "secrets.s"),
        ("configs:\n  c: { file: /run/docker.sock }\n", "configs.c"),
        ("volumes:\n  v: { driver_opts: { type: none, o: bind, device: /tmp/dstack-runtime } }\n", "volumes.v"),
        ('volumes:\n  v: { driver_opts: { device: "${A}" } }\n', "volumes.v"),
    ],
)
def test_what_stands_beside_the_services_leads_nowhere_else(written: str, entry: str) -> None:
    """Services of other files, and the same paths by way of a secret, a config or a named volume."""
    only(refused(COMPOSE + written), f"c.yaml:1: {entry}")


def test_a_colon_in_a_variable_separates_nothing() -> None:
    """The parts of a mount are those that Compose sees."""
    assert split_mount("${X:-/path}:/run/mesh:ro") == ["${X:-/path}", "/run/mesh", "ro"]
    assert split_mount("a:b") == ["a", "b"]
    assert split_mount("/x") == ["/x"]
