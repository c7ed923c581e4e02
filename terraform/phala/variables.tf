variable "mesh" {
  description = "The outputs of the module `mesh`."
  type        = any
}

variable "public" {
  description = "Groups that the gateway serves, and the port of each: { api = 8080 }."
  type        = map(number)
  default     = {}

  validation {
    condition     = alltrue([for port in values(var.public) : port >= 1 && port <= 65535 && floor(port) == port])
    error_message = "public: a port must be a whole number from 1 to 65535."
  }
}

variable "size" {
  description = "Instance type of each CVM by group (`coordinator` for the coordinators); `default` is for those not named."
  type        = map(string)
  default     = { default = "tdx.small" }

  validation {
    condition     = contains(keys(var.size), "default")
    error_message = "size must have an entry `default`, such as { default = \"tdx.small\" }."
  }
}

variable "region" {
  description = "Region of all CVMs; null leaves it to the platform. A change replaces every CVM."
  type        = string
  default     = null
}

variable "disk_size" {
  description = "Disk of each CVM in GB; can only grow."
  type        = number
  default     = 20
}

variable "kms" {
  description = "Where keys come from. A change replaces every CVM."
  type        = string
  default     = "phala"

  validation {
    # The provider plans other values cleanly, and they fail after minutes of apply.
    condition     = var.kms == "phala"
    error_message = "kms must be \"phala\": this version of the provider cannot create apps with another key management service."
  }
}

variable "attestation" {
  description = <<-EOT
    What the manifest will demand, and what is deployed to meet it.
      image                     OS image slug; null takes the platform's choice. A development image lets its operator log in.
      allow_development_images  admit CVMs that run a development image
      allowed_tcb_statuses      what Intel may say of the platform
      rejected_advisories       security advisories that exclude a platform, such as INTEL-SA-00615
      require_digests           compose files must pin images by digest
  EOT
  type = object({
    image                    = optional(string)
    allow_development_images = optional(bool, false)
    allowed_tcb_statuses     = optional(list(string), ["UpToDate"])
    rejected_advisories      = optional(list(string), [])
    require_digests          = optional(bool, true)
  })
  default = {}

  validation {
    condition     = var.attestation.allow_development_images || !can(regex("dev", coalesce(var.attestation.image, "-")))
    error_message = "attestation.image is a development image, into which its operator can log in; take a production image, or set allow_development_images = true for a trial."
  }
  validation {
    condition = alltrue([for status in var.attestation.allowed_tcb_statuses : contains([
      "UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded",
    ], status)])
    error_message = "attestation.allowed_tcb_statuses: expected some of UpToDate, SWHardeningNeeded, ConfigurationNeeded, ConfigurationAndSWHardeningNeeded, OutOfDate, OutOfDateConfigurationNeeded."
  }
}

variable "rendezvous" {
  description = "The bootstrap endpoints: UDP-reachable hosts that run clusters/relay. public_key is what its container prints, endpoint its public ip:port."
  type        = list(object({ public_key = string, endpoint = string }))
  default     = []

  validation {
    condition = alltrue([
      for r in var.rendezvous :
      can(regex("^[A-Za-z0-9+/]{43}=$", r.public_key)) && can(regex("^[0-9]{1,3}(\\.[0-9]{1,3}){3}:[0-9]{1,5}$", r.endpoint))
    ])
    error_message = "rendezvous: public_key must be a WireGuard public key (44 characters of base64), endpoint an IPv4 address and a UDP port, such as \"203.0.113.5:51820\"."
  }
}

variable "read_attestation" {
  description = "Read what each app's first CVM measured, for `./mesh generate`. false where a CVM is stopped, and would fail the plan."
  type        = bool
  default     = true
}
