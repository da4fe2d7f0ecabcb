"""`python -m cosyjit` is the command line."""

from cosyjit.cli import main

main()
