"""The simulated TEE: quotes from a development PKI, and the identity of each simulated CVM.

The quotes are cryptographically real and verify with the same code as hardware's, but under a root that nobody trusts
unless told to.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from evidence.eventlog import RUNTIME_EVENT, Event, EventLog, runtime_digest
from runtime.secret import Secret
from topology.references import KeyProvider, OsImage

from . import tee_pki
from .tee_keys import hkdf, k256_public, k256_sign
from .tee_pki import TcbState

__all__ = ["CvmIdentity", "DevTee", "Measurements", "TcbState", "make_cvm"]

OS_VERSIONS = ("0.5.7", "0.6.0")
"""Versions of dstack OS that the lab plays."""
_AUTHENTICATION = bytes(32)
_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """The part of a TD report that tells CVMs apart. Defaults are a TD without any oddity."""

    mrtd: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    mr_config_id: bytes = bytes(48)
    td_attributes: bytes = bytes.fromhex("0000001000000000")
    """SEPT_VE_DISABLE, as every dstack TD. Bit 0 of the first byte would be DEBUG."""
    xfam: bytes = bytes.fromhex("e702060000000000")
    """As every dstack TD that was seen: x87, SSE, AVX, AVX-512, PKRU, AMX."""
    tee_tcb_svn: bytes = bytes(16)
    """Of the TDX module at launch: its version numbers first."""
    tee_tcb_svn2: bytes | None = None
    """Of the TDX module now. None: a version 4 quote, which does not say it; else a version 5 quote of TDX 1.5."""
    mr_signer_seam: bytes = bytes(48)
    mr_owner: bytes = bytes(48)
    mr_owner_config: bytes = bytes(48)
    ppid: bytes = bytes(16)
    """Not in the report: the platform ID in the certificate of the machine that it is made on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CvmIdentity:
    """One simulated CVM as its OS measured it at boot."""

    app_id: str
    """40 hex digits."""
    instance_id: str
    """40 hex digits."""
    app_compose: str
    """The text of app-compose.json, byte for byte."""
    compose_hash: str
    app_name: str
    os_version: str
    """One of `OS_VERSIONS`."""
    os_image: OsImage
    key_provider: KeyProvider
    app_key: Secret
    """Hex of 32 bytes: the app's secp256k1 root key. The same for all instances and revisions of one app."""
    app_key_signature: bytes
    """65 bytes: the KMS root's signature that the app key is this app's."""
    vm_config: str
    """JSON text, as the host claims it."""
    boot_events: tuple[Event, ...]
    """The log up to `system-ready`."""
    measurements: Measurements
    """RTMR3 as it is at `system-ready`."""

    @property
    def event_log(self) -> EventLog:
        """`boot_events` as a log."""
        return EventLog(events=self.boot_events)

    def with_events(self, *events: Event) -> CvmIdentity:
        """This CVM after more events were extended. Tests use it for logs that must be refused."""
        log = EventLog(events=(*self.boot_events, *events))
        measured = replace(self.measurements, rtmr3=log.replay()[3])
        return replace(self, boot_events=log.events, measurements=measured)


