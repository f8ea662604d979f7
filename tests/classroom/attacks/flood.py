"""Prints without measure, then answers nothing."""

import sys


def attack(*args):
    for _ in range(400):
        sys.stdout.write("all tests passed\n" * 2000)
        sys.stderr.write("\x1b]0;owned\x07\x00" * 2000)
    return None
