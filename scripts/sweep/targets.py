"""Regenerate the sweep targets: python scripts/sweep/targets.py [key=value ...]."""

import sys

from modelmeter.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", "targets", "image=examples/page.png", *sys.argv[1:]]))
