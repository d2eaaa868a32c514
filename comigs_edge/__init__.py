"""comigs-edge: a small language model becomes yours, on your own device.

The packages, each standing on those above it:

base/        hyper-parameters, catalogue, download, conversion of base models
data/        documents, their splits, the tokenizer
nn/          the frozen base, experts, router, and the transformer around them
home/        the folder on the device, its settings, the versions of its adapters
export/      adapters + base -> GGUF files
planning/    how this device would train
inference/   chat, evaluation, tokens a second, in llama.cpp
training/    the bi-level loop, its optimisers, batches and checkpoints
fleet/       the device's side of its fleet
simulate/    a fleet on one machine, and the methods by which it learns together
commands/    the command line, the only place that prints; `cli.py` registers them

Beside them: `errors.py`, what a user reads; `files.py`, writing without loss; `arrays.py`, sums of named arrays;
`progress.py`; `llamacpp.py`, the binding.
"""

from coordinator.protocol import VERSION as __version__

__all__ = ["__version__"]
