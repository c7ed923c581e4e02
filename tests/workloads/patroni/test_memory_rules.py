"""What a member remembers, with a PostgreSQL and a Consul that stand in; test_memory.py has the real ones.

Long because it is a list: each rule is a case of its own, on one kind of member.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.workloads.patroni.memory_world import Consul, Place, Postgres, term
from tests.workloads.patroni.test_asking import HEAD, member
from workloads.patroni import memory as memories
from workloads.patroni import record, standing
from workloads.patroni.dcs import ConsulError
from workloads.patroni.election import TAG, Holding, Kind, answer, tag
from workloads.patroni.memory import Memory, ReplaceError
from workloads.patroni.record import Claim, Record
from workloads.patroni.standing import State
from workloads.patroni.terms import Term, dump, parse


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A member without data; the other one answers nobody."""
    run, data = tmp_path / "run", tmp_path / "data"
    run.mkdir()
    numbers = itertools.count(1)
    # Port 1 of this machine: nobody listens there.
    members = {"postgres-a": ("127.0.0.1", 1), "postgres-b": ("127.0.0.1", 1)}
    postgres, consul = Postgres(str(data)), Consul()
    memory = Memory("postgres-b", run, lambda: members, lambda: f"{next(numbers):032x}", lambda: consul.paused)
    memory.bind(postgres, consul)
    return Place(memory, postgres, consul, data, run, members)


def test_empty_consul_is_led_only_by_who_has_asked_all(place: Place) -> None:
    """A member with a history and a Consul without one: the silent member is named, and nobody leads."""
    place.has(term(1))
    assert not place.memory.may_lead()
    assert not place.memory.may_initialize()
    assert place.stands is State.WAITING
    assert "missing: postgres-a" in standing.read(place.run).reason
    held = answer({"tags": place.memory.tags})
    assert (held.kind, held.position.lsn, held.term) == (Kind.STANDBY, 10, term(1).id)


def test_paused_primary_asks_all_in_an_emptied_consul(place: Place) -> None:
    """Without a pause it was agreed with the others that it goes on; with one nobody was asked."""
    place.has(term(1))
    place.postgres.primary = 1
    for paused in (False, True):
        place.consul.paused = paused
        assert place.memory.may_lead() is not paused
        assert place.memory.may_initialize() is not paused
    assert "missing: postgres-a" in standing.read(place.run).reason


def test_remembered_history_asks_nobody(place: Place) -> None:
    """Consul knows the member's newest term: Patroni's rules decide, as ever."""
    place.has(term(1), term(2))
    place.consul.text = dump((term(1), term(2), term(3)))
    assert place.memory.may_lead()
    place.consul.text = dump((term(1), term(2, "b")))
    assert not place.memory.may_lead()
    place.consul.text = "no list"
    assert not place.memory.may_lead()


def test_word_of_an_operator_is_used_once(place: Place) -> None:
    """With the operator's file the member leads although the other one is silent; then the file is gone."""
    place.has(term(1))
    (place.run / standing.ALLOWANCE).touch()
    assert place.memory.may_lead()
    assert place.memory.won()
    assert not place.memory.may_lead()


def test_old_word_counts_no_more(place: Place) -> None:
    """A word that nobody used in time is forgotten."""
    place.has(term(1))
    allowance = place.run / standing.ALLOWANCE
    allowance.touch()
    os.utime(allowance, (0, time.time() - standing.ALLOWANCE_SECONDS - 1))
    assert not place.memory.may_lead()


def test_empty_member_waits_for_all(place: Place) -> None:
    """No data and a silent member: no new cluster is made."""
    place.memory.prepare(lambda: None)
    assert answer({"tags": place.memory.tags}).kind is Kind.EMPTY
    assert not place.memory.may_initialize()


def test_leader_that_died_before_its_term_was_recorded_leads_again(place: Place) -> None:
    """Its claim is in Consul: Consul remembers the cluster, although the list of terms lacks the newest. Nobody has to
    be asked, so a member that is gone for good keeps nobody waiting. Somebody else's later claim counts for more."""
    place.has(term(1))
    place.consul.text = dump((term(1),))
    assert place.memory.won()
    (place.data / "pg_wal" / "00000002.history").touch()
    assert place.memory.prepare(lambda: None)
    assert place.recorded.terms[-1].timeline == 2
    assert place.memory.may_lead()
    place.consul.claim = "f" * 32
    assert not place.memory.may_lead()


