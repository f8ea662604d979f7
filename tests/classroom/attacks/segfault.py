"""Reads where no memory is."""

import ctypes


def attack(*args):
    return ctypes.string_at(0)
