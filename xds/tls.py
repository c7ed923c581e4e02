"""TLS between Envoys: contexts and secrets. Pure.

Both ends: TLS 1.3 and nothing else, a certificate from each side. Certificates and roots come by SDS, so a rotated leaf
changes a secret, never a cluster or a listener, and no connection notices.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta

from xds.protos import (
    AggregatedConfigSource,
    Any,
    ApiVersion,
    CertificateValidationContext,
    CommonTlsContext,
    CommonTlsContextCombinedCertificateValidationContext,
    ConfigSource,
    DataSource,
    DownstreamTlsContext,
    SdsSecretConfig,
    Secret,
    StringMatcher,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    TlsCertificate,
    TlsParameters,
    TlsParametersTlsProtocol,
    TransportSocket,
    UpstreamTlsContext,
)
from xds.spec import Leaf, Principal

ROOTS = "roots"
"""Name of the secret that holds the trusted roots."""
SESSIONS = 128
"""TLS sessions that a client keeps for each route (Envoy's default is 1). TLS 1.3 uses a session once: as many
connections may be opened at once without a full handshake. Envoy offers them to whichever endpoint it dials, and only
the one that gave a session resumes it (envoyproxy/envoy#33512). About 2 KiB each."""

KEY_EXCHANGES = ("X25519MLKEM768", "X25519")
"""In order of preference (Envoy 1.40 has the same by default). The first is hybrid: whoever records the traffic, as a
host can, does not read it with a quantum computer later. It costs 0.2 ms of CPU and 2.2 KiB for each connection, both
ends together, beside X25519 alone (`docs/xds.md`)."""


PUBLIC_KEY_EXCHANGES = (*KEY_EXCHANGES, "P-256")
"""Of public listeners: some clients have none of the other two, as those that go by FIPS 140."""
PUBLIC_CIPHERS = ("[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]", "ECDHE-ECDSA-AES256-GCM-SHA384")
"""For clients that speak TLS 1.2 at most: forward secrecy, authenticated encryption, and a P-256 certificate. TLS 1.3
has its own."""


def leaf_secret_name(leaf: str) -> str:
    """The secret's name for a leaf of that name."""
    return f"leaf:{leaf}"


def ads() -> ConfigSource:
    """Resources come over the one ADS stream. A fetch that is not answered ends after 15 s (Envoy's default, said
    here)."""
    return ConfigSource(
        ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3, initial_fetch_timeout=timedelta(seconds=15)
    )


def digest(text: str) -> str:
    """32 hex digits for a text of any length and characters."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def upstream(*, identity: str, server_name: str, peer_sans: tuple[str, ...]) -> TransportSocket:
    """The client's side: presents leaf `identity`, says `server_name` (SNI), requires one of `peer_sans` (URI, exact)
    of the server."""
    wanted = [_uri(StringMatcher(exact=san)) for san in peer_sans]
    context = UpstreamTlsContext(
        common_tls_context=_common(identity, wanted), sni=server_name, max_session_keys=SESSIONS
    )
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))


def downstream(*, identity: str, caller: Principal) -> TransportSocket:
    """The server's side: presents leaf `identity`, requires the certificate of `caller`.

    A ticket is worth nothing outside of the context that issued it: BoringSSL makes the keys of tickets for each
    context, and Envoy's session ID context covers the SANs that it requires. So a session is resumed only where its
    certificate was judged by the same rule.
    """
    wanted = [_uri(StringMatcher(exact=caller.uri))]
    context = DownstreamTlsContext(common_tls_context=_common(identity, wanted), require_client_certificate=True)
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))


def public(*, identity: str, alpn: tuple[str, ...]) -> TransportSocket:
    """The side of a public listener: presents leaf `identity`, offers `alpn`, and asks for no certificate."""
    context = DownstreamTlsContext(
        common_tls_context=CommonTlsContext(
            tls_params=TlsParameters(
                tls_minimum_protocol_version=TlsParametersTlsProtocol.TLSv1_2,
                tls_maximum_protocol_version=TlsParametersTlsProtocol.TLSv1_3,
                cipher_suites=list(PUBLIC_CIPHERS),
                ecdh_curves=list(PUBLIC_KEY_EXCHANGES),
            ),
            tls_certificate_sds_secret_configs=[SdsSecretConfig(name=leaf_secret_name(identity), sds_config=ads())],
            alpn_protocols=list(alpn),
        )
    )
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))


def leaf_secret(leaf: Leaf) -> Secret:
    """Certificate and key as Envoy wants them. The result holds the key in clear: it goes into the stream and nowhere
    else."""
    return Secret(
        name=leaf_secret_name(leaf.name),
        tls_certificate=TlsCertificate(
            certificate_chain=DataSource(inline_string=leaf.chain_pem),
            private_key=DataSource(inline_string=leaf.key_pem.reveal()),
        ),
    )


def roots_secret(roots_pem: str) -> Secret:
    """The roots that a peer's certificate must chain to."""
    context = CertificateValidationContext(trusted_ca=DataSource(inline_string=roots_pem))
    return Secret(name=ROOTS, validation_context=context)


def _uri(matcher: StringMatcher) -> SubjectAltNameMatcher:
    return SubjectAltNameMatcher(san_type=SubjectAltNameMatcherSanType.URI, matcher=matcher)


def _common(identity: str, sans: list[SubjectAltNameMatcher]) -> CommonTlsContext:
    return CommonTlsContext(
        tls_params=TlsParameters(
            tls_minimum_protocol_version=TlsParametersTlsProtocol.TLSv1_3,
            tls_maximum_protocol_version=TlsParametersTlsProtocol.TLSv1_3,
            ecdh_curves=list(KEY_EXCHANGES),
        ),
        tls_certificate_sds_secret_configs=[SdsSecretConfig(name=leaf_secret_name(identity), sds_config=ads())],
        # Combined: the roots come by SDS and may change at any time, the SANs are the cluster's own and stay.
        combined_validation_context=CommonTlsContextCombinedCertificateValidationContext(
            default_validation_context=CertificateValidationContext(match_typed_subject_alt_names=sans),
            validation_context_sds_secret_config=SdsSecretConfig(name=ROOTS, sds_config=ads()),
        ),
    )
