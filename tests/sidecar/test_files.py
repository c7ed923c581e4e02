"""What `/run/mesh` holds."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dns import resolvconf
from runtime.secret import Secret
from sidecar import files
from sidecar.files import Identity, RunFiles

OWN = Identity(cluster="starter", group="api", peer_id="api-0", address="100.96.0.5")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is not there yet, under a umask that hides everything from others."""
    old = os.umask(0o077)
    yield tmp_path / "mesh"
    os.umask(old)


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_hosts_has_loopback_routes_and_our_own_peer() -> None:
    """In a fixed order; what exec.sh copies is between its markers."""
    assert files.hosts({"worker": "127.10.1.2", "api": "127.10.1.1"}, OWN) == (
        "127.0.0.1 localhost\n"
        "::1 localhost ip6-localhost ip6-loopback\n"
        "# cvm-mesh begin\n"
        "127.10.1.1 api api.mesh\n"
        "127.10.1.2 worker worker.mesh\n"
        "100.96.0.5 api-0.peer.mesh\n"
        "# cvm-mesh end\n"
    )


def test_hosts_before_the_slot_is_known() -> None:
    """Routes need no identity."""
    assert "peer" not in files.hosts({"worker": "127.10.1.2"}, None)


def test_exec_sh_knows_the_markers() -> None:
    """The script finds the mesh's lines by the same two lines."""
    script = Path(files.__file__).with_name("exec.sh").read_text()
    assert f"mesh_begin='{files.HOSTS_BEGIN}'" in script
    assert f"mesh_end='{files.HOSTS_END}'" in script


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        ("", "nameserver 127.10.0.53\nsearch mesh\noptions ndots:1\n"),
        (
            "nameserver 10.0.0.1\nsearch a.example b.example\noptions ndots:5 rotate timeout:1\n",
            "nameserver 127.10.0.53\nsearch mesh a.example b.example\noptions ndots:5 timeout:1\n",
        ),
        (
            "domain corp.example\noptions edns0\n",
            "nameserver 127.10.0.53\nsearch mesh corp.example\noptions edns0 ndots:1\n",
        ),
        ("search mesh corp.example\n", "nameserver 127.10.0.53\nsearch mesh corp.example\noptions ndots:1\n"),
    ],
)
def test_resolv_conf_keeps_search_and_options(original: str, expected: str) -> None:
    """Our server alone, `mesh` first in the search list, the rest as it was."""
    assert files.resolv_conf(original, "127.10.0.53") == expected


@given(st.text())
def test_resolv_conf_of_any_text_names_our_server_only(original: str) -> None:
    """Whatever the original says."""
    assert resolvconf.parse(files.resolv_conf(original, "127.10.0.53")).nameservers == ("127.10.0.53",)


def test_every_file_is_world_readable_whatever_the_umask(folder: Path) -> None:
    """App containers run as any user."""
    run = RunFiles(folder)
    run.prepare()
    run.write_hosts({"worker": "127.10.1.2"}, OWN)
    run.write_resolv_conf("", "127.10.0.53")
    run.write_identity(OWN)
    run.write_environment({"B": "two\nlines\n", "A": "x=y"})
    run.mark_ready("api-0 is ready")
    assert (folder / "environment").read_text() == "A=x=y\nB=two\n lines\n \n"
    assert mode(folder) == 0o755
    assert {path.name: mode(path) for path in folder.iterdir()} == {
        "environment": 0o644,
        "exec.sh": 0o755,
        "hosts": 0o644,
        "identity.json": 0o644,
        "ready": 0o644,
        "resolv.conf": 0o644,
        "secrets": 0o750,
    }
    assert json.loads((folder / "identity.json").read_text()) == {
        "cluster": "starter",
        "group": "api",
        "peer_id": "api-0",
        "address": "100.96.0.5",
    }
    assert (folder / "exec.sh").read_bytes() == Path(files.__file__).with_name("exec.sh").read_bytes()


def test_signed_variables_that_cannot_be_written_leave_no_older_ones(folder: Path) -> None:
    """What the newest manifest refuses must not start by the word of the one before."""
    run = RunFiles(folder)
    run.prepare()
    run.write_environment({"A": "1"})
    (folder / ".environment.new").mkdir()
    with pytest.raises(OSError, match=r"environment\.new"):
        run.write_environment({"A": "2"})
    assert not (folder / "environment").exists()


def another_group() -> int:
    """A group that this process may give files to: any for root, only mapped ones in a user namespace."""
    if os.geteuid():
        return os.getegid()
    first, _, count = map(int, Path("/proc/self/gid_map").read_text().split()[:3])
    return min(first + count - 1, 4242)


