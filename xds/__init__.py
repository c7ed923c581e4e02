"""The xDS control plane of the one local Envoy: spec → resources → snapshot → stream → server, and the bootstrap."""
