"""What changes between two snapshots of a cluster, and what each change does on Phala Cloud. Pure.

What the cloud does is measured, not promised: docs/deploying.md has where each statement comes from.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshctl.plan_calls import Calls, who_calls
from meshctl.plan_egress import Dialled, dialled
from meshctl.plan_listens import Listener, listeners
from meshctl.plan_listens import warnings as listener_warnings
from meshctl.plan_snapshot import Snapshot
from topology.model import COORDINATOR

CREATE, DELETE, REPLACE, REDEPLOY, RESTART, MANIFEST, NONE = (
    "create", "delete", "replace", "redeploy", "restart", "manifest", "none",
)  # fmt: skip
EFFECTS: Mapping[str, str] = {
    CREATE: "a CVM is made, one after the other (some 5 minutes each)",
    DELETE: "the CVM and its disk are deleted",
    REPLACE: "the CVM is deleted, then made anew with an empty disk; keys derived by its app change",
    REDEPLOY: "a new revision: its first CVM is updated, then all others at once, without waiting for health",
    RESTART: "CVMs of the app get new values in place, one after the other, without waiting for health",
    MANIFEST: "only the manifest: sign and ./mesh set it, nothing restarts",
    NONE: "nothing on the CVMs",
}
"""Effect of a change to what a person should know of it."""
_ACTIONS = {(False, True): "add", (True, False): "remove", (True, True): "change"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One entry that appears, changes or goes."""

    kind: str
    """cvm, app, route, vip, port, permission, callers, ingress, egress, secret, image, compose, environment, public or
    setting."""
    name: str
    action: str
    """add, change or remove."""
    before: Any
    after: Any
    effect: str
    """One of EFFECTS."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that changes."""

    cluster: str
    against: str
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    calls: tuple[Calls, ...] = ()
    """Who may call what afterwards."""
    listens: tuple[Listener, ...] = ()
    """What listens where afterwards."""
    dialled: tuple[Dialled, ...] = ()
    """What programs may dial afterwards, beside routes."""

    def cvms(self, effect: str) -> tuple[str, ...]:
        """The CVMs with this effect, each once, by the gravest effect that it has."""
        return tuple(sorted(change.name for change in self.changes if change.kind == "cvm" and change.effect == effect))

    @property
    def needs_manifest(self) -> bool:
        """Whether a manifest must be generated and signed again before the change works."""
        return _needs_manifest(self.changes)

    def document(self) -> dict[str, Any]:
        """The documented JSON (docs/cli.md)."""
        return {
            "cluster": self.cluster,
            "against": self.against,
            "changes": [dataclasses.asdict(change) for change in self.changes],
            "cvms": {effect: list(self.cvms(effect)) for effect in (CREATE, DELETE, REPLACE, REDEPLOY, RESTART)},
            "needs_manifest": self.needs_manifest,
            "calls": {
                it.group: {
                    "may_call": list(it.may_call),
                    "called_by": {backend: list(callers) for backend, callers in it.called_by.items()},
                }
                for it in self.calls
            },
            "listens": [dataclasses.asdict(it) for it in self.listens],
            "egress": [dataclasses.asdict(it) for it in self.dialled],
            "warnings": list(self.warnings),
        }


def compare(before: Snapshot | None, after: Snapshot, against: str) -> Plan:
    """The plan that leads from `before` (None: nothing exists) to `after`."""
    whole = before is None
    start = before or Snapshot(cluster=after.cluster, peers={}, backends={}, routes={}, secrets={})
    if whole:
        nothing: dict[str, Any] = {"egress": {}, "composes": {}, "images": {}, "environment": {}, "public": {}}
        start = dataclasses.replace(start, settings=after.settings, **nothing)
    fates = _app_fates(start, after)
    tables = [*(_in_app(change, start, after, fates) for change in _tables(start, after)), *_settings(start, after)]
    changes = [*_cvms(start, after, fates), *tables]
    return Plan(
        cluster=after.cluster,
        against=against,
        changes=tuple(changes),
        warnings=tuple(_warnings(start, after, whole)),
        calls=who_calls(after),
        listens=listeners(after),
        dialled=dialled(after),
    )


