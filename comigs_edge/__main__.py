"""`python -m comigs_edge` is the command `comigs-edge`."""

from comigs_edge.cli import main

main()
