"""What a busy neighbour costs the drawing of images, and what a short spin saves: ``python -m benchmarks.neighbour``.

The bundled base draws in a process of its own with a thread per core, alone and beside a process that keeps one core
busy. Threads of GNU's OpenMP spin as they come, or briefly (``GOMP_SPINCOUNT=1000``). All four take turns.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from dreamset.core import device
from dreamset.core.files import write_json

ROOT = Path(__file__).parents[1]
DRAW = """
import sys, time
import torch
from pathlib import Path
from dreamset import classifiers, params
from dreamset.generator import base_model, sampler
from dreamset.params.model import Sampler

row = params.load(Path("params.yaml"), classifiers.ROWS).base
base = base_model.load(Path(row.generator), row, torch.device("cpu"))
count = int(sys.argv[1])
prompts, empty = base.encode(["a photo of the digit three"] * count), base.encode([""] * count)

def draw():
    return sampler.draw_fitting(base, Sampler("dpmsolver++", 20, 2.0), prompts, empty, list(range(count)))

draw()
started = time.perf_counter()
draw()
print(count / (time.perf_counter() - started))
"""


def images_per_s(*, briefly: bool, images: int) -> float:
    """Return the images per second of one process."""
    own = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    own["PYTHONPATH"] = str(ROOT / "src")
    if briefly:
        own["GOMP_SPINCOUNT"] = "1000"
    code = [sys.executable, "-c", DRAW, str(images)]
    done = subprocess.run(code, cwd=ROOT, env=own, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Run from the command line; print the medians and keep them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbour", description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--images", type=int, default=50, help="drawn at once (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/neighbour.json", help="JSON file")
    options = parser.parse_args()
    taken: dict[str, list[float]] = {}
    for _ in range(options.repeat):
        for busy in (False, True):
            neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
            try:
                for briefly in (False, True):
                    name = f"{'beside a neighbour' if busy else 'alone'}, {'brief spin' if briefly else 'as it comes'}"
                    taken.setdefault(name, []).append(images_per_s(briefly=briefly, images=options.images))
            finally:
                if neighbour:
                    neighbour.kill()
                    neighbour.wait()
    medians = {name: round(statistics.median(values), 1) for name, values in taken.items()}
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.neighbour", *sys.argv[1:]]),
        "device": device.name(),
        "load_before": round(os.getloadavg()[0], 2),
        "images_per_s": medians,
        "each": {name: [round(value, 1) for value in values] for name, values in taken.items()},
    }
    for where in ("alone", "beside a neighbour"):
        report[f"ratio {where}"] = round(medians[f"{where}, brief spin"] / medians[f"{where}, as it comes"], 2)
    write_json(options.output, report)
    print(report)


if __name__ == "__main__":
    main()
