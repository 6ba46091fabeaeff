#!/usr/bin/env bash
# Set up if needed, then run the demo; arguments go to `cocoseg demo`.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/dev/setup.sh"
exec "$root/.venv/bin/cocoseg" demo "$@"
