"""Text for the demo and for `comigs-edge simulate`, from public packages."""
