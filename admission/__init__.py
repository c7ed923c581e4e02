"""How a coordinator is spoken to: first who it is, by its evidence and the owners' manifest; then the question."""
