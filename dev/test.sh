#!/usr/bin/env bash
# Set up if needed, then run all tests and the doctests of every module.
#
# Arguments go to pytest: dev/test.sh -k grid, dev/test.sh -x --lf
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
bash dev/setup.sh
exec .venv/bin/python -m pytest --xdoctest --xdoctest-style google cocoseg tests "$@"
