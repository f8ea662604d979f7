"""Kills its parent, and every process that it may signal."""

import contextlib
import os
import signal


def attack(*args):
    with contextlib.suppress(OSError):
        os.kill(os.getppid(), signal.SIGKILL)
    return None
