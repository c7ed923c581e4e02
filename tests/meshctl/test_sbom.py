"""The list of what is in an image."""

from __future__ import annotations

import json

from meshctl import images, sbom, tools

FOUND = {
    "debian": [["adduser", "3.134", "all"]],
    "python": [["envoy_data_plane", "2.2.0"], ["grpcio", "1.85.1"]],
    "programs": [["consul", "c" * 64], ["envoy", "e" * 64], ["wireguard-go", "d" * 64]],
}
DIGEST = "sha256:" + "a" * 64


def test_document_names_every_part() -> None:
    """Debian and Python packages by package URL, programs built from Go modules by module, Envoy; dated as told."""
    tree = json.loads(sbom.document(images.IMAGES["sidecar"], DIGEST, FOUND, 0))
    assert (tree["bomFormat"], tree["metadata"]["timestamp"]) == ("CycloneDX", "1970-01-01T00:00:00+00:00")
    assert tree["metadata"]["component"]["name"] == "cvm-mesh-sidecar"
    purls = {item["purl"] for item in tree["components"]}
    consul = tools.TOOLS["consul"].version
    assert {
        "pkg:deb/debian/adduser@3.134?arch=all",
        "pkg:pypi/envoy-data-plane@2.2.0",
        "pkg:pypi/grpcio@1.85.1",
        f"pkg:golang/github.com/hashicorp/consul@v{consul}",
        f"pkg:github/envoyproxy/envoy@v{tools.TOOLS['envoy'].version}",
    } <= purls


def test_programs_are_named_with_their_digest() -> None:
    """What no package manager knows has the SHA-256 of the file in the image, to be compared with its makers'."""
    tree = json.loads(sbom.document(images.IMAGES["sidecar"], DIGEST, FOUND, 0))
    hashes = {item["name"]: item["hashes"] for item in tree["components"] if item["type"] == "application"}
    assert hashes == {name: [{"alg": "SHA-256", "content": digest}] for name, digest in FOUND["programs"]}


def test_equal_images_give_equal_documents() -> None:
    """Nothing of the moment or of chance is in it; another image has another serial number."""
    image = images.IMAGES["worker"]
    first = sbom.document(image, DIGEST, FOUND, 5)
    assert first == sbom.document(image, DIGEST, FOUND, 5)
    other = json.loads(sbom.document(image, "sha256:" + "b" * 64, FOUND, 5))
    assert other["serialNumber"] != json.loads(first)["serialNumber"]
    assert not [item for item in other["components"] if item["name"] == "envoy"], "only the sidecar has it"
