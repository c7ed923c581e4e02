"""exec.sh as shipped, in every shell there is, over files that are mounts of their own as in a container.

Each run has a mount namespace of its own in which the test's files lie over /run/mesh, /etc/hosts and /etc/resolv.conf.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sidecar.files import Identity, RunFiles
from tests.support import need_root_or_userns, popen

OWN = Identity(cluster="starter", group="api", peer_id="api-0", address="100.96.0.5")
BLOCK = "# cvm-mesh begin\n127.10.1.2 worker worker.mesh\n100.96.0.5 api-0.peer.mesh\n# cvm-mesh end\n"
RESOLV = "nameserver 127.10.0.53\nsearch mesh\noptions ndots:1\n"
OLD_HOSTS = "127.0.0.1 localhost\n10.1.2.3\tbox  # a comment\n"
OLD_RESOLV = "nameserver 10.0.0.1\n"
# The one way to lay single files over others for one process tree; util-linux is part of every Debian.
_HARNESS = """
mount -t tmpfs none /run && mkdir /run/mesh && mount --bind "$1/mesh" /run/mesh || exit 99
for name in hosts resolv.conf; do
    mount --bind "$1/etc/$name" "/etc/$name" || exit 99
    [ -z "$HARNESS_READ_ONLY" ] || mount -o remount,bind,ro "/etc/$name" || exit 99
done
unset HARNESS_READ_ONLY
shift
exec "$@"
"""
_SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "sh"]}


@dataclass
class Container:
    """A pretended app container: its shell, its files."""

    shell: list[str]
    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "etc").mkdir()
        self.hosts.write_text(OLD_HOSTS)
        self.resolv_conf.write_text(OLD_RESOLV)
        self.mesh = RunFiles(self.folder / "mesh")
        self.mesh.prepare()
        self.mesh.write_hosts({"worker": "127.10.1.2"}, OWN)
        self.mesh.write_resolv_conf("", "127.10.0.53")
        self.mesh.write_environment({})

    @property
    def hosts(self) -> Path:
        """What lies over /etc/hosts."""
        return self.folder / "etc" / "hosts"

    @property
    def resolv_conf(self) -> Path:
        """What lies over /etc/resolv.conf."""
        return self.folder / "etc" / "resolv.conf"

    def command(self, command: Sequence[str], user: int = 0) -> list[str]:
        """The command line that runs `command` through the wrapper in this container."""
        drop = ["setpriv", f"--reuid={user}", "--clear-groups"] if user else []
        harness = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _HARNESS, "harness", str(self.folder)]
        return [*harness, *drop, *self.shell, "/run/mesh/exec.sh", *command]

    def run(self, *command: str, user: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs `command` through the wrapper to its end."""
        return subprocess.run(
            self.command(command, user), capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
        )


