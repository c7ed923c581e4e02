"""What the guest agent's methods do, by OS version. No HTTP here: messages in, messages out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from evidence.eventlog import EventLog

from . import agent_tls
from .agent_tls import TlsRequest, event_items, event_log_json
from .agent_wire import Message, WireError
from .tee import CvmIdentity, DevTee, Measurements, runtime_event
from .tee_keys import hkdf, k256, k256_public, k256_sign

_REVISIONS = {"0.5.7": "git:eb97c56b000000000000", "0.6.0": "git:312dc605000000000000"}
_K256_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_NO_DEVICE = hashlib.sha256(b"").digest()
"""What the agent gives as device_id: it has no verified report to take one from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method: the names of its messages in `agent_wire`, and what it does."""

    takes: str
    gives: str
    run: Callable[[Message], Message]


class AgentState:
    """One CVM's agent: its identity, and the log as programs in the CVM extended it."""

    def __init__(self, tee: DevTee, cvm: CvmIdentity, clock: Callable[[], float]) -> None:
        self._tee = tee
        self._cvm = cvm
        self._clock = clock
        self._log = cvm.event_log
        self._measurements: Measurements = cvm.measurements
        self._app_key = bytes.fromhex(cvm.app_key.reveal())

    def methods(self) -> Mapping[str, Method]:
        """The methods that this OS version has."""
        old = self._cvm.os_version == "0.5.7"
        quote = "GetQuoteResponse057" if old else "GetQuoteResponse"
        common = {
            "Info": Method(takes="Empty", gives="AppInfo", run=self._info),
            "GetQuote": Method(takes="RawQuoteArgs", gives=quote, run=self._get_quote),
            "GetKey": Method(takes="GetKeyArgs", gives="GetKeyResponse", run=self._get_key),
            "GetTlsKey": Method(takes="GetTlsKeyArgs", gives="GetTlsKeyResponse", run=self._get_tls_key),
            "Attest": Method(takes="RawQuoteArgs", gives="AttestResponse", run=self._attest),
            "Sign": Method(takes="SignRequest", gives="SignResponse", run=self._sign),
            "Verify": Method(takes="VerifyRequest", gives="VerifyResponse", run=_verify),
            "Version": Method(takes="Empty", gives="WorkerVersion", run=self._version),
        }
        if old:
            return {**common, "EmitEvent": Method(takes="EmitEventArgs", gives="Empty", run=self._emit_event)}
        return {**common, "GpuInfo": Method(takes="Empty", gives="GpuInfoResponse", run=lambda _: {"attestation": ""})}

    def _version(self, _args: Message) -> Message:
        return {"version": self._cvm.os_version, "rev": _REVISIONS[self._cvm.os_version]}

    def _info(self, _args: Message) -> Message:
        cvm, measured = self._cvm, self._measurements
        image = bytes.fromhex(self._image_hash())
        aggregated = _aggregate(measured)
        tcb_info = {
            "mrtd": measured.mrtd.hex(),
            "rtmr0": measured.rtmr0.hex(),
            "rtmr1": measured.rtmr1.hex(),
            "rtmr2": measured.rtmr2.hex(),
            "rtmr3": measured.rtmr3.hex(),
            "mr_aggregated": aggregated.hex(),
            "os_image_hash": image.hex(),
            "compose_hash": cvm.compose_hash,
            "device_id": _NO_DEVICE.hex(),
            "event_log": event_items(self._log.events, stripped=False),
            "app_compose": cvm.app_compose,
        }
        return {
            "app_id": bytes.fromhex(cvm.app_id),
            "instance_id": bytes.fromhex(cvm.instance_id),
            "app_cert": self._demo_certificate(),
            "tcb_info": json.dumps(tcb_info, indent=2, ensure_ascii=False),
            "app_name": cvm.app_name,
            "device_id": _NO_DEVICE,
            "mr_aggregated": aggregated,
            "os_image_hash": image,
            "key_provider_info": json.dumps(
                {"name": cvm.key_provider.name, "id": cvm.key_provider.id}, separators=(",", ":")
            ),
            "compose_hash": bytes.fromhex(cvm.compose_hash),
            "vm_config": cvm.vm_config,
            "cloud_vendor": "",
            "cloud_product": "",
        }

    def _image_hash(self) -> str:
        """Where the agent has it from: 0.5.7 from the host's vm_config, 0.6.0 from the measured event.

        Source: Dstack-TEE/dstack, dstack-attest/src/attestation.rs, `decode_app_info_ex` at v0.5.7 and at 312dc605.
        Only upstream's simulator of 0.5.7 leaves it empty: its stored attestation has no vm_config.
        """
        if self._cvm.os_version == "0.5.7":
            return str(json.loads(self._cvm.vm_config).get("os_image_hash", ""))
        return self._log.identity(allow_application_events=True).os_image_hash or ""

    def _demo_certificate(self) -> str:
        key = agent_tls.derived_key(self._tee, f"demo-cert {self._cvm.instance_id}")
        request = TlsRequest(subject="demo-cert", ra_tls=True, client=True)
        return "\n".join(self._issue(request, key))

    def _get_quote(self, args: Message) -> Message:
        report_data = _report_data(args)
        quote = self._tee.quote(self._measurements, report_data)
        log = event_log_json(self._log.events, stripped=True, keep_acpi=self._cvm.os_version != "0.5.7")
        return {
            "quote": quote,
            "event_log": log,
            "report_data": report_data,
            "vm_config": self._cvm.vm_config,
            # On TDX the production agent leaves it out; only upstream's simulator fills it.
            "attestation": b"",
        }

    def _attest(self, args: Message) -> Message:
        report_data = _report_data(args)
        quote = self._tee.quote(self._measurements, report_data)
        return {"attestation": agent_tls.attestation(quote, self._log.events, report_data, self._cvm.vm_config)}

    def _emit_event(self, args: Message) -> Message:
        event = runtime_event(_text(args, "event"), _bytes(args, "payload"))
        self._log = EventLog(events=(*self._log.events, event))
        self._measurements = replace(self._measurements, rtmr3=self._log.replay()[3])
        return {}

    def _get_key(self, args: Message) -> Message:
        algorithm = _text(args, "algorithm")
        key = hkdf(self._app_key, _text(args, "path").encode())
        public = _public_key(algorithm, key)
        statement = f"{_text(args, 'purpose')}:{public.hex()}".encode()
        return {"key": key, "signature_chain": [k256_sign(self._app_key, statement), self._cvm.app_key_signature]}

    def _get_tls_key(self, args: Message) -> Message:
        not_before, not_after = _number(args, "not_before"), _number(args, "not_after")
        names = args["alt_names"]
        request = TlsRequest(
            subject=_text(args, "subject"),
            alt_names=tuple(str(name) for name in names) if isinstance(names, list) else (),
            ra_tls=bool(args["usage_ra_tls"]),
            server=bool(args["usage_server_auth"]),
            client=bool(args["usage_client_auth"]),
            not_before=not_before,
            not_after=not_after,
        )
        backwards = not_before is not None and not_after is not None and not_before >= not_after
        if backwards and self._cvm.os_version != "0.5.7":
            raise WireError("not_before must be earlier than not_after")
        if backwards and not_before is not None:
            # 0.5.7 answers with such a certificate; no library here will write one, so it gets a second of life in the
            # right order.
            request = replace(request, not_after=not_before + 1)
        key = ec.generate_private_key(ec.SECP256R1())
        return {"key": agent_tls.key_pem(key), "certificate_chain": self._issue(request, key)}

    def _issue(self, request: TlsRequest, key: ec.EllipticCurvePrivateKey) -> list[str]:
        quote = self._tee.quote(self._measurements, agent_tls.ratls_report_data(key)) if request.ra_tls else None
        try:
            return agent_tls.issue(self._tee, self._cvm, self._log.events, quote, request, key, self._clock())
        except ValueError as error:
            raise WireError(str(error)) from error

    def _sign(self, args: Message) -> Message:
        algorithm, data = _text(args, "algorithm"), _bytes(args, "data")
        key = hkdf(self._app_key, b"vms")
        if algorithm == "ed25519":
            signature = ed25519.Ed25519PrivateKey.from_private_bytes(key).sign(data)
        else:
            signature = _k256_signature(key, algorithm, data)
        public = _public_key("ed25519" if algorithm == "ed25519" else "secp256k1", key)
        by_app = k256_sign(self._app_key, f"signing:{public.hex()}".encode())
        return {
            "signature": signature,
            "signature_chain": [signature, by_app, self._cvm.app_key_signature],
            "public_key": public,
        }


