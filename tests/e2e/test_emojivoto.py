"""`./mesh demo emojivoto` as a person sees it; then a browser at the page, and `./mesh connect` for who takes no CA."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from meshctl.trust_report import WIDTH
from tests.browser import browser, lines
from tests.e2e.user import Mesh, running
from tests.support import ROOT, popen
from workloads.pages import TITLE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def walked() -> Iterator[Mesh]:
    """The mesh after the walk."""
    with running("vote", "demo", "emojivoto", timeout=500) as mesh:
        yield mesh
        folder = folder_of(mesh)
        assert folder.is_dir()
    assert not folder.exists(), "its files go with the mesh"


def folder_of(mesh: Mesh) -> Path:
    """Where the walk has its files."""
    found = re.search(r"its files are in (\S+)", mesh.up_output)
    assert found, mesh.up_output
    return Path(found[1])


def place_of(mesh: Mesh) -> str:
    """The page's place on this machine."""
    found = re.search(r"then open https://(127\.0\.0\.1:\d+)", mesh.up_output)
    assert found, mesh.up_output
    return found[1]


def test_the_walk_shows_what_holds_and_what_is_refused(walked: Mesh) -> None:
    """Every fact of the table is as it has to be, and the commands and answers are there, in 80 columns."""
    out = walked.up_output
    table = out[out.index("\nwhat  ") :]
    for what, found in (
        ("curl, by name", "the page"),
        ("openssl s_client", "code 0"),
        ("curl, by an address that is not in it", "refused"),
        ("curl, by the address", "the page"),
        ("curl, by the CA of the manifest before", "refused"),
        ("votes that are counted", "5"),
        ("web-0 asks emoji", "answered"),
        ("emoji-0 asks voting", "refused"),
    ):
        assert re.search(rf"^{re.escape(what)} +{found} ", table, re.MULTILINE), (what, table)
    assert "FAILED" not in out
    assert f"<title>{TITLE}</title>" in out
    assert "Verify return code: 0 (ok)" in out
    assert out.index("$ cp verify/mesh-ca.pem mesh-ca.older.pem") < out.index("--cacert mesh-ca.older.pem")
    walk = out[out.index("$ cd ") : out.index("The owner adds the address")]
    assert [line for line in walk.splitlines() if len(line) > WIDTH and not line.startswith(("$ cd", "$ ./mesh"))] == []


def test_a_browser_that_trusts_the_mesh_sees_the_page(walked: Mesh) -> None:
    """Its document and a picture of it; and what a vote by the page's form has changed."""
    ca, place = folder_of(walked) / "verify" / "mesh-ca.pem", place_of(walked)
    curl = ["curl", "-sS", "--cacert", str(ca), "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}",
            "-d", urlencode({"shortcode": ":unicorn:"}), f"https://{place}/vote"]  # fmt: skip
    voted = subprocess.run(curl, capture_output=True, text=True, timeout=30, check=True)
    assert voted.stdout == f"303 https://{place}/?voted=%3Aunicorn%3A"
    with browser(ca) as seen:
        document = seen.dom(f"https://{place}/?voted=%3Aunicorn%3A")
        assert f"<title>{TITLE}</title>" in document
        assert "You voted for 🦄" in document
        picture = seen.picture(f"https://{place}/")
        assert picture is not None
        assert lines(picture) > 100
    with browser(folder_of(walked) / "mesh-ca.older.pem") as stranger:
        assert TITLE not in stranger.dom(f"https://{place}/")


def test_a_program_that_takes_no_ca_connects(walked: Mesh) -> None:
    """By the name and by the proof that the walk has left; the page comes in clear from this machine's own port."""
    proof = folder_of(walked) / "verify"
    argv = [sys.executable, "-m", "meshctl", "connect", "web", "-b", str(proof), "--as", "web"]
    process = popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        assert said.pop(0).startswith("INSECURE: ")
        wanted = (
            f"verified: web at {place_of(walked)}: a certificate for web, by the mesh CA; emojivoto, epoch 2, digest "
        )
        assert said[0].startswith(wanted)
        place = said[1].removeprefix("listening: ").partition(",")[0]
        done = subprocess.run(
            ["curl", "-sS", f"http://{place}/"], capture_output=True, text=True, timeout=30, check=True
        )
        assert f"<title>{TITLE}</title>" in done.stdout
    finally:
        process.kill()
        process.communicate(timeout=10)
