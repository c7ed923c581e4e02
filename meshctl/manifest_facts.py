"""From what Terraform reports of a deployment to what the manifest says of it. Pure.

What the cloud reports is not evidence: the owner signs what the owner has seen to be right. So each app's measured
app-compose.json is held against the files here, its hash and event log against each other, and whatever cannot be
compared with anything is listed for a person to judge.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evidence.errors import EvidenceError
from evidence.eventlog import Identity, parse
from meshctl.app_compose import AppCompose
from topology.addresses import rendezvous_address
from topology.cluster import Cluster
from topology.envelope import Signed
from topology.manifest import Manifest, Rendezvous
from topology.model import COORDINATOR
from topology.owners import Owners
from topology.problems import ClusterError
from topology.references import MEASURED, KeyProvider, OsImage, Reference, ReferencesError, TcbPolicy, check_tcb
from topology.render import AppFacts, Deployment
from topology.trees import ManifestError, from_tree

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AppReport:
    """What Terraform reports of one app."""

    app_id: str
    name: str
    environment: tuple[str, ...]
    """Names of the variables that its CVMs are given."""
    instance_ids: tuple[str, ...]
    attestation: str | None
    """The `tcb_info` of its first CVM, JSON."""
    complaint: str | None
    """Why there is none."""
    others: tuple[str, ...] = ()
    """The same of its other CVMs, where they are known: in a lab."""
    gateways: tuple[str, ...] = ()
    """Domains of the platform's gateways in front of its CVMs; empty until the platform knows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RendezvousHost:
    """A host that runs clusters/relay, as the cluster's variables name it."""

    public_key: str
    endpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The output `deployment` of terraform/phala."""

    format: int
    cluster: str
    coordinator_urls: tuple[str, ...]
    """By slot; "" for a coordinator that the platform does not know an instance ID or a gateway of yet."""
    apps: dict[str, AppReport]
    rendezvous: tuple[RendezvousHost, ...]
    tcb: TcbPolicy
    simulated: bool = False
    """A lab's: its OS images are this checkout's, and nobody built or trusts others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewed:
    """What goes into the manifest, and what a person should look at before signing it."""

    deployment: Deployment
    notes: tuple[str, ...]
    inherited: Mapping[str, tuple[str, ...]]
    """By app: the compose hashes that are there for the manifest in force alone: nothing that runs, or will, was seen
    to measure them."""
    documents: Mapping[str, str]
    """The app-compose texts by compose hash, as far as they are known: for whoever verifies."""


def read(text: str) -> Report:
    """The report in `text`. ClusterError names what is wrong.

    `text` is what `terraform output -json deployment` prints, or all of `terraform output -json`.
    """
    try:
        tree = json.loads(text)
        if isinstance(tree, dict) and isinstance(tree.get("deployment"), dict):
            tree = tree["deployment"]["value"]
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise ManifestError(f"expected the output `deployment` of terraform/phala, format {FORMAT}")
        report: Report = from_tree(Report, tree, "deployment")
        check_tcb(report.tcb)
    except ReferencesError as error:
        message = (
            f"Terraform's output deployment.tcb{error}; mend the variable `attestation` in terraform.tfvars, apply"
        )
        raise ClusterError([message]) from error
    except (ValueError, RecursionError, KeyError) as error:
        message = f"Terraform's outputs cannot be used: {error}; give what `terraform output -json deployment` prints"
        raise ClusterError([message]) from error
    return report


