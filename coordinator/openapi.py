"""The API of port 8787 as an OpenAPI document, made from the dataclasses that requests and answers are. Pure.

Requests are strict: an entry that is not named here is refused. To answers entries may be added.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from admission.client import BEGUN_WITH
from admission.protocol import (
    ESTATE,
    Admission,
    AttestRequest,
    Challenge,
    ChallengeRequest,
    Code,
    EstatePage,
    EstateRequest,
    LeaseRequest,
    ManifestHead,
    ManifestHistory,
    ManifestRequest,
    Renewal,
)
from coordinator.forming import Standing, StandingRequest
from evidence.bundle import AttestationRequest, Bundle

PATH = "/v1/openapi.json"
VERSION = "1"
"""Of the API: the first part of its paths."""
SETS = "set"
"""Name of the operation that sets a manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of `GET /v1/rendezvous/keys`."""

    public_key: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The answer of `GET /v1/rendezvous/keys`."""

    version: int
    peers: tuple[Key, ...]
    manifest: str
    """Digest of the one by which the coordinator goes, hex."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """An answer that says no more than that it was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call."""

    method: str
    path: str
    name: str
    summary: str
    answer: type[Any] | None
    """None: 204, without a body."""
    codes: tuple[Code, ...] = ()
    """What it may be refused with, beside NO_MANIFEST."""
    request: type[Any] | None = None
    query: tuple[tuple[str, dict[str, object]], ...] = ()
    """Parameters and their schemas."""

    @property
    def refusals(self) -> tuple[Code, ...]:
        """All that it may be refused with: before a first manifest is set, nothing else than setting one goes."""
        return self.codes if self.name == SETS else (*self.codes, Code.NO_MANIFEST)


_EVIDENCE = (
    Code.QUOTE_INVALID,
    Code.REPORT_DATA_MISMATCH,
    Code.KMS_POLICY_MISMATCH,
    Code.ADMISSION_REJECTED,
    Code.REVOKED,
)
_BODY = (Code.BAD_REQUEST, Code.VERIFIER_FAILED)
"""A body may be malformed, and what reads it may fail."""
_NUMBER: dict[str, object] = {"type": "string", "pattern": "^[0-9]{1,19}$", "default": "0"}
_NAMES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_PATTERNS: dict[tuple[type[Any], str], dict[str, object]] = {
    (AttestationRequest, "nonce"): {"pattern": "^[0-9a-f]{64}$"},
    (ChallengeRequest, "instance_id"): {"maxLength": 64},
}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="post",
        path="/v1/admission/challenge",
        name="challenge",
        summary="A nonce, and the peer ID to attest for.",
        request=ChallengeRequest,
        answer=Challenge,
        codes=(*_BODY, Code.ADMISSION_REJECTED, Code.REVOKED, Code.SLOT_TAKEN, Code.NOT_READY),
    ),
    Operation(
        method="post",
        path="/v1/admission/attest",
        name="attest",
        summary="Admits a CVM whose quote, binding and slot are in order.",
        request=AttestRequest,
        answer=Admission,
        codes=(*_BODY, Code.NONCE_INVALID, *_EVIDENCE, Code.SLOT_TAKEN, Code.TOKEN_ISSUE_FAILED, Code.NOT_READY),
    ),
    Operation(
        method="post",
        path="/v1/admission/renew",
        name="renew",
        summary="Prolongs a lease; with new tokens, secrets or a certificate where those are due.",
        request=LeaseRequest,
        answer=Renewal,
        codes=(*_BODY, Code.LEASE_INVALID, Code.TOKEN_ISSUE_FAILED, Code.NOT_READY),
    ),
    Operation(
        method="post",
        path="/v1/admission/release",
        name="release",
        summary="Gives the slot back. Safe to repeat.",
        request=LeaseRequest,
        answer=Nothing,
        codes=(*_BODY, Code.LEASE_INVALID, Code.NOT_READY),
    ),
    Operation(
        method="post",
        path="/v1/coordinators/standing",
        name="standing",
        summary="What this coordinator's Consul server has, for another coordinator that holds a lease.",
        request=StandingRequest,
        answer=Standing,
        codes=(*_BODY, Code.LEASE_INVALID, Code.NOT_READY),
    ),
    Operation(
        method="post",
        path=ESTATE,
        name="estate",
        summary="A part of what this former coordinator keeps, for one to whom the owners hand the mesh over.",
        request=EstateRequest,
        answer=EstatePage,
        codes=(*_BODY, Code.LEASE_INVALID, Code.ADMISSION_REJECTED, Code.NOT_READY),
    ),
    Operation(
        method="get",
        path="/v1/manifest",
        name="manifest",
        summary="The manifest in force, signed.",
        answer=ManifestHead,
        codes=(Code.NOT_READY,),
    ),
    Operation(
        method="get",
        path="/v1/manifest/history",
        name="history",
        summary="The manifests that led to the one in force, from epoch `after` on.",
        answer=ManifestHistory,
        codes=(Code.BAD_REQUEST, Code.NOT_READY),
        query=(("after", _NUMBER),),
    ),
    Operation(
        method="post",
        path="/v1/manifest",
        name=SETS,
        summary="Sets the next manifest, by compare-and-swap: it names the digest of the one in force.",
        request=ManifestRequest,
        answer=ManifestHead,
        codes=(*_BODY, Code.MANIFEST_NOT_SIGNED, Code.MANIFEST_STALE, Code.MANIFEST_REFUSED, Code.NOT_READY),
    ),
    Operation(
        method="post",
        path="/v1/attest",
        name="verify",
        summary="A bundle with a fresh quote over the nonce, from which anyone verifies what is enforced.",
        request=AttestationRequest,
        answer=Bundle,
        codes=(*_BODY, Code.BUSY, Code.NOT_READY),
    ),
    Operation(
        method="get",
        path="/v1/rendezvous/keys",
        name="keys",
        summary="WireGuard keys and mesh addresses of the admitted; waits for news when `seen` is the last version.",
        answer=Keys,
        codes=(Code.BAD_REQUEST,),
        query=(("seen", _NUMBER),),
    ),
    Operation(
        method="get",
        path=BEGUN_WITH,
        name="begun",
        summary="The signed manifest by which this coordinator goes, in force or not yet; for a rendezvous.",
        answer=ManifestHead,
    ),
    Operation(
        method="get",
        path="/healthz",
        name="health",
        summary="204 when the coordinator is ready.",
        answer=None,
        codes=(Code.NOT_READY,),
    ),
    Operation(
        method="get",
        path=PATH,
        name="openapi",
        summary="This document.",
        answer=dict[str, Any],
    ),
)


@functools.cache
def document() -> bytes:
    """The document, JSON."""
    answers: dict[str, object] = {}
    paths: dict[str, dict[str, object]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, answers)
    error = {
        "type": "object",
        "properties": {
            "code": {"type": "string", "enum": [code.name for code in Code]},
            "reason": {"type": "string"},
            "head": _schema(ManifestHead, answers),
        },
        "required": ["code", "reason"],
    }
    tree = {
        "openapi": "3.1.0",
        "info": {
            "title": "cvm-mesh coordinator",
            "version": VERSION,
            "description": "HTTP over RA-TLS: no authority vouches for the certificate, its evidence does. Every "
            "request's body is one JSON object of 1 MiB at most.",
        },
        "paths": paths,
        "components": {"schemas": {**answers, "Error": error}},
    }
    return json.dumps(tree, separators=(",", ":")).encode()


def _operation(operation: Operation, answers: dict[str, object]) -> dict[str, object]:
    good: dict[str, object] = {"description": "done"}
    if operation.answer is not None:
        good["content"] = _json(_schema(operation.answer, answers))
    refused: dict[int, list[str]] = {}
    for code in operation.refusals:
        refused.setdefault(code.status, []).append(code.name)
    found: dict[str, object] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {
            ("204" if operation.answer is None else "200"): good,
            **{
                str(status): {
                    "description": ", ".join(names),
                    "content": _json({"$ref": "#/components/schemas/Error"}),
                }
                for status, names in sorted(refused.items())
            },
        },
    }
    if operation.request is not None:
        found["requestBody"] = {"required": True, "content": _json(_schema(operation.request, None))}
    if operation.query:
        found["parameters"] = [
            {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in operation.query
        ]
    return found


def _json(schema: dict[str, object]) -> dict[str, object]:
    return {"application/json": {"schema": schema}}


def _schema(kind: Any, answers: dict[str, object] | None) -> dict[str, object]:
    """The schema of `kind`. Dataclasses of answers go into `answers`, and are referred to; None: of a request."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(each, answers) for each in arguments]}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], answers)}
    if origin is dict:
        values = {} if arguments[1] is Any else {"additionalProperties": _schema(arguments[1], answers)}
        return {"type": "object", **values}
    if kind in _NAMES:
        return {"type": _NAMES[kind]}
    hints = get_type_hints(kind)
    properties = {name: _schema(hint, answers) | _PATTERNS.get((kind, name), {}) for name, hint in hints.items()}
    made: dict[str, object] = {"type": "object", "properties": properties}
    if answers is None:
        fields = dataclasses.fields(kind)
        must = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
        return made | {"required": must, "additionalProperties": False}
    answers[kind.__name__] = made | {"required": list(hints)}
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