def test_secrets_are_for_their_group_only(folder: Path) -> None:
    """Folder 0750, files 0440, of the group that is wanted, without a line end; nothing else in the folder."""
    gid = another_group()
    run = RunFiles(folder, gid)
    run.prepare()
    run.write_secrets({"database": Secret("word"), "consul-token": Secret("uuid")})
    secrets = folder / "secrets"
    assert (mode(secrets), secrets.stat().st_gid) == (0o750, gid)
    assert {path.name: (mode(path), path.stat().st_gid, path.read_text()) for path in secrets.iterdir()} == {
        "database": (0o440, gid, "word"),
        "consul-token": (0o440, gid, "uuid"),
    }


def test_withdrawn_secret_disappears_and_a_renewed_one_is_replaced(folder: Path) -> None:
    """A reader of the old file sees all of the old text, never half of the new one."""
    run = RunFiles(folder)
    run.prepare()
    run.write_secrets({"database": Secret("word"), "consul-token": Secret("first")})
    unchanged = (folder / "secrets/database").stat().st_ino
    with (folder / "secrets/consul-token").open() as reader:
        run.write_secrets({"database": Secret("word"), "consul-token": Secret("second")})
        assert reader.read() == "first"
    assert (folder / "secrets/database").stat().st_ino == unchanged
    run.write_secrets({"consul-token": Secret("second")})
    assert [path.name for path in (folder / "secrets").iterdir()] == ["consul-token"]


def test_secrets_of_an_earlier_run_are_gone_after_the_start(folder: Path, tmp_path: Path) -> None:
    """They may no longer be granted. The folder stays the same one; a link in its place is not followed."""
    run = RunFiles(folder)
    run.prepare()
    run.write_secrets({"database": Secret("word")})
    (folder / "secrets/.database.new").write_text("cut off")
    (folder / "secrets/folder").mkdir()
    inode = (folder / "secrets").stat().st_ino
    RunFiles(folder).prepare()
    assert list((folder / "secrets").iterdir()) == []
    assert (folder / "secrets").stat().st_ino == inode
    (folder / "secrets").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine").write_text("mine")
    (folder / "secrets").symlink_to(tmp_path / "elsewhere")
    run.prepare()
    assert not (folder / "secrets").is_symlink()
    assert (tmp_path / "elsewhere/mine").read_text() == "mine"


def test_ready_and_reasons_take_turns(folder: Path) -> None:
    """`ready` is one line and there only while ready; else the reasons are, a line each."""
    run = RunFiles(folder)
    run.prepare()
    assert (folder / "reasons").read_text() == "the sidecar is starting\n"
    run.mark_ready("api-0\nis ready")
    assert (folder / "ready").read_text() == "api-0 is ready\n"
    assert not (folder / "reasons").exists()
    run.mark_not_ready(("no coordinator\nanswers", "no link"))
    assert not (folder / "ready").exists()
    assert (folder / "reasons").read_text() == "no coordinator answers\nno link\n"


def test_prepare_takes_back_what_an_earlier_run_said(folder: Path) -> None:
    """A sidecar that starts again is not ready because its predecessor was."""
    folder.mkdir(mode=0o700)
    (folder / "ready").write_text("old\n")
    (folder / ".hosts.new").write_text("cut off")
    run = RunFiles(folder)
    run.prepare()
    assert not (folder / "ready").exists()
    run.write_hosts({}, None)
    assert not (folder / ".hosts.new").exists()


def test_a_file_that_is_right_already_is_left_alone(folder: Path) -> None:
    """A container that mounted the very file keeps seeing the current one; a wrong mode is repaired."""
    run = RunFiles(folder)
    run.prepare()
    run.write_resolv_conf("", "127.10.0.53")
    inode = (folder / "resolv.conf").stat().st_ino
    run.write_resolv_conf("", "127.10.0.53")
    assert (folder / "resolv.conf").stat().st_ino == inode
    (folder / "resolv.conf").chmod(0o600)
    run.write_resolv_conf("", "127.10.0.53")
    assert mode(folder / "resolv.conf") == 0o644


def test_files_are_replaced_not_rewritten(folder: Path) -> None:
    """A reader that holds the old file open sees all of the old one."""
    run = RunFiles(folder)
    run.prepare()
    run.write_hosts({"worker": "127.10.1.2"}, None)
    with (folder / "hosts").open() as reader:
        run.write_hosts({"worker": "127.10.1.3"}, None)
        assert "127.10.1.2" in reader.read()
    assert "127.10.1.3" in (folder / "hosts").read_text()


def test_a_link_in_the_folder_is_replaced_not_followed(folder: Path, tmp_path: Path) -> None:
    """Neither at the file's place nor beside it."""
    run = RunFiles(folder)
    run.prepare()
    for name in ("hosts", ".hosts.new"):
        (tmp_path / "target").write_text("mine")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "target")
        run.write_hosts({"worker": "127.10.1.2"}, None)
        assert (tmp_path / "target").read_text() == "mine"
        assert not (folder / "hosts").is_symlink()
