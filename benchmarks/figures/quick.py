"""`comigs-edge simulate` on the shipped recipes, one result file each; as `make bench WHAT=quick` runs it.

    python -m benchmarks.figures.quick TEXT [--recipes NAME,...] [--methods NAME,...] [--size quick] [--seeds 42,...]

A simulation that was interrupted is taken up where it was: its rounds are kept in simulations/.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from benchmarks.common import COMMAND, ROOT, result_file

RECIPES = "multilingual,domains,topics-ood,quantity,devices,chat"
METHODS = "local,fedavg,comigs-1g1s,comigs-2g,comigs-2s,comigs-edge"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--size", default="quick")
    parser.add_argument("--seeds", default="42")
    parser.add_argument("--precision", default="float32", help="bfloat16 takes half the time where the processor has it")
    parser.add_argument("--device", default="cpu", help="or cuda")
    options = parser.parse_args()
    flags = [part for name in options.methods.split(",") for part in ("--method", name)]
    flags += [part for seed in options.seeds.split(",") for part in ("--seed", seed)]
    flags += ["--size", options.size, "--device", options.device, "--precision", options.precision]
    for recipe in options.recipes.split(","):
        command = [*COMMAND, "simulate", recipe, *flags, "--text", str(options.text.absolute()), "--json"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(done.returncode)
        path = result_file(f"simulate-{recipe}-{options.size}.json")
        path.write_text(done.stdout)
        print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    main()
