"""Regenerate the sweep e2e_decode: python scripts/sweep/e2e_decode.py [key=value ...]."""

import sys

from modelmeter.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", "e2e_decode", "image=examples/page.png", *sys.argv[1:]]))
