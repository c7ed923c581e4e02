"""Names of a manifest become part of URIs, paths and what owners read: each is a DNS label."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.coordinator.world import make_database_manifest
from topology.manifest import EVERYBODY, decode, decode_signed, encode
from topology.named import named
from topology.trees import ManifestError

MADE = make_database_manifest()
ESCAPES = "x\x1b[1A\x1b[2K"


def changed(edit: Callable[[Any], object]) -> bytes:
    """The manifest with `edit` made to its JSON."""
    tree = json.loads(encode(MADE))
    edit(tree)
    return json.dumps(tree).encode()


def rename(tree: Any, old: str, new: str) -> None:
    """Another key for an entry of a mapping."""
    tree[new] = tree.pop(old)


@pytest.mark.parametrize(
    ("edit", "entry"),
    [
        (lambda t, n: t.update(cluster=n), "manifest.cluster"),
        (lambda t, n: rename(t["groups"], "api", n), "manifest.groups."),
        (lambda t, n: t["groups"]["api"]["peers"][0].update(peer_id=n), "manifest.groups.api.peers[0].peer_id"),
        (lambda t, n: t["coordinators"]["peers"][0].update(peer_id=n), "manifest.coordinators.peers[0].peer_id"),
        (lambda t, n: rename(t["groups"]["db"]["backends"], "db", n), "manifest.groups.db.backends."),
        (
            lambda t, n: t["groups"]["db"]["backends"]["db"].update(callers=[n]),
            "manifest.groups.db.backends.db.callers",
        ),
        (lambda t, n: t["groups"]["db"]["backends"]["db"].update(service=n), "manifest.groups.db.backends.db.service"),
        (lambda t, n: t["routes"][0].update(name=n), "manifest.routes[0].name"),
        (lambda t, n: t["routes"][0].update(role=n), "manifest.routes[0].role"),
        (lambda t, n: rename(t["secrets"], "database", n), "manifest.secrets."),
        (lambda t, n: t["secrets"]["database"].update(groups=[n]), "manifest.secrets.database.groups[0]"),
    ],
)
@pytest.mark.parametrize("name", [ESCAPES, "../x", "", "Ä"])
def test_what_is_no_label_is_no_name(edit: Callable[[Any, str], None], entry: str, name: str) -> None:
    """Refused by whoever reads a manifest, with where it stands; the message does not act on a terminal."""
    for read in (decode, decode_signed):
        with pytest.raises(ManifestError) as refused:
            read(changed(lambda tree: edit(tree, name)))
        assert str(refused.value).startswith(entry)
        assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t["groups"]["db"]["backends"]["db"].update(identity=ESCAPES),
        lambda t: t["groups"]["db"]["backends"]["db"]["permissions"].update(key_prefixes=[ESCAPES]),
        lambda t: t["references"][0]["key_provider"].update(id=ESCAPES),
        lambda t: t["references"][0]["os_images"][0].update(os_image_hash=ESCAPES),
        lambda t: t["routes"][0].update(leader_key=ESCAPES),
    ],
)
def test_no_other_text_acts_on_a_terminal(edit: Callable[[Any], None]) -> None:
    """Whatever form it has. A variable's value may be any text, for it is shown in quotes."""
    with pytest.raises(ManifestError, match="can be printed"):
        decode_signed(changed(edit))
    decode_signed(changed(lambda t: t["groups"]["api"]["env"].update(MODE=ESCAPES)))


def test_what_a_newer_program_wrote_does_not_act_either() -> None:
    """Its names are noted, escaped."""
    _, unknown = decode_signed(changed(lambda t: t.update({ESCAPES: 1})))
    assert unknown == ("manifest.x\\x1b[1A\\x1b[2K",)


def test_no_group_has_the_coordinators_name() -> None:
    """It would be judged by what coordinators have to measure."""
    with pytest.raises(ManifestError, match="the coordinators' name"):
        decode(changed(lambda t: rename(t["groups"], "api", "coordinator")))


def test_everybody_is_no_name() -> None:
    """As the only caller; as anything else it is one, and wrong."""
    edited = decode(changed(lambda t: t["groups"]["db"]["backends"]["db"].update(callers=[EVERYBODY])))
    assert EVERYBODY not in {name for _, name in named(edited, EVERYBODY)}
    with pytest.raises(ManifestError, match="expected a DNS label"):
        decode(changed(lambda t: rename(t["groups"], "api", EVERYBODY)))
