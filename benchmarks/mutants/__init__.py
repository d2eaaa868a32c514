"""Small faults in the source, one at a time, to see whether the tests notice: `python -m benchmarks.mutants --help`."""
