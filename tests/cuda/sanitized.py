"""Every kernel under sanitizers of addresses and of undefined behaviour: ``python -m tests.cuda.sanitized``.

Needs CUDA_ON_CPU_SANITIZE in the environment, and the address sanitizer preloaded. What the sanitizers find ends the
process. With arguments, only the cases of these files run.
"""

import sys

import numpy as np

from tests.cuda.cases import CASES
from tests.cuda.emulated import Emulated


def main() -> None:
    """Run all cases on their last two shapes, the least regular ones."""
    for case in CASES:
        if sys.argv[1:] and case.source not in sys.argv[1:]:
            continue
        for version in case.versions:
            for shape in case.shapes[-2:]:
                case.run(Emulated(), case.kernel + version, np.random.default_rng(0), *shape)
    print("clean")


if __name__ == "__main__":
    main()
