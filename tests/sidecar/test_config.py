from __future__ import annotations

import base64
from pathlib import Path

import pytest

from runtime.env import ConfigError
from sidecar.config import VARIABLES, parse, reference
from tests.sidecar.world import OWNERS, environment
from tests.support import ROOT


def problems(**changes: str | None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(environment(**changes))
    return [str(problem) for problem in caught.value.problems]


def test_a_complete_environment_needs_five_variables() -> None:
    """Everything else has a default, and nothing about it is insecure. No policy and no manifest is among them."""
    config = parse(environment())
    assert (config.cluster, config.group, config.peer_id) == ("demo", "api", "api-0")
    assert config.routes is None
    assert config.owners == OWNERS
    assert config.coordinators == ("https://one.test",)
    assert config.state_dir == Path("/run/mesh-private")
    assert config.guest_agent == Path("/var/run/dstack.sock")
    assert config.drain_seconds == 5.0
    assert config.path_mtu is None
    assert config.dev_root is None
    assert config.insecure == ()


def test_every_problem_is_reported_at_once() -> None:
    """Missing, malformed, contradicting and unknown variables come in one list, each by name."""
    found = problems(
        MESH_CLUSTER=None,
        MESH_GROUP=" apis",
        MESH_COORDINATORS='["http://plain.test"]',
        MESH_STATE_DIR="relative",
        MESH_LOG_LEVEL="loud",
        MESH_DRAIN_SECONDS="soon",
        MESH_PCSS_URL="x",
    )
    assert [text.partition(":")[0] for text in found] == [
        "MESH_CLUSTER", "MESH_GROUP", "MESH_COORDINATORS", "MESH_STATE_DIR", "MESH_LOG_LEVEL", "MESH_DRAIN_SECONDS",
        "MESH_PCSS_URL",
    ]  # fmt: skip
    assert found[6] == "MESH_PCSS_URL: is not a known variable; did you mean MESH_PCCS_URL?"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MESH_COORDINATORS", "", "is not set; expected a JSON list of the coordinators' https URLs"),
        ("MESH_MANIFEST", "a.b", "is not a known variable; no environment has a manifest: ./mesh set gives it to the"),
        ("MESH_ROUTES_JSON", "[1]", "holds 1, expected objects {name, vip, port, role, backend, service}"),
        ("MESH_OWNERS", "c2hvcnQ", "has the ed25519 key 'c2hvcnQ', expected 32 bytes in base64url (43 characters)"),
        ("MESH_COORDINATORS", "[]", "is empty, expected one https URL at least"),
        ("MESH_COORDINATORS", "{}", "is '{}', expected a JSON list of https URLs"),
        ("MESH_COORDINATORS", '["https://a/path"]', "holds 'https://a/path', expected https URLs without a path"),
        ("MESH_INSECURE_DEV_ROOT", "%%", "is '%%'..., expected base64"),
        ("MESH_PCCS_URL", "ftp://x", "is 'ftp://x', expected an http or https URL"),
        ("MESH_INSECURE_UNSIGNED_MANIFEST", "yes", "is 'yes', expected 0 or 1"),
        ("MESH_DRAIN_SECONDS", "nan", "is 'nan', expected seconds between 0 and 3600"),
        ("MESH_PATH_MTU", "1279", "is '1279', expected 1280 to 9000 bytes"),
        ("MESH_PATH_MTU", "1k", "is '1k', expected bytes, such as 1400"),
        ("MESH_GROUP", " api", "is ' api', expected printable text without spaces around it"),
    ],
)
def test_each_problem_says_what_was_expected(name: str, value: str, message: str) -> None:
    """One bad value gives one problem with the value and the expectation."""
    (found,) = problems(**{name: value})
    assert found.startswith(f"{name}: {message}")


def test_insecure_settings_work_and_are_named() -> None:
    """An unsigned manifest and a development root need explicit variables, and the configuration keeps saying so."""
    config = parse(
        environment(
            MESH_OWNERS=None,
            MESH_INSECURE_UNSIGNED_MANIFEST="1",
            MESH_INSECURE_DEV_ROOT=base64.b64encode(b"root").decode(),
        )
    )
    assert config.owners is None
    assert config.dev_root == b"root"
    assert len(config.insecure) == 2


def test_owner_key_and_unsigned_manifest_contradict() -> None:
    """A leftover insecure flag beside an owner key is an error, not a silent choice."""
    assert problems(MESH_INSECURE_UNSIGNED_MANIFEST="1") == [
        "MESH_INSECURE_UNSIGNED_MANIFEST: contradicts MESH_OWNERS; unset one of them"
    ]


def test_parser_knows_exactly_the_documented_variables() -> None:
    """Setting every documented variable to something leaves no unknown one."""
    everything = {variable.name: "?" for variable in VARIABLES}
    with pytest.raises(ConfigError) as caught:
        parse(everything)
    assert not [str(problem) for problem in caught.value.problems if "not a known variable" in str(problem)]


def test_reference_is_current() -> None:
    """docs/configuration.md is what `python -m sidecar config-reference` prints."""
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == reference()