def review(
    cluster: Cluster,
    report: Report,
    files: Mapping[str, str],
    *,
    images: tuple[OsImage, ...] | None,
    pre_launch: frozenset[str],
    earlier: Manifest | None,
    owners: Owners,
    after: Signed | None,
) -> Reviewed:
    """What of `report` the manifest takes over. ClusterError with everything that is not as the files here say.

    `files` has the compose file's text by app. `images` are those that the owner approves, None takes the reported.
    `pre_launch` has the SHA-256 of each accepted pre-launch script. The compose hashes of `earlier` stay allowed.
    `owners` will sign what follows; `after` is the manifest before, None for the first.
    """
    problems = list(_misfits(cluster, report))
    notes: list[str] = []
    facts: dict[str, AppFacts] = {}
    documents: dict[str, str] = {}
    inherited: dict[str, tuple[str, ...]] = {}
    seen: dict[OsImage, str] = {}
    providers: dict[KeyProvider, str] = {}
    for name, app in sorted(report.apps.items()):
        measured = _measurements(name, app, problems) if name in files else []
        if not measured:
            continue
        older = _older(measured, files[name], _hashes(after.manifest if after else None, name))
        notes += [cvm.is_older() for cvm in older]
        for cvm in (it for it in measured if it not in older):
            problems += cvm.compose.problems(files[name], pre_launch)
            notes += cvm.compose.notes()
        for cvm in measured:
            documents[cvm.compose_hash] = cvm.text
            seen.setdefault(cvm.image, name)
            providers.setdefault(cvm.key_provider, name)
        hashes = tuple(dict.fromkeys(cvm.compose_hash for cvm in measured if cvm not in older))
        inherited[name] = tuple(each for each in _hashes(earlier, name) if each not in hashes)
        facts[name] = AppFacts(app_id=app.app_id, compose_hashes=(*hashes, *inherited[name]), gateways=app.gateways)
    problems += _image_problems(seen, images)
    problems += _provider_problems(providers)
    notes += _missing(report, images)
    if problems:
        raise ClusterError(list(dict.fromkeys(problems)))
    taken = images or tuple(dataclasses.replace(it, development=report.tcb.allow_development_images) for it in seen)
    deployment = Deployment(
        references=(Reference(name=MEASURED, key_provider=next(iter(providers)), os_images=taken, tcb=report.tcb),),
        coordinator=facts[COORDINATOR],
        groups={name: found for name, found in facts.items() if name != COORDINATOR},
        coordinator_urls=report.coordinator_urls,
        rendezvous=tuple(
            Rendezvous(public_key=it.public_key, endpoint=it.endpoint, address=rendezvous_address(index))
            for index, it in enumerate(report.rendezvous)
        ),
        owners=owners,
        epoch=after.manifest.epoch + 1 if after else 1,
        previous=after.digest if after else None,
    )
    return Reviewed(deployment=deployment, notes=tuple(dict.fromkeys(notes)), inherited=inherited, documents=documents)


def _measurements(name: str, app: AppReport, problems: list[str]) -> list[_Measured]:
    """What the app's CVMs measure; nothing, and a problem more, when that cannot be told."""
    try:
        return [_Measured(name, app, attestation) for attestation in (app.attestation, *app.others)]
    except ClusterError as error:
        problems += error.problems
        return []


def _older(measured: Sequence[_Measured], text: str, allowed: Collection[str]) -> tuple[_Measured, ...]:
    """Those that measure a revision of before, which was signed then, where others have the file as it is here."""
    if not any(cvm.compose.compose_text == text for cvm in measured):
        return ()
    return tuple(cvm for cvm in measured if cvm.compose.compose_text != text and cvm.compose_hash in allowed)


def _missing(report: Report, images: tuple[OsImage, ...] | None) -> Iterator[str]:
    """What is not there and may be meant so."""
    if not report.rendezvous:
        yield "there is no rendezvous: CVMs behind NAT will not find each other; deploy clusters/relay and set it"
    if images is None and not report.simulated:
        yield "OS images are as the cloud reports them: compare them with the ones that you built or trust"


def _misfits(cluster: Cluster, report: Report) -> Iterator[str]:
    again = "run terraform apply, then this again"
    if report.cluster != cluster.name:
        yield f"the deployment is of cluster {report.cluster!r}, the files are of {cluster.name!r}; {again}"
        return
    wanted = {COORDINATOR: cluster.coordinators, **{group.name: group.replicas for group in cluster.groups}}
    for name in sorted(set(wanted) ^ set(report.apps)):
        yield f"app {name!r} is {'not deployed' if name in wanted else 'deployed, but not in cluster.tf'}; {again}"
    for name in sorted(set(wanted) & set(report.apps)):
        if (made := len(report.apps[name].instance_ids)) != wanted[name]:
            yield f"app {name!r} has {made} CVM(s), and cluster.tf has {wanted[name]}; {again}"
    for index, url in enumerate(report.coordinator_urls):
        if not url:
            # Terraform reports "" until the platform knows the instance, which is after the CVM's first boot.
            yield (
                f"coordinator slot {index} has no instance ID or no gateway yet, so nobody could reach it; wait until "
                f"its CVM runs, then {again}"
            )


def _hashes(earlier: Manifest | None, app: str) -> tuple[str, ...]:
    if earlier is None:
        return ()
    if app == COORDINATOR:
        return earlier.coordinators.compose_hashes
    return earlier.groups[app].compose_hashes if app in earlier.groups else ()


