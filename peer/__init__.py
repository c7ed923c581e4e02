"""The WireGuard link between CVMs: keys, peers, endpoints across NATs, and the rendezvous. See docs/peer-link.md."""
