"""Runs a parser on bytes that libFuzzer invents: python tests/fuzz/fuzz_wire.py -runs=100000, or -max_total_time=60.

What was found interesting is kept in a folder of the temporary one, and gone on from the next time; a crash is written to the
present folder and ends the process with 77.
"""

import sys
import tempfile
from pathlib import Path

import atheris


def fuzz(name, target, seeds):
    """Never returns. `target` takes bytes and raises only for what nobody expects."""
    corpus = Path(tempfile.gettempdir()) / f"comigs-fuzz-{name}"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([*sys.argv, "-max_len=4096", "-timeout=5", "-rss_limit_mb=1024", str(corpus)], target)
    atheris.Fuzz()