@pytest.fixture(params=sorted(_SHELLS))
def container(request: pytest.FixtureRequest, tmp_path: Path) -> Container:
    """A container with a mesh that is not ready yet."""
    need_root_or_userns()
    shell = _SHELLS[request.param]
    for tool in (shell[0], "unshare", "setpriv"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    return Container([str(shutil.which(shell[0])), *shell[1:]], tmp_path)


@pytest.fixture
def ready(container: Container) -> Container:
    """A container with a mesh that is ready."""
    container.mesh.mark_ready("ready")
    return container


def test_names_are_installed_and_the_command_runs(ready: Container) -> None:
    """The mesh's lines come first, the old ones stay; resolv.conf is the mesh's; arguments arrive as they are."""
    done = ready.run("printf", "[%s]", "a b", "", "*", "$HOME", "-n")
    assert (done.stdout, done.stderr, done.returncode) == ("[a b][][*][$HOME][-n]", "", 0)
    assert ready.hosts.read_text() == BLOCK + OLD_HOSTS
    assert ready.resolv_conf.read_text() == RESOLV


def test_the_second_run_changes_nothing(ready: Container) -> None:
    """A container that restarts with its old /etc ends up the same."""
    ready.run("true")
    before = [(path.read_text(), path.stat().st_mtime_ns) for path in (ready.hosts, ready.resolv_conf)]
    assert ready.run("true").stderr == ""
    assert [(path.read_text(), path.stat().st_mtime_ns) for path in (ready.hosts, ready.resolv_conf)] == before


@pytest.mark.parametrize(
    ("old", "rest"),
    [
        ("", ""),
        ("10.1.2.3 box", "10.1.2.3 box\n"),
        ("a\n# cvm-mesh begin\n1.1.1.1 old\n# cvm-mesh end\nb\n", "a\nb\n"),
        ("a\n# cvm-mesh begin\n1.1.1.1 cut off\nb\n", "a\n1.1.1.1 cut off\nb\n"),
        ("a\n# cvm-mesh end\n  indented \\n back\\slash\n", "a\n# cvm-mesh end\n  indented \\n back\\slash\n"),
    ],
)
def test_lines_that_are_not_ours_are_kept(ready: Container, old: str, rest: str) -> None:
    """An old block is replaced; one without an end loses only its first line; odd lines stay odd."""
    ready.hosts.write_text(old)
    assert ready.run("true").returncode == 0
    assert ready.hosts.read_text() == BLOCK + rest


def test_exit_codes_are_the_commands(ready: Container) -> None:
    """Also for a command that is not there (127) or not executable (126)."""
    assert ready.run("sh", "-c", "exit 7").returncode == 7
    missing = ready.run("no-such-command")
    assert (missing.returncode, "no-such-command" in missing.stderr) == (127, True)
    assert ready.run("/etc/hosts").returncode == 126


def test_the_environment_arrives_unchanged(ready: Container) -> None:
    """No variable of the script leaks, not even into names that the container uses itself."""
    done = ready.run("env", line="1", run="2", mesh="3", MESH_WAIT="5")
    seen = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert (seen["line"], seen["run"], seen["mesh"], seen["MESH_WAIT"]) == ("1", "2", "3", "5")
    assert [name for name in seen if name.startswith("mesh_")] == []


SIGNED = {
    "POSTGRES_SYNCHRONOUS": "on",
    "EMPTY": "",
    "ODD": "a \"b\" 'c' <d> & $HOME `e` * \\n ä€ ! (",
    "SEVERAL_LINES": "\n first\n\n  second = 2\n",
    "line": "of the script's own words",
}


def test_variables_as_they_were_signed_start_the_command(ready: Container) -> None:
    """Whatever is in a value; names that the manifest does not have may have any."""
    ready.mesh.write_environment(SIGNED)
    done = ready.run("echo", "ran", **SIGNED, OTHER="anything")
    assert (done.stdout, done.stderr, done.returncode) == ("ran\n", "", 0)
    assert ready.run("echo", "ran").stdout == "ran\n", "a container need not have them"


def test_the_host_cannot_give_up_acknowledged_writes(ready: Container) -> None:
    """POSTGRES_SYNCHRONOUS=off where the owner signed `on`: exit code 78 and the reason, and nothing has run."""
    ready.mesh.write_environment(SIGNED)
    done = ready.run("echo", "ran", **SIGNED | {"POSTGRES_SYNCHRONOUS": "off"})
    assert (done.stdout, done.returncode) == ("", 78)
    assert done.stderr.startswith(
        "exec.sh: not as the manifest has it for this group: POSTGRES_SYNCHRONOUS; the command is not started. "
    )
    assert (done.stderr.count("\n"), "./mesh generate" in done.stderr) == (1, True)
    assert ready.hosts.read_text() == OLD_HOSTS, "nor was anything written"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EMPTY", " "),
        ("POSTGRES_SYNCHRONOUS", ""),
        ("POSTGRES_SYNCHRONOUS", "on\n"),
        ("POSTGRES_SYNCHRONOUS", "on "),
        ("ODD", SIGNED["ODD"].replace("$HOME", "/root")),
        ("SEVERAL_LINES", SIGNED["SEVERAL_LINES"][:-1]),
        ("SEVERAL_LINES", SIGNED["SEVERAL_LINES"].replace("\n\n", "\n")),
    ],
)
def test_a_value_that_differs_in_anything_is_refused(ready: Container, name: str, value: str) -> None:
    """Also by a space or a line end; the message names the variable, and shows neither value."""
    ready.mesh.write_environment(SIGNED)
    done = ready.run("echo", "ran", **SIGNED | {name: value})
    assert (done.stdout, done.returncode) == ("", 78)
    assert f"for this group: {name};" in done.stderr
    assert "second" not in done.stderr


def test_every_variable_that_differs_is_named(ready: Container) -> None:
    """In one line, in the order of the file."""
    ready.mesh.write_environment({"B": "1", "A": "secret-one", "C": "3"})
    done = ready.run("true", A="secret-two", B="2", C="3")
    assert (done.returncode, "for this group: A, B;" in done.stderr) == (78, True)
    assert "secret" not in done.stderr


