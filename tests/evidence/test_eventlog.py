"""`evidence.eventlog`: replay, digests, and who may say what before `system-ready`."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence import eventlog
from evidence.errors import EvidenceError
from lab.tee import CvmIdentity, runtime_event
from tests.evidence.world import items, real


def refused(text: str) -> str:
    """The reason why the log `text` is refused."""
    with pytest.raises(EvidenceError) as caught:
        eventlog.parse(text)
    assert caught.value.code == "QUOTE_INVALID"
    return caught.value.reason


def runtime(name: str = "app-id", **changes: Any) -> dict[str, Any]:
    """One runtime event as JSON has it."""
    return {
        "imr": 3,
        "event_type": eventlog.RUNTIME_EVENT,
        "digest": "",
        "event": name,
        "event_payload": "00",
        **changes,
    }


def test_the_real_log_replays_to_all_four_registers() -> None:
    """A log that a production CVM wrote gives the registers of the quote beside it."""
    from evidence import quote

    report = json.loads(real("dstack_quote_report.json").read_text())
    parsed = quote.parse(bytes.fromhex(report["quote"]))
    replayed = eventlog.parse(report["event_log"]).replay()
    assert replayed == (parsed.rtmr0, parsed.rtmr1, parsed.rtmr2, parsed.rtmr3)


def test_a_stripped_log_replays(cvm: CvmIdentity) -> None:
    """Empty RTMR3 digests, as OS 0.5.6 and later send them, are recomputed."""
    log = eventlog.parse(json.dumps(items(cvm.boot_events)))
    measured = cvm.measurements
    assert log.replay() == (measured.rtmr0, measured.rtmr1, measured.rtmr2, measured.rtmr3)


def test_a_wrong_runtime_digest_is_refused() -> None:
    """The platform's verifier ignores stated digests; here a stated one must be right."""
    right = eventlog.runtime_digest("app-id", b"\0").hex()
    assert eventlog.parse(json.dumps([runtime(digest=right)])).events[0].digest.hex() == right
    assert "is not that of" in refused(json.dumps([runtime(digest="11" * 48)]))


@pytest.mark.parametrize("imr", [0, 1, 2])
def test_runtime_events_belong_to_register_3(imr: int) -> None:
    """An event filed under another register would be left out of the replay."""
    assert "RTMR3" in refused(json.dumps([runtime(imr=imr, digest="11" * 48)]))


def test_register_3_takes_only_runtime_events() -> None:
    """A firmware event in RTMR3 could carry any digest."""
    assert "RTMR3" in refused(json.dumps([runtime(event_type=4, digest="11" * 48)]))


def test_version_2_digests_are_of_the_canonical_form() -> None:
    """The newer digest form is recomputed from name and payload too."""
    preimage = b'{"name":"app-id","payload":"00","type":134217729}'
    event = runtime(version=2, preimage=preimage.hex())
    assert eventlog.parse(json.dumps([event])).events[0].digest == hashlib.sha384(preimage).digest()
    assert "canonical" in refused(json.dumps([{**event, "event_payload": "01"}]))
    assert "version" in refused(json.dumps([{**event, "version": 3}]))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "not JSON"),
        ("{}", "expected a list"),
        ("[1]", "expected an object"),
        ("[" * 100_000, "not JSON"),
        (json.dumps([runtime(imr=True)]), "imr"),
        (json.dumps([runtime(imr=4)]), "imr"),
        (json.dumps([runtime(event_type=-1)]), "event_type"),
        (json.dumps([runtime(event=None)]), "event None"),
        (json.dumps([runtime(event="a\nb")]), "printable"),
        (json.dumps([runtime(event_payload="0")]), "hex"),
        (json.dumps([runtime(event_payload="00 00")]), "hex"),
        (json.dumps([runtime()])[:-2] + ', "event": "compose-hash"}]', "'event' is there twice"),
        (json.dumps([runtime()])[:-2] + ', "extra": {"a": 1, "a": 1}}]', "'a' is there twice"),
        (json.dumps([runtime(imr=0, event_type=4, digest="")]), "expected 48"),
        (json.dumps([runtime()] * (eventlog.MAX_EVENTS + 1)), "more than"),
        (" " * (eventlog.MAX_LOG + 1), "more than"),
    ],
)
def test_malformed_logs_are_refused_by_name(text: str, word: str) -> None:
    """Each defect gives its own reason."""
    assert word in refused(text)


