variable "cluster_name" {
  description = "Name of the cluster: a DNS label. Part of every identity, spiffe://<cluster_name>/<workload>."
  type        = string
  default     = "bench"

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
    error_message = "coordinators must be a whole number from 1 to 9."
  }
}