def test_without_the_signed_variables_nothing_is_started(ready: Container) -> None:
    """A mesh that is ready and has no such file, or not a sidecar's file, is none to trust."""
    file = ready.folder / "mesh" / "environment"
    file.write_text("A=1\nreboot; B=2\n")
    done = ready.run("echo", "ran", A="1")
    assert (done.stdout, done.returncode, "names no variable" in done.stderr) == ("", 78, True)
    file.unlink()
    done = ready.run("echo", "ran")
    assert (done.stdout, done.returncode) == ("", 78)
    assert "environment is missing or cannot be read" in done.stderr


def test_no_command_is_wrong_use(ready: Container) -> None:
    """Exit code 64 and how it is used."""
    done = ready.run()
    assert (done.returncode, "usage: /run/mesh/exec.sh COMMAND" in done.stderr) == (64, True)


@pytest.mark.parametrize("seconds", ["soon", "-1", "1.5", "10 0", "99999999999999999999"])
def test_a_bad_wait_is_wrong_use(container: Container, seconds: str) -> None:
    """The error names the variable, the value and what is expected."""
    done = container.run("true", MESH_WAIT=seconds)
    assert done.returncode == 64
    assert f"MESH_WAIT is '{seconds}', expected a whole number of seconds" in done.stderr


def test_a_mesh_that_is_not_ready_in_time_is_a_failure_with_its_reasons(container: Container) -> None:
    """Exit code 75, one line; the command is not run and the files are as they were."""
    container.mesh.mark_not_ready(("no coordinator answers", "no link to api-1"))
    done = container.run("echo", "ran", MESH_WAIT="0")
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == "exec.sh: the mesh was not ready after 0 s: no coordinator answers; no link to api-1\n"
    assert (container.hosts.read_text(), container.resolv_conf.read_text()) == (OLD_HOSTS, OLD_RESOLV)


def test_without_reasons_the_failure_says_what_to_look_at(container: Container) -> None:
    """A sidecar that never ran, or a folder that is not the mesh's."""
    (container.folder / "mesh" / "reasons").unlink()
    done = container.run("true", MESH_WAIT="0")
    assert (done.returncode, done.stderr.count("\n")) == (75, 1)
    assert "is its container running" in done.stderr


def test_it_waits_until_the_mesh_is_ready(container: Container) -> None:
    """The command runs when `ready` appears."""
    timer = threading.Timer(0.5, lambda: container.mesh.mark_ready("ready"))
    timer.start()
    done = container.run("echo", "ran", MESH_WAIT="50")
    timer.join()
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")
    assert container.hosts.read_text() == BLOCK + OLD_HOSTS


def catches_term(pid: int) -> bool:
    """True when the process has a handler for TERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) & 1 << signal.SIGTERM - 1)


def test_a_stop_while_it_waits_ends_it(container: Container) -> None:
    """TERM is not ignored, as it would be by the first process of a container without a handler."""
    process = popen(container.command(["echo", "ran"]), stdout=subprocess.PIPE, text=True)
    try:
        # The harness catches nothing: once TERM is caught, the script has come so far.
        assert any(catches_term(process.pid) or time.sleep(0.01) for _ in range(1000))
        process.send_signal(signal.SIGTERM)
        assert (process.communicate(timeout=30)[0], process.returncode) == ("", 143)
    finally:
        process.kill()
        process.wait()


def test_the_command_has_the_usual_signal_handling(ready: Container) -> None:
    """TERM and INT are neither caught nor ignored in what it becomes."""
    done = ready.run("grep", "^Sig[IC]", "/proc/self/status")
    masks = {line.split()[0]: int(line.split()[1], 16) for line in done.stdout.splitlines()}
    wanted = 1 << signal.SIGTERM - 1 | 1 << signal.SIGINT - 1
    assert masks["SigIgn:"] & wanted == 0
    assert masks["SigCgt:"] & wanted == 0


def one_warning(stderr: str, files: str) -> bool:
    """True for exactly one line that says which files and what to do."""
    return (
        stderr.startswith(f"exec.sh: warning: cannot write {files}, so ")
        and stderr.count("\n") == 1
        and "mount the mesh folder's resolv.conf over /etc/resolv.conf" in stderr
    )


def test_an_ordinary_user_is_warned_and_served(ready: Container) -> None:
    """One line says what does not work and what to do; the command runs."""
    ready.folder.chmod(0o755)
    done = ready.run("id", "-u", user=65534)
    assert (done.stdout, done.returncode) == ("65534\n", 0)
    assert one_warning(done.stderr, "/etc/hosts and /etc/resolv.conf")
    assert (ready.hosts.read_text(), ready.resolv_conf.read_text()) == (OLD_HOSTS, OLD_RESOLV)


def test_a_read_only_root_is_warned_about(ready: Container) -> None:
    """As root, too, where the file system refuses."""
    done = ready.run("echo", "ran", HARNESS_READ_ONLY="1")
    assert (done.stdout, done.returncode) == ("ran\n", 0)
    assert one_warning(done.stderr, "/etc/hosts and /etc/resolv.conf")


def test_what_was_mounted_right_needs_no_warning(ready: Container) -> None:
    """Whoever mounted the mesh's files over /etc, as the warning says, hears nothing more."""
    ready.hosts.write_text((ready.folder / "mesh" / "hosts").read_text())
    ready.resolv_conf.write_text((ready.folder / "mesh" / "resolv.conf").read_text())
    for file in (ready.hosts, ready.resolv_conf):
        file.chmod(0o644)  # as every image has them, whatever the umask here
    done = ready.run("echo", "ran", user=65534, HARNESS_READ_ONLY="1")
    assert (done.stdout, done.stderr) == ("ran\n", "")