def test_entries_that_nothing_covers_are_ignored() -> None:
    """What the next OS may say of an event beside what its digest covers changes nothing."""
    told = eventlog.parse(json.dumps([runtime(extra=1, digests=["x"], pcr=3)]))
    assert told == eventlog.parse(json.dumps([runtime()]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["imr", "event", "digest"]) | st.text(), inner),
    max_leaves=10,
)


@given(JSON | st.lists(st.builds(runtime, st.text(), imr=JSON, digest=JSON, event_payload=JSON, version=JSON)))
def test_any_json_gives_a_log_or_a_typed_error(tree: object) -> None:
    """No input makes anything but a log or EvidenceError."""
    try:
        log = eventlog.parse(json.dumps(tree))
    except EvidenceError:
        return
    assert all(len(register) == 48 for register in log.replay())


@given(st.text(max_size=50))
def test_any_text_gives_a_log_or_a_typed_error(text: str) -> None:
    """The same for text that is not JSON."""
    with contextlib.suppress(EvidenceError):
        assert isinstance(eventlog.parse(text), eventlog.EventLog)


def identity_refused(events: list[eventlog.Event], *, late: bool = False) -> str:
    """The reason why these events name nobody."""
    with pytest.raises(EvidenceError) as caught:
        eventlog.EventLog(events=tuple(events)).identity(allow_application_events=late)
    assert caught.value.code == "ADMISSION_REJECTED"
    return caught.value.reason


def test_identity_comes_from_the_os(cvm: CvmIdentity) -> None:
    """App, instance, compose hash, image and key provider are those that were measured."""
    found = cvm.event_log.identity()
    assert (found.app_id, found.instance_id, found.compose_hash) == (cvm.app_id, cvm.instance_id, cvm.compose_hash)
    assert (found.key_provider_name, found.key_provider_id) == (cvm.key_provider.name, cvm.key_provider.id)
    assert found.os_image_hash == cvm.os_image.os_image_hash


def test_events_after_system_ready_need_a_caller_who_allows_them(cvm: CvmIdentity) -> None:
    """A program's own event is refused by default, and ignored where allowed."""
    events = [*cvm.boot_events, runtime_event("mine", b"x")]
    assert "'mine' after 'system-ready'" in identity_refused(events)
    log = eventlog.EventLog(events=tuple(events))
    assert log.identity(allow_application_events=True) == cvm.event_log.identity()


@pytest.mark.parametrize("name", ["app-id", "compose-hash", "key-provider", "system-ready"])
def test_a_program_may_not_speak_as_the_os(cvm: CvmIdentity, name: str) -> None:
    """A trusted name after `system-ready` is refused even where application events are allowed."""
    events = [*cvm.boot_events, runtime_event(name, bytes(20))]
    assert name in identity_refused(events, late=True)
    assert name in identity_refused(events)


@pytest.mark.parametrize(
    "name", ["app-id", "compose-hash", "instance-id", "os-image-hash", "key-provider", "storage-fs"]
)
def test_a_trusted_name_twice_before_system_ready_is_refused(cvm: CvmIdentity, name: str) -> None:
    """With two values there is no telling which one the keys were given for."""
    twin = next(event for event in cvm.boot_events if event.name == name)
    assert name in identity_refused([*cvm.boot_events[:-1], twin, cvm.boot_events[-1]])


@pytest.mark.parametrize("name", ["app-id", "compose-hash", "instance-id", "key-provider", "system-ready"])
def test_a_missing_event_is_named(cvm: CvmIdentity, name: str) -> None:
    """An identity with a hole is no identity."""
    assert name in identity_refused([event for event in cvm.boot_events if event.name != name])


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"name":"kms"}', b'{"name":1,"id":"00"}', b"\xff", b"[" * 100_000])
def test_a_malformed_key_provider_is_refused(cvm: CvmIdentity, payload: bytes) -> None:
    """The payload must be an object with two texts."""
    events = [runtime_event(e.name, payload) if e.name == "key-provider" else e for e in cvm.boot_events]
    assert "key-provider" in identity_refused(events)


def test_a_short_app_id_is_refused(cvm: CvmIdentity) -> None:
    """Sizes are fixed: a short value could otherwise be read as another one's prefix."""
    events = [runtime_event(e.name, b"x") if e.name == "app-id" else e for e in cvm.boot_events]
    assert "20" in identity_refused(events)