def _image_problems(seen: Mapping[OsImage, str], images: tuple[OsImage, ...] | None) -> Iterator[str]:
    measured = {(i.mrtd, i.rtmr0, i.rtmr1, i.rtmr2) for i in images or ()}
    for image, name in seen.items():
        if images is not None and (image.mrtd, image.rtmr0, image.rtmr1, image.rtmr2) not in measured:
            yield (
                f"app {name!r} runs an OS image that is none of the approved ones (MRTD {image.mrtd:.16}…, RTMR1 "
                f"{image.rtmr1:.16}…); deploy an approved image, or add this one after you have checked it"
            )


def _provider_problems(providers: Mapping[KeyProvider, str]) -> Iterator[str]:
    if len(providers) > 1:
        told = ", ".join(f"{name} from {provider.name} …{provider.id[-16:]}" for provider, name in providers.items())
        yield f"the apps have their keys from different providers: {told}; all must use one"


class _Measured:
    """What one CVM of an app says it measured. ClusterError when that does not hold together.

    The answer is the platform's published `TcbInfo`: `mrtd`, `rtmr0` to `rtmr3` (96 hex each), `event_log`,
    `app_compose` and perhaps `rootfs_hash`, and no compose hash. Source: `CvmAttestationSchema` of @phala/cloud
    (Phala-Network/phala-cloud, js/). Other fields are not read.
    """

    def __init__(self, name: str, app: AppReport, attestation: str | None) -> None:
        self._name = name
        self._app = app
        if not attestation:
            reason = f" ({app.complaint})" if app.complaint else ""
            raise self._error(f"has no attestation yet{reason}; wait until its CVM runs, and run terraform apply again")
        try:
            tree = json.loads(attestation)
            self.text: str = tree["app_compose"]
            log = parse(json.dumps(tree["event_log"]))
            self._identity = log.identity(allow_application_events=True)
            self.compose_hash = self._identity.compose_hash
            compose: Any = json.loads(self.text)
            registers = {key: str(tree[key]).lower() for key in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._error(
                f"has an attestation that cannot be read: {error!r}; expected the platform's TcbInfo with mrtd, rtmr0 "
                "to rtmr3, event_log and app_compose"
            ) from error
        except EvidenceError as error:
            raise self._error(f"has an attestation that cannot be used: {error.reason}") from error
        if not isinstance(compose, dict):
            raise self._error("measured an app-compose.json that is no object")
        self.compose = AppCompose(app=name, name=app.name, environment=app.environment, tree=compose)
        self._consistent(registers["rtmr3"], log.replay()[3].hex())
        self.image = OsImage(
            # The platform's answer has no field for it. The event is there where the KMS gave the keys.
            os_image_hash=self._identity.os_image_hash or "",
            mrtd=registers["mrtd"],
            rtmr0=registers["rtmr0"],
            rtmr1=registers["rtmr1"],
            rtmr2=registers["rtmr2"],
        )
        self.key_provider = KeyProvider(name=self._identity.key_provider_name, id=self._identity.key_provider_id)

    def _error(self, what: str) -> ClusterError:
        return ClusterError([f"app {self._name!r} {what}"])

    def _consistent(self, stated: str, replayed: str) -> None:
        own: Identity = self._identity
        pairs = (
            # RTMR3 covers the event log, so the hash in it is the one that was measured.
            ("replay of the event log", replayed, stated),
            ("SHA-256 of app_compose", hashlib.sha256(self.text.encode()).hexdigest(), own.compose_hash),
            ("app ID in the event log", own.app_id, self._app.app_id),
        )
        for what, found, wanted in pairs:
            if found != wanted:
                raise self._error(f"has an attestation that contradicts itself: its {what} gives {found}, not {wanted}")

    def is_older(self) -> str:
        """What a person should know of one that measures a revision of before."""
        return (
            f"app {self._name!r} has a CVM of the revision before ({self.compose_hash:.16}…), which is evicted by this "
            "manifest; --keep-hashes lets both in, for as long as an update takes"
        )


def script_of(report: Report, app: str) -> str:
    """The pre-launch script that `app` measured, "" without one. ClusterError when there is no such app."""
    if app not in report.apps:
        raise ClusterError([f"app {app!r} is not deployed; expected one of {', '.join(sorted(report.apps))}"])
    measured = _Measured(app, report.apps[app], report.apps[app].attestation)
    return measured.compose.script
