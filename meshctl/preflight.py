"""A manifest for revisions that are not deployed yet, out of what the cloud says that they will measure. Pure.

Setting it before the update lets CVMs of both revisions in while the update goes from one CVM to the next; generated
from the deployment afterwards, the manifest loses the older ones. The cloud adds its own to an app-compose.json, so its
hash cannot be computed here: where the cloud shows the text, that is held against the files and the hash against it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from meshctl.app_compose import AppCompose
from meshctl.manifest_facts import Reviewed
from topology.cluster import Cluster
from topology.envelope import Signed
from topology.manifest import Coordinators, GroupEntry
from topology.model import COORDINATOR
from topology.owners import Owners
from topology.problems import ClusterError
from topology.public import gateway_bases
from topology.render import AppFacts, Deployment, environment_names
from topology.trees import ManifestError, from_tree

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AppForecast:
    """What the cloud says of the next revision of one app."""

    app_id: str
    compose_hash: str
    app_compose: str | None = None
    """The text, where the cloud shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Of the apps that will change."""

    format: int
    cluster: str
    apps: dict[str, AppForecast]


def read(text: str) -> Forecast:
    """The forecast in `text`. ClusterError names what is wrong."""
    try:
        tree = json.loads(text)
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise ManifestError(f"expected an object of format {FORMAT}")
        found: Forecast = from_tree(Forecast, tree, "preflight")
    except (ValueError, RecursionError) as error:
        form = (
            '{"format": 1, "cluster": "…", "apps": {"api": {"app_id": "…", "compose_hash": "…", "app_compose": null}}}'
        )
        raise ClusterError([f"the preflight file cannot be used: {error}; expected {form}"]) from error
    return found


def review(
    cluster: Cluster,
    forecast: Forecast,
    files: Mapping[str, str],
    *,
    pre_launch: frozenset[str],
    owners: Owners,
    head: Signed,
) -> Reviewed:
    """What follows `head` once the forecast is deployed beside what runs. ClusterError with everything that is not as
    the files here say. `files` and `pre_launch` as in `manifest_facts.review`.
    """
    known: dict[str, Coordinators | GroupEntry] = {COORDINATOR: head.manifest.coordinators, **head.manifest.groups}
    problems = list(_misfits(cluster, forecast, files, known))
    notes: list[str] = []
    for name, app in sorted(forecast.apps.items()):
        if name not in files:
            continue
        if app.app_compose is None:
            notes.append(f"app {name!r}: that its files will measure {app.compose_hash:.16}… is the cloud's word")
            continue
        try:
            compose = _compose(cluster, name, app)
        except ClusterError as error:
            problems += error.problems
            continue
        problems += compose.problems(files[name], pre_launch)
        notes += compose.notes()
    if problems:
        raise ClusterError(problems)
    # The new one first, and those that are allowed already: what runs stays in until it is updated.
    new = {name: (app.compose_hash,) for name, app in forecast.apps.items()}
    inherited = {
        name: tuple(
            each for each in (known[name].compose_hashes if name in known else ()) if each not in new.get(name, ())
        )
        for name in files
    }
    facts = {
        name: AppFacts(
            app_id=forecast.apps[name].app_id if name in forecast.apps else known[name].app_id,
            compose_hashes=(*new.get(name, ()), *inherited[name]),
            gateways=_gateways(known.get(name)),
        )
        for name in files
    }
    deployment = Deployment(
        references=head.manifest.references,
        coordinator=facts[COORDINATOR],
        groups={name: found for name, found in facts.items() if name != COORDINATOR},
        coordinator_urls=tuple(peer.url for peer in head.manifest.coordinators.peers),
        rendezvous=head.manifest.rendezvous,
        owners=owners,
        epoch=head.manifest.epoch + 1,
        previous=head.digest,
    )
    documents = {app.compose_hash: app.app_compose for app in forecast.apps.values() if app.app_compose is not None}
    return Reviewed(deployment=deployment, notes=tuple(dict.fromkeys(notes)), inherited=inherited, documents=documents)


def _misfits(
    cluster: Cluster, forecast: Forecast, files: Mapping[str, str], known: Mapping[str, Coordinators | GroupEntry]
) -> Iterator[str]:
    if forecast.cluster != cluster.name:
        yield f"the preflight is of cluster {forecast.cluster!r}, the files are of {cluster.name!r}"
    for name in sorted(set(forecast.apps) - set(files)):
        yield f"app {name!r} is in the preflight, and not in cluster.tf"
    for name in sorted(set(files) - set(forecast.apps) - set(known)):
        yield f"app {name!r} is new in cluster.tf, and not in the preflight"
    for name, app in sorted(forecast.apps.items()):
        if name in known and app.app_id.removeprefix("app_") != known[name].app_id:
            yield f"app {name!r} would have the app ID {app.app_id:.48}, and has {known[name].app_id}: another app"


def _compose(cluster: Cluster, name: str, app: AppForecast) -> AppCompose:
    text = app.app_compose or ""
    found = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    if found != app.compose_hash:
        raise ClusterError([f"app {name!r}: SHA-256 of its app_compose is {found}, not {app.compose_hash:.70}"])
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ClusterError([f"app {name!r}: its app_compose is not JSON: {error}"]) from error
    if not isinstance(tree, dict):
        raise ClusterError([f"app {name!r}: its app_compose is no object"])
    group = next((group for group in cluster.groups if group.name == name), None)
    return AppCompose(
        app=name, name=f"{cluster.name}-{name}", environment=environment_names(group), tree=tree, verb="will measure"
    )


def _gateways(known: Coordinators | GroupEntry | None) -> tuple[str, ...]:
    """The gateways' domains as the manifest in force has them in public names; empty where it has none."""
    if not isinstance(known, GroupEntry):
        return ()
    found = (base for it in known.backends.values() if it.public for base in gateway_bases(known.app_id, it.public))
    return tuple(dict.fromkeys(found))
