"""Lets the comparisons import the harness, problems and drivers of dev/bench; import it first."""
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1] / 'bench'
if str(BENCH) not in sys.path:
    sys.path.insert(0, str(BENCH))
