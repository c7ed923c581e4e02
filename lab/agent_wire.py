"""The guest agent's messages: one table, read and written as protobuf and as JSON the way the real agent (serde, prost)
does.

Field numbers: dstack's agent_rpc.proto. A message in Python is a dict by field name; `bytes` travel as hex in JSON.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory  # type: ignore[import-untyped]

Kind = Literal["string", "bytes", "bool", "uint64?", "string*", "bytes*"]
"""`?` may be absent, `*` is repeated."""
Value = str | bytes | bool | int | list[str] | list[bytes] | None
Message = dict[str, Value]
Schema = tuple[tuple[int, str, Kind], ...]

MESSAGES: Mapping[str, Schema] = {
    "Empty": (),
    "GetTlsKeyArgs": (
        (1, "subject", "string"),
        (2, "alt_names", "string*"),
        (3, "usage_ra_tls", "bool"),
        (4, "usage_server_auth", "bool"),
        (5, "usage_client_auth", "bool"),
        (6, "not_before", "uint64?"),
        (7, "not_after", "uint64?"),
        (8, "with_app_info", "bool"),
    ),
    "GetTlsKeyResponse": ((1, "key", "string"), (2, "certificate_chain", "string*")),
    "GetKeyArgs": ((1, "path", "string"), (2, "purpose", "string"), (3, "algorithm", "string")),
    "GetKeyResponse": ((1, "key", "bytes"), (2, "signature_chain", "bytes*")),
    "RawQuoteArgs": ((1, "report_data", "bytes"),),
    "GetQuoteResponse057": (
        (1, "quote", "bytes"),
        (2, "event_log", "string"),
        (3, "report_data", "bytes"),
        (4, "vm_config", "string"),
    ),
    "GetQuoteResponse": (
        (1, "quote", "bytes"),
        (2, "event_log", "string"),
        (3, "report_data", "bytes"),
        (4, "vm_config", "string"),
        (5, "attestation", "bytes"),
    ),
    "AttestResponse": ((1, "attestation", "bytes"),),
    "EmitEventArgs": ((1, "event", "string"), (2, "payload", "bytes")),
    "AppInfo": (
        (1, "app_id", "bytes"),
        (2, "instance_id", "bytes"),
        (3, "app_cert", "string"),
        (4, "tcb_info", "string"),
        (5, "app_name", "string"),
        (8, "device_id", "bytes"),
        (9, "mr_aggregated", "bytes"),
        (10, "os_image_hash", "bytes"),
        (12, "key_provider_info", "string"),
        (13, "compose_hash", "bytes"),
        (14, "vm_config", "string"),
        (15, "cloud_vendor", "string"),
        (16, "cloud_product", "string"),
    ),
    "WorkerVersion": ((1, "version", "string"), (2, "rev", "string")),
    "SignRequest": ((1, "algorithm", "string"), (2, "data", "bytes")),
    "SignResponse": ((1, "signature", "bytes"), (2, "signature_chain", "bytes*"), (3, "public_key", "bytes")),
    "VerifyRequest": (
        (1, "algorithm", "string"),
        (2, "data", "bytes"),
        (3, "signature", "bytes"),
        (4, "public_key", "bytes"),
    ),
    "VerifyResponse": ((1, "valid", "bool"),),
    "GpuInfoResponse": ((1, "attestation", "string"),),
    "Error": ((1, "message", "string"),),
}

_DEFAULTS: Mapping[Kind, Value] = {"string": "", "bytes": b"", "bool": False, "uint64?": None}


class WireError(ValueError):
    """The text that the real agent answers with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parsed:
    """A JSON value and where it ends."""

    value: object
    end: int


def decode_protobuf(name: str, data: bytes) -> Message:
    """The message `name` in `data`; WireError when it is not protobuf."""
    decoded = _classes()[name]()
    try:
        decoded.ParseFromString(data)
    except (message.DecodeError, UnicodeDecodeError) as error:
        raise WireError("failed to decode Protobuf message: buffer underflow") from error
    found: Message = {}
    for _, field, kind in MESSAGES[name]:
        if kind.endswith("*"):
            found[field] = list(getattr(decoded, field))
        elif kind.endswith("?"):
            found[field] = getattr(decoded, field) if decoded.HasField(field) else None
        else:
            found[field] = getattr(decoded, field)
    return found


def encode_protobuf(name: str, values: Message) -> bytes:
    """`values` as protobuf."""
    fields = {field for _, field, _ in MESSAGES[name]}
    encoded: bytes = _classes()[name](
        **{key: value for key, value in values.items() if key in fields}
    ).SerializeToString()
    return encoded


def decode_json(name: str, text: str) -> Message:
    """The message `name` in JSON `text` with serde's leniency: unknown fields ignored, missing ones default, a list
    goes by position.
    """
    found = _defaults(name)
    if not text.strip():
        return found
    kinds = {field: kind for _, field, kind in MESSAGES[name]}
    for field, parsed in _members(name, text):
        if field in kinds:
            found[field] = _from_json(kinds[field], parsed, text)
    return found


def decode_query(name: str, query: Mapping[str, str]) -> Message:
    """The message `name` from a GET's query: every value is text."""
    found = _defaults(name)
    for _, field, kind in MESSAGES[name]:
        if field in query:
            text = query[field]
            number = text.isascii() and text.isdigit()
            value: object = (
                text in ("true", "1", "") if kind == "bool" else int(text) if kind == "uint64?" and number else text
            )
            found[field] = _from_json(kind, _Parsed(value=[text] if kind.endswith("*") else value, end=0), "")
    return found


