"""How much a workload may ask of Consul: how often, and how many keys, bytes, sessions and checks. Pure.

Consul has no limits of its own that fit: one key may have 512 KiB, there may be any number of them, and all of it is in
the memory of every server. The limits are far above what Patroni needs (some ten keys, two writes a second in a
member, fifty for a moment at a failover) and below what a server would feel. Each kind of call has a pace of its own,
so that no write keeps a read or the renewal of a session from its turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sidecar.workload_rights import Call

MAX_VALUE = 128 << 10
"""Bytes of a value. Patroni's longest is its history: some 100 bytes for each failover. Consul's log keeps the last
10,240 to 26,624 writes of all (`raft_trailing_logs`, `raft_snapshot_threshold`): this bounds what they weigh."""
MAX_DOCUMENT = 64 << 10
"""Bytes of any other body but a transaction: a registration has a few hundred."""
MAX_KEYS = 4096
"""Below all the workload's prefixes together, of all CVMs that share them."""
MAX_WEIGHT = 4 << 20
"""Bytes of these keys as Consul shows them: a value takes a third more than it has, and a key some 150 bytes beside."""
SLACK_KEYS = 256
SLACK_WEIGHT = 256 << 10
"""What one CVM writes before it counts again; others write meanwhile. So 16 members have 4 MiB more at most."""
RECOUNT_SECONDS = 2.0
"""Between two counts at least: one reads all keys."""
MAX_SESSIONS = 32
"""On the CVM's node. Patroni has one, and for a moment two."""
MAX_CHECKS = 16
"""Of the workload's services in its CVM. The database's supervisor has two."""
_ENTRY = 150
"""Bytes of an entry in Consul's answer beside key and value, rounded up."""
_MARK = b'"LockIndex":'
"""Once in each entry of an answer. It can stand in no key (its quotes would be escaped) and in no value (base64)."""


class TooMuchError(Exception):
    """The call is beyond a limit. The message names the limit, for its author."""


