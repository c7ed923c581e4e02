"""The process of one workload CVM: asks for admission, gives names and addresses, configures Envoy, supervises."""
