"""What changes between two manifests is shown whole, with what becomes of it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from meshctl.manifest import summary
from meshctl.manifest_changes import compare, warnings
from meshctl.plan import print_changes
from tests.coordinator.world import OWNER, make_database_manifest, make_manifest
from tests.topology.support import after, opened
from topology.manifest import Manifest, decode, encode

IMAGE = {"os_image_hash": "05", "mrtd": "01", "rtmr0": "02", "rtmr1": "03", "rtmr2": "04"}
HEAD = opened(make_database_manifest(make_manifest(coordinators=3)), OWNER)


def changed(edit: Any) -> Manifest:
    """The manifest after HEAD with `edit` made to its JSON."""
    tree = json.loads(encode(after(HEAD)))
    edit(tree)
    return decode(json.dumps(tree).encode())


def shown(edit: Any) -> list[tuple[str, str, str]]:
    """What is shown of the change."""
    return [(change.action, change.kind, change.name) for change in compare(HEAD.manifest, changed(edit))]


def test_a_successor_that_says_the_same_changes_nothing() -> None:
    """Epoch and predecessor are its place, and no change."""
    assert compare(HEAD.manifest, after(HEAD)) == ()
    assert warnings(HEAD.manifest, after(HEAD)) == ()


LISTENER = {"port": 443, "sans": ["db.example"]}


@pytest.mark.parametrize(
    ("edit", "wanted"),
    [
        (lambda t: t["groups"]["api"]["peers"].pop(), [("remove", "cvm", "api-1")]),
        (lambda t: t["routes"].clear(), [("remove", "route", "db-master")]),
        (lambda t: t["groups"]["db"]["backends"]["db"].update(callers=["*"]), [("change", "callers", "db/db")]),
        (lambda t: t["groups"]["db"]["backends"]["db"].update(port=1), [("change", "backend", "db/db")]),
        (
            lambda t: t["groups"]["db"]["backends"]["db"].update(ingress="tls", public=LISTENER),
            [("change", "ingress", "db/db")],
        ),
        (lambda t: t["groups"]["api"]["env"].update(MODE="x"), [("add", "variable", "api/MODE")]),
        (lambda t: t["secrets"]["database"].update(groups=[]), [("change", "secret", "database")]),
        (lambda t: t.update(leaf_hours=9), [("change", "setting", "leaf_hours")]),
        (lambda t: t["coordinators"]["peers"].pop(), [("remove", "coordinator", "coordinator-2")]),
        (lambda t: t["references"][0]["tcb"].update(grace_until=7), [("change", "reference", "measured")]),
        (lambda t: t["references"][0].update(devices=["ab" * 16]), [("change", "machines", "measured")]),
        (
            lambda t: t["references"].append({**t["references"][0], "name": "b", "os_images": [IMAGE]}),
            [("add", "reference", "b"), ("add", "machines", "b"), ("add", "image", "01… 02… 03… 04…")],
        ),
        (
            lambda t: t["groups"]["api"].update(compose_hashes=["77" * 32]),
            [
                ("add", "compose hash", f"api {'77' * 32}"),
                ("remove", "compose hash", f"api {HEAD.manifest.groups['api'].compose_hashes[0]}"),
            ],
        ),
    ],
    ids=[
        "slot",
        "route",
        "callers",
        "port",
        "ingress",
        "variable",
        "grant",
        "setting",
        "coordinator",
        "grace",
        "machines",
        "reference",
        "compose hash",
    ],
)
def test_each_change_is_an_entry(edit: Any, wanted: list[tuple[str, str, str]]) -> None:
    """By the name that a person knows it by."""
    assert shown(edit) == wanted


def test_an_image_is_gone_with_the_last_reference_that_has_it() -> None:
    """Until then who boots it may stay, and the effect says so."""
    [reference] = HEAD.manifest.references
    image = reference.os_images[0]
    rest, name = reference.os_images[1:], f"{image.mrtd:.16}… {image.rtmr0:.16}… {image.rtmr1:.16}… {image.rtmr2:.16}…"
    without = dataclasses.replace(reference, os_images=rest)
    only = dataclasses.replace(reference, name="other", os_images=(image,))
    moved = dataclasses.replace(HEAD.manifest, references=(without, only))
    gone = dataclasses.replace(HEAD.manifest, references=(without,))
    for made, effect in ((moved, "stays while a reference has it"), (gone, "every CVM that boots it is evicted")):
        [change] = [each for each in compare(HEAD.manifest, made) if each.kind == "image"]
        assert (change.name, effect in change.effect) == (name, True)


@pytest.mark.parametrize(
    ("edit", "kind"),
    [
        (lambda t: t["groups"]["api"].update(app_id="99" * 20), "app"),
        (lambda t: t["groups"].pop("api"), "app"),
        (lambda t: t["groups"]["client"]["peers"].append(t["groups"]["api"]["peers"].pop()), "cvm"),
        (lambda t: t["groups"]["api"]["peers"][0].update(address="127.0.0.77"), "cvm"),
    ],
)
def test_what_evicts_is_called_so(edit: Any, kind: str) -> None:
    """Another app, and a slot that is elsewhere, too: nobody keeps it."""
    effects = [each.effect for each in compare(HEAD.manifest, changed(edit)) if each.kind == kind]
    assert effects
    assert all("evicted: " in effect for effect in effects), effects


HANDOVER = {"from_app_id": "99" * 20, "until": 2_000_000_000, "urls": ["https://former.example"]}


def test_a_handover_says_what_becomes_of_the_mesh() -> None:
    """And what a person has to do who pins its root."""

    def edit(tree: Any) -> None:
        tree["coordinators"].update(app_id="88" * 20, handover=HANDOVER)

    made = changed(edit)
    found = {each.kind: each.effect for each in compare(HEAD.manifest, made)}
    assert "have keys of their own" in found["coordinators' app"]
    assert "certificates of before are trusted until then" in found["handover"]
    [warning] = warnings(HEAD.manifest, made)
    assert "whoever pins it has to verify anew" in warning


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a JSON tree are."""
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [leaf for key, value in items for leaf in leaves(value, (*path, key))]
    return [path]


