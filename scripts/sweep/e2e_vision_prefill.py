"""Regenerate the sweep e2e_vision_prefill: python scripts/sweep/e2e_vision_prefill.py [key=value ...]."""

import sys

from modelmeter.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", "e2e_vision_prefill", "image=examples/page.png", *sys.argv[1:]]))
