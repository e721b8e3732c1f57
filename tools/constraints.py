"""Print the constraints to install with: the tested set, but a torch that is there stays as it is.

A ROCm, XPU or CUDA build of torch was chosen by whoever installed it; replacing it with the tested
version would bring another accelerator's build.
"""

import importlib.metadata
from pathlib import Path

try:
    torch = importlib.metadata.version("torch")
except importlib.metadata.PackageNotFoundError:
    torch = None

for line in Path(__file__).parents[1].joinpath("constraints.txt").read_text().splitlines():
    if torch is None or not line.startswith("torch=="):
        print(line)
if torch is not None:
    print(f"torch=={torch}")
