"""What a user gets wrong, through the shipped commands: one message, the right exit code, nothing left half up.

Long because it is a list: each mistake is a case of its own, and they share one mesh and its fixtures.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.namespaces import inside_network
from meshctl import runs
from sidecar import kept
from tests.e2e.user import Mesh, run_mesh, running, wait_for
from tests.sidecar.world import OWNER, environment, manifest
from tests.support import ROOT, need_root_or_userns, network_namespace, popen, process_runs, tool
from tests.topology.support import opened

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

STARTER = ROOT / "clusters" / "starter"
WORKER = "compose/worker.yaml"

NO_NET_ADMIN = (
    "import ctypes, os, sys\n"
    "PR_CAPBSET_DROP, CAP_NET_ADMIN = 24, 12\n"
    "assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_NET_ADMIN, 0, 0, 0) == 0\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)


def line_of(text: str) -> str:
    """`file:line`, as a message has it, of the line of the worker's compose file that holds `text`."""
    lines = (STARTER / WORKER).read_text(encoding="utf-8").splitlines()
    return f"{Path(WORKER).name}:{next(n for n, line in enumerate(lines, 1) if text in line)}"


def refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    """Exit code 2, no traceback, and one message that holds every one of `said`."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert f"\n{done.stderr}".count("\nmesh: ") == 1, done.stderr
    for text in said:
        assert text in done.stderr


def nothing_left(name: str) -> None:
    """No folder of that mesh, and no process that names it or lives in it."""
    assert not runs.run_of(name).folder.exists()
    assert [pid for pid in _lab_processes(name) if process_runs(pid)] == []


def _lab_processes(name: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            # The lab's own processes have the run folder in their command line.
            if any(str(runs.run_of(name).folder) in word for word in line):
                found.append(int(entry.name))
    return found


# ---- cluster.tf and compose files

BAD_CLUSTERS = {
    "syntax": ("cluster.tf", "backends = {", "backends = {{", ["cluster.tf:17", "is not valid HCL near"]),
    "typo": ("cluster.tf", "replicas  ", "replica   ", ["cluster.tf:5", "did you mean 'replicas'?"]),
    "route": (
        "cluster.tf",
        'worker = { backend = "worker"',
        'api = { backend = "worker"',
        ["cluster.tf:40", "same name as workload_groups.api.routes.api", "rename one"],
    ),
    "call": (
        "cluster.tf",
        'calls       = ["api", "worker"]',
        'calls       = ["api", "wroker"]',
        ["cluster.tf:8", "workload_groups.api.calls: holds 'wroker', which is no route; did you mean 'worker'?"],
    ),
    "role": (
        "cluster.tf",
        'backend = "worker", role = null',
        'backend = "worker", role = "primary"',
        ["worker.routes.worker.role", "owned by the platform, which sets no roles", 'owner = "workload"'],
    ),
    "secret": (
        "cluster.tf",
        "compose_env = {}",
        "compose_env = {}\n      secrets     = { word = { grant = [] } }",
        ["cluster.tf:8", "workload_groups.api.secrets.word.grant", "granted to nobody but 'api'"],
    ),
    "zero": (
        "cluster.tf",
        "replicas    = var.worker_replicas",
        "replicas    = 0",
        ["is 0, expected a whole number from 1 to"],
    ),
    "vip": (
        "cluster.tf",
        'backend = "worker", role = null',
        'backend = "worker", role = null, vip = "127.10.0.53"',
        ["worker.routes.worker.vip", "127.10.0.53", "expected an address from 127.10.1.0"],
    ),
    "compose": ("cluster.tf", "worker.yaml", "wrker.yaml", ["wrker.yaml: the compose file does not exist"]),
    "image": (WORKER, "worker:0.1.0", "worker:${TAG}", [line_of("worker:0.1.0"), "image reference is not measured"]),
    "exec": (
        WORKER,
        '"/run/mesh/exec.sh"',
        '"/app/worker"',
        [line_of('["/run/mesh/exec.sh"]'), "skips /run/mesh/exec.sh"],
    ),
    "variable": (
        WORKER,
        "      MESH_CLUSTER: $",
        "      MESH_LOG_LEVL: debug\n      MESH_CLUSTER: $",
        [line_of("      MESH_CLUSTER: $"), "MESH_LOG_LEVL", "did you mean MESH_LOG_LEVEL?"],
    ),
    "key": (WORKER, '"REPLACE_WITH_YOUR_OWNER_KEY"', "${KEY}", ["MESH_OWNERS comes from the environment"]),
}


def cluster(folder: Path, *changes: tuple[str, str, str]) -> Path:
    """A copy of the starter cluster with texts replaced (file, before, after)."""
    shutil.copytree(STARTER, folder)
    for file, before, after in changes:
        text = (folder / file).read_text(encoding="utf-8")
        assert before in text
        (folder / file).write_text(text.replace(before, after, 1), encoding="utf-8")
    return folder


@pytest.mark.parametrize("case", BAD_CLUSTERS)
def test_broken_cluster_is_one_message_before_anything_starts(tmp_path: Path, case: str) -> None:
    """Each mistake in a cluster's files names file and entry, says what was expected, and starts nothing."""
    need_root_or_userns()
    file, before, after, said = BAD_CLUSTERS[case]
    name = f"bad-{os.getpid()}"
    # A typo has a field missing too; a route that is renamed is missed by both groups that call it.
    count = {"typo": 2, "route": 3}.get(case, 1)
    refused(
        run_mesh("up", str(cluster(tmp_path / "c", (file, before, after))), "--name", name),
        *said,
        f"{count} problem(s)",
    )
    nothing_left(name)


