"""Private windows: the coordinator learns the sum of several devices' updates, after Bonawitz et al. 2017 (CCS '17)."""
