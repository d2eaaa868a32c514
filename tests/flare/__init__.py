"""A fleet on an engine."""
