"""What a member remembers of its cluster, inside Patroni's process. IO: PostgreSQL, Consul, the members, the disk.

`Memory` is asked at four moments:
- before Patroni's first round (`prepare`): data that are a fork, too old, or that a `pg_rewind` left half changed, are
  set aside before PostgreSQL starts on them;
- before this member takes the leader key or names a cluster (`may_lead`, `may_initialize`);
- when it has won the key (`won`): the claim is written before the promotion, which does not begin without;
- after each of Patroni's rounds (`look`): a leader records its term, a member that follows compares itself with it.

It reads Patroni's objects by their public methods and changes none of them.

Long because the four moments read and write one record: what was claimed, what was recorded, what stands.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from workloads.patroni import aside, asking, election, marks, record, standing
from workloads.patroni import terms as lists
from workloads.patroni.aside import StaysError
from workloads.patroni.election import Holding, Kind, Verdict
from workloads.patroni.record import Claim, Record
from workloads.patroni.standing import Standing, State
from workloads.patroni.terms import Fork, Position, Remedy, Term, Terms

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 1.5
"""How long a member asks again before it leaves the question to Patroni's next round, 2 s later. All members of a new
cluster start within moments of each other, and none should wait a round for the last one."""
AGAIN_SECONDS = 0.1
TURN_SECONDS = 20.0
"""How long a member on which a new cluster could not be made leaves that to the others. Each of them looks every 2 s,
and asks all members for 1.5 s: ten chances, of which it needs one."""
LIST_SECONDS = 10.0
"""How long a start waits for a new leader to say which term it leads. It says so in the round after its promotion."""
ALONE_SECONDS = 20.0
"""How long nobody leads before a member that may not lead says so: an election takes less, also where the session of a
lost leader has to run out (Patroni's `ttl`)."""
_AT_END = frozenset({"RecoveryRetrieveRetryInterval", "RecoveryWalStream"})
"""What PostgreSQL's startup process waits for once it has replayed all of the log that there is (xlogrecovery.c)."""
_QUESTION = (
    "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery()"
    " THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_flush_lsn() END, '0/0')::bigint,"
    " (SELECT wait_event FROM pg_catalog.pg_stat_activity WHERE backend_type = 'startup'),"
    " CASE WHEN pg_catalog.pg_is_in_recovery() THEN 0 ELSE ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name("
    "pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int END"
)


class ReplaceError(Exception):
    """The data under a running PostgreSQL are a fork, or too old, and only a fresh copy mends that."""


class Store(Protocol):
    """The list of terms in Consul, and what else it knows of the cluster."""

    def read_system_id(self) -> str:
        """The cluster's system identifier; empty where there is none. Raises where Consul does not answer."""

    def forget(self, system_id: str) -> bool:
        """Makes Consul forget the database with this system identifier; whether it knew it. Raises likewise."""

    def nominate(self) -> bool:
        """Lets a synchronous cluster that nobody leads be led by this member; whether it is so. Raises likewise."""

    def read_claim(self) -> str:
        """ID of the term that was claimed last; empty where none was. Raises likewise."""

    def write_claim(self, term_id: str) -> None:
        """Writes that ID. Raises likewise."""

    def read_terms(self) -> tuple[int, str]:
        """Index and text of the key; 0 and "" where there is none. Raises where Consul does not answer."""

    def write_terms(self, text: str, index: int) -> bool:
        """Writes the key if it still has this index; whether it had."""


class Memory:
    """Of the member `peer_id`. Everything is called by Patroni's main thread, `tags` by others as well."""

    def __init__(
        self,
        peer_id: str,
        run: Path,
        members: Callable[[], Mapping[str, tuple[str, int]]],
        draw: Callable[[], str],
        paused: Callable[[], bool],
    ) -> None:
        """`members`: the REST address of each member that the manifest lists. `draw`: a new term ID. `paused`: whether
        Patroni leaves the cluster alone; an emptied Consul does not change that.
        """
        self._peer_id = peer_id
        self._run = run
        self._members = members
        self._draw = draw
        self._paused = paused
        self._postgresql: Any = None
        self._dcs: Any = None
        self._holding: str | None = None
        self._turn_at = 0.0
        """When this member may make a cluster again (the monotonic clock)."""
        self._alone_since: float | None = None
        """Since when this member knows that nobody leads (the monotonic clock)."""
        self._standing = Standing()
        standing.write(run, self._standing)

    def bind(self, postgresql: Any, dcs: Any, log_begins: Callable[[], int] = lambda: 0) -> None:
        """Takes Patroni's PostgreSQL and DCS, which are made after this object. `log_begins`: asks the leader for the
        LSN at which its log begins; raises where it does not answer.
        """
        self._postgresql, self._dcs, self._log_begins = postgresql, dcs, log_begins

    @property
    def tags(self) -> dict[str, Any]:
        """Patroni's tags for what is known: `patronictl list` shows them, elections and readers go by them."""
        found: dict[str, Any] = {}
        if self._holding is not None:
            found[election.TAG] = self._holding
        if self._standing.state is State.FORK:
            found |= {"nofailover": True, "nosync": True, "noloadbalance": True, "fork": self._standing.reason}
        if self._standing.state is State.BEHIND:
            found |= {"noloadbalance": True, "behind": self._standing.reason}
        return found

    # Patroni's rounds.

    def prepare(self, leader: Callable[[], str | None]) -> bool:
        """Before the first round, PostgreSQL being down: whether the round may begin. `leader`: asks Consul who leads;
        None: nobody.
        """
        data = Path(self._postgresql.data_dir)
        self._clear_away(data)
        if self._postgresql.data_directory_empty():
            self._clear_marks(data)
            if self._standing.state is State.FOREIGN:
                self._stand(Standing())
            self._tell(Kind.EMPTY)
            return True
        if self._is_foreign(data):
            return False
        if marks.REWIND.is_set(data):
            return self._set_aside(data, Fork(remedy=Remedy.COPY, reason="a pg_rewind of the data did not succeed"))
        self._settle(data)
        end = time.monotonic() + LIST_SECONDS
        while (name := leader()) not in (None, self._peer_id):
            own, theirs = record.load(data).terms, self._terms_of(name)
            fork = lists.compare(own, None, theirs)
            if fork is not None and fork.remedy is Remedy.COPY:
                return self._set_aside(data, fork)
            if marks.BEHIND.is_set(data):
                behind = Fork(remedy=Remedy.COPY, reason="the leader has removed log that this member lacks")
                return self._set_aside(data, behind, State.BEHIND)
            # One that has led before is in the list already, with its last term: this member's may be as new.
            said = bool(theirs) and (not own or own[-1].timeline <= theirs[-1].timeline)
            if said or time.monotonic() > end:
                break
            time.sleep(AGAIN_SECONDS)
        # Of an earlier attempt, when the data had to stay and another one led.
        marks.BEHIND.clear(data)
        self._stand(Standing())
        return True

    def _is_foreign(self, data: Path) -> bool:
        """Whether the data are of another database than the one that Consul knows; the status says so then.

        Patroni would end at once, again and again.
        """
        named, own = self._dcs.read_system_id(), str(self._postgresql.sysid)
        # Empty where pg_controldata cannot read it: Patroni says that.
        if not (named and own) or named == own:
            return False
        reason = (
            f"the data in {data} are of the database {own}, and the cluster is {named} (system identifiers): mount the "
            f"right disk, or move {data} away, and this member becomes a copy of the leader"
        )
        self._stand(Standing(state=State.FOREIGN, reason=reason))
        self._tell(Kind.UNSETTLED)
        return True

    @staticmethod
    def _clear_marks(data: Path) -> None:
        """The data to which they belonged are gone."""
        for mark in (marks.REWIND, marks.BEHIND):
            mark.clear(data)

    def _clear_away(self, data: Path) -> None:
        """Removes the half of a database that a bootstrap left behind which did not get to its end."""
        if not marks.MAKING.is_set(data):
            return
        named = self._dcs.read_system_id()
        if not self._postgresql.data_directory_empty() and (not named or named != self._postgresql.sysid):
            log.warning("making a new cluster did not come to its end here; removing what there is of it")
            shutil.rmtree(data)
        marks.MAKING.clear(data)
        self._turn_at = time.monotonic() + TURN_SECONDS

    def spoil(self) -> None:
        """`pg_rewind` has failed, and PostgreSQL is down: the next start is told not to start it on these data, changed
        or not. OSError where the disk refuses.
        """
        marks.REWIND.set(Path(self._postgresql.data_dir))

    def look(self, leader: str | None, system_id: str = "", named: Collection[str] = ()) -> None:
        """After a round that found `leader` in Consul, the cluster's `system_id` (empty: none), and the members that
        alone may lead a synchronous cluster, `named`.

        ReplaceError where PostgreSQL has to end. Raises what Consul and PostgreSQL raise; the next round looks again.
        """
        if leader is not None:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = time.monotonic()
        if self._postgresql.data_directory_empty():
            self._tell(Kind.EMPTY)
            if leader is not None:
                # It copies the leader now.
                self._end_waiting()
            elif system_id:
                self._miss(system_id)
        elif leader is None:
            self._tell(self.holding())
            if named and self._peer_id not in named:
                self._stay_alone(named)
        elif leader == self._peer_id:
            # While it is promoted PostgreSQL has enough to do, and nobody asks: the key is taken.
            self._tell(None)
            self._lead()
        else:
            self._tell(None)
            self._follow(leader)

    def _end_waiting(self) -> None:
        if self._standing.state is State.WAITING:
            self._stand(Standing())

    def _miss(self, system_id: str) -> None:
        """Nobody leads, and this member lacks the database that Consul knows: the status says what it waits for.

        At an operator's word Consul forgets it, and Patroni makes a new cluster.
        """
        verdict = self._judge(election.may_replace, Holding(kind=Kind.EMPTY))
        if verdict.allowed:
            log.warning("Consul is to forget the database %s: %s", system_id, verdict.reason)
            self._dcs.forget(system_id)
        else:
            reason = f"nobody leads the database that Consul knows (system identifier {system_id}): {verdict.reason}"
            self._stand(Standing(state=State.WAITING, reason=reason))

    def _stay_alone(self, named: Collection[str]) -> None:
        """Nobody leads, and only `named` may: the status says so. At an operator's word this member may, too."""
        if self._standing.state is State.FORK:
            return
        if self._alone_since is None or time.monotonic() < self._alone_since + ALONE_SECONDS:
            return
        if not self._is_allowed():
            reason = (
                f"nobody leads, and only {' or '.join(sorted(named))} may: the others do not have every acknowledged "
                "write of a synchronous cluster"
            )
            self._stand(Standing(state=State.WAITING, reason=reason))
            return
        verdict = self._judge(election.may_succeed, self.holding())
        if verdict.allowed and self._dcs.nominate():
            log.warning("this member may lead in place of %s: %s", " or ".join(sorted(named)), verdict.reason)
        elif not verdict.allowed:
            self._stand(Standing(state=State.WAITING, reason=f"nobody leads: {verdict.reason}"))

    def _lead(self) -> None:
        """Records the term that this member leads, here and in Consul; the next round tries again what failed."""
        timeline = int(self._postgresql.get_primary_timeline())
        if not timeline:
            return
        data = Path(self._postgresql.data_dir)
        old = record.load(data)
        new = record.settle(old, self._peer_id, timeline, self._began(timeline))
        if not new.terms or new.terms[-1].timeline != timeline:
            new = Record(terms=self._told(timeline) or self._extended(new.terms, timeline))
        if new != old:
            record.save(data, new)
            log.info("leading the term %s on timeline %s", new.terms[-1].id, timeline)
        self._stand(Standing())
        index, text = self._dcs.read_terms()
        wanted = lists.dump(new.terms)
        if text != wanted:
            self._dcs.write_terms(wanted, index)

    def _told(self, timeline: int) -> Terms:
        """What this member told Consul as the leader of `timeline`, for one whose record was lost: another ID for the
        same term would make a fork of every member that follows, and all would replace their data at once.
        """
        found = self._terms_of(self._peer_id)
        return found if found and found[-1].timeline == timeline else ()

    def _extended(self, terms: Terms, timeline: int) -> Terms:
        began = self._began(timeline).lsn
        return lists.extend(terms, Term(id=self._draw(), timeline=timeline, begin=began, leader=self._peer_id))

    def _follow(self, leader: str) -> None:
        """Compares this member with its leader, and takes over the leader's list once the data are the leader's."""
        data = Path(self._postgresql.data_dir)
        own = record.load(data)
        theirs = self._terms_of(leader)
        if not theirs:
            return
        runs = bool(self._postgresql.is_running()) and not self._postgresql.is_starting()
        streaming = runs and self._postgresql.replication_state() == "streaming"
        follows = streaming and self._postgresql.received_timeline() == theirs[-1].timeline
        fork = lists.compare(own.terms, self._reaches() if runs and not streaming else None, theirs)
        # PostgreSQL streams a newer timeline only after it has found its own in that one's history. The leader's list
        # may lack a term all the same: one that ended before the leader, as its replica, had recorded it.
        if fork is not None and not (follows and fork.remedy is Remedy.REWIND):
            self._show(fork)
            if fork.remedy is Remedy.COPY:
                raise ReplaceError(fork.reason)
            return
        if not follows:
            if runs and not streaming:
                self._look_for_log(data)
            return
        (self._run / standing.ALLOWANCE).unlink(missing_ok=True)
        self._stand(Standing())
        if own != Record(terms=theirs):
            record.save(data, Record(terms=theirs))

    def _look_for_log(self, data: Path) -> None:
        """ReplaceError where the leader has removed log that this member lacks: it would ask for it for ever."""
        held = self.holding()
        if held.kind is not Kind.STANDBY or self._postgresql.replication_state() is not None:
            # It replays what it has, or an archive brings the log.
            return
        begins = self._log_begins()
        if held.position.lsn >= begins:
            return
        reason = (
            f"the log reaches {lists.lsn(held.position.lsn)}, and what the leader still has begins at "
            f"{lists.lsn(begins)}"
        )
        marks.BEHIND.set(data)
        self._show(Fork(remedy=Remedy.COPY, reason=reason), state=State.BEHIND)
        raise ReplaceError(reason)

    def _reaches(self) -> Position | None:
        timeline, lsn = self._postgresql.get_replica_timeline(), self._postgresql.replay_lsn()
        return Position(timeline=timeline, lsn=lsn) if timeline and lsn else None

    # The leader key.

    def claimed(self) -> bool:
        """Marks that a new cluster is being made here. OSError where the disk refuses."""
        marks.MAKING.set(Path(self._postgresql.data_dir))
        return True

    def won(self) -> bool:
        """Writes the claim, into Consul and onto the disk: the leader key is this member's, and a promotion begins
        unless it is a primary already. OSError where the disk refuses; raises where Consul does not answer.
        """
        data = Path(self._postgresql.data_dir)
        marks.MAKING.clear(data)
        if not self._postgresql.is_primary():
            claim = Claim(id=self._draw(), peer_id=self._peer_id, after=record.newest_timeline(data))
            # Consul first: an earlier leader would find its own claim there, and lead without asking anybody.
            self._dcs.write_claim(claim.id)
            record.save(data, replace(record.load(data), claim=claim))
        (self._run / standing.ALLOWANCE).unlink(missing_ok=True)
        return True

    def may_lead(self) -> bool:
        """Whether this member may take the leader key. Raises where Consul does not answer."""
        own = record.load(Path(self._postgresql.data_dir))
        if lists.knows(self._known(), own.terms):
            return True
        if own.terms and own.terms[-1].id == self._dcs.read_claim():
            # It was promoted, and died before it could record its term. Nobody has claimed one since.
            return True
        return self._elect(partial(election.may_lead, paused=self._paused()))

    def may_initialize(self) -> bool:
        """Whether this member may make a cluster, or name its own, in a Consul that knows none."""
        waits = time.monotonic() < self._turn_at and self._postgresql.data_directory_empty()
        if waits and len(self._members()) > 1 and not self._is_allowed():
            reason = f"making a new cluster failed here: the other members go first, for {TURN_SECONDS:g} s"
            self._stand(Standing(state=State.WAITING, reason=reason))
            return False
        return self._elect(partial(election.may_initialize, paused=self._paused()))

    def _elect(self, rule: Callable[..., Verdict]) -> bool:
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            own = self.holding()
            self._tell(own)
            verdict = self._judge(rule, own)
            if verdict.allowed or not verdict.silent or own.kind is not Kind.EMPTY or time.monotonic() > end:
                break
            time.sleep(AGAIN_SECONDS)
        if verdict.allowed:
            log.warning("Consul does not remember the cluster, and this member goes ahead: %s", verdict.reason)
            self._stand(Standing())
        else:
            self._stand(Standing(state=State.WAITING, reason=verdict.reason))
        return verdict.allowed

    def _judge(self, rule: Callable[..., Verdict], own: Holding) -> Verdict:
        operator = self._is_allowed()
        if own.kind is Kind.UNSETTLED and not operator:
            # Nobody has to be asked for that.
            return rule(own, {})
        members = self._members()
        if self._peer_id not in members and not operator:
            return Verdict(allowed=False, silent=True, reason="the members that the manifest lists are not known yet")
        others = asking.ask_all({peer: at for peer, at in members.items() if peer != self._peer_id})
        return rule(own, others, operator=operator)

    def _is_allowed(self) -> bool:
        try:
            age = time.time() - (self._run / standing.ALLOWANCE).stat().st_mtime
        except OSError:
            return False
        return 0 <= age < standing.ALLOWANCE_SECONDS

    # What there is.

    def holding(self) -> Holding:
        """What this member has."""
        postgresql = self._postgresql
        if postgresql.data_directory_empty():
            return Holding(kind=Kind.EMPTY)
        unsettled = Holding(kind=Kind.UNSETTLED)
        if postgresql.state != "running" or postgresql.is_starting():
            return unsettled
        try:
            recovers, lsn, waits, timeline = postgresql.query(_QUESTION, retry=False)[0]
        except Exception as error:  # noqa: BLE001 -- whatever keeps PostgreSQL from answering, it is not settled
            log.info("PostgreSQL does not say how far its log reaches: %r", error)
            return unsettled
        if recovers and waits not in _AT_END:
            return unsettled
        timeline = postgresql.get_replica_timeline() if recovers else timeline
        if not timeline or lsn is None:
            return unsettled
        own = record.load(Path(postgresql.data_dir)).terms
        term = own[-1].id if own and own[-1].timeline == timeline else ""
        kind = Kind.STANDBY if recovers else Kind.PRIMARY
        return Holding(kind=kind, position=Position(timeline=timeline, lsn=int(lsn)), term=term)

    def _known(self) -> Terms:
        _, text = self._dcs.read_terms()
        try:
            return lists.parse(text) if text else ()
        except ValueError as error:
            # The leader replaces it in its next round. Until then Consul remembers nothing.
            log.warning("the terms in Consul cannot be read: %s", error)
            return ()

    def _terms_of(self, leader: str | None) -> Terms:
        """The leader's terms; empty while it has not said which one it leads."""
        found = self._known()
        return found if found and found[-1].leader == leader else ()

    def _began(self, timeline: int) -> Position:
        history = self._postgresql.get_history(timeline)
        return Position(timeline=timeline, lsn=int(history[-1][1]) if history else 0)

    def _settle(self, data: Path) -> None:
        """Makes a term of a claim whose promotion has happened, before the data are compared."""
        old = record.load(data)
        newest = record.newest_timeline(data)
        new = record.settle(old, self._peer_id, newest, self._began(newest))
        if new != old:
            record.save(data, new)

    def _set_aside(self, data: Path, fork: Fork, state: State = State.FORK) -> bool:
        """Takes data that are to be replaced out of the way; False where they have to stay, and PostgreSQL down."""
        try:
            kept = aside.set_aside(data)
        except StaysError as error:
            self._show(fork, f", which waits: {error}", state=state)
            self._tell(Kind.UNSETTLED)
            return False
        self._clear_marks(data)
        self._show(fork, state=state)
        log.warning("the data of before are kept in %s", kept)
        self._tell(Kind.EMPTY)
        return True

    def _show(self, fork: Fork, more: str = "", state: State = State.FORK) -> None:
        self._stand(Standing(state=state, reason=f"{fork.reason}; mended by {fork.remedy.value}{more}"))

    def _stand(self, now: Standing) -> None:
        if now == self._standing:
            return
        level = logging.INFO if now.state is State.WHOLE else logging.WARNING
        log.log(level, "this member is %s now%s", now.state, f": {now.reason}" if now.reason else "")
        self._standing = now
        standing.write(self._run, now)

    def _tell(self, what: Holding | Kind | None) -> None:
        """Sets what others hear of this member's data; None: Consul remembers, and nobody has to ask."""
        holding = Holding(kind=what) if isinstance(what, Kind) else what
        self._holding = None if holding is None else election.tag(holding)
