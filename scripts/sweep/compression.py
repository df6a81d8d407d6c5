"""Regenerate the sweep compression: python scripts/sweep/compression.py [key=value ...]."""

import sys

from modelmeter.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", "compression", *sys.argv[1:]]))
