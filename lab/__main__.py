"""`python -m lab` is the command line."""

from .cli import main

main()