def encode_json(name: str, values: Message) -> bytes:
    """`values` as compact JSON, fields in the order of the table."""
    tree = {field: _to_json(values[field]) for _, field, _ in MESSAGES[name]}
    return json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()


def error_body(text: str, *, as_json: bool) -> bytes:
    """An error, which the real agent prints prettily where it answers in JSON."""
    if as_json:
        return json.dumps({"error": text}, indent=2, ensure_ascii=False).encode()
    return encode_protobuf("Error", {"message": text})


def _defaults(name: str) -> Message:
    return {field: [] if kind.endswith("*") else _DEFAULTS[kind] for _, field, kind in MESSAGES[name]}


def _to_json(value: Value) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [item.hex() if isinstance(item, bytes) else item for item in value]
    return value


def _members(name: str, text: str) -> Iterator[tuple[str, _Parsed]]:
    """Name and value of each member of the one object (or, by position, list) in `text`."""
    at = _skip(text, 0)
    if text[at : at + 1] == "[":
        parsed = _value(text, at)
        items = parsed.value if isinstance(parsed.value, list) else []
        yield from (
            (field, _Parsed(value=item, end=parsed.end))
            for (_, field, _), item in zip(MESSAGES[name], items, strict=False)
        )
        return
    if text[at : at + 1] != "{":
        parsed = _value(text, at)
        raise WireError(
            f"invalid type: {_describe(parsed.value)}, expected struct {name} at {_place(text, parsed.end)}"
        )
    at = _skip(text, at + 1)
    while text[at : at + 1] != "}":
        if text[at : at + 1] != '"':
            raise WireError(f"key must be a string at {_place(text, at + 1)}")
        key = _value(text, at)
        at = _skip(text, key.end)
        if text[at : at + 1] != ":":
            raise WireError(f"expected `:` at {_place(text, at + 1)}")
        parsed = _value(text, _skip(text, at + 1))
        yield str(key.value), parsed
        at = _skip(text, parsed.end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "}":
            raise WireError(f"expected `,` or `}}` at {_place(text, at + 1)}")
    if _skip(text, at + 1) != len(text):
        raise WireError(f"trailing characters at {_place(text, _skip(text, at + 1) + 1)}")


def _value(text: str, at: int) -> _Parsed:
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise WireError(f"expected value at {_place(text, error.pos + 1)}") from error
    except RecursionError as error:
        raise WireError(f"recursion limit exceeded at {_place(text, at)}") from error
    return _Parsed(value=value, end=end)


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\r", "\n"):
        at += 1
    return at


def _place(text: str, end: int) -> str:
    before = text[:end]
    return f"line {before.count(chr(10)) + 1} column {len(before.rpartition(chr(10))[2])}"


def _from_json(kind: Kind, parsed: _Parsed, text: str) -> Value:
    value = parsed.value
    if kind == "uint64?" and (value is None or (type(value) is int and 0 <= value < 1 << 64)):
        return value
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "string" and isinstance(value, str):
        return value
    if kind == "bytes" and isinstance(value, str):
        return _unhex(value, parsed, text)
    if kind == "string*" and isinstance(value, list):
        return [str(_from_json("string", _Parsed(value=item, end=parsed.end), text)) for item in value]
    wanted = {"uint64?": "u64", "bool": "a boolean", "string*": "a sequence", "bytes*": "a sequence"}.get(
        kind, "a string"
    )
    raise WireError(f"invalid type: {_describe(value)}, expected {wanted} at {_place(text, parsed.end)}")


def _unhex(value: str, parsed: _Parsed, text: str) -> bytes:
    digits = value.removeprefix("0x")
    # The real decoder reports these after it has looked at the next character.
    place = _place(text, parsed.end + 1)
    for position, digit in enumerate(digits):
        if digit not in "0123456789abcdefABCDEF":
            raise WireError(f"Invalid character '{digit}' at position {position} at {place}")
    if len(digits) % 2:
        raise WireError(f"Odd number of digits at {place}")
    return bytes.fromhex(digits)


def _describe(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean `{str(value).lower()}`"
        case int():
            return f"integer `{value}`"
        case float():
            return f"floating point `{value}`"
        case str():
            return f"string {json.dumps(value, ensure_ascii=False)}"
        case list():
            return "sequence"
    return "map"


@functools.cache
def _classes() -> Mapping[str, Any]:
    """Message classes, made from the table at first use."""
    file = descriptor_pb2.FileDescriptorProto(name="lab/agent.proto", package="lab.agent", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    types = {
        "string": kinds.TYPE_STRING,
        "bytes": kinds.TYPE_BYTES,
        "bool": kinds.TYPE_BOOL,
        "uint64": kinds.TYPE_UINT64,
    }
    for name, schema in MESSAGES.items():
        described = file.message_type.add(name=name)
        for number, field, kind in schema:
            label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            added = described.field.add(name=field, number=number, label=label, type=types[kind.rstrip("*?")])
            if kind.endswith("?"):
                added.proto3_optional = True
                added.oneof_index = len(described.oneof_decl)
                described.oneof_decl.add(name=f"_{field}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"lab.agent.{name}")) for name in MESSAGES}
