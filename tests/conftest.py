"""Shared by all tests: the repository root on the path, and one BLAS thread unless a test asks for more."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
