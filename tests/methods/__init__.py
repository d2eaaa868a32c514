"""Tests of `comigs_edge.methods`."""
