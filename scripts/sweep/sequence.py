"""Regenerate the sweep sequence: python scripts/sweep/sequence.py [key=value ...]."""

import sys

from modelmeter.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", "sequence", *sys.argv[1:]]))
