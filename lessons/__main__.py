"""``python -m lessons N [options]`` runs lesson N; ``make lesson-N`` calls it."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence

import lessons
from minigpt import InputError, distributed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the lesson whose number comes first, with the options after it; gives the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    modules = {
        int(module.name.split("_")[1]): module.name
        for module in pkgutil.iter_modules(lessons.__path__)
        if module.name.startswith("lesson_")
    }
    if arguments[:1] in (["-h"], ["--help"]):
        print(
            f"usage: python -m lessons N [options]\n\nLessons: {', '.join(map(str, sorted(modules)))}. "
            "Options of lesson N: python -m lessons N --help"
        )
        return 0
    number = int(arguments[0]) if arguments and arguments[0].isdecimal() else None
    if number not in modules:
        given = f"no lesson {arguments[0]}" if arguments else "which lesson?"
        print(f"{given}; there are {', '.join(map(str, sorted(modules)))}", file=sys.stderr)
        return 2
    if distributed.several():
        print(f"lesson {number}: lessons are run by one process, without mpiexec or srun --mpi", file=sys.stderr)
        return InputError.exit_code
    return importlib.import_module(f"lessons.{modules[number]}").main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
