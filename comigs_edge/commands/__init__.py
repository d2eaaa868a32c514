"""The commands, one file each: they read options, call the package and are the only place that prints."""