def test_database_that_no_member_has_waits_for_a_person(place: Place) -> None:
    """Consul knows a database, and every disk is new: the status says so, and a person's word begins a new one."""
    place.consul.system_id, place.consul.text = "7", dump((term(1),))
    assert place.memory.prepare(lambda: None)
    place.memory.look(None, "7")
    assert "missing: postgres-a" in standing.read(place.run).reason
    with _empty_member(place, times=3):
        place.memory.look(None, "7")
        assert place.stands is State.WAITING
        assert "identifier 7): every member's disk is new" in standing.read(place.run).reason
        assert place.consul.system_id == "7"
        (place.run / standing.ALLOWANCE).touch()
        place.memory.look(None, "7")
        assert place.consul.system_id == place.consul.text == ""
        assert place.memory.may_initialize()
    assert place.stands is State.WHOLE


def test_word_of_an_operator_does_not_replace_a_database_that_is_there(place: Place) -> None:
    """A member that answers and has a database has to lead first, whatever a person has said elsewhere."""
    place.consul.system_id = "7"
    assert place.memory.prepare(lambda: None)
    (place.run / standing.ALLOWANCE).touch()
    tags = {TAG: tag(Holding(kind=Kind.UNSETTLED))}
    with member(HEAD + json.dumps({"tags": tags}).encode()) as address:
        place.members["postgres-a"] = address
        place.memory.look(None, "7")
    assert place.consul.system_id == "7"
    assert "postgres-a has a database (unsettled)" in standing.read(place.run).reason


def test_empty_member_waits_no_more_once_somebody_leads(place: Place) -> None:
    """It copies the leader then."""
    assert place.memory.prepare(lambda: None)
    place.memory.look(None, "7")
    assert place.stands is State.WAITING
    place.memory.look("postgres-a", "7")
    assert place.stands is State.WHOLE


@contextmanager
def _empty_member(place: Place, times: int) -> Iterator[None]:
    """The other member has no database, and says so `times` times."""
    tags = {TAG: tag(Holding(kind=Kind.EMPTY))}
    with member(HEAD + json.dumps({"tags": tags}).encode(), times=times) as address:
        place.members["postgres-a"] = address
        yield


def _begin_cluster(place: Place) -> Memory:
    """Claims a bootstrap and begins it; returns the memory of the process after this one."""
    assert place.memory.prepare(lambda: None)
    assert place.memory.may_initialize()
    assert place.memory.claimed()
    place.has()
    after = Memory("postgres-b", place.run, lambda: place.members, lambda: "", lambda: False)
    after.bind(place.postgres, place.consul)
    return after


@pytest.mark.parametrize("sysid", ["7", ""], ids=["has a control file", "has none yet"])
def test_bootstrap_that_did_not_end_is_the_others_turn(
    place: Place, monkeypatch: pytest.MonkeyPatch, sysid: str
) -> None:
    """Half a database goes; for a while the others may make the cluster, and the status says so."""
    place.postgres.sysid = sysid
    with _empty_member(place, times=2):
        after = _begin_cluster(place)
        assert after.prepare(lambda: None)
        assert not place.data.exists()
        assert answer({"tags": after.tags}).kind is Kind.EMPTY
        assert not after.may_initialize()
        assert "the other members go first" in standing.read(place.run).reason
        later = time.monotonic() + memories.TURN_SECONDS
        monkeypatch.setattr(time, "monotonic", lambda: later)
        assert after.may_initialize()


def test_bootstrap_that_consul_has_heard_of_is_kept(place: Place) -> None:
    """The member ended between the naming of the cluster and the leader key: its data are the cluster's."""
    with _empty_member(place, times=1):
        after = _begin_cluster(place)
    place.consul.system_id = place.postgres.sysid
    assert after.prepare(lambda: None)
    assert place.data.exists()


def test_leader_of_a_new_cluster_keeps_its_data(place: Place) -> None:
    """Once it has won the leader key somebody may write: a later start never takes the data for half a database."""
    with _empty_member(place, times=1):
        after = _begin_cluster(place)
    place.postgres.primary = 1
    assert place.memory.won()
    assert after.prepare(lambda: None)
    assert place.data.exists()


@pytest.mark.parametrize("change", [{"state": "starting"}, {"state": "stopped"}, {"waits": "WalSync"}])
def test_member_that_replays_says_that_it_is_not_settled(place: Place, change: dict[str, str]) -> None:
    """Only the end of the whole log may be compared: until then a member says that it does not know."""
    place.has(term(1))
    for name, value in change.items():
        setattr(place.postgres, name, value)
    assert place.memory.holding().kind is Kind.UNSETTLED
    assert not place.memory.may_lead()