def _needs_manifest(changes: Iterable[Change]) -> bool:
    return any(
        change.effect not in (NONE, RESTART)
        or change.kind in ("port", "permission", "ingress", "environment")
        or (change.kind == "setting" and change.effect == RESTART and change.name != "size")
        for change in changes
    )


def _in_app(change: Change, before: Snapshot, after: Snapshot, fates: Mapping[str, tuple[str, str]]) -> Change:
    """What belongs to an app that is made or goes is made or goes with it; else it has the app's fate."""
    if change.kind not in ("image", "environment", "compose"):
        return change
    app = _app(change.name)
    if app not in {peer["group"] for peer in before.peers.values()}:
        return dataclasses.replace(change, effect=CREATE)
    if app not in {peer["group"] for peer in after.peers.values()}:
        return dataclasses.replace(change, effect=DELETE)
    return dataclasses.replace(change, effect=fates[app][0])


def _app_fates(before: Snapshot, after: Snapshot) -> dict[str, tuple[str, str]]:
    """What happens to the CVMs that an app keeps: effect and why. Apps that nothing happens to are not in it."""
    apps = {peer["group"] for peer in after.peers.values()} & {peer["group"] for peer in before.peers.values()}
    if before.cluster != after.cluster:
        return dict.fromkeys(apps, (REPLACE, "the cluster's name is part of the apps' names"))
    for name in ("region", "kms"):
        if name in before.settings and before.settings.get(name) != after.settings.get(name):
            return dict.fromkeys(apps, (REPLACE, f"{name} cannot change in place"))
    fates = {app: _fate(before, after, app) for app in apps}
    return {app: fate for app, fate in fates.items() if fate is not None}


def _fate(before: Snapshot, after: Snapshot, app: str) -> tuple[str, str] | None:
    """The gravest thing that happens to the CVMs of an app that stays."""
    if before.composes is not None and before.composes.get(app) != (after.composes or {}).get(app):
        return REDEPLOY, "its compose file changed, and with it the compose hash"
    if before.environment is not None:
        old, new = (_own(table, app) for table in (before.environment, after.environment or {}))
        if old.keys() != new.keys():
            return REDEPLOY, "names of variables are measured, so the compose hash changes"
        if old != new:
            return RESTART, "values of its variables changed"
    if "size" in before.settings and _size(before, app) != _size(after, app):
        return RESTART, "the instance type changed"
    if "attestation" in before.settings and _image(before) != _image(after):
        return RESTART, "the OS image changed, which is measured"
    if _coordinators(before) != _coordinators(after):
        return RESTART, "the coordinators change, and CVMs are told where they are"
    return None


def _cvms(before: Snapshot, after: Snapshot, fates: Mapping[str, tuple[str, str]]) -> Iterator[Change]:
    old_groups = {peer["group"] for peer in before.peers.values()}
    new_groups = {peer["group"] for peer in after.peers.values()}
    for peer in _both(before.peers, after.peers):
        old, new = before.peers.get(peer), after.peers.get(peer)
        group = (new or old or {})["group"]
        if old is None:
            note = "" if group in old_groups else f"new app {after.cluster}-{group}"
            yield Change(kind="cvm", name=peer, action="add", before=None, after=new, effect=CREATE, note=note)
        elif new is None:
            note = (
                f"app {before.cluster}-{group} goes"
                if group not in new_groups
                else "the provider may refuse to shorten members"
            )
            yield Change(kind="cvm", name=peer, action="remove", before=old, after=None, effect=DELETE, note=note)
        else:
            effect, note = fates.get(group, (MANIFEST, ""))
            if group in fates or (old != new and (old["address"] or before.routes is not None)):
                # Without a signed manifest the addresses are not known; with one, a slot without address is not signed.
                yield Change(kind="cvm", name=peer, action="change", before=old, after=new, effect=effect, note=note)


