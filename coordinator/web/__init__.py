"""The coordinator's HTTP server, status page and metrics."""
