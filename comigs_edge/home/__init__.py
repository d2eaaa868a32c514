"""The folder of one person on one device, its settings and the versions of its adapters."""
