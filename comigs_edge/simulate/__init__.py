"""A fleet on one machine: virtual devices that share one frozen base, trained and averaged by the code of real ones."""
