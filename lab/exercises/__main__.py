"""`python -m lab.exercises SRC DEST`: write the student copy of a notebook, or of a folder of them."""

import argparse
from pathlib import Path

from lab.exercises import student_copy

parser = argparse.ArgumentParser(prog="python -m lab.exercises", description="Copy notebooks without their solutions.")
parser.add_argument("source", type=Path, help="a notebook, or a folder of notebooks")
parser.add_argument("destination", type=Path, help="the folder to write to")
options = parser.parse_args()
for path in student_copy(options.source, options.destination):
    print(path)
