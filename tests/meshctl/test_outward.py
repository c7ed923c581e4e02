"""A mesh's edges out of the status document."""

from __future__ import annotations

from typing import Any

from meshctl import outward

NOW = "0123456789ab"


def peer(name: str, expires_at: int | None = 1000, digest: str = NOW, names: tuple[str, ...] = ("web",)) -> Any:
    """A CVM of group web with a public listener and two egresses."""
    certificate = {"manifest_digest": digest, "expires_at": expires_at} if expires_at else None
    listener = {"backend": "page", "routes": ["web", "page"], "port": 443, "names": list(names)}
    bank = {"listen": "127.0.0.1:8443", "tls": "web", "server_name": "bank.example.com"}
    return {
        "peer_id": name,
        "group": "web",
        "manifest": {"digest": NOW},
        "public": [listener | {"certificate": certificate}],
        "egress": [
            {"name": "emoji", "listen": "127.137.0.1:8081", "remote": "emoji:8080", "tls": "mesh"}
            | {"server_name": None, "pinned": False},
            {"name": "bank", "remote": "[2001:db8::1]:443", "pinned": True} | bank,
            {"name": "other", "remote": "bank.example.com:443", "pinned": False} | bank,
        ],
    }


def test_one_row_for_all_cvms_of_a_group() -> None:
    """With the end of the certificate that ends first, and who lacks one or shows an older manifest's."""
    document = {"peers": [peer("web-0"), peer("web-1", 90_000), peer("web-2", None), peer("web-3", digest="f" * 12)]}
    assert outward.public(document) == [
        (
            "web/page",
            "web, page",
            "443",
            "web",
            "until 01-01 00:16 UTC; of another manifest: web-3; none yet, so not served: web-2",
        )
    ]
    assert outward.egress(document) == [
        ("web/emoji", "127.137.0.1:8081", "mesh", "emoji:8080"),
        ("web/bank", "127.0.0.1:8443", "web", "[2001:db8::1]:443 as bank.example.com, by the manifest's authorities"),
        ("web/other", "127.0.0.1:8443", "web", "bank.example.com:443 as bank.example.com, by any public authority"),
    ]


def test_cvms_that_differ_have_rows_of_their_own() -> None:
    """As for a moment after a new manifest; of many names the first are shown."""
    many = tuple(f"n{n}" for n in range(7))
    rows = outward.public({"peers": [peer("web-0"), peer("web-1", names=many)]})
    assert [row[3] for row in rows] == ["web", "n0, n1, n2, n3, n4, and 2 more"]


def test_a_mesh_without_edges_has_no_rows() -> None:
    """Nor has a coordinator."""
    document = {"peers": [{"group": "coordinator", "public": [], "egress": []}]}
    assert outward.public(document) == outward.egress(document) == []
