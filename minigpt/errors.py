"""The two ways in which something a user asked for can fail.

Both carry one line of plain words. The command line prints that line and exits with the code named
here; a library user catches the class.
"""


class InputError(ValueError):
    """What was given cannot be used: a file, a setting, a prompt (exit code 2).

    The message names the value and what would be allowed.
    """

    exit_code = 2


class RunError(RuntimeError):
    """A run that started well could not go on: disk full, a loss that is NaN (exit code 1)."""

    exit_code = 1
