"""What `up` decides before and while it waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshctl import bring_up
from meshctl.errors import UserError
from tests.support import ROOT


@pytest.mark.parametrize("text", ["clusters/starter", "starter", str(ROOT / "clusters" / "starter")])
def test_cluster_is_found_by_path_and_by_name(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster is named by its folder, from the checkout or absolute, or by its name alone."""
    monkeypatch.chdir(ROOT)
    assert bring_up.cluster_folder(text) == ROOT / "clusters" / "starter"


def test_typo_gets_a_proposal() -> None:
    """A name that nearly exists is answered with the one that does."""
    with pytest.raises(UserError) as error:
        bring_up.cluster_folder("startr")
    assert error.value.remedy == "did you mean clusters/starter?"


def peer(**changes: Any) -> dict[str, Any]:
    """A ready peer with one route."""
    route = {"name": "worker", "role": None, "endpoints": ["worker-0"]}
    return {"peer_id": "api-0", "ready": True, "reasons": [], "routes": [route]} | changes


def test_whole_mesh_misses_nothing() -> None:
    """Ready peers whose routes have endpoints are all that is wanted."""
    assert bring_up.missing({"peers": [peer()]}) == []


def test_what_is_missing_is_named() -> None:
    """An unready peer is named with its reasons, a route without endpoints with its peer."""
    lonely = {"name": "worker", "role": None, "endpoints": []}
    document = {"peers": [peer(ready=False, reasons=["admission: waits for coordinator"]), peer(routes=[lonely])]}
    assert bring_up.missing(document) == [
        "api-0: admission: waits for coordinator",
        "api-0: route worker has no endpoint yet",
    ]


def test_role_routes_may_be_empty() -> None:
    """A role that nobody holds yet does not keep the mesh from being up."""
    nobody = {"name": "postgres-master", "role": "master", "endpoints": []}
    assert bring_up.missing({"peers": [peer(routes=[nobody])]}) == []


def test_short_name_of_a_demo() -> None:
    """`patroni` is clusters/patroni-demo."""
    assert bring_up.cluster_folder("patroni") == ROOT / "clusters" / "patroni-demo"


def test_containers_see_the_tool_cache_wherever_it_is(tmp_path: Path) -> None:
    """What a benchmark takes out of the cache after the mesh is up can be run in its containers, also below /tmp."""
    cache = tmp_path / "cache"
    kept = bring_up.kept([str(cache / "tools" / "consul-1" / "consul"), "/usr/bin/envoy"], cache)
    assert str(cache) in kept
    assert cache.is_dir()
    later = cache / "tools" / "envoy-1.36.2" / "envoy"
    assert sum(later.is_relative_to(folder) for folder in kept) == 1


def test_vacant_roles_are_named() -> None:
    """Which role is waited for, and where; a CVM that is not ready is no reason to wait."""
    nobody = {"name": "postgres-master", "role": "master", "endpoints": []}
    document = {"peers": [peer(routes=[nobody]), peer(peer_id="api-1", ready=False, routes=[nobody])]}
    assert bring_up.vacant(document) == ["api-0: route postgres-master waits for a master"]


@pytest.mark.parametrize(
    ("cluster", "wanted"),
    [
        ("starter", {"api": ("http", 8080)}),
        ("emojivoto", {"web": ("https", 443)}),
        ("patroni-demo", {"webdemo": ("http", 8080)}),
    ],
)
def test_a_group_is_entered_where_it_is_public(cluster: str, wanted: dict[str, tuple[str, int]]) -> None:
    """By its HTTPS listener, where it has one."""
    from topology.cluster import load

    assert bring_up.entry_ports(load(ROOT / "clusters" / cluster)) == wanted


def test_a_page_is_told_with_its_address() -> None:
    """As one types it; where the certificate has no name that may be elsewhere, the command that needs none."""
    from topology.cluster import load

    cluster = load(ROOT / "clusters" / "emojivoto")
    assert bring_up.page_name(cluster, "web", 443) == "web"
    assert bring_up.page_name(cluster, "web", 8443) is None
    page = bring_up.Entry(group="web", url="https://127.0.0.1:4443", name="web")
    assert page.told.endswith("curl --cacert verify/mesh-ca.pem --resolve web:4443:127.0.0.1 https://web:4443/")
    assert bring_up.Entry(group="web", url="https://127.0.0.1:4443").told.endswith("./mesh verify, then ./mesh connect")
    assert bring_up.Entry(group="api", url="http://127.0.0.1:80").told == "public entry of api: http://127.0.0.1:80"