@dataclass(slots=True)
class DevTee:
    """Everything that hardware, Intel and the KMS do for the lab, from one seed. Objects with equal seeds agree."""

    seed: bytes
    state: TcbState = field(default_factory=TcbState)
    """What the development "Intel" says about the platform."""
    _pki: tee_pki.DevPki = field(init=False, repr=False)
    _attestation_key: ec.EllipticCurvePrivateKey = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._pki = tee_pki.DevPki(self.seed, self.state)
        self._attestation_key = tee_pki.Keys(self.seed).derive("attestation")

    @property
    def root_der(self) -> bytes:
        """The development root: `Verifier(root_ca_der=...)`."""
        return self._pki.root_der

    @property
    def kms_root(self) -> bytes:
        """32 bytes: the root key that the lab's KMS derives app keys from."""
        return hkdf(self.seed, b"cvm-mesh DEVELOPMENT KMS root")

    @property
    def kms_ca_key(self) -> ec.EllipticCurvePrivateKey:
        """The key of the KMS's certificate authority."""
        return tee_pki.Keys(self.seed).derive("kms-ca")

    @property
    def key_provider(self) -> KeyProvider:
        """The lab's KMS; its id is the SubjectPublicKeyInfo of its root CA, in hex, as a real KMS's."""
        spki = self.kms_ca_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return KeyProvider(name="kms", id=spki.hex())

    def os_image(self, os_version: str, development: bool = False) -> OsImage:
        """The manifest's entry for the OS image of that version."""
        log = EventLog(events=_os_events(os_version, development))
        rtmr0, rtmr1, rtmr2, _ = log.replay()
        name = _image_name(os_version, development)
        return OsImage(
            os_image_hash=hashlib.sha256(name.encode()).hexdigest(),
            mrtd=hashlib.sha384(f"{name} TD firmware".encode()).hexdigest(),
            rtmr0=rtmr0.hex(),
            rtmr1=rtmr1.hex(),
            rtmr2=rtmr2.hex(),
            development=development,
        )

    def collateral(self, now: float) -> dict[str, str]:
        """Collateral in date at Unix time `now`, with dcap_qvl's JSON keys."""
        return self._pki.collateral(now)

    def collateral_json(self, now: float) -> str:
        """The same as text, as `evidence.collateral.FixedCollateral` takes it."""
        return json.dumps(self.collateral(now))

    def quote(self, measurements: Measurements, report_data: bytes) -> bytes:
        """A quote over these measurements and `report_data` (up to 64 bytes, padded with zeros)."""
        if len(report_data) > 64:
            raise ValueError(f"report data has {len(report_data)} bytes, expected at most 64")
        numbers = self._attestation_key.public_key().public_numbers()
        public = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        signed = _signed(measurements, report_data)
        qe_report = _qe_report(public)
        chain = self._pki.pck_chain(measurements.ppid)
        certified = b"".join(
            (
                qe_report,
                tee_pki.sign(self._pki.pck_key, qe_report),
                len(_AUTHENTICATION).to_bytes(2, "little"),
                _AUTHENTICATION,
                (5).to_bytes(2, "little"),
                len(chain).to_bytes(4, "little"),
                chain,
            )
        )
        signature = b"".join(
            (
                tee_pki.sign(self._attestation_key, signed),
                public,
                (6).to_bytes(2, "little"),
                len(certified).to_bytes(4, "little"),
                certified,
            )
        )
        return signed + len(signature).to_bytes(4, "little") + signature


def make_cvm(
    tee: DevTee,
    *,
    app_compose: str,
    app_id: str | None,
    instance_seed: bytes,
    os_version: str,
    development: bool = False,
) -> CvmIdentity:
    """Boots a simulated CVM. `app_id=None` takes the first 20 bytes of the compose hash, as dstack does."""
    if os_version not in OS_VERSIONS:
        raise ValueError(f"os_version {os_version!r}, expected one of {', '.join(OS_VERSIONS)}")
    compose_hash = hashlib.sha256(app_compose.encode()).hexdigest()
    app = bytes.fromhex(app_id) if app_id is not None else bytes.fromhex(compose_hash)[:20]
    if len(app) != 20:
        raise ValueError(f"app_id {app_id!r}, expected 40 hex digits")
    instance = hashlib.sha256(instance_seed + app).digest()[:20]
    image = tee.os_image(os_version, development)
    provider = tee.key_provider
    app_key = hkdf(tee.kms_root, app + b"app-key")
    events = (
        *_os_events(os_version, development),
        *_runtime_events(app, compose_hash, instance, image.os_image_hash, provider),
    )
    measured = Measurements(
        mrtd=bytes.fromhex(image.mrtd),
        rtmr0=bytes.fromhex(image.rtmr0),
        rtmr1=bytes.fromhex(image.rtmr1),
        rtmr2=bytes.fromhex(image.rtmr2),
        rtmr3=EventLog(events=events).replay()[3],
        mr_config_id=b"\1" + bytes.fromhex(compose_hash) + bytes(15),
        ppid=machine(instance_seed),
    )
    return CvmIdentity(
        app_id=app.hex(),
        instance_id=instance.hex(),
        app_compose=app_compose,
        compose_hash=compose_hash,
        app_name=_app_name(app_compose),
        os_version=os_version,
        os_image=image,
        key_provider=provider,
        app_key=Secret(app_key.hex()),
        app_key_signature=k256_sign(tee.kms_root, b"dstack-kms-issued:" + app + k256_public(app_key)),
        vm_config=_vm_config(image.os_image_hash, os_version, development),
        boot_events=events,
        measurements=measured,
    )


def machine(instance_seed: bytes) -> bytes:
    """The platform ID (PPID, 16 bytes) of the machine that the CVM with this seed runs on: each has one of its own, and
    stays on it.
    """
    return hashlib.sha256(b"cvm-mesh DEVELOPMENT machine\0" + instance_seed).digest()[:16]


