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
