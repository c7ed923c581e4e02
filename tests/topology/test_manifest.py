"""The manifest's JSON and its signed envelope."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support import ROOT
from tests.topology.test_render import deployment, starter
from topology import manifest, render, trees

MADE = render.manifest(starter(), deployment())


def refusal(tree: object) -> str:
    """Why `tree` is no manifest."""
    with pytest.raises(trees.ManifestError) as caught:
        manifest.decode(json.dumps(tree).encode())
    return str(caught.value)


def test_decode_refuses_what_it_does_not_know() -> None:
    """An unknown or missing entry is named with its place."""
    tree = json.loads(manifest.encode(MADE))
    tree["groups"]["api"]["extra"] = 1
    with pytest.raises(trees.ManifestError, match=r"manifest\.groups\.api has unknown entries \['extra'\]"):
        manifest.decode(json.dumps(tree).encode())
    assert "did you mean" not in refusal(tree)
    del tree["groups"]["api"]["extra"]
    assert refusal(tree | {"leaf_hour": 4}).endswith("has unknown entries ['leaf_hour']; did you mean 'leaf_hours'?")
    del tree["groups"]["api"]["app_id"]
    with pytest.raises(trees.ManifestError, match=r"manifest\.groups\.api lacks \['app_id'\]"):
        manifest.decode(json.dumps(tree).encode())


def test_a_manifest_from_before_roles_and_secrets_is_read() -> None:
    """What is new has a value for whoever does not know it."""
    tree = json.loads(manifest.encode(MADE))
    del tree["secrets"]
    for route in tree["routes"]:
        del route["fallback"], route["leader_key"]
    assert manifest.decode(json.dumps(tree).encode()) == MADE


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("secrets",), []),
        (("routes", 0, "fallback"), 5),
        (("epoch",), "7"),
        (("epoch",), True),
        (("groups",), []),
        (("routes", 0, "port"), None),
        (("routes", 0, "role"), 5),
        (("references",), {}),
        (("references",), []),
        (("references", 0, "tcb", "grace_until"), "tomorrow"),
        (("coordinators", "compose_hashes"), "abc"),
        (("version",), 1),
        (("epoch",), 0),
        (("previous",), None),
        (("previous",), "00"),
        (("owners", "threshold"), 2),
        (("owners", "keys"), []),
        (("critical",), ["groups.teleport"]),
        (("groups", "api", "env"), {"mode": 5}),
        (("groups", "api", "env"), {"a; b": "x"}),
        (("groups", "api", "env"), {"": "x"}),
        (("groups", "api", "env"), {"env": "\0"}),
        (("groups", "api", "env"), {"LD_PRELOAD": "x"}),
        (("groups", "api", "env"), {"COMPOSE_FILE": "x"}),
        (("groups", "api", "env"), {"IFS": "x"}),
        (("coordinators", "app_id"), "AB" * 20),
        (("groups", "api", "app_id"), "app_" + "ab" * 20),
        (("groups", "api", "compose_hashes"), ["ab" * 32, "ab" * 31]),
        (("coordinators", "compose_hashes"), ["AB" * 32]),
        (("references", 0, "tcb", "allowed_statuses"), ["uptodate"]),
        (("references", 0, "tcb", "rejected_advisories"), ["SA-00615"]),
        (("leaf_hours",), 0),
        (("leaf_hours",), 73),
        (("overlap_seconds",), 59),
        (("overlap_seconds",), 3601),
    ],
)
def test_decode_refuses_values_of_a_wrong_kind(path: tuple[str | int, ...], value: object) -> None:
    """The message names the entry; nothing is converted silently."""
    tree = json.loads(manifest.encode(MADE))
    at = tree
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises(trees.ManifestError, match=str(path[0] if path[0] == "owners" else path[-1])):
        manifest.decode(json.dumps(tree).encode())


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"null", b"{}", b"[" * 100_000])
def test_decode_refuses_garbage(data: bytes) -> None:
    """Whatever arrives, the error is a ManifestError."""
    with pytest.raises(trees.ManifestError):
        manifest.decode(data)


def test_a_signed_manifest_may_be_newer_than_the_reader() -> None:
    """What it does not know is left out and told, at any depth; what the writer calls critical is refused."""
    tree = json.loads(manifest.encode(MADE))
    tree["teleport"] = {"to": "mars"}
    tree["groups"]["api"]["backends"]["api"]["colour"] = "red"
    found = manifest.decode_signed(json.dumps(tree).encode())
    assert found == (MADE, ("manifest.teleport", "manifest.groups.api.backends.api.colour"))
    tree["critical"] = ["routes.vip", "groups.backends.colour"]
    with pytest.raises(trees.ManifestError, match=r"critical names \['groups.backends.colour'\].*upgrade it"):
        manifest.decode_signed(json.dumps(tree).encode())


def test_what_is_said_of_a_strangers_manifest_stays_small() -> None:
    """Whoever reads it: a long name is not copied for each entry below it, and not all entries are named."""
    tree = json.loads(manifest.encode(MADE))
    long, many = "A" * 50_000, {f"a{n}": 0 for n in range(5_000)}
    entry = tree["groups"]["api"]
    _, unknown = manifest.decode_signed(json.dumps({**tree, "groups": tree["groups"] | {"api": entry | many}}).encode())
    assert len(unknown) == trees.MAX_UNKNOWN
    assert sum(map(len, unknown)) < 10_000
    for wrong in (
        {**tree, "groups": {long: many}},
        {**tree, "groups": {long: entry | many}},
        {**tree, "critical": list(many)},
    ):
        for read in (manifest.decode, manifest.decode_signed):
            with pytest.raises(trees.ManifestError) as refused:
                read(json.dumps(wrong).encode())
            assert len(str(refused.value)) < 10_000


def test_the_sidecars_part_imports_neither_hcl_nor_yaml() -> None:
    """A process inside a CVM reads the manifest without the command line's libraries."""
    code = (
        "import sys, sidecar.supervisor, coordinator.app, peer.rendezvous; "
        "print([name for name in ('hcl2', 'lark', 'yaml') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("rotate", "words"),
    [
        ({"nobody": 1}, "names 'nobody', expected one of"),
        ({"database": -1}, "is -1, expected a count"),
        ({"database": 1 << 31}, "expected a count"),
        ({"database": True}, "must be int"),
    ],
)
def test_what_is_rotated_is_there(rotate: dict[str, int], words: str) -> None:
    """By a count."""
    known = render.manifest(starter(), deployment())
    tree = json.loads(manifest.encode(known)) | {"secrets": {"database": {"owner": "db", "groups": []}}}
    with pytest.raises(trees.ManifestError) as caught:
        manifest.decode(json.dumps(tree | {"rotate": {"secrets": rotate}}).encode())
    assert words in str(caught.value)
    found = manifest.decode(json.dumps(tree | {"rotate": {"secrets": {"database": 3}}}).encode())
    assert (found.rotate.secrets, found.rotate.gossip) == ({"database": 3}, 0)


@pytest.mark.parametrize("number", [-1, 1 << 31])
def test_the_gossip_keys_number_is_a_count(number: int) -> None:
    """Of how often it was rotated."""
    tree = json.loads(manifest.encode(render.manifest(starter(), deployment())))
    with pytest.raises(trees.ManifestError, match=r"manifest.rotate.gossip is .*, expected a count"):
        manifest.decode(json.dumps(tree | {"rotate": {"gossip": number}}).encode())
    assert manifest.decode(json.dumps(tree | {"rotate": {"gossip": 2}}).encode()).rotate.gossip == 2
