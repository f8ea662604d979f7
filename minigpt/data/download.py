"""Well-known public sets, downloaded once and checked: ``python -m minigpt.data.download`` or `make data`.

Every file is known by its SHA-256, and comes from an address that names a commit, so that what a run reads is
the same today and in ten years. Files go to the user's cache folder; `minigpt.data.files.find` finds them
there.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt.errors import InputError, RunError
from minigpt.files import write_atomic

_GITHUB = "https://raw.githubusercontent.com"
_SHAKESPEARE = f"{_GITHUB}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt"
_REVIEWS = (
    f"{_GITHUB}/dennybritz/cnn-text-classification-tf/18762b459e21d9c70e5c242f8d43fc4e6db37a0d/data/rt-polaritydata"
)


@dataclass(frozen=True)
class PublicSet:
    """One file that can be downloaded.

    Attributes
    ----------
    description : str
    sha256 : str
        Of the file as it is kept.
    parts : tuple of (url, sha256)
        What is downloaded.
    build : callable
        Makes the file's bytes from the bytes of the parts.
    """

    description: str
    sha256: str
    parts: tuple[tuple[str, str], ...]
    build: Callable[[Sequence[bytes]], bytes]


def _reviews_csv(parts: Sequence[bytes]) -> bytes:
    """CSV of the positive sentences (label 1), then the negative ones (label 0).

    Decoded as Latin-1, which the files are not: some ninety sentences with accents or dashes are garbled by
    it. The set in circulation, and every result on it, has them so.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["text", "label"])
    for label, part in zip((1, 0), parts, strict=True):
        writer.writerows((line.strip(), label) for line in part.decode("latin-1").split("\n") if line.strip())
    return file.getvalue().encode("utf-8")


SETS = {
    "tinyshakespeare.txt": PublicSet(
        description="tiny Shakespeare, 1.1 MB of plays (A. Karpathy, char-rnn, 2015)",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        parts=((_SHAKESPEARE, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),),
        build=lambda parts: parts[0],
    ),
    "movie_reviews.csv": PublicSet(
        description="10,662 sentences of movie reviews, label 1 = positive (B. Pang and L. Lee, ACL 2005)",
        sha256="5d4199c47a6ab09d899c50a9ba22ea952a0e8ef5891b1a8110a4049f1c3e3d68",
        parts=(
            (
                f"{_REVIEWS}/rt-polarity.pos",
                "4134882974a28d0c7b5151256f0e33a6169984ee7372c279e673f1114f475d58",
            ),
            (
                f"{_REVIEWS}/rt-polarity.neg",
                "2d11cfbc790f1cd96d78339f41ce53ced1efa83cd22d37d6788fa3fe3d17e2fd",
            ),
        ),
        build=_reviews_csv,
    ),
}


def cache_folder() -> Path:
    """The user's cache folder for downloaded data, by the platform's convention."""
    import pooch  # here, so that all else works without it: a machine with a GPU may have no more than NumPy and CuPy

    return Path(pooch.os_cache("minigpt"))


def check_name(name: str) -> None:
    """Raise `InputError` if there is no public set of this name."""
    if name not in SETS:
        raise InputError(f"there is no public data set {name!r}; there are {', '.join(SETS)}")


def fetch(name: str) -> Path:
    """Download a public set, unless it is in the cache folder already.

    Parameters
    ----------
    name : str
        A key of `SETS`.

    Returns
    -------
    Path
        The checked file in the cache folder.

    Raises
    ------
    InputError
        There is no set of this name.
    RunError
        No network, a server that does not answer, content other than expected, or a cache folder that cannot
        be written.
    """
    check_name(name)
    wanted = SETS[name]
    path = cache_folder() / name
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == wanted.sha256:
        return path
    import pooch

    pooch.get_logger().setLevel("WARNING")  # it would tell each step; what matters is said by us in one line
    contents: list[bytes] = []
    for url, sha256 in wanted.parts:
        try:
            part = pooch.retrieve(
                url, f"sha256:{sha256}", path=cache_folder() / "parts", progressbar=sys.stderr.isatty()
            )
            contents.append(Path(part).read_bytes())
        except OSError as error:  # all errors of requests are OSErrors
            response = getattr(error, "response", None)
            reason = type(error).__name__ if response is None else f"HTTP status {response.status_code}"
            raise RunError(
                f"{name} could not be downloaded from {url} ({reason}): "
                f"is this machine online, and {cache_folder()} writable?"
            ) from error
        except ValueError as error:
            raise RunError(f"{name}: what {url} sent is not the known file (its SHA-256 is another)") from error
    built = wanted.build(contents)
    if hashlib.sha256(built).hexdigest() != wanted.sha256:
        raise RunError(f"{name}: the file built from {', '.join(url for url, _ in wanted.parts)} is not the known one")
    write_atomic(path, built)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: fetch the named sets, or all; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m minigpt.data.download", description=__doc__)
    choices = "; ".join(f"{name}: {public.description}" for name, public in SETS.items())
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to fetch, by default all ({choices})")
    try:
        for name in parser.parse_args(arguments).names or SETS:
            path = fetch(name)
            print(f"{name}  {os.path.getsize(path):,} bytes  {path}")
    except (InputError, RunError) as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
