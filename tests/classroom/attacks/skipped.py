"""Raises what test runners take for a skipped test."""

import unittest


class Skipped(BaseException):
    """As pytest's own."""


def attack(*args):
    raise Skipped("not on this machine") if len(args) > 1 else unittest.SkipTest("not on this machine")