def test_promotion_is_claimed_then_recorded(place: Place) -> None:
    """The claim is on the disk before the promotion; the term has its ID, and is told Consul once."""
    place.has(term(1))
    assert place.memory.won()
    claim = place.recorded.claim
    assert claim is not None
    assert (claim.peer_id, claim.after) == ("postgres-b", 1)
    place.postgres.primary = 2
    place.memory.look("postgres-b")
    place.memory.look("postgres-b")
    own = Term(id=claim.id, timeline=2, begin=50, leader="postgres-b")
    assert place.recorded == Record(terms=(term(1), own))
    assert place.consul.written == [(term(1), own)]


def test_promotion_does_not_begin_without_a_claim_in_consul(place: Place) -> None:
    """An earlier leader would find its own claim there, and lead without asking, though this member has newer writes.
    Nothing of the attempt stays, and the next one may use the operator's word."""
    place.has(term(1))
    (place.run / standing.ALLOWANCE).touch()
    place.consul.refuses = True
    with pytest.raises(ConsulError):
        place.memory.won()
    assert place.recorded == Record(terms=(term(1),))
    assert (place.run / standing.ALLOWANCE).exists()
    place.consul.refuses = False
    assert place.memory.won()
    assert place.recorded.claim is not None
    assert place.recorded.claim.id == place.consul.claim


def test_primary_tells_a_consul_that_forgot(place: Place) -> None:
    """A leader that went on while Consul lost its data writes the list again, with the same term."""
    place.has(term(1, "b"))
    place.postgres.primary = 1
    place.memory.look("postgres-b")
    place.consul.text, place.consul.index = "", 0
    assert place.memory.may_lead()
    place.memory.look("postgres-b")
    assert place.consul.written == [(term(1, "b"),), (term(1, "b"),)]


@pytest.mark.parametrize("broken", [None, "", "no record"])
def test_leader_that_lost_its_record_keeps_its_term(place: Place, broken: str | None) -> None:
    """A leader whose record is gone or cannot be read finds its term in Consul. With a new ID for it, each member that
    follows would count as a fork, and all would replace their data at once.
    """
    place.has(term(1, "a"), term(2, "b"))
    place.postgres.primary = 2
    place.memory.look("postgres-b")
    file = place.data / record.FILE
    file.unlink()
    if broken is not None:
        file.write_text(broken)
    place.memory.look("postgres-b")
    assert place.recorded.terms == parse(place.consul.text) == (term(1, "a"), term(2, "b"))
    assert len(place.consul.written) == 1


def test_promotion_that_nobody_recorded_is_found_at_the_next_start(place: Place) -> None:
    """A leader that died right after its promotion knows by its claim that the new timeline is its own: a fork."""
    place.has(term(1), claim=Claim(id="c" * 32, peer_id="postgres-b", after=1))
    (place.data / "pg_wal" / "00000002.history").touch()
    place.consul.text = dump((term(1), term(2, "a")))
    place.memory.prepare(lambda: "postgres-a")
    aside = place.data.with_name("data.fork")
    assert record.load(aside).terms[-1].id == "c" * 32
    assert not place.data.exists()
    assert place.stands is State.FORK
    assert answer({"tags": place.memory.tags}).kind is Kind.EMPTY


def test_every_fork_is_kept(place: Place) -> None:
    """The data of an earlier fork stay where they are when the next one is set aside."""
    for mark in ("e", "f"):
        place.has(term(1, mark))
        place.consul.text = dump((term(1, "a"),))
        assert place.memory.prepare(lambda: "postgres-a")
    assert sorted(path.name for path in place.data.parent.iterdir()) == ["data.fork", "data.fork.2", "run"]
    kept = [record.load(place.data.with_name(name)).terms for name in ("data.fork", "data.fork.2")]
    assert kept == [(term(1, "e"),), (term(1, "f"),)]


def test_fork_waits_for_room(place: Place) -> None:
    """A disk without room for a fresh copy: nothing is removed, the status says what is missing and what to try, and
    when there is room the member goes on by itself."""
    place.has(term(1, "e"))
    place.consul.text = dump((term(1, "a"),))
    assert place.memory.prepare(lambda: "postgres-a")
    place.has(term(1, "f"))
    with (place.data / "base").open("wb") as file:
        # As large as all that is free; nothing is written.
        file.truncate(shutil.disk_usage(place.data).free)
    assert not place.memory.prepare(lambda: "postgres-a")
    assert record.load(place.data.with_name("data.fork")).terms == (term(1, "e"),)
    assert place.recorded.terms == (term(1, "f"),)
    reason = standing.read(place.run).reason
    assert all(text in reason for text in ("MiB are free", "data.fork (0 MiB)", "enlarge the disk"))
    assert place.memory.tags["nofailover"]
    assert answer({"tags": place.memory.tags}).kind is Kind.UNSETTLED
    (place.data / "base").unlink()
    assert place.memory.prepare(lambda: "postgres-a")
    assert record.load(place.data.with_name("data.fork.2")).terms == (term(1, "f"),)


