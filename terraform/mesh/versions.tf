terraform {
  # terraform_data and check blocks; no provider at all.
  required_version = ">= 1.5"
}
