"""Building tools into the cache, with a `go` that is a script."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from meshctl import tools, tools_build
from meshctl.console import Silent
from meshctl.errors import UserError
from tests.meshctl.test_tools import program
from tests.support import ROOT

WIREGUARD = tools.TOOLS["wireguard-go"]
CONSUL = tools.TOOLS["consul"]

_GO = """#!/bin/sh
echo "$@ CGO=$CGO_ENABLED TOOLCHAIN=$GOTOOLCHAIN FLAGS=$GOFLAGS" >> "{log}"
case "$1" in
version) echo "go version go1.26.6 linux/amd64" ;;
list) printf 'a\\nb\\nc\\n' ;;
build)
  case "$*" in *{broken}*) echo "./x.go:1: broken" >&2; exit 1 ;; esac
  while [ "$1" != -o ]; do shift; done
  printf '#!/bin/sh\\necho v1.22.7\\n' > "$2"; chmod +x "$2"; echo a; echo b ;;
esac
"""


@dataclass
class _Recorder:
    updates: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def update(self, text: str) -> None:
        self.updates.append(text)

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An empty cache, and a `go` on PATH that logs its calls to `calls`."""
    _put_go(tmp_path, broken="nothing-is-broken")
    return {"MESH_CACHE": str(tmp_path / "cache"), "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "GOFLAGS": "-p=1"}


def _put_go(tmp_path: Path, broken: str) -> None:
    go = program(tmp_path / "bin" / "go")
    go.write_text(_GO.format(log=tmp_path / "calls", broken=broken))


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits until `condition()` holds, at most ten seconds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_builds_into_the_cache(tmp_path: Path, environ: dict[str, str]) -> None:
    """Each tool is built as verified, shown in progress, and then found in the cache; nothing else stays there."""
    progress = _Recorder()
    built, failures = tools_build.build([CONSUL, WIREGUARD], environ, progress)
    assert failures == {}
    assert built == {tool.name: tools.cached_path(tool, environ) for tool in (CONSUL, WIREGUARD)}
    found = tools.search(CONSUL, environ).found
    assert found is not None
    assert found.source == "cache"
    calls = (tmp_path / "calls").read_text()
    assert "build -v -trimpath -ldflags -s -w -o" in calls
    assert "CGO=0 TOOLCHAIN=local FLAGS=-p=1" in calls
    assert any("2 of 3 packages" in text for text in progress.updates)
    assert [line.split(" in ")[0] for line in progress.lines] == [
        f"built wireguard-go {WIREGUARD.version}", f"built consul {CONSUL.version}",
    ]  # fmt: skip
    kept = {path.name for path in (tmp_path / "cache" / "tools").iterdir()}
    assert kept == {".lock", f"consul-{CONSUL.version}", f"wireguard-go-{WIREGUARD.version}"}


def test_built_once(tmp_path: Path, environ: dict[str, str]) -> None:
    """What another process built while this one waited for the lock is taken, not built again."""
    tools_build.build([WIREGUARD], environ, Silent())
    before = (tmp_path / "calls").read_text()
    built, _ = tools_build.build([WIREGUARD], environ, Silent())
    assert built == {"wireguard-go": tools.cached_path(WIREGUARD, environ)}
    assert (tmp_path / "calls").read_text() == before


def test_failed_build_says_why_and_keeps_the_other(tmp_path: Path, environ: dict[str, str]) -> None:
    """A tool that does not compile is reported with the compiler's words; the other one is still built."""
    _put_go(tmp_path, broken="hashicorp/consul")
    built, failures = tools_build.build([CONSUL, WIREGUARD], environ, Silent())
    assert set(built) == {"wireguard-go"}
    assert failures == {"consul": ["go build github.com/hashicorp/consul failed (1): ./x.go:1: broken"]}


def test_leftovers_of_a_killed_build_are_removed(tmp_path: Path, environ: dict[str, str]) -> None:
    """A half-built folder and a broken result never count, and are gone after the next build."""
    stale = tmp_path / "cache" / "tools" / ".build-consul-1"
    stale.mkdir(parents=True)
    tools.cached_path(WIREGUARD, environ).parent.mkdir()
    built, _ = tools_build.build([WIREGUARD], environ, Silent())
    assert built["wireguard-go"].exists()
    assert not stale.exists()


def test_unwritable_cache_is_an_error(tmp_path: Path, environ: dict[str, str]) -> None:
    """A cache that cannot be written names the folder and MESH_CACHE."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the tools to") as caught:
        tools_build.build([WIREGUARD], {**environ, "MESH_CACHE": str(tmp_path / "file")}, Silent())
    assert "MESH_CACHE" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "version"),
    [("go version go1.26.6 linux/amd64", (1, 26, 6)), ("go version go1.26rc1 x", (1, 26)), ("devel", None)],
)
def test_go_version_is_read(text: str, version: tuple[int, ...] | None) -> None:
    """The version comes out of `go version`; a build from source has none."""
    assert tools_build.go_version(text) == version


def test_go_mod_pins_what_the_table_says() -> None:
    """tools/go.mod pins the versions that the table of tools names, so the cache's folder names are true."""
    text = (ROOT / "tools" / "go.mod").read_text()
    assert f"github.com/hashicorp/consul v{CONSUL.version} " in text
    assert f"golang.zx2c4.com/wireguard v{WIREGUARD.version}-" in text
    assert tools_build.wanted_go(text) >= (1, 25)
    compose = tools.TOOLS["docker-compose"]
    text = (ROOT / "tools" / compose.modules / "go.mod").read_text()
    assert f"github.com/docker/compose/v2 v{compose.version} " in text
    assert compose.link.endswith(f"Version={compose.version}")


def test_what_a_build_takes_yet_is_said_in_whole_minutes() -> None:
    """Not before there is something to go by, and not once all packages are compiled."""
    assert tools_build.left(19.0, 100, 2000) == ""
    assert tools_build.left(60.0, 0, 2000) == ""
    assert tools_build.left(60.0, 500, 2000) == ", about 3 min left"
    assert tools_build.left(60.0, 1999, 2000) == ", about 1 min left"
    assert tools_build.left(60.0, 2000, 2000) == ""
