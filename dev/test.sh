#!/usr/bin/env bash
# Set up if needed, then run all tests and the doctests of every module.
#
# Files of tests share the CPUs, at most four of them. Arguments go to pytest:
# dev/test.sh -k grid, dev/test.sh -x --lf, dev/test.sh -n 0 for one process
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
bash dev/setup.sh
exec .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
    --xdoctest --xdoctest-style google cocoseg tests "$@"