def test_pinned_vips_that_collide_are_answered_with_a_free_one(tmp_path: Path) -> None:
    """Two routes pinned to one VIP: the message names both and proposes an address."""
    need_root_or_userns()
    pins = [
        ("cluster.tf", f'backend = "{name}", role = null', f'backend = "{name}", role = null, vip = "127.10.9.9"')
        for name in ("api", "worker")
    ]
    refused(
        run_mesh("up", str(cluster(tmp_path / "c", *pins))),
        "routes.worker: has the VIP 127.10.9.9, as route 'api' has",
        'vip = "127.10.',
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--replicas", "wrker=3"], "did you mean 'worker'?"),
        (["--replicas", "worker=" + "9" * 5000], "expected a whole number"),
        (["--replicas", "worker"], "--replicas GROUP=COUNT"),
        (["--var", "cluster_nam=x"], "did you mean 'cluster_name'?"),
        (["--var", "cluster_name=My Cluster"], "expected a DNS label"),
        (["--name", "My Mesh"], "expected lower-case letters"),
    ],
)
def test_wrong_options_are_answered_with_the_right_ones(options: list[str], said: str) -> None:
    """A group, variable, count or name that cannot be: one message with what can."""
    need_root_or_userns()
    refused(run_mesh("up", "clusters/starter", *options), said)


# ---- tools and the machine


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MESH_CONSUL", "/nonexistent/consul", "expected the path of an executable consul"),
        ("MESH_CONSUL", "/bin/false", "it tells no version"),
        ("TMPDIR", "@long", "has room for 107 bytes"),
    ],
)
def test_wrong_settings_of_the_machine_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    """A tool that is not there or is another program, a folder too deep for sockets: the variable and the remedy."""
    need_root_or_userns()
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setenv(variable, value.replace("@long", str(long)))
    name = f"bad-{os.getpid()}"
    refused(run_mesh("up", "--name", name), said, "try: ")
    assert list(long.iterdir()) == []
    nothing_left(name)


