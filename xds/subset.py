"""How a route leads to one of its cluster's endpoints: each endpoint is a subset of its own (`xds.spec.Sole`). Pure.

Which one is said in the listener's filter chain, and the others stay in the cluster. So a role that moves is one
message instead of two that a client can come between, and a leader that had the role before still has the TLS
connection that Envoy opened to it.
"""

from __future__ import annotations

from xds.protos import ClusterLbSubsetConfig, ClusterLbSubsetConfigLbSubsetSelector, Metadata, Struct, Value
from xds.spec import Endpoint, Sole

_NAMESPACE = "envoy.lb"
"""Where Envoy's subset balancer looks (its protocol's rule)."""
_KEY = "at"
_NOBODY = "nobody"


def subsets() -> ClusterLbSubsetConfig:
    """For the cluster. What matches no endpoint leads nowhere: that is Envoy's default (NO_FALLBACK)."""
    return ClusterLbSubsetConfig(subset_selectors=[ClusterLbSubsetConfigLbSubsetSelector(keys=[_KEY])])


def member(endpoint: Endpoint) -> Metadata:
    """For the endpoint."""
    return _metadata(_text(endpoint))


def only(sole: Sole) -> Metadata:
    """For the proxy in the chain."""
    return _metadata(_NOBODY if sole.endpoint is None else _text(sole.endpoint))


def _text(endpoint: Endpoint) -> str:
    return f"{endpoint.address} {endpoint.port}"


def _metadata(value: str) -> Metadata:
    return Metadata(filter_metadata={_NAMESPACE: Struct(fields={_KEY: Value(string_value=value)})})