def test_data_on_which_pg_rewind_did_not_succeed_are_set_aside(place: Place) -> None:
    """Whoever leads or not, PostgreSQL does not start on them; they are kept. What comes after them is whole."""
    place.has(term(1))
    place.memory.spoil()
    assert place.memory.prepare(lambda: None)
    assert record.load(place.data.with_name("data.fork")).terms == (term(1),)
    assert not place.data.exists()
    assert answer({"tags": place.memory.tags}).kind is Kind.EMPTY
    assert "pg_rewind of the data did not succeed" in standing.read(place.run).reason
    place.has(term(1))
    assert place.memory.prepare(lambda: None)
    assert place.data.exists()


def test_mark_of_a_rewind_ends_with_its_data(place: Place) -> None:
    """A person has removed the data, or the member was lost right after it had set them aside."""
    place.memory.spoil()
    assert place.memory.prepare(lambda: None)
    place.has(term(1))
    assert place.memory.prepare(lambda: None)
    assert place.data.exists()


def test_fork_that_waits_may_lead_again_when_its_leader_is_gone(place: Place) -> None:
    """While the data wait for room the leader goes: what kept this member from leading does not outlive it."""
    place.has(term(1, "f"))
    place.consul.text = dump((term(1, "a"),))
    (place.data / "pg_tblspc").mkdir()
    (place.data / "pg_tblspc" / "16384").symlink_to("/elsewhere")
    assert not place.memory.prepare(lambda: "postgres-a")
    assert place.stands is State.FORK
    assert place.memory.prepare(lambda: None)
    assert place.stands is State.WHOLE
    assert "nofailover" not in place.memory.tags


