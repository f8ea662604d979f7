"""Shared by all tests: the repository root on the path, and Ctrl-C as a terminal gives it."""

import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# A test run started in the background inherits an ignored SIGINT, and so would every process it starts; the tests of
# Ctrl-C need the one that a terminal gives.
signal.signal(signal.SIGINT, signal.default_int_handler)
