variable "cluster_name" {
  description = "Name of the cluster: a DNS label. Part of every identity, spiffe://<cluster_name>/<workload>."
  type        = string
  default     = "emojivoto"

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

variable "web_replicas" {
  description = "How many CVMs serve the page."
  type        = number
  default     = 2
}

variable "emoji_replicas" {
  description = "How many CVMs know the emoji."
  type        = number
  default     = 1
}

# What follows is for Phala Cloud alone; a mesh on one machine does not look at it.

variable "rendezvous" {
  description = "Bootstrap endpoints: hosts that run clusters/relay. Each with the public key that its container prints and its public ip:port."
  type        = list(object({ public_key = string, endpoint = string }))
  default     = []
}

variable "kms" {
  description = "Where the CVMs' keys come from. Only \"phala\" can be created with this provider."
  type        = string
  default     = "phala"
}

variable "attestation" {
  description = "What a CVM must prove, and the image that is deployed to prove it; see terraform/phala."
  type = object({
    image                    = optional(string)
    allow_development_images = optional(bool, false)
    allowed_tcb_statuses     = optional(list(string), ["UpToDate"])
    rejected_advisories      = optional(list(string), [])
    require_digests          = optional(bool, true)
  })
  default = {}
}

variable "size" {
  description = "Instance type by group; `default` is for those not named, `coordinator` for the coordinators."
  type        = map(string)
  default     = { default = "tdx.small" }
}

variable "region" {
  description = "Region of all CVMs; null leaves it to the platform."
  type        = string
  default     = null
}