def test_start_waits_for_the_leaders_term(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that has just won the key has not said which term it leads: a member does not follow it before."""
    place.has(term(1), term(2, "b"))
    place.consul.text = dump((term(1),))
    asked = []

    def leader() -> str:
        asked.append(1)
        if len(asked) == 3:
            place.consul.text = dump((term(1), term(2, "a")))
        return "postgres-a"

    monkeypatch.setattr(memories, "AGAIN_SECONDS", 0.0)
    place.memory.prepare(leader)
    assert len(asked) == 3
    assert not place.data.exists()


def test_running_fork_has_to_end(place: Place) -> None:
    """PostgreSQL that runs on a fork is ended; until then the member says what it is, and may not take over."""
    place.has(term(1), term(2, "b"))
    place.consul.text = dump((term(1), term(2, "a")))
    with pytest.raises(ReplaceError, match="timeline 2"):
        place.memory.look("postgres-a")
    assert place.stands is State.FORK
    assert place.memory.tags["nofailover"] is place.memory.tags["nosync"] is True
    assert "timeline 2" in place.memory.tags["fork"]


def test_log_beyond_the_switch_point_is_a_fork_until_it_is_rewound(place: Place) -> None:
    """A replica that is ahead of the promotion is shown as a fork, for pg_rewind to mend; then it is whole again."""
    place.has(term(1))
    place.consul.text = dump((term(1), term(2, "a", begin=50)))
    place.postgres.lsn = 51
    place.memory.look("postgres-a")
    assert place.stands is State.FORK
    assert place.recorded.terms == (term(1),)
    place.postgres.timeline, place.postgres.streams = 2, True
    place.memory.look("postgres-a")
    assert place.stands is State.WHOLE
    assert place.recorded.terms == (term(1), term(2, "a", begin=50))


def test_short_term_that_the_leader_did_not_record_is_no_fork(place: Place) -> None:
    """A leader that was promoted and stopped at once has a term that its successor followed too shortly to record. Once
    it streams its successor's timeline, PostgreSQL has found its own in that history: it is whole, and may lead again.
    """
    place.has(term(1), term(2, "b"))
    place.consul.text = dump((term(1), term(3, "a")))
    place.postgres.timeline = 2
    place.memory.look("postgres-a")
    assert place.stands is State.FORK
    place.postgres.timeline, place.postgres.streams = 3, True
    place.memory.look("postgres-a")
    assert place.stands is State.WHOLE
    assert "nofailover" not in place.memory.tags
    assert place.recorded.terms == (term(1), term(3, "a"))


def test_streaming_does_not_clear_a_fork_with_one_timeline_number(place: Place) -> None:
    """PostgreSQL compares timeline numbers only: a member that streams with another term of one number is a fork."""
    place.has(term(1), term(2, "b"))
    place.consul.text = dump((term(1), term(2, "a"), term(3, "a")))
    place.postgres.timeline, place.postgres.streams = 3, True
    with pytest.raises(ReplaceError, match="timeline 2"):
        place.memory.look("postgres-a")


def test_list_is_taken_over_only_with_the_data(place: Place) -> None:
    """A member that does not stream the leader's timeline yet keeps its own list."""
    place.has(term(1))
    place.consul.text = dump((term(1), term(2, "a")))
    place.memory.look("postgres-a")
    place.postgres.streams = True
    place.memory.look("postgres-a")
    assert place.recorded.terms == (term(1),)
    place.postgres.timeline = 2
    place.memory.look("postgres-a")
    assert place.recorded.terms == (term(1), term(2, "a"))


def test_member_whose_log_the_leader_has_removed_is_replaced(place: Place) -> None:
    """It would ask for it for ever, and show readers old rows. Its data go out of the way only while somebody leads:
    without a leader they may be the best that there are.
    """
    place.has(term(1))
    place.consul.text = dump((term(1),))
    begins = [10]
    place.memory.bind(place.postgres, place.consul, lambda: begins[0])
    place.memory.look("postgres-a")
    assert place.stands is State.WHOLE
    begins[0] = 11
    for leader in (None, "postgres-a"):
        with pytest.raises(ReplaceError, match="the log reaches 0/A, and what the leader still has begins at 0/B"):
            place.memory.look("postgres-a")
        assert place.stands is State.BEHIND
        assert place.memory.tags["noloadbalance"]
        assert place.memory.prepare(lambda leader=leader: leader)  # type: ignore[misc]
        assert place.data.exists() is (leader is None)
    assert place.data.with_name("data.fork").exists()
    assert place.stands is State.BEHIND
    place.has(term(1))
    assert place.memory.prepare(lambda: "postgres-a")
    assert place.stands is State.WHOLE


@pytest.mark.parametrize("change", [{"state": "starting"}, {"waits": "WalSync"}, {"streams": True}])
def test_log_is_looked_for_only_by_a_member_that_has_come_to_the_end_of_its_own(
    place: Place, change: dict[str, Any]
) -> None:
    """One that replays may have the rest on its disk."""
    place.has(term(1))
    place.consul.text = dump((term(1),))
    place.memory.bind(place.postgres, place.consul, lambda: 11)
    for name, value in change.items():
        setattr(place.postgres, name, value)
    place.memory.look("postgres-a")
    assert place.stands is State.WHOLE


def test_member_that_may_not_lead_says_who_may_and_takes_an_operators_word(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody leads a synchronous cluster whose leader and standby are lost. The status says so once no election can be
    under way any more."""
    place.has(term(1))
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for leader in (None, "postgres-a", None):
        place.memory.look(leader, "7", ("postgres-a", "postgres-c"))
        assert place.stands is State.WHOLE
        now[0] += memories.ALONE_SECONDS - 1
    now[0] += 1
    place.memory.look(None, "7", ("postgres-b", "postgres-c"))
    assert place.stands is State.WHOLE
    place.memory.look(None, "7", ("postgres-a", "postgres-c"))
    assert place.stands is State.WAITING
    assert "only postgres-a or postgres-c may" in standing.read(place.run).reason
    assert place.consul.nominated == 0
    (place.run / standing.ALLOWANCE).touch()
    with member(HEAD + json.dumps({"tags": {TAG: tag(Holding(kind=Kind.PRIMARY))}}).encode()) as address:
        place.members["postgres-a"] = address
        place.memory.look(None, "7", ("postgres-a", "postgres-c"))
    assert place.consul.nominated == 0
    assert "postgres-a is primary" in standing.read(place.run).reason
    place.members["postgres-a"] = ("127.0.0.1", 1)
    place.memory.look(None, "7", ("postgres-a", "postgres-c"))
    assert place.consul.nominated == 1


def test_data_of_another_database_are_left_alone_and_said(place: Place) -> None:
    """Patroni would end again and again without a word in the status. A person moves them, or mounts the right disk."""
    place.has(term(1))
    place.consul.system_id = "8"
    assert not place.memory.prepare(lambda: None)
    assert place.stands is State.FOREIGN
    assert "of the database 7, and the cluster is 8" in standing.read(place.run).reason
    place.data.rename(place.data.with_name("moved"))
    assert place.memory.prepare(lambda: None)
    place.memory.look("postgres-a", "8")
    assert place.stands is State.WHOLE
