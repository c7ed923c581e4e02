"""The command line: set-up, lab control, status, tests, benchmarks."""
