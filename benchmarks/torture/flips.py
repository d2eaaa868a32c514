"""Changes every 16 bytes that a ledger uses, one place after the other: `python benchmarks/torture/flips.py [--every N]`.

After each, `check` must name damage wherever anything that the coordinator relies on is not what it was, a start must go on with
all of it or refuse, and `check --repair` must mend the folder or say that only a backup helps, as the start has said; never with
a traceback. `look` of tests/coordinator/ledger/test_flips.py holds these rules. JSON goes to `flips.json`; the exit code is 1
where a rule did not hold.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common import result_file, write_json  # noqa: E402
from tests.coordinator.ledger.test_flips import build, content, flip, look, places  # noqa: E402


def sweep(root: Path, every: int) -> dict[str, object]:
    """Flips each `every`th place of a new folder's ledger; the figures."""
    whole = build(root / "whole")
    before, wanted = content(whole), places(whole)[::every]
    counts: Counter[str] = Counter()
    problems: list[str] = []
    for place in wanted:
        folder = shutil.copytree(whole, root / "room")
        flip(folder, place)
        try:
            found, is_mended = look(folder, before)
            counts["nothing relied on changed" if not found else "mended" if is_mended else "only a backup helps"] += 1
        except Exception as error:
            problems.append(f"byte {place}: {type(error).__name__}: {str(error)[:300]}")
        shutil.rmtree(folder)
    size = (whole / "coordinator.db").stat().st_size
    return {"ledger_bytes": size, "every": every, "places": len(wanted), **counts, "broken": len(problems), "problems": problems}


def main() -> None:
    """Sweeps, prints, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth place; default: all")
    options, begin = parser.parse_args(), time.monotonic()
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        table = sweep(Path(folder), options.every)
    table["seconds"] = round(time.monotonic() - begin)
    print(table)
    write_json(result_file("flips.json"), table)
    sys.exit(1 if table["broken"] else 0)


if __name__ == "__main__":
    main()
