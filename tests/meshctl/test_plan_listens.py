"""What listens where, as a plan prints it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from meshctl.plan_changes import compare
from meshctl.plan_listens import listeners, warnings
from tests.meshctl.test_plan_changes import snapshot
from tests.topology.support import backend, group

WEB = 'ingress = "tls"\npublic = { port = 443, sans = ["gateway", "*.web.example"], wildcard = true }'


def test_each_backend_is_told_by_port_mode_and_callers(tmp_path: Path) -> None:
    """A public one twice, for other CVMs go on to call it by the mesh; one that is off by its own CVM alone."""
    backends = backend("web", more=WEB) + backend("own", port="9000", more='ingress = "off"')
    found = snapshot(
        tmp_path,
        group("web", backends=backends, routes='web = { backend = "web" }'),
        group("bot", backends="", routes="", more='calls = ["web"]'),
    )
    assert [it.row() for it in listeners(found)] == [
        ("web/web", "mesh, port 28080", "mutual TLS", "bot"),
        ("web/web", "public, port 443", "TLS as gateway, *.web.example", "anybody"),
        ("web/own", "loopback, port 9000", "off: no TLS, not served by the mesh", "web"),
    ]
    off, wide = warnings(found)
    assert "web/own" in off
    assert "has to bind 127.0.0.1, for on any other address it answers others in clear" in off
    assert "*.web.example (web/web)" in wide
    assert {off, wide} <= set(compare(None, found, "nothing").warnings)


def test_a_name_in_two_certificates_is_warned_of_where_http2_is_offered(tmp_path: Path) -> None:
    """A client takes the connection that it has (envoyproxy/envoy 6767). With HTTP/1.1, or one name each, none does."""

    def told(folder: str, alpn: str, *sans: str) -> list[str]:
        publics = (f'ingress = "tls"\npublic = {{ port = {443 + n}, wildcard = true, alpn = {alpn}, sans = [{names}] }}'
                   for n, names in enumerate(sans))  # fmt: skip
        backends = "".join(backend(f"b{n}", port=f"{8080 + n}", more=more) for n, more in enumerate(publics))
        found = snapshot(tmp_path / folder, group("web", backends=backends, routes=""))
        return [text for text in warnings(found) if "HTTP/2" in text]

    (one,) = told("a", '["h2"]', '"gateway", "a.example", "b.example"', '"gateway", "b.example"')
    assert one.startswith("b.example is in the certificates of web/b0 and web/b1: ")
    assert len(told("b", '["h2"]', '"gateway", "*.example.com"', '"b.example.com"')) == 1
    assert told("c", '["http/1.1"]', '"a.example", "b.example"', '"b.example"') == []
    assert told("d", '["h2"]', '"gateway", "a.example"', '"gateway", "b.example"') == []


def test_a_listener_that_appears_is_a_change_of_the_ingress(tmp_path: Path) -> None:
    """Only the manifest: nothing restarts. And a plan's JSON has every listener."""
    before = snapshot(tmp_path / "a", group("web"))
    after = snapshot(tmp_path / "b", group("web", backends=backend("web", more=WEB)))
    plan = compare(before, after, "HEAD")
    (change,) = plan.changes
    assert (change.kind, change.name, change.effect) == ("ingress", "web/web", "manifest")
    assert (change.before["public"], change.after["public"]["port"]) == (None, 443)
    assert [it["place"] for it in plan.document()["listens"]] == ["mesh", "public"]


def test_a_cluster_without_backends_listens_nowhere(tmp_path: Path) -> None:
    """Nor does one whose routes are not known."""
    found = snapshot(tmp_path, group("bot", backends="", routes=""))
    assert listeners(found) == listeners(dataclasses.replace(found, backends=None)) == ()
    assert not list(warnings(found))