class TooOftenError(Exception):
    """Calls of this kind come too fast. `seconds`: until this one may come again."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.seconds = seconds


class Bucket:
    """Lets `rate` a second through, and up to `burst` at once after a rest. Full at the start."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._seen: float | None = None

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may pass; 0 if it may now. Nothing is taken."""
        if self._seen is not None:
            self._left = min(self._burst, self._left + max(0.0, now - self._seen) * self._rate)
        self._seen = now
        return max(0.0, amount - self._left) / self._rate

    def take(self, amount: float) -> None:
        """Takes what may pass, or has passed: more than was left is a debt, and nothing passes before it is paid."""
        self._left -= amount


LOOK, RENEW, BEAT, WRITE = "reads", "session renewals", "check updates", "writes"
WRITTEN, ANSWERED = "bytes in writes", "bytes in answers to reads"
_PACES: Mapping[str, tuple[float, float]] = {
    # A member of Patroni reads some five times a second; a program that starts reads a few hundred things at once.
    LOOK: (200.0, 1000.0),
    # Patroni: one in a round of 2 s.
    RENEW: (10.0, 100.0),
    # The supervisor: two in 3 s. Each that changes a status is a write of Consul's.
    BEAT: (20.0, 200.0),
    # Patroni: two in a round of 2 s, some fifty at a failover. 16 CVMs at their full rate are 800 a second, half of
    # what a server on two slow cores takes.
    WRITE: (50.0, 500.0),
    # Patroni: less than 1 KiB a second. The burst lets everything that may be there be written at once.
    WRITTEN: (float(256 << 10), float(MAX_WEIGHT)),
    # Patroni: some 10 KiB a second; everything that may be there once a second, if it has to read so much. 16 CVMs are
    # 64 MiB a second together, half of a core of the leader's.
    ANSWERED: (float(MAX_WEIGHT), float(8 * MAX_WEIGHT)),
}
"""A second, and at once after a rest; by kind of call."""


def kind(call: Call) -> str:
    """Which pace a call has."""
    if call.method == "GET":
        return LOOK
    if call.path.startswith("/v1/session/renew/"):
        return RENEW
    beats = tuple(f"/v1/agent/check/{verb}/" for verb in ("update", "pass", "warn", "fail"))
    return BEAT if call.path.startswith(beats) else WRITE


class Pace:
    """How often one CVM's workload may ask."""

    def __init__(self) -> None:
        self._buckets = {name: Bucket(rate, burst) for name, (rate, burst) in _PACES.items()}

    def take(self, call: Call, now: float) -> None:
        """Lets `call` through, or raises TooOftenError and counts nothing."""
        own = kind(call)
        wanted = {own: 1.0} | ({WRITTEN: float(len(call.body))} if own == WRITE else {})
        if own == LOOK:
            # How long an answer is shows when it comes (`answered`).
            wanted[ANSWERED] = 0.0
        for name, amount in wanted.items():
            seconds = self._buckets[name].wait(amount, now)
            if seconds > 0:
                rate, burst = _PACES[name]
                raise TooOftenError(
                    f"too many {name}: this CVM's workload may have {rate:g} a second, and {burst:g} at once after a "
                    f"rest; try again in {seconds:.1f} s",
                    seconds,
                )
        for name, amount in wanted.items():
            self._buckets[name].take(amount)

    def answered(self, call: Call, size: int) -> None:
        """So many bytes of the answer to `call` have come."""
        if kind(call) == LOOK:
            self._buckets[ANSWERED].take(float(size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """Of keys, or of what a call adds to them at most."""

    keys: int = 0
    weight: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(keys=self.keys + other.keys, weight=self.weight + other.weight)


def growth(call: Call) -> Amount:
    """What `call` adds to the workload's keys at most: whether a key is there already is not known. TooMuchError where
    a value, or another body, is too long.
    """
    if call.path == "/v1/txn":
        operations = [each["KV"] for each in json.loads(call.body)]
        # Base64, as `sidecar.workload_rights` has seen to.
        added = [_entry(each["key"], len(each.get("value") or "") * 3 // 4) for each in operations if _writes(each)]
        return sum(added, Amount())
    if call.path.startswith("/v1/kv/"):
        return _entry(call.path.removeprefix("/v1/kv/"), len(call.body)) if call.method == "PUT" else Amount()
    if len(call.body) > MAX_DOCUMENT:
        raise TooMuchError(f"the body has {len(call.body)} bytes; at most {MAX_DOCUMENT}")
    return Amount()


def _writes(operation: Mapping[str, Any]) -> bool:
    return not str(operation.get("verb", "")).lower().startswith(("get", "delete", "check"))


def _entry(key: str, value: int) -> Amount:
    # Two bytes more than base64 makes of three: its padding.
    if value > MAX_VALUE + 2:
        raise TooMuchError(f"the value of {key!r:.200} has {value} bytes; at most {MAX_VALUE}")
    return Amount(keys=1, weight=len(key.encode()) + (value + 2) // 3 * 4 + _ENTRY)


def outermost(prefixes: tuple[str, ...]) -> tuple[str, ...]:
    """Those that lie below no other of them: each key is below one of these."""
    return tuple(one for one in prefixes if not any(other != one and one.startswith(other) for other in prefixes))


class Tally:
    """Counts the entries of Consul's answer for a prefix while it comes, without keeping it."""

    def __init__(self) -> None:
        self._keys = 0
        self._weight = 0
        self._rest = b""

    def feed(self, part: bytes) -> None:
        """The next bytes of the answer."""
        self._weight += len(part)
        text = self._rest + part
        self._keys += text.count(_MARK)
        self._rest = text[max(0, len(text) - len(_MARK) + 1) :]

    @property
    def amount(self) -> Amount:
        """What was there."""
        return Amount(keys=self._keys, weight=self._weight)


class Account:
    """What is below the workload's prefixes as far as this CVM knows: what it counted, and all that it wrote since."""

    def __init__(self) -> None:
        self._counted = Amount()
        self._since = Amount()
        self._due = True
        self._counted_at: float | None = None

    def needs_count(self, added: Amount, now: float) -> bool:
        """Whether all keys are to be counted before `added` is written."""
        if not added.keys or (self._counted_at is not None and now - self._counted_at < RECOUNT_SECONDS):
            return False
        since = self._since + added
        return self._due or since.keys > SLACK_KEYS or since.weight > SLACK_WEIGHT or self._is_full(added)

    def begin(self, now: float) -> Amount:
        """A count begins: what was written until now. Hand it to `counted`."""
        self._counted_at = now
        return self._since

    def counted(self, amount: Amount, before: Amount) -> None:
        """What is there, by a count that began when `before` had been written."""
        self._counted, self._due = amount, False
        self._since = Amount(keys=self._since.keys - before.keys, weight=self._since.weight - before.weight)

    def add(self, added: Amount) -> None:
        """Takes note of a write. TooMuchError where there is no room for it."""
        if self._is_full(added):
            there = self._counted + self._since
            raise TooMuchError(
                f"the workload's keys are too many: {there.keys} keys with {there.weight} bytes are below its prefixes "
                f"as Consul shows them; at most {MAX_KEYS} and {MAX_WEIGHT}. Delete some, and try again in "
                f"{RECOUNT_SECONDS:g} s"
            )
        self._since += added

    def _is_full(self, added: Amount) -> bool:
        there = self._counted + self._since + added
        return bool(added.keys) and (there.keys > MAX_KEYS or there.weight > MAX_WEIGHT)


def checks_of(call: Call) -> frozenset[str] | None:
    """IDs of the checks that a registration brings, as Consul names them; None where `call` is none."""
    if call.path == "/v1/agent/check/register":
        tree = json.loads(call.body)
        return frozenset({str(tree.get("checkid") or tree.get("id") or tree.get("name"))})
    if call.path != "/v1/agent/service/register":
        return None
    tree = json.loads(call.body)
    checks = [*(tree.get("checks") or ()), *filter(None, [tree.get("check")])]
    return frozenset(str(check.get("checkid") or f"service:{tree['id']}:{n}") for n, check in enumerate(checks, 1))


def judge_checks(brought: frozenset[str], existing: Any, services: Mapping[str, str]) -> None:
    """TooMuchError where the services would have too many checks. `existing`: the agent's, as it shows them."""
    found = existing if isinstance(existing, dict) else {}
    own = {
        name
        for name, check in found.items()
        if isinstance(check, dict) and isinstance(each := check.get("ServiceID"), str) and each in services
    } | brought  # fmt: skip
    if len(own) > MAX_CHECKS:
        raise TooMuchError(f"the workload's services would have {len(own)} checks; at most {MAX_CHECKS}")


def judge_sessions(existing: Any) -> None:
    """TooMuchError where there is no room for one more session. `existing`: the node's, as Consul shows them."""
    number = len(existing) if isinstance(existing, list) else 0
    if number >= MAX_SESSIONS:
        raise TooMuchError(f"this CVM has {number} sessions; at most {MAX_SESSIONS}. Destroy some first")
