"""Run the command line as ``python -m cocoseg``."""
# PYTHON_ARGCOMPLETE_OK
import sys

from cocoseg.cli.main import main

if __name__ == '__main__':
    sys.exit(main())
