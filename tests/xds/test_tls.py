"""TLS contexts and secrets."""

from __future__ import annotations

from tests.xds.entries import LEAF, PEM
from xds import tls
from xds.protos import DownstreamTlsContext, TlsParametersTlsProtocol, UpstreamTlsContext
from xds.spec import Principal


def test_both_sides_speak_tls_1_3_only() -> None:
    """Minimum and maximum are the same."""
    server = tls.downstream(identity="me", caller=Principal(uri="spiffe://mesh/a")).typed_config
    client = tls.upstream(identity="me", server_name="caller-1", peer_sans=("spiffe://mesh/a",)).typed_config
    assert server is not None
    assert client is not None
    for context in (DownstreamTlsContext.parse(server.value), UpstreamTlsContext.parse(client.value)):
        assert context.common_tls_context is not None
        params = context.common_tls_context.tls_params
        assert params is not None
        limits = {params.tls_minimum_protocol_version, params.tls_maximum_protocol_version}
        assert limits == {TlsParametersTlsProtocol.TLSv1_3}


def test_the_server_requires_a_certificate() -> None:
    """Whoever brings none is refused in the handshake."""
    packed = tls.downstream(identity="me", caller=Principal(uri="spiffe://mesh/a")).typed_config
    assert packed is not None
    assert DownstreamTlsContext.parse(packed.value).require_client_certificate is True


def test_the_client_requires_each_san_exactly() -> None:
    """A URI, whole."""
    packed = tls.upstream(identity="me", server_name="", peer_sans=("spiffe://mesh/a", "spiffe://mesh/b")).typed_config
    assert packed is not None
    common = UpstreamTlsContext.parse(packed.value).common_tls_context
    assert common is not None
    assert common.combined_validation_context is not None
    validation = common.combined_validation_context.default_validation_context
    assert validation is not None
    matchers = [san.matcher for san in validation.match_typed_subject_alt_names]
    assert [matcher.exact for matcher in matchers if matcher] == ["spiffe://mesh/a", "spiffe://mesh/b"]


def test_secrets_carry_their_names() -> None:
    """What clusters and listeners refer to."""
    assert tls.leaf_secret(LEAF).name == "leaf:me" == tls.leaf_secret_name("me")
    assert tls.roots_secret(PEM).name == tls.ROOTS
