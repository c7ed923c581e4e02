"""Envoy's message types, from envoy-data-plane: the one place that imports them, in the form that a sidecar can afford.

envoy-data-plane was generated with betterproto2's option for pydantic classes. Imported as it is, that costs 32 MiB
and 1 s here, and each `bytes(message)` compiles a validator for every message in it: 16 ms for a route, 29 s for
1,000 routes with 10 endpoints. betterproto2's own default form, standard dataclasses, costs 14 MiB and serialises 20
times faster, to the same bytes (a test compares them). So while these modules load, and only then, `pydantic` means a
stand-in whose dataclass is the standard one, made when a class is first used: of 560 that load, 60 ever are. What else
the libraries load and we do not use (gRPC stubs, dates in JSON, their own version) is an empty one. Before and after,
everybody gets the real ones. Nothing in the libraries is changed. What is lost is pydantic's checking of field types
at run time: mypy checks our use, Envoy checks the result.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any as Anything

_ABSENT = ModuleType("absent")
_FIELDS = "__dataclass_fields__"
_OF_ONE_CLASS = ("__init__", "__dict__", "__weakref__", "_abc_impl")


class _Incomplete:
    """Where `dataclasses` keeps a class's fields: whoever asks for them has the class completed first."""

    def __init__(self, options: dict[str, bool]) -> None:
        self._options = options

    def __get__(self, instance: object, cls: type) -> Anything:
        owner = next(one for one in cls.__mro__ if vars(one).get(_FIELDS) is self)
        _complete(owner, self._options)
        return getattr(cls, _FIELDS)


def _lazily(cls: Anything, options: dict[str, bool]) -> Anything:
    """`cls`, made a dataclass when it is used for the first time."""

    def first(self: Anything, *args: Anything, **values: Anything) -> None:
        _complete(cls, options)
        cls.__init__(self, *args, **values)

    cls.__init__ = first
    setattr(cls, _FIELDS, _Incomplete(options))
    return cls


def _field_default(self: Anything, name: str) -> Anything:
    return self._betterproto.default_gen[name]()


def _complete(cls: Anything, options: dict[str, bool]) -> None:
    """On a twin, whose parts are then put in place: two threads may do this at the same time, and a message that a
    third one makes meanwhile is whole. For the same reason fields stay what they are in the class itself.
    """
    own = {name: value for name, value in vars(cls).items() if name not in (_FIELDS, *_OF_ONE_CLASS)}
    twin: Anything = dataclasses.dataclass(**options)(type(cls)(cls.__name__, cls.__bases__, own))
    # betterproto2 asks for the types of all fields once for each field, and parses the annotations every time.
    cls._type_hints = functools.cache(cls._type_hints)
    # And guards every default, of which a message has dozens, against warnings that only calls of others could give.
    cls._get_field_default = _field_default
    twin._type_hints = cls._type_hints
    cls._betterproto_meta = _Metadata(twin)
    cls.__init__ = twin.__init__
    setattr(cls, _FIELDS, getattr(twin, _FIELDS))


def _pydantic() -> dict[str, ModuleType]:
    """A `pydantic` that makes standard dataclasses and knows no validators."""
    package, classes = ModuleType("pydantic"), ModuleType("pydantic.dataclasses")

    def dataclass(*, config: object, **options: bool) -> Callable[[type], type]:  # noqa: ARG001
        return lambda cls: _lazily(cls, options)

    def decorator(**_: object) -> Callable[[Anything], Anything]:
        return lambda function: function

    def validator(*_: object, **__: object) -> None:
        """Stands in an annotation, where betterproto2 looks at the type beside it."""

    vars(classes).update(dataclass=dataclass, rebuild_dataclass=lambda _: None, is_pydantic_dataclass=lambda _: False)
    vars(package).update(
        dataclasses=classes, model_validator=decorator, AfterValidator=validator, Field=validator, __path__=[]
    )
    return {"pydantic": package, "pydantic.dataclasses": classes}