_BACKEND = {
    "port": ("port", "sidecar_port"),
    "permission": ("key_prefixes", "session_write", "identity", "owner", "service"),
    "callers": ("callers",),
    "ingress": ("source", "proxy_protocol", "ingress", "public"),
}


def _tables(before: Snapshot, after: Snapshot) -> Iterator[Change]:
    for name, old, new in _rows(before.routes, after.routes):
        vips = (old or {}).pop("vip", None), (new or {}).pop("vip", None)
        if old != new:
            yield _change("route", name, old, new, MANIFEST)
        if vips[0] != vips[1]:
            yield _change("vip", name, vips[0], vips[1], MANIFEST)
    for name, old, new in _rows(before.backends, after.backends):
        for kind, fields in _BACKEND.items():
            one, other = ({f: row[f] for f in fields} if row else None for row in (old, new))
            if one != other:
                yield _change(kind, name, one, other, MANIFEST)
    yield from _table("egress", before.egress, after.egress, MANIFEST)
    yield from _table("secret", before.secrets, after.secrets, MANIFEST)
    yield from _table("image", before.images, after.images, REDEPLOY)
    yield from _table("environment", before.environment, after.environment, RESTART)
    yield from _table("public", before.public, after.public, NONE)
    yield from _table("compose", _digests(before.composes), _digests(after.composes), REDEPLOY)


def _digests(texts: Mapping[str, str] | None) -> dict[str, str] | None:
    """Compose files as a plan names them: their length, and a hash of their text."""
    if texts is None:
        return None
    return {
        app: f"{len(text.splitlines())} lines, {hashlib.sha256(text.encode()).hexdigest()[:12]}"
        for app, text in texts.items()
    }


def _table(
    kind: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, effect: str
) -> Iterator[Change]:
    if before is None or after is None:
        return
    for name in _both(before, after):
        if (name in before, before.get(name)) != (name in after, after.get(name)):
            yield _change(kind, name, before.get(name), after.get(name), effect)


def _settings(before: Snapshot, after: Snapshot) -> Iterator[Change]:
    effects = {"region": REPLACE, "kms": REPLACE, "size": RESTART, "rendezvous": MANIFEST}
    for name in _both(before.settings, after.settings):
        if name not in before.settings:
            continue
        old, new = before.settings.get(name), after.settings.get(name)
        if name == "size":
            apps = {peer["group"] for peer in after.peers.values()} & {peer["group"] for peer in before.peers.values()}
            old, new = ({app: _size(it, app) for app in sorted(apps)} for it in (before, after))
        if old != new:
            effect = effects.get(name) or _demanded(before, after)
            yield _change("setting", name, old, new, effect)


def _warnings(before: Snapshot, after: Snapshot, whole: bool) -> Iterator[str]:
    required = (after.settings.get("attestation") or {}).get("require_digests", True) is not False
    tags = sorted(name for name, image in (after.images or {}).items() if "@sha256:" not in image)
    if tags and not required:
        # Where digests are required they are an error, which names file and line (`meshctl.plan`).
        says = "they can be moved to another image after they were measured"
        yield f"images by tag, not by digest: {', '.join(tags)}; {says}"
    if not after.says_who_calls:
        yield (
            "cluster.tf does not say who calls whom, so every group may call every backend: who dials what? write "
            "calls = [routes that it dials] into each group, and [] into one that calls nobody"
        )
    yield from _of_variables(after)
    yield from listener_warnings(after)
    if whole:
        return
    if _new_values(before, after):
        yield (
            f"signed values of variables change ({', '.join(_new_values(before, after))}): set them before you apply "
            "(./mesh generate, sign, set), for applications start only with what the manifest in force says"
        )
    if before.cluster != after.cluster:
        yield f"the cluster is renamed from {before.cluster} to {after.cluster}: every app and every key is new"
    yield from coordinators_go(_coordinators(before), _coordinators(after))
    if "rendezvous" in before.settings and before.settings["rendezvous"] != after.settings.get("rendezvous"):
        yield "the rendezvous changes: CVMs that run go on with those that they know until they start anew"
    gone = set(before.routes or ()) - set(after.routes or ())
    if gone:
        yield f"code that dials {', '.join(sorted(gone))} will find no such name"
    missing = [name for name in ("composes", "public") if getattr(before, name) is None]
    if missing:
        yield f"not compared, because the state given does not have it: {', '.join(missing)}"
    if before.routes is None:
        yield (
            "not compared, because nothing is signed yet (manifest.signed): routes, VIPs, ports, permissions, callers, "
            "secrets, mesh addresses"
        )


