"""Ends the process while it is imported, with the exit status of success."""

import os

os._exit(0)


def attack(*args):
    return None