def _grpclib() -> dict[str, ModuleType]:
    """A `grpclib` with the names that class definitions need."""
    ours = ModuleType("betterproto2.grpclib")
    vars(ours).update(ServiceBase=object, ServiceStub=object)
    return {"grpclib": ModuleType("grpclib"), "betterproto2.grpclib": ours}


def _unused() -> dict[str, ModuleType]:
    """What is only loaded to read JSON's dates, and to learn betterproto2's own version: pyproject.toml pins it."""
    dates, version = ModuleType("dateutil"), ModuleType("betterproto2._version")
    vars(dates).update(parser=ModuleType("dateutil.parser"), __path__=[])
    vars(version).update(__version__="as pinned", check_compiler_version=lambda _: None)
    return {"dateutil": dates, "dateutil.parser": vars(dates)["parser"], "betterproto2._version": version}


@contextmanager
def _stand_ins() -> Iterator[None]:
    """While this lasts, these packages are stand-ins; modules that are loaded already keep what they have."""
    mine: dict[str, Anything] = {**_pydantic(), **_grpclib(), **_unused()}
    # betterproto2 does without pydantic when it finds no core: None makes an import say so.
    mine["pydantic_core"] = None
    before = {name: sys.modules.get(name, _ABSENT) for name in mine}
    sys.modules.update(mine)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is _ABSENT:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


with _stand_ins():
    import betterproto2
    from envoy_data_plane.envoy.config.cluster.v3 import (
        CircuitBreakers,
        CircuitBreakersThresholds,
        Cluster,
        ClusterCommonLbConfig,
        ClusterCustomClusterType,
        ClusterDiscoveryType,
        ClusterEdsClusterConfig,
        ClusterLbPolicy,
        ClusterLbSubsetConfig,
        ClusterLbSubsetConfigLbSubsetSelector,
        ClusterTransportSocketMatch,
        OutlierDetection,
        UpstreamConnectionOptions,
    )
    from envoy_data_plane.envoy.config.core.v3 import (
        Address,
        AggregatedConfigSource,
        ApiVersion,
        BackoffStrategy,
        BindConfig,
        CidrRange,
        ConfigSource,
        DataSource,
        DnsResolverOptions,
        Http1ProtocolOptions,
        HttpProtocolOptions,
        Metadata,
        ProxyProtocolConfig,
        ProxyProtocolConfigVersion,
        SocketAddress,
        SocketOption,
        TcpKeepalive,
        TransportSocket,
        TypedExtensionConfig,
    )
    from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints
    from envoy_data_plane.envoy.config.endpoint.v3 import Endpoint as LbAddress
    from envoy_data_plane.envoy.config.listener.v3 import (
        Filter,
        FilterChain,
        FilterChainMatch,
        Listener,
        ListenerFilter,
    )
    from envoy_data_plane.envoy.config.route.v3 import (
        DirectResponseAction,
        Route,
        RouteConfiguration,
        RouteMatch,
        VirtualHost,
    )
    from envoy_data_plane.envoy.extensions.clusters.common.dns.v3 import DnsLookupFamily
    from envoy_data_plane.envoy.extensions.clusters.dns.v3 import DnsCluster, DnsClusterRefreshRate
    from envoy_data_plane.envoy.extensions.filters.listener.proxy_protocol.v3 import (
        ProxyProtocol as ProxyProtocolListenerFilter,
    )
    from envoy_data_plane.envoy.extensions.filters.listener.tls_inspector.v3 import TlsInspector
    from envoy_data_plane.envoy.extensions.filters.network.connection_limit.v3 import ConnectionLimit
    from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
        HttpConnectionManager,
        HttpConnectionManagerCodecType,
        HttpFilter,
    )
    from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy.v3 import TcpProxy, UpstreamConnectMode
    from envoy_data_plane.envoy.extensions.network.dns_resolver.cares.v3 import CaresDnsResolverConfig
    from envoy_data_plane.envoy.extensions.transport_sockets.proxy_protocol.v3 import ProxyProtocolUpstreamTransport
    from envoy_data_plane.envoy.extensions.transport_sockets.raw_buffer.v3 import RawBuffer
    from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
        CertificateValidationContext,
        CommonTlsContext,
        CommonTlsContextCombinedCertificateValidationContext,
        DownstreamTlsContext,
        SdsSecretConfig,
        Secret,
        SubjectAltNameMatcher,
        SubjectAltNameMatcherSanType,
        TlsCertificate,
        TlsParameters,
        TlsParametersTlsProtocol,
        UpstreamTlsContext,
    )
    from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryResponse
    from envoy_data_plane.envoy.service.discovery.v3 import Resource as DeltaResource
    from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
    from envoy_data_plane.envoy.type.v3 import Percent
    from envoy_data_plane.google.protobuf import Any, Struct, Value


