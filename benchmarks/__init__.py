"""Figures, robustness and text: what `make bench`, `make torture` and `make demo` run."""