def _verify(args: Message) -> Message:
    algorithm, data = _text(args, "algorithm"), _bytes(args, "data")
    signature, public = _bytes(args, "signature"), _bytes(args, "public_key")
    try:
        if algorithm == "ed25519":
            ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
        else:
            scheme = _k256_scheme(algorithm, data)
            if len(signature) != 64:
                raise WireError("signature error")
            r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
            key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), public)
            key.verify(utils.encode_dss_signature(r, s), data, scheme)
    except InvalidSignature:
        return {"valid": False}
    except WireError:
        raise
    except ValueError as error:
        raise WireError(f"signature error: {error}") from error
    return {"valid": True}


def _k256_signature(key: bytes, algorithm: str, data: bytes) -> bytes:
    """r || s with the smaller of the two possible s, 64 bytes."""
    scheme = _k256_scheme(algorithm, data)
    r, s = utils.decode_dss_signature(k256(key).sign(data, scheme))
    return r.to_bytes(32, "big") + min(s, _K256_ORDER - s).to_bytes(32, "big")


def _k256_scheme(algorithm: str, data: bytes) -> ec.ECDSA:
    if algorithm == "secp256k1":
        return ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    if algorithm != "secp256k1_prehashed":
        raise WireError("Unsupported algorithm")
    if len(data) != 32:
        raise WireError(f"Pre-hashed signing requires a 32-byte digest, but received {len(data)} bytes")
    return ec.ECDSA(utils.Prehashed(hashes.SHA256()), deterministic_signing=True)


def _public_key(algorithm: str, key: bytes) -> bytes:
    if algorithm in ("", "secp256k1", "k256"):
        return k256_public(key)
    if algorithm == "ed25519":
        public = ed25519.Ed25519PrivateKey.from_private_bytes(key).public_key()
        return public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    raise WireError("Unsupported algorithm")


def _report_data(args: Message) -> bytes:
    report_data = _bytes(args, "report_data")
    if len(report_data) > 64:
        raise WireError("Report data is too long")
    return report_data.ljust(64, b"\0")


def _aggregate(measured: Measurements) -> bytes:
    registers = (measured.mrtd, measured.rtmr0, measured.rtmr1, measured.rtmr2, measured.rtmr3)
    configuration = measured.mr_config_id + measured.mr_owner + measured.mr_owner_config
    return hashlib.sha256(b"".join(registers) + (configuration if any(configuration) else b"")).digest()


def _text(args: Message, field: str) -> str:
    value = args[field]
    return value if isinstance(value, str) else ""


def _bytes(args: Message, field: str) -> bytes:
    value = args[field]
    return value if isinstance(value, bytes) else b""


def _number(args: Message, field: str) -> int | None:
    value = args[field]
    return value if isinstance(value, int) else None
