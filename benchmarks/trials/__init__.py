"""Trials of the method on tuning text: the zero expert, and small steps. `python -m benchmarks.trials --help`."""
