"""The coordinator's configuration."""

from __future__ import annotations

import dataclasses
import json

import pytest

from coordinator.config import begun, own_peer_id, parse
from runtime.env import ConfigError
from tests.coordinator.world import OWNER, OWNER_KEY, make_manifest
from tests.topology.support import opened
from topology.envelope import seal

MANIFEST = make_manifest()
GOOD = {"MESH_CLUSTER": "tests", "MESH_OWNERS": OWNER_KEY}
SIGNED = opened(MANIFEST, OWNER)


def problems(environ: dict[str, str]) -> str:
    """All problems as text."""
    with pytest.raises(ConfigError) as error:
        parse(environ)
    return str(error.value)


def test_a_deployment_of_one() -> None:
    """Cluster and owner key suffice, and the manifest when there is one; the rest has the defaults of a CVM."""
    assert parse(GOOD).signed is None
    config = begun(parse(GOOD), SIGNED)
    assert config.listen == ("0.0.0.0", 8787)
    assert str(config.state_dir) == "/run/mesh-private"
    assert config.insecure == ()
    assert own_peer_id(config, "aa") == "coordinator-0"


def test_all_problems_are_told_at_once() -> None:
    """Everything that is wrong is in one error, each with its variable."""
    told = problems(
        {
            "MESH_CLUSTR": "tests",
            "MESH_OWNERS": "short",
            "MESH_LISTEN": "nowhere",
            "MESH_PATH_MTU": "9001",
            "MESH_LOG_LEVEL": "loud",
            "MESH_STATE_DIR": "relative",
            "MESH_COORDINATORS": '["http://a"]',
            "MESH_PCCS_URL": "ftp://x",
            "MESH_GROUP": "api",
            "MESH_INSECURE_DEV_ROOT": "!",
        }
    )
    for name in (
        "CLUSTER",
        "CLUSTR",
        "OWNERS",
        "LISTEN",
        "PATH_MTU",
        "LOG_LEVEL",
        "STATE_DIR",
        "COORDINATORS",
        "PCCS_URL",
        "GROUP",
    ):
        assert f"MESH_{name}: " in told
    assert "did you mean MESH_CLUSTER?" in told


def test_no_manifest_comes_by_the_environment() -> None:
    """Whoever sets one is told where it goes."""
    told = problems(GOOD | {"MESH_MANIFEST": seal(MANIFEST, OWNER)})
    assert told.startswith("MESH_MANIFEST: is not a known variable; no environment has a manifest: ./mesh set gives it")


def test_an_unsigned_manifest_needs_to_be_asked_for_and_is_told() -> None:
    """Local use says so, and cannot be mixed with a key."""
    environ = {
        "MESH_CLUSTER": "tests",
        "MESH_INSECURE_UNSIGNED_MANIFEST": "1",
        "MESH_INSECURE_DEV_ROOT": "AAAA",
    }
    config = parse(environ)
    assert config.owners is None
    assert len(config.insecure) == 2
    assert "contradicts MESH_OWNERS" in problems(environ | {"MESH_OWNERS": OWNER_KEY})


def test_the_parts_must_agree() -> None:
    """Cluster and peer ID are those of the manifest. Where coordinators are is the manifest's to say alone: they come
    and go, and the environment stays.
    """
    urls = json.dumps(["https://a", "https://b"])
    config = parse(GOOD | {"MESH_CLUSTER": "other", "MESH_PEER_ID": "coordinator-7", "MESH_COORDINATORS": urls})
    with pytest.raises(ConfigError) as caught:
        begun(config, SIGNED)
    assert "the manifest is of cluster 'tests'" in str(caught.value)
    assert "'coordinator-7', expected a coordinator" in str(caught.value)
    assert "COORDINATORS" not in str(caught.value)


def test_which_coordinator_this_is() -> None:
    """As said, else by the instance ID in its URL, else an error that lists them."""
    urls = ("https://aa11-8787s.gateway", "https://bb22-8787s.gateway", "https://cc33-8787s.gateway")
    config = begun(parse(GOOD), opened(make_manifest(coordinators=3, urls=urls), OWNER))
    assert own_peer_id(config, "bb22") == "coordinator-1"
    assert own_peer_id(dataclasses.replace(config, peer_id="coordinator-2"), "bb22") == "coordinator-2"
    for instance in ("dd44", ""):
        with pytest.raises(ConfigError, match=r"MESH_PEER_ID: .*coordinator-0, coordinator-1, coordinator-2"):
            own_peer_id(config, instance)


@pytest.mark.parametrize(("text", "wanted"), [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::]:8787", ("::", 8787))])
def test_where_to_listen(text: str, wanted: tuple[str, int]) -> None:
    """Address and port, IPv6 in brackets."""
    assert parse(GOOD | {"MESH_LISTEN": text}).listen == wanted
