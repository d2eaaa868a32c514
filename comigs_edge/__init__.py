"""comigs-edge: a small language model becomes yours, on your own device.

A map of the package, in the order in which text becomes a chat:

documents.py   files -> documents           corpus.py     the documents a device keeps, and their splits
tokens.py      text and chats -> token ids  batches.py    token ids -> rows of one batch
shape.py       hyper-parameters of a base   base.py       its frozen weights
layout.py      experts and their tensors    lora.py       low-rank updates
moe.py         router and mixture           model.py      the transformer around them
attention.py   its attention; short_rows.py loss.py       cross-entropy in pieces of the vocabulary
recompute.py   activation checkpointing     below.py      outputs of blocks without experts, kept on disk
planning.py    how this device would train  measure.py    how fast it multiplies
schedule.py    which step is when           pauses.py     waiting for a better moment
adapters.py    what training makes, and which part of it may leave the device
train.py       the bi-level loop            optimiser.py  AdamW; router_optimiser.py
checkpoint.py  its state on disk            session.py    a home's text, base and settings for training
together.py    a training in rounds         federation.py the device's side of its fleet
membership.py  its files there              manifests.py  the chain of generalists, checked
remote.py      talking to a coordinator     exchange.py   what is asked and told there
evaluate.py    bits per byte                export.py     adapters + base -> one GGUF; replace.py, hot.py
chat.py        a conversation in llama.cpp  engine.py     llama.cpp itself
speed.py       tokens a second, side by side
simulate/      a fleet on one machine       methods/      how it exchanges, one file each
home.py        the folder of all this       config.py     its settings; config_file.py, config_text.py
files.py       writing without loss         errors.py     what a user is told
cli.py         the command line; each command is in commands/, the only place that prints
"""

__version__ = "0.1.0"
