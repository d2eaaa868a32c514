"""Trials of the method on tuning text; one JSON record each, in order of worth, on several processes; goes on where it was.

python -m benchmarks.trials prepare TEXT BASE INPUTS      where llama.cpp's tokenizer is: writes INPUTS (.json.gz)
python -m benchmarks.trials run INPUTS BASE [--records FOLDER] [--device cuda] [--jobs 8] [--minutes 5] [--tar FILE]
python -m benchmarks.trials report [--records FOLDER]     tables of what is done
python -m benchmarks.trials list                          names and steps
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import PRECISIONS, RESULTS
from benchmarks.trials import text
from benchmarks.trials.catalogue import SAMPLES, trials
from benchmarks.trials.processes import run
from benchmarks.trials.report import report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "run", "report", "list"))
    parser.add_argument("paths", type=Path, nargs="*")
    parser.add_argument("--records", type=Path, default=RESULTS / "trials")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--only", default="", help="names that begin so, separated by commas, and what they need")
    parser.add_argument("--tar", type=Path, help="packs the records after every trial")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="tokens of each source of the base's own text")
    parser.add_argument("--measured", type=int, default=64, help="rows of each text")
    parser.add_argument("--tiny", action="store_true", help="a few tokens of everything: shows that it runs")
    options = parser.parse_args()
    if options.what == "prepare":
        text.prepare(*options.paths)
    elif options.what == "list":
        print("\n".join(f"{trial.name:60} {trial.steps:5} steps" for trial in trials()))
    elif options.what == "report":
        report(options.records)
    else:
        run(options)


if __name__ == "__main__":
    main()
