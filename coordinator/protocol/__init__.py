"""What devices and coordinator share: the wire format, messages, keys, signatures, rounds, sums."""

VERSION = "0.1.0"  # of comigs-edge, said here alone: a literal that a checkout has too, and that costs no time to read