def _of_variables(after: Snapshot) -> Iterator[str]:
    """What compose files make of variables, where that cannot be meant."""
    if after.unseen:
        yield (
            f"values of compose_env that no container has under their own name are not held against the manifest: "
            f"{', '.join(after.unseen)}; pass them on under environment as NAME: ${{NAME}}"
        )
    if after.unused:
        yield f"nothing uses these values of compose_env: {', '.join(after.unused)}; refer to them in the compose file"
    if after.unset:
        yield (
            f"nothing sets these variables of compose files, so they are empty: {', '.join(after.unset)}; add them to "
            "compose_env, or write a default, ${NAME:-…}"
        )


def _new_values(before: Snapshot, after: Snapshot) -> list[str]:
    """The variables of groups whose names of variables stay as they are, and whose values do not."""
    old, new = before.environment or {}, after.environment or {}
    changed = [name for name in old if name in new and old[name] != new[name]]
    return [name for name in changed if _own(old, _app(name)).keys() == _own(new, _app(name)).keys()]


def _app(name: str) -> str:
    return name.partition("/")[0]


def coordinators_go(before: Collection[str], after: Collection[str]) -> Iterator[str]:
    """What a person should know when coordinators go; `before` and `after` are their peer IDs."""
    lost = [peer for peer in before if peer not in after]
    if not lost:
        return
    yield (
        f"coordinators go ({', '.join(lost)}): set the manifest first, and end their CVMs when their status says that "
        "their Consul servers have left"
    )
    staying = len(before) - len(lost)
    if staying <= len(before) // 2:
        yield (
            f"{staying} of {len(before)} coordinators stay, which is no majority: where those that go are not reached, "
            "what they acknowledged and the others have not is lost (docs/operations.md)"
        )


def _coordinators(snapshot: Snapshot) -> list[str]:
    return [peer for peer, facts in snapshot.peers.items() if facts["group"] == COORDINATOR]


def _rows(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Iterator[tuple[str, Any, Any]]:
    if before is None or after is None:
        return
    for name in _both(before, after):
        old, new = before.get(name), after.get(name)
        yield name, dict(old) if old is not None else None, dict(new) if new is not None else None


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys([*other, *one]))


def _change(kind: str, name: str, before: Any, after: Any, effect: str) -> Change:
    action = _ACTIONS.get((before is not None, after is not None), "change")
    return Change(kind=kind, name=name, action=action, before=before, after=after, effect=effect)


def _own(table: Mapping[str, str], app: str) -> dict[str, str]:
    return {name: value for name, value in table.items() if _app(name) == app}


def _demanded(before: Snapshot, after: Snapshot) -> str:
    """The effect of a change of what evidence has to show."""
    if _image(before) != _image(after):
        return RESTART
    tcb = ("allow_development_images", "allowed_tcb_statuses", "rejected_advisories")
    demands = [(it.settings.get("attestation") or {}) for it in (before, after)]
    return MANIFEST if any(demands[0].get(name) != demands[1].get(name) for name in tcb) else NONE


def _size(snapshot: Snapshot, app: str) -> Any:
    sizes = snapshot.settings.get("size") or {}
    return sizes.get(app, sizes.get("default"))


def _image(snapshot: Snapshot) -> Any:
    return (snapshot.settings.get("attestation") or {}).get("image")