def test_unwritable_cache_is_named_when_a_tool_has_to_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MESH_CACHE that is no folder: one message that names it, before anything is built."""
    need_root_or_userns()
    if shutil.which("consul"):
        pytest.skip("consul is on PATH: nothing would be built")
    (tmp_path / "file").touch()
    monkeypatch.setenv("MESH_CACHE", str(tmp_path / "file"))
    monkeypatch.delenv("MESH_CONSUL", raising=False)
    refused(run_mesh("up"), "cannot write the tools to", "set MESH_CACHE")


# ---- the processes of a CVM


@pytest.mark.parametrize("module", ["sidecar", "coordinator", "peer.rendezvous"])
@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, ["MESH_OWNERS: is not set"]),
        (
            {"MESH_OWNRS": "x", "MESH_MANIFEST": "y", "MESH_OWNERS": "abc", "MESH_COORDINATORS": "{"},
            [
                "MESH_OWNRS: is not a known variable; did you mean MESH_OWNERS?",
                "MESH_MANIFEST: is not a known variable; no environment has a manifest",
                "'abc'",
                "MESH_COORDINATORS: is not",
            ],
        ),
    ],
)
def test_bad_environment_is_all_told_at_once(module: str, environ: dict[str, str], said: list[str]) -> None:
    """Empty, misspelt and half-wrong environments: every problem in one go, exit code 2."""
    done = subprocess.run(
        [sys.executable, "-m", module],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environ},
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for text in said:
        assert text in done.stderr
    # A coordinator knows the others from the manifest, too.
    missing = module != "coordinator" and "MESH_COORDINATORS" not in environ
    assert ("MESH_COORDINATORS: is not set" in done.stderr) == missing


@pytest.fixture
def namespace() -> Iterator[str]:
    """Path of a fresh network namespace."""
    with network_namespace() as name:
        yield f"/run/netns/{name}" if Path(f"/run/netns/{name}").exists() else f"/var/run/netns/{name}"


def sidecar(namespace: str, folder: Path, *before: str) -> tuple[int, str]:
    """Exit code and output of a sidecar in `namespace`; `before`: what executes it."""
    settings = environment(
        MESH_STATE_DIR=str(folder / "s"),
        MESH_RUN_DIR=str(folder / "r"),
        MESH_GUEST_AGENT=str(folder / "none"),
        MESH_ENVOY=tool("envoy"),
        MESH_CONSUL=tool("consul"),
        MESH_WIREGUARD_GO=tool("wireguard-go"),
    )
    with inside_network(namespace):
        process = popen(
            [*before, sys.executable, "-m", "sidecar"],
            cwd=ROOT,
            env={**settings, "PATH": os.environ["PATH"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in output, output[max(0, output.find("Traceback") - 500) :][:3000]
    return process.returncode, output


def addresses(namespace: str) -> set[str]:
    """Every address in `namespace`."""
    from pyroute2 import IPRoute

    with inside_network(namespace), IPRoute() as link:
        return {item.get_attr("IFA_ADDRESS") for item in link.get_addr()}


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_taken_dns_address_ends_the_sidecar_with_the_remedy(
    namespace: str, tmp_path: Path, kind: socket.SocketKind
) -> None:
    """Somebody else serves DNS on the mesh's address: said, exit code 2, and the VIPs are taken back."""
    with inside_network(namespace), socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.10.0.53", 53))
        if kind == socket.SOCK_STREAM:
            other.listen()
        code, output = sidecar(namespace, tmp_path)
    assert code == 2, output
    assert "cannot serve DNS on '127.10.0.53' port 53" in output
    assert "stop the name server that has it" in output
    assert addresses(namespace) <= {"127.0.0.1", "::1"}


def test_vip_on_another_interface_ends_the_sidecar(namespace: str, tmp_path: Path) -> None:
    """An address of the pool on a foreign interface is left alone, named with the interface, and exit code 2: with the
    first manifest, here that of an earlier process of the boot.
    """
    from pyroute2 import IPRoute

    kept.keep(tmp_path / "s", opened(manifest(), OWNER))
    with inside_network(namespace), IPRoute() as link:
        link.link("add", ifname="other0", kind="veth", peer="other1")
        link.addr("add", index=link.link_lookup(ifname="other0")[0], address="127.10.0.1", prefixlen=32)
    code, output = sidecar(namespace, tmp_path)
    assert code == 2, output
    assert "virtual address '127.10.0.1' is already on interface 'other0'" in output
    assert "127.10.0.1" in addresses(namespace)


def test_sidecar_without_net_admin_says_which_capability(namespace: str, tmp_path: Path) -> None:
    """Without NET_ADMIN: one sentence with the line of the compose file that grants it, and exit code 2."""
    code, output = sidecar(namespace, tmp_path, sys.executable, "-c", NO_NET_ADMIN)
    assert code == 2, output
    assert "cap_add: [NET_ADMIN]" in output
    assert addresses(namespace) <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            (WORKER, "      MESH_CLUSTER: $", "      MESH_LOG_LEVEL: ${LEVEL:-loud}\n      MESH_CLUSTER: $"),
            ["worker-", ".sidecar ended with exit code 2", "MESH_LOG_LEVEL: "],
        ),
        ((WORKER, '"/app/worker"', '"/app/wrker"'), [".worker ended with exit code 127", "/app/wrker: not found"]),
    ],
)
def test_container_that_no_restart_mends_ends_the_start(
    tmp_path: Path, change: tuple[str, str, str], said: list[str]
) -> None:
    """A mistake that only shows inside a CVM: `up` prints the container's words at once, and takes everything down."""
    need_root_or_userns()
    name = f"bad-{os.getpid()}"
    refused(run_mesh("up", str(cluster(tmp_path / "c", change)), "--name", name, timeout=100), *said)
    nothing_left(name)


# ---- interrupted, hung up, run twice


def _recorded(name: str) -> bool:
    return runs.run_of(name).alive


