"""Leaves by SystemExit, as sys.exit does."""

import sys


def attack(*args):
    sys.exit(0)
