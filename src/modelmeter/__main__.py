"""python -m modelmeter COMMAND ..."""

import sys

from modelmeter.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