@pytest.mark.parametrize(
    ("number", "until", "code"),
    [
        (signal.SIGINT, _recorded, 130),
        (signal.SIGINT, lambda name: runs.run_of(name).folder.exists(), 130),
        (signal.SIGHUP, _recorded, 129),
        (signal.SIGTERM, lambda name: (runs.run_of(name).folder / runs.CONTROL_SOCKET).exists(), 143),
    ],
)
def test_interrupted_start_leaves_nothing(number: int, until: Callable[[str], bool], code: int) -> None:
    """^C, a closed terminal or a kill in the middle of `up`: no process, no folder, and the name is free again."""
    need_root_or_userns()
    name = f"cut-{os.getpid()}"
    process = popen(
        [str(ROOT / "mesh"), "up", "--name", name],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(lambda: until(name), "the mesh is half up")
        # To the group, as a terminal does.
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == code, output
        assert "Traceback" not in output, output[max(0, output.find("Traceback") - 500) :][:3000]
        nothing_left(name)
    finally:
        process.kill()
        process.wait()
        run_mesh("down", "--name", name)


def test_two_meshes_side_by_side_both_answer(mesh: Mesh) -> None:
    """A second mesh of the same checkout serves its own callers, and the first goes on."""
    with running("second", "up", "clusters/starter", "--replicas", "worker=1", "--replicas", "api=1") as second:
        assert second.fetch("api-0", "http://worker:9090/hello") == "hello from worker-0\n"
        assert mesh.fetch("api-0", "http://worker:9090/hello").startswith("hello from worker-")
        assert len(second.status()["peers"]) == 3
        assert len(mesh.status()["peers"]) == 5
    nothing_left(second.name)
    again = second.run("down")
    assert (again.returncode, again.stdout) == (0, f"no mesh called {second.name!r}\n")
    assert mesh.fetch("api-0", "http://worker:9090/hello").startswith("hello from worker-")


# ---- commands on a running mesh


def test_stopped_cvm_is_named_with_the_way_back(mesh: Mesh) -> None:
    """`exec` into a stopped CVM says that it is stopped and how to start it."""
    assert mesh.run("stop", "worker-1").returncode == 0
    try:
        refused(
            mesh.run("exec", "worker-1", "--", "true"), "worker-1 has no running container (stopped)", "start worker-1"
        )
        assert mesh.run("stop", "worker-1").returncode == 0
    finally:
        assert mesh.run("start", "worker-1").returncode == 0
        mesh.wait_whole()


@pytest.mark.parametrize("peer", ["worker-9", "a/b", "a b", "", "é"])
def test_unknown_peer_leaves_the_known_ones_alone(mesh: Mesh, peer: str) -> None:
    """`kill api-0 <typo>`: the typo is answered with the names that exist, and api-0 lives."""
    before = mesh.peer("api-0")["children"]
    refused(mesh.run("kill", "api-0", peer), f"there is no CVM {peer!r}", "worker-1")
    assert mesh.peer("api-0")["children"] == before


def test_unfinished_commands_are_answered(mesh: Mesh) -> None:
    """No command after `--`, an unknown container, an unknown log, a mesh that is not there."""
    refused(mesh.run("exec", "api-0", "--"), "no command for 'api-0'", "-- sh")
    refused(mesh.run("exec", "--container", "apj", "api-0", "--", "true"), "no container 'apj'", "it has sidecar, api")
    refused(mesh.run("logs", "apx-0"), "there is no log of 'apx-0'", "api-0")
    refused(run_mesh("status", "--name", "nope"), "no mesh called 'nope' is running", mesh.name)


def test_taken_vip_port_is_told_and_mended_by_itself(mesh: Mesh) -> None:
    """A program that takes a VIP and port while Envoy restarts: not ready, the address is named; gone, served."""
    mesh.wait_whole()
    peer = mesh.peer("api-1")
    vip = next(route["vip"] for route in peer["routes"] if route["name"] == "worker")
    script = (
        "import socket, sys, time\nprint('ready', flush=True)\n"
        "while True:\n"
        "    taken = socket.socket()\n"
        f"    try: taken.bind(('{vip}', 9090)); taken.listen(); break\n"
        "    except OSError: taken.close(); time.sleep(0.005)\n"
        "print('taken', flush=True)\nsys.stdin.read()\n"
    )
    argv = [str(ROOT / "mesh"), "exec", "--name", mesh.name, "api-1", "--", "python3", "-c", script]
    other = popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        # The sidecar is held until the port is taken: it would start the next Envoy first, on a busy machine.
        mesh.signal("api-1", signal.SIGSTOP)
        os.kill(peer["children"]["envoy"]["pid"], signal.SIGKILL)
        assert other.stdout.readline() == "taken\n"
        mesh.signal("api-1", signal.SIGCONT)
        told = f"cannot bind '{vip}:9090'"

        def refused_and_unready() -> bool:
            now = mesh.peer("api-1")
            return not now["ready"] and told in str(now["nacks"])

        wait_for(refused_and_unready, "Envoy's refusal is told and the CVM is not ready", 15)
    finally:
        other.communicate(timeout=30)
    mesh.wait_whole()
