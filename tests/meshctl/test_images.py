"""What images are built from."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from meshctl import images, requirements
from meshctl.errors import UserError
from tests.support import ROOT


def names(archive: bytes) -> list[str]:
    """The names in a build context."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return opened.getnames()


def test_context_has_what_the_image_needs_and_nothing_else(tmp_path: Path) -> None:
    """Sources and built tools are in it; compiled files and other images are not."""
    tool = tmp_path / "consul"
    tool.write_text("x")
    found = names(images.context(ROOT, images.IMAGES["sidecar"], {"consul": tool}))
    assert {"images/sidecar/Dockerfile", "pyproject.toml", "sidecar/exec.sh", "xds/server.py"} <= set(found)
    assert "tools-cache/tools/consul-1.22.7/consul" in found
    assert not [name for name in found if "__pycache__" in name or name.startswith(("lab/", "tests/", "workloads/"))]


def test_context_says_nothing_of_the_checkout(tmp_path: Path) -> None:
    """Two checkouts with the same content and other times and modes give the same bytes."""
    archives = []
    for index, name in enumerate(("a", "b")):
        (tmp_path / name / "images" / "program").mkdir(parents=True)
        (tmp_path / name / images.IMAGES["worker"].dockerfile).write_text("FROM x\n")
        (tmp_path / name / "workloads").mkdir()
        source = tmp_path / name / "workloads" / "a.py"
        source.write_text("1\n")
        source.chmod((0o600, 0o664)[index])
        archives.append(images.context(tmp_path / name, images.IMAGES["worker"], {}))
    assert archives[0] == archives[1]


def test_every_image_has_its_dockerfile_on_a_pinned_base() -> None:
    """All published images name the same base, by digest, and copy only what their context has."""
    base = images.pinned_base(ROOT)
    for image in images.IMAGES.values():
        text = (ROOT / image.dockerfile).read_text()
        if image.published:
            assert f"ARG BASE={base}\n" in text
            assert "org.opencontainers.image.licenses" in text
        joined = text.replace("\\\n", " ")
        sources = re.findall(r"^COPY (?!--from)(.+) \S+$", joined, re.MULTILINE)
        wanted = {word.rstrip("*") for line in sources for word in line.split()} - {"tools-cache"}
        assert wanted <= set(image.sources)


def test_images_share_their_first_step() -> None:
    """The step that installs Python is the same text everywhere, so its layer is stored and pulled once."""
    steps = set()
    for name in ("sidecar", "api", "worker", "web", "emoji", "voting", "webdemo", "patroni"):
        text = (ROOT / images.IMAGES[name].dockerfile).read_text()
        steps.add(text[text.index("FROM ${BASE} AS base") :].split("\nRUN ")[1].split("\n\n")[0].split("\n#")[0])
    assert len(steps) == 1


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("ghcr.io/dstack-mesh/cvm-mesh-api:0.1.0", "api"),
        ("ghcr.io/dstack-mesh/cvm-mesh-api:0.1.0@sha256:" + "0" * 64, "api"),
        ("ghcr.io/dstack-mesh/cvm-mesh-api", "api"),
        ("ghcr.io/dstack-mesh/cvm-mesh-lab:1", None),
        ("ghcr.io/example/cvm-mesh-api:1", None),
        ("debian:12", None),
    ],
)
def test_own_references_are_known(reference: str, name: str | None) -> None:
    """Whatever its tag or digest, a published reference means this checkout's image; others are left alone."""
    found = images.of_reference(reference)
    assert (found.name if found else None) == name


def test_what_an_image_stands_on_is_built_first() -> None:
    """The lab's image is built on the sidecar's."""
    assert [image.name for image in images.with_needs(("lab", "api"))] == ["sidecar", "lab", "api"]


def test_time_of_the_layers() -> None:
    """SOURCE_DATE_EPOCH is taken; what is no number is refused."""
    assert images.epoch({"SOURCE_DATE_EPOCH": "5"}) == 5
    assert images.epoch({}) == images.EPOCH
    with pytest.raises(UserError, match="SOURCE_DATE_EPOCH is 'now'"):
        images.epoch({"SOURCE_DATE_EPOCH": "now"})


def test_moment_of_debian() -> None:
    """A moment as snapshot.debian.org names them is taken; what would end up in a shell otherwise is refused."""
    assert images.snapshot("20261101T000000Z") == "20261101T000000Z"
    for text in ("", "2026-11-01", "20261101T000000Z; id", "20261101T000000Z\n"):
        with pytest.raises(UserError, match="is no moment of Debian's archive"):
            images.snapshot(text)


@pytest.mark.parametrize("name", ["sidecar", "api", "webdemo", "patroni"])
def test_moment_of_debian_decides_what_is_installed(tmp_path: Path, name: str) -> None:
    """With SNAPSHOT an image's packages are of that moment's archive, signed by Debian; without, nothing changes."""
    text = (ROOT / images.IMAGES[name].dockerfile).read_text()
    step = text[text.index('if [ -n "${SNAPSHOT}" ]') : text.index("fi \\\n")] + "fi"
    folder = tmp_path / "apt"
    (folder / "sources.list.d").mkdir(parents=True)
    given = folder / "sources.list.d" / "debian.sources"
    given.touch()
    for moment in ("", "20261101T000000Z"):
        script = step.replace("/etc/apt", str(folder))
        subprocess.run(["sh", "-euc", script], check=True, env={"SNAPSHOT": moment, "PATH": "/usr/bin:/bin"})
        assert given.exists() == (moment == "")
    lines = (folder / "sources.list").read_text().splitlines()
    assert [line.rpartition("http://snapshot.debian.org/archive/")[2] for line in lines] == [
        "debian/20261101T000000Z bookworm main",
        "debian/20261101T000000Z bookworm-updates main",
        "debian-security/20261101T000000Z bookworm-security main",
    ]
    assert all("signed-by=/usr/share/keyrings/debian-archive-keyring.gpg" in line for line in lines)


def test_images_install_packages_by_hash_only() -> None:
    """Each call of pip in a Dockerfile takes a list of hashes, and nothing beside it."""
    for place in sorted((ROOT / "images").glob("*/Dockerfile")):
        text = place.read_text().replace("\\\n", " ")
        calls = [" ".join(call.split("&&")[0].split()) for call in text.split("pip install")[1:]]
        for call in calls:
            listed = re.search(r"-r tools/requirements/(\w+)\.txt$", call)
            assert listed, f"{place}: {call}"
            options = requirements.BUILT if listed[1] == "sources" else requirements.WHEELS
            assert " ".join(options) in call, f"{place}: {call}"
        assert bool(calls) == (place.parent.name in ("sidecar", "webdemo", "patroni"))


def test_a_fresh_root_gets_settings_and_loses_what_changes(tmp_path: Path) -> None:
    """dpkg's settings are there; archives, lists and logs of the making are not."""
    for folder in ("etc/dpkg/dpkg.cfg.d", "var/cache/apt/archives", "var/lib/apt/lists", "var/log"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("var/cache/apt/archives/a.deb", "var/lib/apt/lists/deb_x", "var/log/bootstrap.log"):
        (tmp_path / name).touch()
    images.settle(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert [name for name in left if not name.endswith(".crt")] == ["etc/dpkg/dpkg.cfg.d/cvm-mesh"]
