"""What changes between two manifests, and what becomes of it in a mesh that runs. Pure.

Every field is in it: an owner must not set what was not shown. `plan_changes` is for files, and says what a cloud does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from meshctl.plan_changes import Change, coordinators_go
from topology.manifest import Manifest

_TOLD = frozenset({"epoch", "previous", "coordinators", "groups", "routes", "secrets", "references"})
"""Fields of a manifest that are shown entry by entry, or are its place in the history."""
_EVICTED = "evicted: lease, links and endpoints end at once, its certificate with overlap_seconds"
_ELSEWHERE = "every CVM on a machine for which no reference has its image any more is " + _EVICTED
_REACHED = ("ingress", "public")
"""Fields of a backend that say where and how it is reached."""
_LISTENS = "at once; a public listener has its certificate with the renewal that follows, in a second or so"
_AGAIN = "at once: the group's CVMs register and check it so; its program has to listen there"
_EFFECTS: Mapping[tuple[str, str], str] = {
    ("cvm", "add"): "a CVM of the group may take the slot",
    ("cvm", "change"): _EVICTED + "; it is admitted anew where the slot is now",
    ("cvm", "remove"): _EVICTED,
    ("coordinator", "add"): "joins when it runs: it waits for a manifest, and the others give it this one",
    ("coordinator", "change"): "asked at the new URL at once; another mesh address is refused",
    ("coordinator", "remove"): "admits nobody any more; off link and lists, its server out of Raft",
    ("coordinators' app", "change"): "its coordinators take the mesh over (handover), and have keys of their own",
    (
        "handover",
        "add",
    ): "they take slots, history, workloads' keys and secrets from the former ones, and CVMs change over "
    "by themselves; certificates of before are trusted until then",
    ("handover", "change"): "counts for coordinators that have not taken the mesh over yet",
    ("handover", "remove"): "nothing more is taken over; end the former coordinators",
    ("app", "add"): "CVMs of the app may join",
    ("app", "change"): "every CVM of the app of before is " + _EVICTED,
    ("app", "remove"): "every CVM of the app is " + _EVICTED,
    ("compose hash", "add"): "CVMs that measure it may join",
    ("compose hash", "remove"): "every CVM that measures it is " + _EVICTED,
    ("image", "add"): "CVMs that boot it may join",
    ("image", "change"): "who boots it stays while a reference has it for that machine; all else at the next admission",
    ("image", "remove"): "every CVM that boots it is " + _EVICTED,
    ("reference", "add"): "CVMs that are all that it says may join",
    ("reference", "change"): "at the next admission of each CVM; at once for development images that it takes back",
    ("reference", "remove"): "at the next admission of each CVM: it has to be all that another one says",
    ("machines", "add"): "CVMs on them may join",
    ("machines", "change"): _ELSEWHERE,
    ("machines", "remove"): _ELSEWHERE,
    ("callers", "add"): "at once, in every CVM that runs",
    ("callers", "change"): "at once, in every CVM that runs; who may call no more loses what it holds",
    ("callers", "remove"): "at once: nobody may call",
    ("ingress", "add"): _LISTENS,
    ("ingress", "change"): _LISTENS,
    ("ingress", "remove"): "at once: its listeners go, with the connections in them",
    ("route", "add"): "at once, in every CVM that runs: name, VIP, listener",
    ("route", "remove"): "at once, in every CVM that runs: code that dials it finds no such name",
    ("route", "change"): "at once, in every CVM that runs",
    ("egress", "add"): "at once, in every CVM of the group that runs: its listener",
    ("egress", "change"): "at once, in every CVM of the group that runs; connections to what it led to are cut",
    ("egress", "remove"): "at once, in every CVM of the group that runs: connections are cut",
    ("secret", "add"): "handed out with the next renewal, in 5 s",
    ("secret", "change"): "handed out, or withdrawn, with the next renewal, in 5 s",
    ("secret", "remove"): "withdrawn with the next renewal, in 5 s",
    ("backend", "add"): _AGAIN,
    ("backend", "change"): _AGAIN,
    ("backend", "remove"): "nobody may call it any more",
    ("variable", "add"): "applications are held against it at their next start",
    ("variable", "change"): "applications are held against it at their next start",
    ("variable", "remove"): "no longer held against anything",
}
_SETTINGS: Mapping[str, str] = {
    "owners": "they sign the manifest after this one",
    "rendezvous": "when CVMs and coordinators start anew",
    "leaf_hours": "from the next certificate on",
    "overlap_seconds": "from this manifest on",
    "rotate": "a new gossip key takes the place of the old one, with no restart and no member lost; new texts of "
    "secrets are handed out with the next renewal, in 5 s, and programs have to take them",
    "revoked": "refused and evicted at once, whatever else is allowed",
    "critical": "programs that do not know such a field refuse the manifest",
}
_LATER = "when CVMs and coordinators start anew"
_Key = tuple[str, str]


def compare(before: Manifest, after: Manifest) -> tuple[Change, ...]:
    """Every entry that appears, changes or goes, with what becomes of it."""
    old, new = (dict(_entries(it)) for it in (before, after))
    return tuple(
        _change(key, old.get(key), new.get(key)) for key in dict.fromkeys([*new, *old]) if old.get(key) != new.get(key)
    )


def warnings(before: Manifest, after: Manifest) -> tuple[str, ...]:
    """What a person should know before it is set."""
    if before.coordinators.app_id != after.coordinators.app_id:
        told = (
            "the mesh is handed over to another coordinators' app: the root CA becomes another one, so whoever pins it "
            "has to verify anew; end the former coordinators only when the new ones are ready"
        )
        return (told,)
    one, other = ([peer.peer_id for peer in it.coordinators.peers] for it in (before, after))
    return tuple(coordinators_go(one, other))


def _change(key: _Key, old: Any, new: Any) -> Change:
    kind, name = key
    action = "add" if old is None else "remove" if new is None else "change"
    effect = _SETTINGS.get(name, _LATER) if kind == "setting" else _EFFECTS.get((kind, action), _LATER)
    return Change(kind=kind, name=name, action=action, before=old, after=new, effect=effect)


def _entries(manifest: Manifest) -> Iterator[tuple[_Key, Any]]:
    """Every field, cut into entries that a person thinks of. No value is None."""
    tree = dataclasses.asdict(manifest)
    for name, value in tree.items():
        if name not in _TOLD:
            yield ("setting", name), _plain(value)
    yield from _app("coordinator", tree["coordinators"], "coordinators' app")
    if tree["coordinators"]["handover"] is not None:
        yield ("handover", "coordinator"), _plain(tree["coordinators"]["handover"])
    for peer in tree["coordinators"]["peers"]:
        yield ("coordinator", peer["peer_id"]), {"address": peer["address"], "url": peer["url"]}
    for group, entry in sorted(tree["groups"].items()):
        yield from _app(group, entry)
        for peer in entry["peers"]:
            yield ("cvm", peer["peer_id"]), {"group": group, "address": peer["address"]}
        for name, backend in sorted(entry["backends"].items()):
            own = {k: v for k, v in backend.items() if k not in ("callers", *_REACHED)}
            yield ("backend", f"{group}/{name}"), _plain(own)
            yield ("ingress", f"{group}/{name}"), _plain({k: backend[k] for k in _REACHED})
            yield ("callers", f"{group}/{name}"), _plain(backend["callers"])
        for egress in entry["egress"]:
            yield ("egress", f"{group}/{egress['name']}"), _plain(egress)
        for name, value in sorted(entry["env"].items()):
            yield ("variable", f"{group}/{name}"), repr(value)
    for route in tree["routes"]:
        yield ("route", route["name"]), _plain(route)
    for name, secret in sorted(tree["secrets"].items()):
        yield ("secret", name), _plain(secret)
    yield from _references(tree["references"])


def _references(references: Iterable[Mapping[str, Any]]) -> Iterator[tuple[_Key, Any]]:
    """Each reference, then each image with the references that have it: who boots an image stays while one of them
    does.
    """
    images: dict[str, dict[str, list[Any]]] = {}
    for each in references:
        yield ("reference", each["name"]), {"key_provider": each["key_provider"], "tcb": _plain(each["tcb"])}
        yield ("machines", each["name"]), _plain(each["devices"]) or "any"
        for image in each["os_images"]:
            name = " ".join(f"{image[part]:.16}…" for part in ("mrtd", "rtmr0", "rtmr1", "rtmr2"))
            shown = f"{name} {'development' if image['development'] else ''}".strip()
            images.setdefault(shown, {}).setdefault(each["name"], []).append(image)
    yield from ((("image", name), found) for name, found in images.items())


def _app(name: str, entry: Mapping[str, Any], kind: str = "app") -> Iterator[tuple[_Key, Any]]:
    yield (kind, name), entry["app_id"]
    for found in entry["compose_hashes"]:
        yield ("compose hash", f"{name} {found}"), found


def _plain(value: Any) -> Any:
    """Lists in the place of tuples, as JSON has them."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