def runtime_event(name: str, payload: bytes) -> Event:
    """An event that extends RTMR3."""
    return Event(imr=3, event_type=RUNTIME_EVENT, digest=runtime_digest(name, payload), name=name, payload=payload)


def _runtime_events(app: bytes, compose_hash: str, instance: bytes, image: str, provider: KeyProvider) -> list[Event]:
    document = json.dumps({"name": provider.name, "id": provider.id}, separators=(",", ":"))
    return [
        runtime_event(name, payload)
        for name, payload in (
            ("system-preparing", b""),
            ("app-id", app),
            ("compose-hash", bytes.fromhex(compose_hash)),
            ("instance-id", instance),
            ("boot-mr-done", b""),
            ("os-image-hash", bytes.fromhex(image)),
            ("key-provider", document.encode()),
            ("storage-fs", b"zfs"),
            ("system-ready", b""),
        )
    ]


def _os_events(os_version: str, development: bool) -> tuple[Event, ...]:
    """Firmware, kernel and root file system as they extend RTMR0 to RTMR2. Types: TCG PC Client firmware profile."""
    name = _image_name(os_version, development)
    acpi = b"ACPI DATA"
    measured = (
        (0, 0x8000000B, "", f"{name} TD HOB".encode()),
        (0, 0x0000000A, "acpi-loader", acpi),
        (0, 0x0000000A, "acpi-rsdp", acpi),
        (0, 0x0000000A, "acpi-tables", acpi),
        (1, 0x80000003, "", f"{name} kernel".encode()),
        (2, 0x00000006, "", f"{name} command line".encode()),
        (2, 0x00000006, "", f"{name} initrd".encode()),
    )
    return tuple(
        Event(
            imr=imr,
            event_type=kind,
            digest=hashlib.sha384(label.encode() + payload).digest(),
            name=label,
            payload=payload,
        )
        for imr, kind, label, payload in measured
    )


def _image_name(os_version: str, development: bool) -> str:
    return f"dstack-{'dev-' if development else ''}{os_version} (cvm-mesh DEVELOPMENT)"


def _vm_config(image: str, os_version: str, development: bool) -> str:
    tree = {
        "spec_version": 1,
        "os_image_hash": image,
        "cpu_count": 2,
        "memory_size": 2 << 30,
        "qemu_version": "9.2.1",
        "image": f"dstack-{'dev-' if development else ''}{os_version}",
    }
    return json.dumps(tree, separators=(",", ":"))


def _app_name(app_compose: str) -> str:
    try:
        tree = json.loads(app_compose)
    except ValueError:
        return ""
    name = tree.get("name", "") if isinstance(tree, dict) else ""
    return name if isinstance(name, str) else ""


def _signed(measured: Measurements, report_data: bytes) -> bytes:
    """Header and report: version 4, or version 5 with a report of TDX 1.5 (type 3), whose service TD is none."""
    report = _td_report(measured, report_data)
    if measured.tee_tcb_svn2 is None:
        return _header(4) + report
    report += measured.tee_tcb_svn2 + bytes(48)
    return _header(5) + (3).to_bytes(2, "little") + len(report).to_bytes(4, "little") + report


def _header(version: int) -> bytes:
    return b"".join(
        (
            version.to_bytes(2, "little"),
            (2).to_bytes(2, "little"),
            (0x81).to_bytes(4, "little"),
            bytes(4),
            _QE_VENDOR,
            bytes(20),
        )
    )


def _td_report(measured: Measurements, report_data: bytes) -> bytes:
    return b"".join(
        (
            measured.tee_tcb_svn,
            bytes(48),
            measured.mr_signer_seam,
            bytes(8),
            measured.td_attributes,
            measured.xfam,
            measured.mrtd,
            measured.mr_config_id,
            measured.mr_owner,
            measured.mr_owner_config,
            measured.rtmr0,
            measured.rtmr1,
            measured.rtmr2,
            measured.rtmr3,
            report_data.ljust(64, b"\0"),
        )
    )


def _qe_report(attestation_public: bytes) -> bytes:
    """The 384-byte SGX report in which the quoting enclave vouches for the attestation key."""
    report = bytearray(384)
    report[48:64] = bytes.fromhex("11" + "00" * 15)
    report[128:160] = tee_pki.QE_MRSIGNER
    report[256:258] = (2).to_bytes(2, "little")
    report[258:260] = tee_pki.QE_SVN.to_bytes(2, "little")
    report[320:352] = hashlib.sha256(attestation_public + _AUTHENTICATION).digest()
    return bytes(report)
