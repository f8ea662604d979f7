"""Waits, and uses no processor time."""

import time


def attack(*args):
    time.sleep(10_000)
