"""TLS between Envoys: contexts and secrets. Pure.

Both ends: TLS 1.3 and nothing else, a certificate from each side. Certificates and roots come by SDS, so a rotated leaf
changes a secret, never a cluster or a listener, and no connection notices.
"""

from __future__ import annotations

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
from xds.spec import Leaf

ROOTS = "roots"
"""Name of the secret that holds the trusted roots."""


def leaf_secret_name(leaf: str) -> str:
    """The secret's name for a leaf of that name."""
    return f"leaf:{leaf}"


def ads() -> ConfigSource:
    """Resources come over the one ADS stream. A fetch that is not answered ends after 15 s (Envoy's default, said
    here)."""
    return ConfigSource(
        ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3, initial_fetch_timeout=timedelta(seconds=15)
    )


def upstream(*, identity: str, peer_sans: tuple[str, ...], alpn: tuple[str, ...]) -> TransportSocket:
    """The client's side: presents leaf `identity`, requires one of `peer_sans` (URI, exact) of the server."""
    wanted = [
        SubjectAltNameMatcher(san_type=SubjectAltNameMatcherSanType.URI, matcher=StringMatcher(exact=san))
        for san in peer_sans
    ]
    context = UpstreamTlsContext(common_tls_context=_common(identity, alpn, wanted))
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))


def downstream(*, identity: str, alpn: tuple[str, ...], resumption: bool) -> TransportSocket:
    """The server's side: presents leaf `identity`, requires a client certificate. Who may call is for RBAC to say."""
    context = DownstreamTlsContext(
        common_tls_context=_common(identity, alpn, []),
        require_client_certificate=True,
        disable_stateless_session_resumption=not resumption,
        disable_stateful_session_resumption=not resumption,
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


def _common(identity: str, alpn: tuple[str, ...], sans: list[SubjectAltNameMatcher]) -> CommonTlsContext:
    return CommonTlsContext(
        tls_params=TlsParameters(
            tls_minimum_protocol_version=TlsParametersTlsProtocol.TLSv1_3,
            tls_maximum_protocol_version=TlsParametersTlsProtocol.TLSv1_3,
        ),
        alpn_protocols=list(alpn),
        tls_certificate_sds_secret_configs=[SdsSecretConfig(name=leaf_secret_name(identity), sds_config=ads())],
        # Combined: the roots come by SDS and may change at any time, the SANs are the cluster's own and stay.
        combined_validation_context=CommonTlsContextCombinedCertificateValidationContext(
            default_validation_context=CertificateValidationContext(match_typed_subject_alt_names=sans),
            validation_context_sds_secret_config=SdsSecretConfig(name=ROOTS, sds_config=ads()),
        ),
    )
