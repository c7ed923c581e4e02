"""How much a workload may ask of Consul, and that Patroni at its busiest is far below it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from sidecar.workload_amounts import (
    BEAT,
    LOOK,
    MAX_CHECKS,
    MAX_DOCUMENT,
    MAX_KEYS,
    MAX_SESSIONS,
    MAX_VALUE,
    MAX_WEIGHT,
    RECOUNT_SECONDS,
    RENEW,
    SLACK_KEYS,
    WRITE,
    Account,
    Amount,
    Bucket,
    Pace,
    Tally,
    TooMuchError,
    TooOftenError,
    checks_of,
    growth,
    judge_checks,
    judge_sessions,
    kind,
    outermost,
)
from sidecar.workload_rights import Call

KEY = "/v1/kv/service/db/leader"


def call(method: str, path: str, body: Any = b"") -> Call:
    return Call(method=method, path=path, body=body if isinstance(body, bytes) else json.dumps(body).encode())


def test_a_bucket_fills_again() -> None:
    """As much at once as it holds, then as much a second as it gets; a clock that stands adds nothing."""
    bucket = Bucket(rate=2.0, burst=4.0)
    bucket.take(4.0)
    assert bucket.wait(1.0, 10.0) == 0.5
    assert bucket.wait(1.0, 10.0) == 0.5
    assert bucket.wait(1.0, 10.5) == 0.0
    assert bucket.wait(4.0, 1000.0) == 0.0
    assert bucket.wait(5.0, 2000.0) == 0.5


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (call("GET", KEY), LOOK),
        (call("GET", "/v1/session/info/x"), LOOK),
        (call("PUT", "/v1/session/renew/x"), RENEW),
        (call("PUT", "/v1/agent/check/update/x"), BEAT),
        (call("PUT", "/v1/agent/check/pass/x"), BEAT),
        (call("PUT", "/v1/agent/check/register"), WRITE),
        (call("PUT", "/v1/session/create"), WRITE),
        (call("PUT", KEY), WRITE),
        (call("DELETE", KEY), WRITE),
    ],
)
def test_each_kind_of_call_has_a_pace(made: Call, wanted: str) -> None:
    """Looking, renewing a session, updating a check, and everything that writes otherwise."""
    assert kind(made) == wanted


def test_what_writes_do_keeps_nobody_from_reading_and_renewing() -> None:
    """However many writes were refused: reads, session renewals and check updates have their own."""
    pace = Pace()
    for _ in range(500):
        pace.take(call("PUT", KEY), 0.0)
    with pytest.raises(TooOftenError, match=r"too many writes: this CVM's workload may have 50 a second") as often:
        pace.take(call("PUT", KEY), 0.0)
    assert 0 < often.value.seconds <= 0.02
    for other in (call("GET", KEY), call("PUT", "/v1/session/renew/x"), call("PUT", "/v1/agent/check/pass/x")):
        pace.take(other, 0.0)
    pace.take(call("PUT", KEY), often.value.seconds)


def test_bytes_have_a_pace_too() -> None:
    """Few writes of long values are many."""
    pace = Pace()
    for _ in range(MAX_WEIGHT // MAX_VALUE):
        pace.take(call("PUT", KEY, b"x" * MAX_VALUE), 0.0)
    with pytest.raises(TooOftenError, match="bytes in writes"):
        pace.take(call("PUT", KEY, b"x"), 0.0)
    pace.take(call("PUT", KEY), 0.0)


def test_answers_have_a_pace_too() -> None:
    """Few reads of everything are many: the next one waits until what was answered is paid for. Writes go on, and
    what they are answered counts for nothing.
    """
    pace, everything = Pace(), call("GET", "/v1/kv/service/db/")
    for _ in range(9):
        pace.take(everything, 0.0)
        pace.answered(everything, MAX_WEIGHT)
    with pytest.raises(TooOftenError, match="bytes in answers to reads") as often:
        pace.take(call("GET", KEY), 0.0)
    assert often.value.seconds == pytest.approx(1.0)
    pace.take(call("PUT", KEY), 0.0)
    pace.answered(call("PUT", KEY), MAX_WEIGHT)
    pace.take(call("GET", KEY), 1.0)


def test_a_member_of_patroni_is_never_refused() -> None:
    """An hour of rounds of 1 s, half of what they are: cluster, session, two keys, member key, three beats, ten more
    reads; a failover of 60 writes at once each minute. Each second round finds as much as may be there.
    """
    pace = Pace()
    for second in range(3600):
        for _ in range(15):
            pace.take(call("GET", "/v1/kv/service/db/"), float(second))
        pace.answered(call("GET", "/v1/kv/service/db/"), (300 << 10) + (MAX_WEIGHT if second % 2 else 0))
        pace.take(call("PUT", "/v1/session/renew/x"), float(second))
        for _ in range(3):
            pace.take(call("PUT", "/v1/agent/check/update/x"), float(second))
        for _ in range(60 if second % 60 == 0 else 4):
            pace.take(call("PUT", KEY, b"x" * 300), float(second))


def test_growth_is_what_a_call_may_add() -> None:
    """A value as Consul shows it, with its key; reads and deletions add nothing."""
    one = growth(call("PUT", KEY, b"x" * 300))
    assert (one.keys, 400 + len("service/db/leader") <= one.weight <= 800) == (1, True)
    value = base64.b64encode(b"x" * 300).decode()
    operations: list[Any] = [
        {"KV": {"verb": verb, "key": "service/db/leader", "value": value, "session": "s"}}
        for verb in ("lock", "set", "CAS", "get", "delete-cas", "check-session", "delete-tree")
    ]
    three = growth(call("PUT", "/v1/txn", operations))
    assert three == one + one + one
    assert growth(call("DELETE", KEY)) == growth(call("GET", KEY)) == Amount()


def test_a_value_and_a_document_have_a_length() -> None:
    """The message names key and limit."""
    growth(call("PUT", KEY, b"x" * MAX_VALUE))
    lock = {"verb": "lock", "key": "service/db/leader"}
    growth(call("PUT", "/v1/txn", [{"KV": lock | {"value": base64.b64encode(b"x" * MAX_VALUE).decode()}}]))
    with pytest.raises(TooMuchError, match=rf"'service/db/leader' has {MAX_VALUE + 3} bytes; at most {MAX_VALUE}"):
        growth(call("PUT", KEY, b"x" * (MAX_VALUE + 3)))
    with pytest.raises(TooMuchError, match="service/db/leader"):
        growth(call("PUT", "/v1/txn", [{"KV": lock | {"value": base64.b64encode(b"x" * (MAX_VALUE + 9)).decode()}}]))
    with pytest.raises(TooMuchError, match=str(MAX_DOCUMENT)):
        growth(call("PUT", "/v1/agent/service/register", {"name": "x" * MAX_DOCUMENT}))


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_tally_counts_entries_however_the_answer_is_cut(size: int) -> None:
    """A key that looks like an entry is none."""
    entries = [{"LockIndex": 0, "Key": f'service/db/"LockIndex":{n}', "Value": "eA=="} for n in range(7)]
    text = json.dumps(entries, separators=(",", ":")).encode()
    tally = Tally()
    for start in range(0, len(text), size):
        tally.feed(text[start : start + size])
    assert tally.amount == Amount(keys=7, weight=len(text))


def test_prefixes_within_others_are_not_counted_twice() -> None:
    """Each key is below one of those that are left."""
    assert outermost(("service/db", "service/db/x", "tool/")) == ("service/db", "tool/")


def test_an_account_counts_before_the_first_write_and_then_seldom() -> None:
    """At the first write, after as many as one CVM may write unseen, and not twice within seconds."""
    one = Amount(keys=1, weight=500)
    account = Account()
    assert account.needs_count(one, 0.0)
    assert not account.needs_count(Amount(), 0.0)
    before = account.begin(0.0)
    assert not account.needs_count(one, RECOUNT_SECONDS / 2)
    account.add(one)
    account.counted(Amount(keys=5, weight=2000), before)
    for _ in range(SLACK_KEYS - 1):
        assert not account.needs_count(one, 100.0)
        account.add(one)
    assert account.needs_count(one, 100.0)


def test_an_account_that_is_full_takes_nothing_until_there_is_room() -> None:
    """By keys and by weight; the message has both limits. A count that finds room opens it again."""
    one = Amount(keys=1, weight=500)
    for full in (Amount(keys=MAX_KEYS, weight=5000), Amount(keys=5, weight=MAX_WEIGHT)):
        account = Account()
        account.counted(full, account.begin(0.0))
        with pytest.raises(TooMuchError, match=rf"{full.keys} keys with .* at most {MAX_KEYS} and {MAX_WEIGHT}"):
            account.add(one)
        account.add(Amount())
        assert account.needs_count(one, RECOUNT_SECONDS)
        account.counted(Amount(keys=5, weight=2000), account.begin(RECOUNT_SECONDS))
        account.add(one)


def test_an_account_that_cannot_count_is_bounded_all_the_same() -> None:
    """Servers that never say what is there: as many writes as if nothing were."""
    account = Account()
    for _ in range(MAX_KEYS):
        account.add(Amount(keys=1, weight=500))
    with pytest.raises(TooMuchError):
        account.add(Amount(keys=1, weight=500))


def test_checks_are_counted_by_their_ids() -> None:
    """What is registered again is no further one; those of other services are not the workload's."""
    named: dict[str, Any] = {"id": "db-db-0", "checks": [{"checkid": "a"}, {"TTL": "3s"}], "check": {"checkid": "c"}}
    brought = checks_of(call("PUT", "/v1/agent/service/register", named))
    assert brought == frozenset({"a", "service:db-db-0:2", "c"})
    assert checks_of(call("PUT", "/v1/agent/check/register", {"name": "n"})) == frozenset({"n"})
    assert checks_of(call("PUT", KEY)) is None
    services = {"db-db-0": "db"}
    there = {f"c{n}": {"ServiceID": "db-db-0"} for n in range(MAX_CHECKS)} | {"o": {"ServiceID": "other"}, "x": 5}
    judge_checks(frozenset({"c0", "c1"}), there, services)
    with pytest.raises(TooMuchError, match=rf"{MAX_CHECKS + 1} checks; at most {MAX_CHECKS}"):
        judge_checks(frozenset({"new"}), there, services)
    judge_checks(frozenset({"new"}), None, services)
    judge_checks(frozenset({"new"}), {"c": {"ServiceID": []}, "d": {"ServiceID": None}}, services)


def test_sessions_are_bounded() -> None:
    """An answer of another shape says nothing."""
    judge_sessions([{}] * (MAX_SESSIONS - 1))
    judge_sessions(None)
    with pytest.raises(TooMuchError, match=rf"{MAX_SESSIONS} sessions; at most {MAX_SESSIONS}"):
        judge_sessions([{}] * MAX_SESSIONS)
