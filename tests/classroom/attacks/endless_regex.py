"""A loop without an end inside the interpreter, where no Python code runs."""

import re


def attack(*args):
    re.fullmatch(r"(a+)+b", "a" * 60)
