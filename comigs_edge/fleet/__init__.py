"""The device's side of its fleet: books, transport, gate, rounds."""
