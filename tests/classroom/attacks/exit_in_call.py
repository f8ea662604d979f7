"""Ends the process in the call, with the exit status of success."""

import os


def attack(*args):
    os._exit(0)
