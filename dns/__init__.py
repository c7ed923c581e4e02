"""Route-name DNS: the mesh's own names, and everything else forwarded to the resolvers that the machine came with."""
