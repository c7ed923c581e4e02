"""The cluster model: groups, backends, routes, peers. Reads `cluster.tf`, checks it, and renders what each CVM gets."""
