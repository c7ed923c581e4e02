"""How an owner reaches the coordinators of a mesh: of a lab that runs here, or of one that is deployed.

IO: HTTP, the lab. A coordinator is asked nothing before its evidence holds by the manifest that the owner names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshctl import runs
from meshctl.asking import Answer, Question, Trust, ask, ask_in_lab
from meshctl.attestation import MAX_PAGES
from meshctl.errors import UserError
from meshctl.verify_files import SEEN_IN_LAB

if TYPE_CHECKING:
    from topology.envelope import Signed
    from topology.manifest import Manifest
    from topology.owners import Owners

PATH = "/v1/manifest"
HISTORY = f"{PATH}/history"
OWNER_KEY = "owner.pem"
"""In a lab's folder: the key of its owner, which signs for that lab only."""
FIRST = "manifest.signed"
"""In a lab's folder: the manifest that it began with."""
NOT_READY = "NOT_READY"
"""The code of a coordinator that begins with its first manifest, or waits for its owners."""
NO_DOCUMENTS: Mapping[str, str] = {}


class RefusedError(UserError):
    """A coordinator whose evidence holds said no."""

    def __init__(self, url: str, answer: Answer) -> None:
        again = "./mesh generate and sign again, after the one in force" if "head" in answer.tree else ""
        super().__init__(f"{url} refuses: {answer.code}: {answer.reason}", again, exit_code=1)
        self.code, self.reason, self.tree = answer.code, answer.reason, answer.tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """A mesh whose coordinator can be asked."""

    name: str
    """For people."""
    url: str
    ask: Callable[[Question], Answer]
    seen: Path | None = None
    """Where is remembered what was seen enforced; None: where this machine keeps it for the mesh."""

    def head(self, references: str) -> Signed:
        """The manifest in force, from a coordinator that is what the envelope `references` wants. UserError."""
        return _opened(self._call(references, "GET").tree, self.url)

    def known(self, references: str) -> tuple[Signed, str]:
        """What the next manifest has to follow, and why that one is not in force: a coordinator that waits for the
        owners to drop those that are lost. "" when it is in force. UserError as `head`.
        """
        try:
            return self.head(references), ""
        except RefusedError as refusal:
            if refusal.code != NOT_READY or "head" not in refusal.tree:
                raise
            return _opened(refusal.tree["head"], self.url), refusal.reason

    def history(self, references: str, after: int) -> tuple[str, ...]:
        """The envelopes of the manifests that were in force after epoch `after`, oldest first, as the coordinator says.
        UserError as `head`.
        """
        found: list[str] = []
        for _ in range(MAX_PAGES):
            tree = self._call(references, "GET", path=f"{HISTORY}?after={after}").tree
            try:
                page = [(int(each["epoch"]), str(each["envelope"])) for each in tree.get("manifests", ())]
            except (TypeError, ValueError, KeyError) as error:
                raise UserError(f"{self.url} answers with no history: {error!r:.200}", exit_code=1) from error
            found += [envelope for _, envelope in page]
            if not page or page[-1][0] <= after or not tree.get("more"):
                break
            after = page[-1][0]
        return tuple(found)

    def put(self, envelope: str, documents: Mapping[str, str] = NO_DOCUMENTS) -> Signed:
        """Sets the manifest in `envelope`, and hands over the app-compose texts `documents`; the one in force
        afterwards. UserError with the coordinator's reason.
        """
        body: dict[str, object] = {"envelope": envelope}
        if documents:
            body["documents"] = dict(documents)
        return _opened(self._call(envelope, "POST", body).tree, self.url)

    def _call(self, references: str, method: str, body: dict[str, object] | None = None, path: str = PATH) -> Answer:
        answer = self.ask(Question(url=self.url, references=references, method=method, path=path, body=body))
        if answer.code:
            raise RefusedError(self.url, answer)
        return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A lab that runs, and the key of its owner."""

    mesh: Mesh
    folder: Path

    def head(self) -> Signed:
        """What the next manifest has to follow: the one in force, where there is one. UserError."""
        return self.mesh.known(self._first())[0]

    def draft(self) -> Manifest:
        """What follows the manifest in force, and is otherwise the same."""
        head = self.head()
        return replace(head.manifest, epoch=head.manifest.epoch + 1, previous=head.digest)

    @property
    def key(self) -> Path:
        """Where the private key of the lab's owner is."""
        return self.folder / OWNER_KEY

    @property
    def owners(self) -> Owners:
        """Whom the lab's compose files name: that owner alone. UserError."""
        from meshctl.manifest_keys import load
        from topology.owners import Owners, key_of

        return Owners(keys=(key_of(load(self.key)),))

    def sign(self, manifest: Manifest) -> str:
        """The envelope of `manifest`, signed by the lab's owner."""
        from meshctl.manifest_keys import load
        from topology.envelope import seal

        return seal(manifest, load(self.key))

    def _first(self) -> str:
        return (self.folder / FIRST).read_text(encoding="ascii")


def lab(name: str | None, but: str = "") -> Lab:
    """The lab called `name`, or the only one that runs, by another coordinator than `but`. UserError when none of
    them is ready.
    """
    from meshctl import status as statuses
    from topology.envelope import open_envelope
    from topology.model import COORDINATOR

    run = runs.find(name)
    machines = statuses.collect(run)["machines"]
    leads = {m["peer_id"]: m["sidecar"] or {} for m in machines if m["group"] == COORDINATOR}
    if leads.pop(but, None) is not None and not leads:
        raise UserError(f"{but} is the only coordinator", "./mesh set a manifest with another one beside it first")
    ready = [peer_id for peer_id, said in leads.items() if said.get("ready")]
    ready += [peer_id for peer_id, said in leads.items() if said.get("leaderless")]
    if not ready:
        raise UserError(f"no coordinator of {run.name!r} is ready", "./mesh status says what it waits for", exit_code=1)
    first = open_envelope((run.folder / FIRST).read_text(encoding="ascii"), None).manifest
    urls = {peer.peer_id: peer.url for peer in first.coordinators.peers}
    coordinator = ready[0]
    mesh = Mesh(
        name=run.name,
        url=urls[coordinator],
        ask=lambda question: ask_in_lab(run, coordinator, question),
        seen=run.folder / SEEN_IN_LAB,
    )
    return Lab(mesh=mesh, folder=run.folder)


def deployed(url: str, pccs_url: str, dev_root: Path | None) -> Mesh:
    """The mesh with a coordinator at `url`."""
    from meshctl.verify import root_in

    trust = Trust(pccs_url=pccs_url, dev_root=root_in(dev_root) if dev_root else None)
    if dev_root is not None:
        click.echo("INSECURE: quotes of a simulated TEE are believed (--insecure-root)", err=True)
    if not url.startswith("https://"):
        raise UserError(f"-c is {url!r:.200}: a coordinator is asked by https only", "-c https://host:port")
    return Mesh(name=url, url=url.rstrip("/"), ask=lambda question: ask(question, trust))


def _opened(tree: dict[str, Any], url: str) -> Signed:
    from topology.envelope import open_envelope
    from topology.trees import ManifestError

    try:
        return open_envelope(str(tree.get("envelope", "")), None)
    except ManifestError as error:
        raise UserError(f"{url} shows a manifest that cannot be read: {error}", exit_code=1) from error
