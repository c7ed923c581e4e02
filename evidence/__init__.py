"""Attestation evidence: parse it, verify it, and hold it against what was expected. Imports nothing of ours."""
