"""Benchmarks that give a figure each."""
