"""Looks for the expected answer in frames, in modules and in everything the collector knows."""

import gc
import sys

import numpy as np

WORDS = ("expected", "reference", "solution", "mistakes", "tolerance", "secret")


def attack(*args):
    frame = sys._getframe()
    found = []
    while frame is not None:
        found += [v for n, v in {**frame.f_locals, **frame.f_globals}.items() if any(w in n.lower() for w in WORDS)]
        frame = frame.f_back
    for thing in gc.get_objects():
        if isinstance(thing, dict):
            found += [v for n, v in list(thing.items()) if isinstance(n, str) and n.lower() in WORDS]
    for name, module in list(sys.modules.items()):
        if name.startswith("classroom"):
            found.append(module)
    for thing in found:
        if isinstance(thing, (np.ndarray, float, tuple, list, str, bytes, dict)):
            return thing
        if callable(thing) and not isinstance(thing, type):
            return thing(*args)
    return None
