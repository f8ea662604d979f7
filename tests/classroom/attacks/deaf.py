"""Ignores every signal that can be ignored, catches everything, and goes on."""

import signal


def attack(*args):
    for number in signal.valid_signals():
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            continue
    while True:
        try:
            while True:
                pass
        except BaseException:
            continue
