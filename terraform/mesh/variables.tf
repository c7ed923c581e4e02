variable "cluster_name" {
  description = "Name of the cluster: a DNS label. Part of every identity, spiffe://<cluster_name>/<workload>."
  type        = string

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", var.cluster_name))
    error_message = "cluster_name must be a DNS label: a-z, 0-9 and '-', at most 63, first a letter, last no '-'."
  }
}

variable "coordinators" {
  description = "How many coordinator CVMs. One is enough to try; three survive the loss of one."
  type        = number
  default     = 1

  validation {
    condition     = var.coordinators >= 1 && var.coordinators <= 9 && floor(var.coordinators) == var.coordinators
    error_message = "coordinators must be a whole number from 1 to 9; use 3 to survive the loss of one."
  }
}

variable "coordinator_compose" {
  description = "Path of the coordinators' compose file."
  type        = string
}

# Not typed further: Terraform drops a field that an object type does not name, and a misspelt `compose_env` must be an error.
variable "workload_groups" {
  description = "The groups, as cluster.tf has them: replicas, compose, compose_env, backends, routes, calls, egress, secrets, mesh_addresses."
  type        = any
}

variable "require_digests" {
  description = "Refuse images that are not pinned by digest: a tag can be moved to another image after it was measured."
  type        = bool
  default     = false
}

variable "manifest" {
  description = "Signed manifest envelope, one line, as `./mesh sign` writes it: where the coordinators are. No CVM is given it. Empty until there is one. Not a secret."
  type        = string
  default     = ""

  validation {
    # Without a signature nobody takes it.
    condition     = var.manifest == "" || can(regex("^[A-Za-z0-9_-]+(\\.[A-Za-z0-9_-]+){1,16}$", var.manifest))
    error_message = "manifest must be one line, <payload>.<signature> in base64url: the content of manifest.signed, which `./mesh sign` writes."
  }
}
