"""`python -m leasecache`: the command line."""

from leasecache.cli import main

main()