def test_a_file_that_root_may_write_but_not_read_is_left_alone(ready: Container) -> None:
    """What cannot be read would be lost."""
    ready.hosts.chmod(0o222)
    ready.resolv_conf.chmod(0o666)
    done = ready.run("true", user=65534)
    assert one_warning(done.stderr, "/etc/hosts")
    assert ready.hosts.read_text() == OLD_HOSTS
    assert ready.resolv_conf.read_text() == RESOLV


def test_a_full_disk_does_not_cost_the_old_content(ready: Container, tmp_path: Path) -> None:
    """When the new lines do not fit, the old ones are put back."""
    ready.mesh.write_hosts({f"route-{index}": "127.10.1.2" for index in range(300)}, OWN)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(small)], check=True)
    try:
        (small / "hosts").write_text(OLD_HOSTS)
        ready.hosts.unlink()
        ready.hosts.symlink_to(small / "hosts")
        done = ready.run("echo", "ran")
        assert (done.stdout, one_warning(done.stderr, "/etc/hosts")) == ("ran\n", True)
        assert (small / "hosts").read_text() == OLD_HOSTS
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_only_builtins_are_needed_when_the_mesh_is_ready(ready: Container) -> None:
    """An image with a shell and nothing else will do."""
    empty = ready.folder / "empty"
    empty.mkdir()
    script = f"PATH={empty}; export PATH; exec {' '.join(ready.shell)} /run/mesh/exec.sh /bin/echo ran"
    command = ready.command([])
    command[command.index("/run/mesh/exec.sh") - len(ready.shell) :] = ["/bin/sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("ran\n", "")
    assert ready.hosts.read_text() == BLOCK + OLD_HOSTS
    assert ready.resolv_conf.read_text() == RESOLV


def test_an_image_without_sleep_cannot_wait(container: Container) -> None:
    """It says so, and what to do, in place of burning a processor. Busybox has a sleep of its own."""
    empty = container.folder / "empty"
    empty.mkdir()
    script = f"PATH={empty}; export PATH; exec {' '.join(container.shell)} /run/mesh/exec.sh /bin/echo ran"
    command = container.command([])
    command[command.index("/run/mesh/exec.sh") - len(container.shell) :] = ["/bin/sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "MESH_WAIT": "1"})
    assert done.returncode == 75
    if "busybox" not in container.shell[0]:
        assert "no sleep to wait with" in done.stderr
        assert "condition: service_healthy" in done.stderr


def test_a_thousand_routes_are_no_burden(ready: Container) -> None:
    """The block is installed whole."""
    ready.mesh.write_hosts({f"route-{index}": "127.10.1.2" for index in range(1000)}, OWN)
    assert ready.run("true").returncode == 0
    assert ready.hosts.read_text().count("127.10.1.2 route-") == 1000
    assert ready.hosts.read_text().endswith(OLD_HOSTS)
