"""Everything that minigpt puts on disk and takes from it: whole files or none, and no damaged ones.

Reading: a file that is not what it should be raises `InputError` with one line that names the file and the key; nothing
is repaired or passed over in silence.
"""

from minigpt.files.models import check_vocabulary, load_model, save_model
from minigpt.files.provenance import provenance
from minigpt.files.storage import (
    atomic_directory,
    atomic_file,
    clean_leftovers,
    read_json,
    remove_directory,
    sha256_of_file,
    write_atomic,
    write_json,
)
from minigpt.files.tensors import load_tensors, save_tensors, save_with_settings

__all__ = [
    "atomic_directory",
    "atomic_file",
    "check_vocabulary",
    "clean_leftovers",
    "load_model",
    "load_tensors",
    "provenance",
    "read_json",
    "remove_directory",
    "save_model",
    "save_tensors",
    "save_with_settings",
    "sha256_of_file",
    "write_atomic",
    "write_json",
]
