"""What devices and coordinator share: the wire format, messages, keys, signatures, rounds, sums."""
