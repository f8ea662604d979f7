"""Calls itself without an end."""


def attack(*args):
    return attack(*args)
