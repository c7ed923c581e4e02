"""The browser that tests look at pages with: whom it trusts, and what it calls a page that is not blank."""

from __future__ import annotations

from pathlib import Path

from tests.browser import browser, lines
from tests.workloads.support import serving
from tests.xds.pki import Authority
from workloads.server import Answer, Paths

BLANK = b"<!DOCTYPE html><title>Blank</title>"
PATHS: Paths = {
    "GET /": lambda _: Answer(body=BLANK + "<h1>Hëllo</h1>".encode(), content_type="text/html; charset=utf-8"),
    "GET /blank": lambda _: Answer(body=BLANK, content_type="text/html"),
}


def test_it_sees_what_its_ca_speaks_for_and_nothing_else(tmp_path: Path) -> None:
    """A page by name and by address; of a name that the certificate has not, nothing."""
    authority = Authority()
    (tmp_path / "ca.pem").write_text(authority.pem)
    with serving(PATHS, authority.server(tmp_path, "web", "127.0.0.1")) as site, browser(tmp_path / "ca.pem") as seen:
        at = "--host-resolver-rules=MAP web 127.0.0.1"
        assert "Hëllo" in seen.dom(f"https://web:{site.server_port}/", at)
        page = seen.picture(f"https://127.0.0.1:{site.server_port}/")
        blank = seen.picture(f"https://127.0.0.1:{site.server_port}/blank")
        assert page is not None
        assert blank is not None
        assert lines(blank) <= 2
        assert lines(page) > 10
        assert "Hëllo" not in seen.dom(f"https://localhost:{site.server_port}/")
