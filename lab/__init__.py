"""The mesh on one machine: CVMs as network namespaces, a simulated TEE, a gateway. Never part of a CVM."""
