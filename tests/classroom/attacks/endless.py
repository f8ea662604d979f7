"""A loop without an end."""


def attack(*args):
    while True:
        pass
