"""Wants all the memory there is."""


def attack(*args):
    hoard = []
    while True:
        hoard.append(bytearray(64 << 20))
