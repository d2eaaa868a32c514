"""Tests of `comigs_edge.simulate`."""