class _Types(dict[str, type]):
    """The types of a message's fields, read when one is parsed for the first time: most are only written."""

    def __init__(self, cls: type, fields: Anything) -> None:
        super().__init__()
        self._of = cls, tuple(fields)

    def __missing__(self, name: str) -> type:
        found: dict[str, type] = betterproto2.ProtoClassMetadata._get_cls_by_field(*self._of)
        self.update(found)
        return found[name]


class _Metadata(betterproto2.ProtoClassMetadata):
    """betterproto2's table of a class, which evaluates annotations only when it needs them."""

    __slots__ = ()

    @staticmethod
    def _get_cls_by_field(message: type, fields: Anything) -> dict[str, type]:
        return _Types(message, fields)


__all__ = [
    "Address",
    "AggregatedConfigSource",
    "Any",
    "ApiVersion",
    "BackoffStrategy",
    "BindConfig",
    "CaresDnsResolverConfig",
    "CertificateValidationContext",
    "CidrRange",
    "CircuitBreakers",
    "CircuitBreakersThresholds",
    "Cluster",
    "ClusterCommonLbConfig",
    "ClusterCustomClusterType",
    "ClusterDiscoveryType",
    "ClusterEdsClusterConfig",
    "ClusterLbPolicy",
    "ClusterLbSubsetConfig",
    "ClusterLbSubsetConfigLbSubsetSelector",
    "ClusterLoadAssignment",
    "ClusterTransportSocketMatch",
    "CommonTlsContext",
    "CommonTlsContextCombinedCertificateValidationContext",
    "ConfigSource",
    "ConnectionLimit",
    "DataSource",
    "DeltaDiscoveryResponse",
    "DeltaResource",
    "DirectResponseAction",
    "DnsCluster",
    "DnsClusterRefreshRate",
    "DnsLookupFamily",
    "DnsResolverOptions",
    "DownstreamTlsContext",
    "Filter",
    "FilterChain",
    "FilterChainMatch",
    "Http1ProtocolOptions",
    "HttpConnectionManager",
    "HttpConnectionManagerCodecType",
    "HttpFilter",
    "HttpProtocolOptions",
    "LbAddress",
    "LbEndpoint",
    "Listener",
    "ListenerFilter",
    "LocalityLbEndpoints",
    "Metadata",
    "OutlierDetection",
    "Percent",
    "ProxyProtocolConfig",
    "ProxyProtocolConfigVersion",
    "ProxyProtocolListenerFilter",
    "ProxyProtocolUpstreamTransport",
    "RawBuffer",
    "Route",
    "RouteConfiguration",
    "RouteMatch",
    "SdsSecretConfig",
    "Secret",
    "SocketAddress",
    "SocketOption",
    "StringMatcher",
    "Struct",
    "SubjectAltNameMatcher",
    "SubjectAltNameMatcherSanType",
    "TcpKeepalive",
    "TcpProxy",
    "TlsCertificate",
    "TlsInspector",
    "TlsParameters",
    "TlsParametersTlsProtocol",
    "TransportSocket",
    "TypedExtensionConfig",
    "UpstreamConnectMode",
    "UpstreamConnectionOptions",
    "UpstreamTlsContext",
    "Value",
    "VirtualHost",
]
