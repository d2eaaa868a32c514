"""Runs a parser on bytes that libFuzzer invents: python tests/fuzz/fuzz_wire.py -runs=100000, or -max_total_time=60.

What was found interesting is kept in a folder of the temporary one, and gone on from the next time; a crash is written to the
present folder and ends the process with 77.
"""

import resource
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
    # The peak that is compared has in it, on Linux, what the process had that began this one: tests with torch have a gigabyte.
    limit = 1024 + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    options = ["-max_len=4096", "-timeout=5", f"-rss_limit_mb={limit}", *sys.argv[1:]]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target)
    atheris.Fuzz()
