"""Torch against llama.cpp for one home, as JSON on standard output.

    python -m benchmarks.figures.exactness MIXTURE_F32.gguf TOKENS

Compares the base (exported at F32 here) and the personal model (the given F32 export) on the home's test text, with a
float32 cache in llama.cpp; and the median of 5 times of opening and dequantising the base, in seconds.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from comigs_edge import llamacpp
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.export import folder as models
from comigs_edge.export.merged import export
from comigs_edge.home import folder as homes
from comigs_edge.home.folder import corpus
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import Base, open_base
from quantize.gguf_file import GGUFFile


def compare(base: Base, adapters: Adapters | None, path: Path, ids: list[int]) -> dict[str, float]:
    """Mean KL(llama.cpp || torch) in nats, share of equal likeliest tokens, largest difference of a logit."""
    model = Model(base, adapters)
    with torch.no_grad():
        ours = model.logits(model(torch.tensor([ids])).hidden).double()
    llama = llamacpp.load(path, n_ctx=len(ids), n_batch=len(ids), logits_all=True, type_k=0, type_v=0, flash_attn=False)
    llama.eval(ids)
    theirs = torch.from_numpy(llama.scores[: len(ids)]).double()
    a, b = theirs.log_softmax(-1), ours.log_softmax(-1)
    return {
        "mean_kl": float((a.exp() * (a - b)).sum(-1).mean()),
        "same_top_1": float((theirs.argmax(-1) == ours.argmax(-1)).double().mean()),
        "largest_difference": float((theirs - ours).abs().max()),
        "tokens": len(ids),
    }


def main() -> None:
    """Prints the comparison."""
    mixture, tokens = Path(sys.argv[1]), int(sys.argv[2])
    home = homes.locate()
    settings = home.settings()
    tokenizer = Tokenizer(home.base_file)
    ids: list[int] = []
    for document in corpus(home, settings).documents("test"):
        ids += tokenizer.encode(document).ids
    ids = ids[:tokens]
    opened = []
    for _ in range(5):
        start = time.monotonic()
        base = open_base(home.base_file)
        opened.append(time.monotonic() - start)
    adapters, _ = models.newest_adapters(home, settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base-F32.gguf"
        export(GGUFFile(home.base_file), None, "F32", path)
        result = {"base": compare(base, None, path, ids), "mixture": compare(base, adapters, mixture, ids)}
    print(json.dumps(result | {"open_base_seconds": round(statistics.median(opened), 3)}))


if __name__ == "__main__":
    main()
