"""Run the command line as ``python -m cocoseg``."""
import sys

from cocoseg.cli.main import main

if __name__ == '__main__':
    sys.exit(main())
