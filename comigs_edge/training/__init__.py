"""The bi-level training of one device: trainer, schedule, optimisers, batches, checkpoints, pauses."""
