# Checks and renders what cluster.tf says; needs no provider, `./mesh plan` finds the other mistakes.
module "mesh" {
  source = "../../terraform/mesh"

  cluster_name        = var.cluster_name
  coordinators        = var.coordinators
  coordinator_compose = "${path.module}/compose/coordinator.yaml"
  workload_groups     = local.workload_groups
  require_digests     = var.attestation.require_digests

  # What `./mesh sign` writes: where the coordinators are, and what deployment is checked against.
  manifest = fileexists("${path.module}/manifest.signed") ? trimspace(file("${path.module}/manifest.signed")) : ""
}

# Makes it so on Phala Cloud.
module "phala" {
  source = "../../terraform/phala"

  mesh        = module.mesh
  size        = var.size
  region      = var.region
  kms         = var.kms
  attestation = var.attestation
  rendezvous  = var.rendezvous
}
