"""Benchmarks: every number is a ratio to a peer, measured in one run with the two taking turns."""
