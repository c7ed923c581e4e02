"""`./mesh images`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from meshctl import __main__
from tests.meshctl.test_tools import program
from tests.support import ROOT

DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A copy of the starter cluster."""
    return Path(shutil.copytree(ROOT / "clusters" / "starter", tmp_path / "mine"))


def references(cluster: Path) -> list[str]:
    """All image lines of the cluster's compose files."""
    lines = [line for path in sorted(cluster.glob("compose/*.yaml")) for line in path.read_text().splitlines()]
    return [line.split()[1] for line in lines if line.strip().startswith("image:")]


def test_pin_by_file(cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With every digest given, every reference gets one, and `--check` is content afterwards."""
    assert __main__.run(["images", "pin", "--check", str(cluster)]) == 1
    assert "has no digest" in capsys.readouterr().out
    given = tmp_path / "digests.json"
    given.write_text(json.dumps(dict.fromkeys(references(cluster), DIGEST)))
    assert __main__.run(["images", "pin", "--digests", str(given), str(cluster)]) == 0
    assert all(name.endswith(f":0.1.0@{DIGEST}") for name in references(cluster))
    assert __main__.run(["images", "pin", "--check", str(cluster)]) == 0


def test_pin_asks_the_engine(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was not given is asked of the engine; an image that it never pulled is named with what to do."""
    docker = tmp_path / "bin" / "docker"
    program(docker, f'["ghcr.io/x@{DIGEST}"]')
    monkeypatch.setenv("PATH", f"{docker.parent}:/usr/bin:/bin")
    script = "#!/bin/sh\ncase $1 in version) echo '{\"Version\": \"24.0.1\"}' ;; *) echo '%s' ;; esac\n"
    docker.write_text(script % f'["ghcr.io/x@{DIGEST}"]')
    assert __main__.run(["images", "pin", str(cluster)]) == 0
    assert all(name.endswith(f"@{DIGEST}") for name in references(cluster))
    shutil.rmtree(cluster)
    shutil.copytree(ROOT / "clusters" / "starter", cluster)
    docker.write_text(script % "[]")
    assert __main__.run(["images", "pin", str(cluster)]) == 2
    assert "docker pull ghcr.io/dstack-mesh/cvm-mesh-" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [("[", "is no JSON"), ("[]", "no object of texts"), ('{"a": 1}', "no object of texts")],
)
def test_broken_digest_file(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    """A file of another form is refused by name, and nothing is changed."""
    given = tmp_path / "digests.json"
    given.write_text(text)
    before = references(cluster)
    assert __main__.run(["images", "pin", "--digests", str(given), str(cluster)]) == 2
    assert words in capsys.readouterr().err
    assert references(cluster) == before


def test_unknown_image(capsys: pytest.CaptureFixture[str]) -> None:
    """An image that is not ours is refused with the list."""
    assert __main__.run(["images", "build", "nginx"]) == 2
    assert "images: sidecar" in capsys.readouterr().err
