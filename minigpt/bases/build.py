"""Makes the base models: ``python -m minigpt.bases.build`` (``make bases``).

One tokenizer is trained on `pydocs` and `tinyworld`, then each size on the same text. A build that was stopped goes on
where it was when the command is given again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minigpt import files
from minigpt.bases import BASES
from minigpt.config import preset
from minigpt.corpora import encode_split, language_batches
from minigpt.data import DataSet, pydocs, tinyworld
from minigpt.errors import InputError, RunError
from minigpt.evaluation import TextScore, evaluate_text, text_batches
from minigpt.model import GPT
from minigpt.objectives import LanguageModelling
from minigpt.tokenizer import Tokenizer
from minigpt.training import History, TrainConfig, train

VOCAB_SIZE = 1024
DOCUMENTS = 12_000  # of tinyworld: about as many characters as pydocs has
BLOCK_SIZE = 256
BATCH_SIZE = 16
SEED = 0


@dataclass(frozen=True)
class Recipe:
    """What differs between the sizes."""

    steps: int
    lr: float


RECIPES = {
    "base-xs": Recipe(steps=4000, lr=6e-3),
    "base-s": Recipe(steps=3500, lr=4e-3),
    "base-m": Recipe(steps=3000, lr=3e-3),
    "base-l": Recipe(steps=2500, lr=2e-3),
}

PROMPTS = ("", "One morning Anna", "Return the", "The show was")


def main(argv: Sequence[str] | None = None) -> int:
    """Build the bases that are asked for.

    Parameters
    ----------
    argv : sequence of str, optional

    Returns
    -------
    code : int
    """
    parser = argparse.ArgumentParser(prog="python -m minigpt.bases.build", description=__doc__.split("\n\n")[1])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BASES)}; all by default")
    parser.add_argument("--work", default="runs/bases", metavar="DIR", help="logs and checkpoints (%(default)s)")
    parser.add_argument(
        "--out", default=str(Path(__file__).parent), metavar="DIR", help="where the models go (%(default)s)"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes; 0: one a core")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args(argv)
    try:
        unknown = [n for n in arguments.names if n not in BASES]
        if unknown:
            raise InputError(f"no base {unknown[0]!r}; there are {', '.join(BASES)}")
        build(arguments.names or BASES, Path(arguments.work), Path(arguments.out), arguments.workers, arguments.quiet)
    except (InputError, RunError) as error:
        print(f"minigpt: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def build(names: Sequence[str], work: Path, out: Path, workers: int = 0, quiet: bool = False) -> None:
    """Train these bases and write them with their model cards.

    Parameters
    ----------
    names : sequence of str
    work : path
        Checkpoints and logs; a build that was stopped goes on from here.
    out : path
        Each base gets a directory of its own in it.
    workers : int
    quiet : bool
    """
    sources = {"pydocs": pydocs.corpus(), "tinyworld": tinyworld.corpus(DOCUMENTS)}
    data: DataSet[str] = DataSet(
        "pydocs+tinyworld",
        [d for s in sources.values() for d in s.train],
        [d for s in sources.values() for d in s.validation],
        [d for s in sources.values() for d in s.test],
    )
    tokenizer = Tokenizer.train(data.train, VOCAB_SIZE, progress=not quiet)
    tokens = encode_split(tokenizer, data, "train")
    validation = text_batches(encode_split(tokenizer, data, "validation"), BLOCK_SIZE, BATCH_SIZE, limit=256)
    for name in names:
        recipe = RECIPES[name]
        model = GPT(preset(name), seed=SEED)
        config = TrainConfig(
            steps=recipe.steps,
            lr=recipe.lr,
            min_lr=recipe.lr / 20,
            warmup=200,
            beta2=0.95,
            eval_every=500,
            checkpoint_every=250,
            workers=workers,
        )
        batches = language_batches(tokens, BATCH_SIZE, BLOCK_SIZE, SEED, data.name)
        history = train(
            model,
            LanguageModelling(),
            batches,
            config,
            validation,
            directory=work / name,
            resume=True,
            progress=not quiet and name,
        )
        if history.stopped == "interrupted":
            raise RunError(f"{name} was interrupted at step {history.steps[-1]}; the same command goes on from there")
        directory = out / name
        model.save_pretrained(directory, dtype="float16")
        tokenizer.save_pretrained(directory)
        shipped = GPT.from_pretrained(directory)
        scores = {
            source: {split: evaluate_text(shipped, tokenizer, s.split(split)) for split in ("validation", "test")}
            for source, s in sources.items()
        }
        record = {
            "command": f"python -m minigpt.bases.build {name}",
            "recipe": asdict(config) | {"batch_size": BATCH_SIZE, "block_size": BLOCK_SIZE, "data_seed": SEED},
            "training_tokens": {"distinct": len(tokens), "seen": recipe.steps * BATCH_SIZE * BLOCK_SIZE},
            "scores": {
                source: {split: asdict(score) for split, score in by_split.items()}
                for source, by_split in scores.items()
            },
            "seconds": round(history.seconds, 1),
            "data": {source: s.record() for source, s in sources.items()},
            "machine": files.provenance(),
        }
        files.write_json(directory / "training.json", record)
        card = model_card(name, shipped, tokenizer, recipe, len(tokens), history, scores, record)
        files.write_atomic(directory / "README.md", card.encode())


def model_card(
    name: str,
    model: GPT,
    tokenizer: Tokenizer,
    recipe: Recipe,
    distinct: int,
    history: History,
    scores: dict[str, dict[str, TextScore]],
    record: dict[str, Any],
) -> str:
    """The base's README: what it is, what it was trained on, what it reaches, what it writes, what it cannot do."""
    c = model.config
    machine = record["machine"]
    rows = "\n".join(
        f"| {source} | {split} | {s.loss:.3f} | {s.perplexity:.2f} | {s.bits_per_byte:.3f} | {s.tokens:,} |"
        for source, by_split in scores.items()
        for split, s in by_split.items()
    )
    samples = "\n\n".join(f"```text\n{sample(model, tokenizer, prompt)}\n```" for prompt in PROMPTS)
    seen = recipe.steps * BATCH_SIZE * BLOCK_SIZE
    return f"""# {name}

A GPT-2 of {model.n_parameters:,} parameters: {c.n_layer} blocks, {c.n_head} heads, width {c.n_embd}, context
{c.n_positions}, byte-level BPE vocabulary of {c.vocab_size:,}; the same text and tokenizer as the other bases. Stored
in float16; opens with `minigpt.bases.load("{name}")` and with `transformers.GPT2LMHeadModel.from_pretrained`.

## Data

The training splits of `pydocs` (documentation of the Python standard library, NumPy and Matplotlib) and of
`tinyworld` ({DOCUMENTS:,} generated documents of the general domain): {distinct:,} distinct tokens. Versions, sizes and
SHA-256 are in `training.json`. The target domain, the dialect and the card hands of `tinyworld` were left out, so that
lessons have something new to teach.

## Training

`{record["command"]}`: {recipe.steps:,} steps of {BATCH_SIZE} × {BLOCK_SIZE} tokens
({seen:,} in all), AdamW with peak learning rate {recipe.lr:g} (200 steps of warm-up, cosine to a
twentieth), weight decay 0.1, β₂ 0.95, gradient norm clipped at 1, {history.seconds / 60:.0f} minutes on
{machine["cores"]} cores ({machine["cpu"]}), NumPy {machine["numpy"]}.

## What it reaches

| text | split | loss (nats a token) | perplexity | bits a byte | tokens |
|---|---|---|---|---|---|
{rows}

## What it writes

Temperature 0.8, top-p 0.95, seed 0; the first from nothing, the others from the words they begin with.

{samples}

## What it cannot do

It knows a few hundred everyday words and the manner of reference documentation, nothing else. It follows no
instructions, its facts are made up, it reads English and ASCII only, and loses the thread within a few sentences. It
is a base for experiments, not a language model to use.
"""


def sample(model: GPT, tokenizer: Tokenizer, prompt: str) -> str:
    """What the model writes after a prompt, up to its end of text."""
    end = tokenizer.eos_token_id
    ids = [end, *tokenizer.encode(prompt)]
    out = model.generate([ids], 90, temperature=0.8, top_p=0.95, seed=0, eos_token_id=end)[0].tolist()
    new = out[len(ids) :]
    if end in new:
        new = new[: new.index(end)]
    return prompt + tokenizer.decode(new)


if __name__ == "__main__":
    sys.exit(main())
