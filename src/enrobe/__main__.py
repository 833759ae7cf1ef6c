"""`python -m enrobe` is the command `enrobe`."""

from enrobe.cli import main

main()
