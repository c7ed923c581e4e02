"""`./mesh demo trust`: the owner's walk on a lab under load, made of the functions of generate, set, evict and verify.

Its cluster is a copy of the starter, which it edits as a person would. The callers of what does not change call all the
time: none of their calls may be lost, and none of their processes may restart.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshctl import evict, generate, owner_access, verify
from meshctl import status as statuses
from meshctl.console import Progress
from meshctl.errors import UserError
from meshctl.owner import Owner, command, copy_of, title
from meshctl.runs import run_of
from meshctl.trust_load import Caller, Life, processes
from topology.model import COORDINATOR

if TYPE_CHECKING:
    from lab.nat import Nat

NAME = "trust"
STARTER = "starter"
API, WORKER, ADDED = "http://api:8080/hello", "http://worker:9090/hello", "http://jobs:9090/hello"
STAYS = frozenset({"api", COORDINATOR})
"""Groups of the CVMs that no step changes."""
COMPOSE, CLUSTER = Path("compose") / "worker.yaml", "cluster.tf"
ROUTE = 'worker = { backend = "worker", role = null }'
ADDED_ROUTE = 'jobs   = { backend = "worker", role = null }'
AIM_SECONDS = 2.0
"""From a manifest in force to its certificates in every CVM, and to the first call by a new name."""
AIM_LAST_BYTE = 0.5
"""From a manifest in force to the last byte of who may no longer call, or is out."""
CUT_SECONDS = 10.0
"""For a connection to be cut; a hundredth of it is usual."""


@dataclass(slots=True, kw_only=True)
class Walk(Owner):
    """The walk, step by step. UserError ends it."""

    callers: dict[str, Caller] = field(default_factory=dict)

    # -- the steps, in order

    def show(self) -> None:
        """The manifest that the mesh began with, made of its files and of what its CVMs measure."""
        title("The manifest: what may join, as whom, and who may call whom")
        command(f"generate {self.folder}")
        self.generate()
        self.envelopes.append(self.lab().head().envelope)
        for peer in ("api-0", "api-1", "worker-0"):
            self.callers[peer] = Caller(self.run, peer)
            self.callers[peer].do("calls", url=API)

    def add_route(self) -> None:
        """A name that programs that run may dial at once."""
        title("A route is added, while everything runs")
        self._edit_file(CLUSTER, ROUTE, f"{ROUTE}\n        {ADDED_ROUTE}")
        click.echo(f"edited {CLUSTER}: {ADDED_ROUTE}")
        command(f"generate {self.folder}")
        made = self.generate()
        for caller in self.callers.values():
            caller.do("reach", url=ADDED)
        spread = self.set(made, ("api-0", "api-1", "worker-0", "worker-1"))
        self.time("new mesh CA in every CVM", spread.seconds, AIM_SECONDS)
        reached = [caller.do("reached", url=ADDED, seconds=CUT_SECONDS) for caller in self.callers.values()]
        if None in reached:
            raise UserError(f"{ADDED} is not answered in every CVM", "./mesh status", exit_code=1)
        self.time("first call by the new name, everywhere", max(reached) - spread.set_at, AIM_SECONDS)

    def revoke_caller(self) -> None:
        """`api` may call the workers no more; the workers still may. An edit of the manifest by hand."""
        title("A caller is revoked: api may no longer call worker")
        for peer in ("api-0", "worker-0"):
            self.callers[peer].do("hold", name="revoked", url=WORKER, peer="")
        tree = json.loads(self.draft.read_text(encoding="utf-8"))
        tree["groups"]["worker"]["backends"]["worker"]["callers"] = ["worker"]
        self.draft.write_text(generate.pretty(tree), encoding="utf-8")
        click.echo(f'edited {self.draft.name}: groups.worker.backends.worker.callers = ["worker"]')
        command(f"generate {self.folder}")
        spread = self.set(self.generate(), ("api-0", "api-1", "worker-0", "worker-1"))
        self.time("new mesh CA in every CVM", spread.seconds, AIM_SECONDS)
        cut = self.callers["api-0"].do("held", name="revoked", seconds=CUT_SECONDS)
        if cut["cut"] is None:
            raise UserError("the connection of the revoked caller was not cut", "./mesh status", exit_code=1)
        self.time("the revoked caller's held connection is cut", cut["cut"] - spread.set_at, AIM_LAST_BYTE)
        other = self.callers["worker-0"].do("held", name="revoked", seconds=0.0)["cut"] is None
        self.fact("connections of other callers that were cut", "0" if other else "1", other, "0")
        refused = str(self.callers["api-1"].do("ask", url=WORKER)).startswith("!")
        self.fact("a new call of the revoked caller", "refused" if refused else "answered", refused, "refused")

    def replace_hash(self) -> None:
        """Another revision of a group's compose file: CVMs of the one before are out, those of the new one in."""
        title("A group's compose file changes: worker")
        with (self.folder / COMPOSE).open("a", encoding="utf-8") as file:
            file.write("# another revision\n")
        click.echo(f"edited {COMPOSE}: one comment more, so another compose hash")
        command("redeploy worker-1")
        self._redeploy("worker-1")
        reason = self.until(
            lambda: self._refused("worker-1", "compose"), "worker-1 is refused: nobody signed that hash"
        )
        click.echo(f"  worker-1: {reason}")
        self._enough("worker-0")
        command(f"generate {self.folder}")
        made = self.generate()
        began = time.monotonic()
        spread = self.set(made, ("api-0", "api-1"))
        self.time("new mesh CA in every other CVM", spread.seconds, AIM_SECONDS)
        self.until(lambda: self._peer("worker-1")["ready"], "worker-1 is admitted")
        click.echo(f"  worker-1 is admitted with the new hash, {time.monotonic() - began:.1f} s after ./mesh set began")
        reason = self.until(lambda: self._refused("worker-0"), "worker-0, of the revision before, is out")
        click.echo(f"  worker-0: {reason}")
        self.fact("CVM of the hash before", "out", met=True, aim="out")
        self.callers.pop("worker-0").close()
        command("redeploy worker-0")
        self._redeploy("worker-0")
        self.until(lambda: self._peer("worker-0")["ready"], "worker-0 is admitted, too")
        caller = self.until(lambda: self._caller("worker-0"), "its application runs")
        assert caller is not None
        self.callers["worker-0"] = caller

    def evict(self) -> None:
        """One slot is taken away from whoever has it."""
        title("A CVM is evicted: worker-1")
        holder = self.callers["worker-0"]
        self.until(lambda: self._holds(holder, "evicted", "worker-1"), "worker-0 has a connection to worker-1")
        holder.do("hold", name="stays", url=API, peer="")
        command("evict worker-1")
        here = self.lab()
        wanted = evict.without(here.draft(), "worker-1")
        spread = self.set(wanted, ("api-0", "api-1", "worker-0"), already=True)
        evict.edit_draft(self.draft, "worker-1", wanted.rotate.gossip)
        self.time("new mesh CA in every other CVM", spread.seconds, AIM_SECONDS)
        cut = holder.do("held", name="evicted", seconds=CUT_SECONDS)
        if cut["cut"] is None:
            raise UserError("the connection to the evicted CVM was not cut", "./mesh status", exit_code=1)
        self.time("eviction to the last byte", cut["last"] - spread.set_at, AIM_LAST_BYTE)
        stays = holder.do("held", name="stays", seconds=0.0)["cut"] is None
        self.fact("connections to other CVMs that were cut", "0" if stays else "1", stays, "0")
        reason = self.until(lambda: self._refused("worker-1"), "worker-1 hears that it is out")
        click.echo(f"  worker-1: {reason}")

    def verify_outside(self) -> None:
        """As an outsider does it, with a network and without."""
        title("Verified from outside, then once more without a network")
        out = self.folder / "verify"
        command(f"verify --out {out}")
        began = time.monotonic()
        self.verify("--out", str(out))
        self.time("verify: fresh quote, chain of manifests, members", time.monotonic() - began, AIM_SECONDS)
        command(f"verify --offline {out / 'bundle.json'}")
        self.verify("--offline", str(out / "bundle.json"))

    def roll_back(self) -> None:
        """An older manifest, which the owner did sign, is offered by all who could."""
        title("A rollback: the first manifest is offered again")
        self._offer_older()
        first = self.folder / "first.signed"
        first.write_text(self.envelopes[0], encoding="ascii")
        command(f"verify -m {first.name}")
        try:
            self.verify("-m", str(first), "--out", str(self.folder / "refused"))
        except verify.FailedError as error:
            click.echo(f"  exit code {error.exit_code}: {error.message}")
            self.fact("a reader who holds the older manifest", "refused", met=True, aim="refused")
        else:
            self.fact("a reader who holds the older manifest", "believed it", met=False, aim="refused")

    def end(self, before: dict[str, Life]) -> None:
        """Ends the load and says what was lost, or restarted: of the processes `before`."""
        for peer in list(self.callers):
            if peer != "worker-0":
                self._enough(peer)
            self.callers.pop(peer).close()
        again = processes(self.run, STAYS)
        restarted = [name for name, life in again.items() if before.get(name) != life]
        for name in restarted:
            click.echo(f"restarted: {name}: {before.get(name)}, then {again[name]}", err=True)
        self.fact("processes of unchanged CVMs that restarted", str(len(restarted)), met=not restarted, aim="0")

    # -- what the steps are made of

    def _edit_file(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        if old not in text:
            raise UserError(f"{path} has no line {old!r}", "take clusters/starter as it was shipped")
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    def _redeploy(self, peer: str) -> None:
        answer = self.run.call("POST", f"/machines/{peer}/redeploy", seconds=60.0)
        click.echo(f"  {peer} measures {answer['compose_hash']:.16}…")

    def _offer_older(self) -> None:
        """Straight to the coordinator: whoever can reach it may send what owners once signed."""
        click.secho("$ POST /v1/manifest with the first manifest, past ./mesh set", fg="cyan")
        try:
            self.lab().mesh.put(self.envelopes[0])
        except owner_access.RefusedError as refusal:
            click.echo(f"  {refusal.message}")
            self.fact("an older manifest, set past the checks of ./mesh set", "refused", met=True, aim="refused")
        else:
            self.fact("an older manifest, set past the checks of ./mesh set", "taken", met=False, aim="refused")

    def _enough(self, peer: str) -> None:
        found = self.callers[peer].do("enough", url=API)
        for at, error in found["some"]:
            click.echo(f"lost in {peer} at {at:.3f}: {error}", err=True)
        self.fact(f"calls of {peer} that were lost, of {found['good'] + found['lost']}", str(found["lost"]),
                   found["lost"] == 0 and found["good"] > 0, "0")  # fmt: skip

    def _caller(self, peer: str) -> Caller | None:
        """One in the application of `peer`, once that runs."""
        try:
            caller = Caller(self.run, peer)
            caller.do("ask", url=WORKER)
        except UserError:
            return None
        return caller

    def _holds(self, caller: Caller, name: str, peer: str) -> bool:
        """Whether there is a held connection now; an instance that has just come is not in every Envoy yet."""
        try:
            caller.do("hold", name=name, url=WORKER, peer=peer)
        except UserError:
            return False
        return True

    def _peer(self, peer: str) -> dict[str, Any]:
        document = statuses.contract(statuses.collect(self.run))
        found: dict[str, Any] | None = next((it for it in document["peers"] if it["peer_id"] == peer), None)
        if found is None:
            raise UserError(f"there is no CVM {peer!r} any more", "./mesh status", exit_code=1)
        return found

    def _refused(self, peer: str, word: str = "") -> str:
        """Why `peer` is not admitted, with `word` in it; empty while it is, or has not been told."""
        found = self._peer(peer)
        told = "; ".join(found["reasons"]) if not found["ready"] and (found["admission"] or {}).get("reason") else ""
        return told if word in told else ""


def demo(nat: Nat, name: str | None, progress: Progress) -> None:
    """The whole walk on a mesh of its own, which runs on. UserError, with exit code 1 when anything was lost."""
    from meshctl.lab_commands import start_mesh

    folder = copy_of(STARTER, run_of(name or NAME))
    run, _document, _entries = start_mesh(str(folder), {}, nat, name or NAME)
    walk = Walk(run=run, folder=folder, progress=progress)
    try:
        before = processes(run, STAYS)
        for step in (walk.show, walk.add_route, walk.revoke_caller, walk.replace_hash, walk.evict, walk.verify_outside,
                     walk.roll_back):  # fmt: skip
            step()
        walk.end(before)
    finally:
        for caller in walk.callers.values():
            caller.close()
    walk.finish()