def test_no_value_of_a_manifest_changes_unseen() -> None:
    """Each one, whatever it is: an owner must not set what was not shown."""
    tree = json.loads(encode(HEAD.manifest))
    unseen = []
    for path in leaves(tree):
        other = json.loads(encode(HEAD.manifest))
        place = other
        for key in path[:-1]:
            place = place[key]
        was = place[path[-1]]
        place[path[-1]] = (
            LISTENER
            if path[-1] == "public"
            else HANDOVER
            if path[-1] == "handover"
            else not was
            if isinstance(was, bool)
            else was + 1
            if isinstance(was, int)
            else f"{was}x"
        )
        found = manifest_of(other)
        if path[0] not in ("epoch", "previous") and compare(HEAD.manifest, found) == ():
            unseen.append(path)
    assert unseen == []


def manifest_of(tree: Any) -> Manifest:
    """The value, whether it holds together or not."""
    from topology.trees import from_tree

    found: Manifest = from_tree(Manifest, tree, "manifest")
    return found


def test_a_lost_majority_is_warned_of() -> None:
    """As `sign` does."""
    assert (
        "no majority"
        in warnings(HEAD.manifest, changed(lambda t: t["coordinators"].update(peers=t["coordinators"]["peers"][:1])))[1]
    )


def test_what_is_shown_does_not_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither in the table of `set` nor in the summary by which an owner signs: a route that rubs out the line above
    it, of a manifest that no reader took.
    """
    [route] = HEAD.manifest.routes
    evil = dataclasses.replace(route, name="x\x1b[1A\x1b[2K\x1b[8m", vip="127.10.9.2")
    made = dataclasses.replace(HEAD.manifest, routes=(route, evil))
    print_changes(compare(HEAD.manifest, made), "what changes", "here")
    summary(made)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert shown.count("x\\x1b[1A\\x1b[2K\\x1b[8m") >= 2, "in both; click takes colours away where nobody looks"
    assert "route x\\x1b[1A" in shown
