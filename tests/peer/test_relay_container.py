"""`clusters/relay`: the container's file agrees with the program that it starts."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from peer.rendezvous import read_config
from peer.wireguard import generate_key
from runtime.env import ConfigError
from tests.peer.test_rendezvous import OWNER_KEY
from tests.support import ROOT
from topology import compose
from topology.compose import interpolate

FOLDER = ROOT / "clusters" / "relay"
WRITTEN: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["relay"]


def environment(**given: str) -> dict[str, str]:
    """What the container gets when `.env` has `given`."""
    return {name: interpolate(str(text), given) for name, text in WRITTEN["environment"].items()}


def example() -> dict[str, str]:
    """The variables of `.env.example`, those that are commented out too."""
    return dict(re.findall(r"^(?:# )?(MESH_\w+)=(.*)$", (FOLDER / ".env.example").read_text(), re.MULTILINE))


def test_a_filled_in_example_starts_the_program(tmp_path: Path) -> None:
    """With the owner's key and a coordinator, the example is whole; the key file is where the volume is."""
    private, _ = generate_key()
    given = {name: text for name, text in example().items() if text}
    found = environment(**given, MESH_OWNERS=OWNER_KEY, MESH_COORDINATORS='["https://c0.example"]')
    path = Path(found["MESH_RENDEZVOUS_KEY_FILE"])
    assert WRITTEN["volumes"] == [f"relay-key:{path.parent}"]
    own = tmp_path / "key"
    own.touch(mode=0o600)
    own.write_text(private.reveal())
    config = read_config({**found, "MESH_RENDEZVOUS_KEY_FILE": str(own)})
    assert (config.public, config.port, config.address) == ("203.0.113.5", 51820, "100.96.0.1")
    assert config.dev_root is None


def test_an_empty_example_names_what_is_missing(tmp_path: Path) -> None:
    """Every problem at once, and no unknown variable among them."""
    with pytest.raises(ConfigError) as caught:
        read_config({**environment(), "MESH_RENDEZVOUS_KEY_FILE": str(tmp_path / "key")})
    named = {problem.variable for problem in caught.value.problems}
    assert named == {"MESH_COORDINATORS", "MESH_OWNERS", "MESH_RENDEZVOUS_PUBLIC"}
    assert named <= set(example())


def test_nothing_insecure_can_be_switched_on() -> None:
    """No variable that takes a protection away gets into the container."""
    assert not [name for name in WRITTEN["environment"] if "INSECURE" in name]


def test_it_is_the_sidecars_image_with_another_command() -> None:
    """One image for all: its entry point is `python -m`, the command is the module."""
    starter = compose.load(ROOT / "clusters" / "starter" / "compose" / "api.yaml")
    assert WRITTEN["image"] == starter.sidecar.image
    assert importlib.util.find_spec(WRITTEN["command"][0]) is not None


def test_it_has_the_rights_that_it_needs_and_no_others() -> None:
    """Addresses, WireGuard, the probe socket; a root filesystem that nobody writes."""
    assert (WRITTEN["cap_drop"], WRITTEN["cap_add"]) == (["ALL"], ["NET_ADMIN", "NET_RAW"])
    assert WRITTEN["read_only"] is True
    assert WRITTEN["network_mode"] == "host"
    assert "privileged" not in WRITTEN
