terraform {
  required_version = ">= 1.5"

  required_providers {
    phala = {
      source = "phala-network/phala"
      # Exact: only pre-releases exist, which no range matches.
      version = "0.3.0-beta.3"
    }
  }
}

# The API key comes from PHALA_CLOUD_API_KEY, never from a file of this folder.
provider "phala" {}
