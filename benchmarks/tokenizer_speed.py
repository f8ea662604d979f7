"""Byte-level BPE: training and encoding, ours against Hugging Face `tokenizers` and tiktoken.

The text is the English of this machine's Python, NumPy and Matplotlib (`pydocs`), about 5 MB. All sides get
the same merges and must give the same ids; everything runs on one thread.

    python -m benchmarks.tokenizer_speed [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import (
    Comparison,
    child_task,
    in_turns,
    machine,
    machine_line,
    markdown_table,
    peak_megabytes,
    run_child,
    write_results,
)

MODULE = "benchmarks.tokenizer_speed"
MERGES = 1024
VOCABULARY = 256 + MERGES + 1
END = "<|endoftext|>"
# How GPT-2 cuts text into words, as its own repository and tiktoken publish it.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def read(path: str) -> list[str]:
    """The documents."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def trained_by(side: str, documents: list[str]) -> list[str]:
    """Train on the documents; the merges in order, as lines of a ``merges.txt``."""
    if side == "ours":
        from minigpt import Tokenizer

        with tempfile.TemporaryDirectory() as directory:
            Tokenizer.train(documents, VOCABULARY).save_pretrained(directory)
            lines = (Path(directory) / "merges.txt").read_text(encoding="utf-8").splitlines()
            return [line for line in lines if not line.startswith("#version")]
    from tokenizers import Tokenizer as Theirs
    from tokenizers import models, pre_tokenizers, trainers

    rival = Theirs(models.BPE())
    rival.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    rival.train_from_iterator(documents, trainer)
    return [m if isinstance(m, str) else " ".join(m) for m in json.loads(rival.to_str())["model"]["merges"]]


def encoder(side: str, directory: str) -> Any:
    """A function from text to ids, with the vocabulary in `directory`."""
    if side == "ours":
        from minigpt import Tokenizer

        return Tokenizer.from_pretrained(directory).encode
    vocabulary = json.loads((Path(directory) / "vocab.json").read_text(encoding="utf-8"))
    if side == "tokenizers":
        from tokenizers import Tokenizer as Theirs
        from tokenizers import models, pre_tokenizers

        rival = Theirs(models.BPE.from_file(str(Path(directory) / "vocab.json"), str(Path(directory) / "merges.txt")))
        rival.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return lambda text: rival.encode(text).ids
    import tiktoken
    from tokenizers import pre_tokenizers

    assert pre_tokenizers
    byte_of = {sign: byte for byte, sign in enumerate(gpt2_alphabet())}
    ranks = {bytes(byte_of[s] for s in token): i for token, i in vocabulary.items() if token != END}
    rival = tiktoken.Encoding("rival", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END: len(ranks)})
    return rival.encode_ordinary


def gpt2_alphabet() -> list[str]:
    """The sign that stands for each byte in GPT-2's files: printable Latin-1 for itself, the "
    "others from U+0100."""
    signs, spare = [], 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            signs.append(chr(byte))
        else:
            signs.append(chr(spare))
            spare += 1
    return signs


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """What a child process does."""
    documents = read(task["documents"])
    megabytes = sum(len(d.encode()) for d in documents) / 1e6
    if task["job"] == "train":
        start = time.perf_counter()
        merges = trained_by(task["side"], documents)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "megabytes": megabytes, "peak_mb": peak_megabytes(), "result": merges}
    encode = encoder(task["side"], task["vocabulary"])
    encode("warm up")
    start = time.perf_counter()
    ids = [encode(document) for document in documents]
    seconds = time.perf_counter() - start
    flat = [i for part in ids for i in part]
    return {
        "seconds": seconds,
        "megabytes": megabytes,
        "peak_mb": peak_megabytes(),
        "result": [len(flat), hash(tuple(flat))],
    }


def main() -> None:
    task = child_task(sys.argv[1:])
    if task is not None:
        print(json.dumps(measure(task)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one pair on a fifth of the text")
    parser.add_argument("--quiet", type=float, default=120.0, metavar="S", help="wait so long for an idle machine")
    arguments = parser.parse_args()
    from minigpt import Tokenizer
    from minigpt.data import pydocs

    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    documents = pydocs.corpus().train
    if arguments.quick:
        documents = documents[::5]
    record: dict[str, Any] = {"machine": machine(), "merges": MERGES, "jobs": {}}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "documents.json"
        path.write_text(json.dumps(documents), encoding="utf-8")
        Tokenizer.train(documents, VOCABULARY).save_pretrained(directory)

        def measurement(job: str, side: str) -> Any:
            task = {"job": job, "side": side, "documents": str(path), "vocabulary": directory}
            return lambda: run_child(MODULE, task, threads=1)

        for job, sides in (("train", ("ours", "tokenizers")), ("encode", ("ours", "tokenizers", "tiktoken"))):
            measures = {side: measurement(job, side) for side in sides}
            results = in_turns(measures, 1 if arguments.quick else arguments.pairs, arguments.quiet)
            expected = results["ours"][0]["result"]
            for side, runs in results.items():
                if any(run.pop("result") != expected for run in runs):
                    raise SystemExit(f"{job}: {side} gives another result than ours")
            record["jobs"][job] = results
    megabytes = record["jobs"]["train"]["ours"][0]["megabytes"]
    rows = []
    for job, results in record["jobs"].items():
        ours = [run["seconds"] for run in results["ours"]]
        for side, runs in results.items():
            seconds = [run["seconds"] for run in runs]
            middle = statistics.median(seconds)
            ratio = "" if side == "ours" else Comparison(ours, seconds).text
            rows.append(
                [job, side, f"{middle:.2f}", f"{runs[0]['megabytes'] / middle:.1f}", ratio,
                 f"{max(run['peak_mb'] for run in runs):.0f}", max(run["others"] for run in runs)]
            )  # fmt: skip
    text = "\n\n".join(
        [
            "# Tokenizer speed",
            machine_line(record["machine"]),
            f"{MERGES} merges on {megabytes:.1f} MB of English documents; the same merges and ids "
            "on all sides; one "
            "thread. Ratio = their time over ours, above 1 we are quicker. `tokenizers` and "
            "tiktoken are compiled Rust.",
            markdown_table(["job", "side", "seconds", "MB/s", "their time over ours", "peak MB", "others"], rows),
        ]
    )
    write_results("tokenizer_speed_quick" if arguments.quick else "tokenizer_speed", record, text)


if __name__ == "__main__":
    main()
