"""The command line: train, generate, eval.

Exit codes: 0 done, 2 the input is wrong, 1 the run failed, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from kernels import Backend, get_backend
from kernels.backend import PRECISIONS
from minigpt import distributed, files
from minigpt.config import PRESETS, GPTConfig, preset
from minigpt.corpora import encode_split, language_batches, load_corpus
from minigpt.data import DataSet
from minigpt.errors import InputError, RunError
from minigpt.evaluation import evaluate_text, text_batches
from minigpt.model import GPT
from minigpt.objectives import LanguageModelling
from minigpt.optim import SCHEDULES
from minigpt.tokenizer import CharTokenizer, Tokenizer, load_tokenizer
from minigpt.training import History, TrainConfig, checkpoints, train

AnyTokenizer = Tokenizer | CharTokenizer

RECIPES = Path(__file__).parent / "recipes"
NEW_TOKENS = 200

DATA_HELP = (
    "text to use: pydocs (documentation of this Python, NumPy and Matplotlib), tinyworld (generated stories "
    "and tasks), the name of a set that `make data` fetched (tinyshakespeare.txt), or a path (.txt, .csv "
    "with text,label, .jsonl with prompt,completion); several joined by +"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; the process' own by default.

    Returns
    -------
    code : int
        Exit code.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if _rank() > 0:
        with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
            return _run(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a model may write what a terminal's encoding lacks
    code = _run(argv)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"minigpt: output: {error.strerror}", file=sys.stderr)
        # What is left in the buffer would fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or RunError.exit_code
    return code


def _run(argv: list[str]) -> int:
    try:
        arguments = build_parser().parse_args(argv)
        if getattr(arguments, "recipe", None):
            command, *options = argv
            arguments = build_parser().parse_args([command, *recipe_options(arguments.recipe), *options])
        if arguments.run is not _train and _rank() > 0:
            return 0  # one rank is enough to write or to measure
        return arguments.run(arguments)
    except (InputError, RunError) as error:
        print(f"minigpt: {error}", file=sys.stderr)
        return error.exit_code
    except MemoryError:
        print(
            "minigpt: out of memory; a smaller --batch-size or more --accumulation needs less",
            file=sys.stderr,
        )
        return RunError.exit_code
    except BrokenPipeError:
        return RunError.exit_code  # whoever read our output has gone
    except OSError as error:
        print(f"minigpt: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return RunError.exit_code
    except SystemExit as done:  # argparse has said what there is to say
        return int(done.code or 0)
    except KeyboardInterrupt:
        print("minigpt: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _rank() -> int:
    """This process' rank among those that a launcher has started."""
    found = distributed.launched()
    return found.rank if found else 0


# ---------------------------------------------------------------------------------------------- arguments


def build_parser() -> argparse.ArgumentParser:
    """All commands and options."""
    parser = argparse.ArgumentParser(
        prog="python -m minigpt",
        description="A tiny GPT-2 in NumPy: train it, let it write, measure it.",
        epilog="Exit codes: 0 done, 2 the input is wrong, 1 the run failed, 130 stopped by Ctrl-C.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="{train,generate,eval}")
    _add_train(commands)
    _add_generate(commands)
    _add_eval(commands)
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_one = action.default not in (None, "") and action.default is not False
        return super()._get_help_string(action) if has_one else action.help


def _at_least(lowest: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number of `lowest` or more."""

    def number(text: str) -> int:
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text} is too small, it must be {lowest} or more")
        return int(text)

    return number


def _add_backend(parser: Any) -> None:
    parser.add_argument("--backend", choices=["numpy", "cupy"], default="numpy", help="cupy needs a CUDA GPU")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of matrix products on a GPU")


def _add_train(commands: Any) -> None:
    p = commands.add_parser(
        "train",
        help="train a language model on text",
        description="Train a GPT on text and write it as a Hugging Face directory with its tokenizer. "
        "On several machines: mpiexec -n RANKS python -m minigpt train ..., one process a rank.",
        formatter_class=_Help,
    )
    p.set_defaults(run=_train)
    p.add_argument("--data", help=DATA_HELP)
    p.add_argument("--out", metavar="DIR", required=True, help="directory for model, log and checkpoints")
    p.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"settings of a published run, which other options override: {', '.join(recipe_names())}, or a JSON file",
    )
    p.add_argument("--resume", action="store_true", help="go on where a run in --out was stopped")

    g = p.add_argument_group("model")
    g.add_argument("--init", metavar="DIR", help="start from this model and its tokenizer instead of from scratch")
    g.add_argument("--preset", choices=list(PRESETS), default="base-m", help="architecture")
    for name, text in (
        ("n-layer", "blocks"),
        ("n-head", "attention heads"),
        ("n-embd", "width"),
        ("n-positions", "context length"),
    ):
        g.add_argument(f"--{name}", type=_at_least(1), metavar="N", help=f"{text}; overrides the preset")
    g.add_argument("--dropout", type=float, default=0.0, metavar="P", help="on embeddings, attention and residuals")
    g.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of parameters and arithmetic")
    _add_backend(g)

    g = p.add_argument_group("text")
    g.add_argument(
        "--tokenizer",
        default="bpe",
        metavar="KIND",
        help="bpe or char, trained on the text, or the directory of a saved one",
    )
    g.add_argument("--vocab-size", type=int, default=1024, metavar="V", help="of a bpe tokenizer to be trained")
    g.add_argument(
        "--block-size", type=_at_least(1), metavar="T", help="tokens in a row; the context length by default"
    )
    g.add_argument("--validation", type=float, default=0.05, metavar="SHARE", help="held out of a file of your own")
    g.add_argument("--test", type=float, default=0.05, metavar="SHARE", help="held out of a file of your own, for eval")

    g = p.add_argument_group("training")
    g.add_argument("--steps", type=int, default=2000, metavar="N", help="optimizer steps")
    g.add_argument("--batch-size", type=_at_least(1), default=16, metavar="B", help="rows a step, over all workers")
    g.add_argument("--accumulation", type=int, default=1, metavar="N", help="passes a step, to save memory")
    g.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    g.add_argument("--schedule", choices=SCHEDULES, default="cosine", help="what the learning rate does")
    g.add_argument("--warmup", type=int, default=100, metavar="N", help="steps of linear rise")
    g.add_argument("--min-lr", type=float, default=1e-4, help="where it ends")
    g.add_argument("--beta1", type=float, default=0.9, help="of AdamW")
    g.add_argument("--beta2", type=float, default=0.99, help="of AdamW")
    g.add_argument("--weight-decay", type=float, default=0.1, help="of matrices")
    g.add_argument("--max-norm", type=float, default=1.0, help="clip the gradient's global norm; 0: do not")
    g.add_argument("--eval-every", type=int, default=250, metavar="N", help="steps between evaluations")
    g.add_argument(
        "--eval-windows", type=_at_least(0), default=200, metavar="N", help="validation rows; 0: all of them"
    )
    g.add_argument("--patience", type=int, default=0, metavar="N", help="stop after N evaluations without a new best")
    g.add_argument("--keep-best", action="store_true", help="end with the weights of the best evaluation")
    g.add_argument("--checkpoint-every", type=int, default=250, metavar="N", help="steps between checkpoints")
    g.add_argument("--log-every", type=int, default=10, metavar="N", help="steps between lines of the log")
    g.add_argument("--seed", type=_at_least(0), default=0, metavar="N", help="of weights, batches and dropout")
    g.add_argument("--workers", type=int, default=0, metavar="N", help="processes on this machine; 0: one a core")
    g.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_generate(commands: Any) -> None:
    p = commands.add_parser(
        "generate",
        help="continue a text",
        description="Continue a prompt with a trained model.",
        formatter_class=_Help,
    )
    p.set_defaults(run=_generate)
    p.add_argument("--model", metavar="DIR", required=True, help="a model directory with its tokenizer")
    p.add_argument("--prompt", metavar="TEXT", default="", help="what to continue; empty: a new document")
    p.add_argument(
        "--max-new-tokens",
        type=_at_least(0),
        metavar="N",
        help=f"how much to write; {NEW_TOKENS}, or what the context has room for, by default",
    )
    p.add_argument("--num-samples", type=_at_least(1), default=1, metavar="N", help="how many texts")
    p.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token")
    p.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens only")
    p.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens that make up P")
    p.add_argument("--seed", type=_at_least(0), default=0, metavar="N", help="of the draws")
    _add_backend(p)


def _add_eval(commands: Any) -> None:
    p = commands.add_parser(
        "eval",
        help="measure a model on held-out text",
        description="Loss per token, perplexity and bits per byte of a model on text.",
        formatter_class=_Help,
    )
    p.set_defaults(run=_eval)
    p.add_argument("--model", metavar="DIR", required=True, help="a model directory with its tokenizer")
    p.add_argument("--data", required=True, help=DATA_HELP)
    p.add_argument(
        "--split",
        choices=["train", "validation", "test", "all"],
        default="validation",
        help="which part of it",
    )
    p.add_argument("--validation", type=float, default=0.05, metavar="SHARE", help="held out of a file of your own")
    p.add_argument("--test", type=float, default=0.05, metavar="SHARE", help="held out of a file of your own")
    p.add_argument(
        "--block-size", type=_at_least(1), metavar="T", help="tokens in a row; the context length by default"
    )
    _add_backend(p)
    p.add_argument("--json", action="store_true", help="print one line of JSON")


# ---------------------------------------------------------------------------------------------- recipes


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.json"))


def recipe_options(name: str) -> list[str]:
    """A recipe as options of ``train``; what the user gives after them wins.

    Parameters
    ----------
    name : str
        One of `recipe_names`, or the path of a JSON file with settings named like the options.

    Raises
    ------
    ValueError
        If there is no such recipe, or it has a setting that ``train`` does not know.
    """
    path = RECIPES / f"{name}.json" if name in recipe_names() else Path(name)
    if not path.is_file():
        raise InputError(f"no recipe {name!r}; there are {', '.join(recipe_names())}, or give a JSON file")
    known = vars(build_parser().parse_args(["train", "--out", ""]))
    options = []
    for setting, value in files.read_json(path).items():
        if setting == "about":
            continue
        option = f"--{setting.replace('_', '-')}"
        if setting not in known or setting in ("run", "out", "resume", "recipe"):
            raise InputError(f"recipe {name} has a setting {setting!r} that train does not know")
        if isinstance(known[setting], bool) != isinstance(value, bool):
            raise InputError(f"recipe {name}: {setting} cannot be {json.dumps(value)}")
        if value is True:
            options.append(option)
        elif value is not False:
            options.append(f"{option}={value}")
    return options


# ---------------------------------------------------------------------------------------------- commands


@distributed.together()
def _train(arguments: argparse.Namespace) -> int:
    if arguments.data is None:
        raise InputError("give the text to train on with --data")
    out = Path(arguments.out)
    distributed.share(lambda: _check_out(out, arguments.resume))
    settings = TrainConfig(
        **{f.name: getattr(arguments, f.name) for f in fields(TrainConfig) if f.name not in ("eps", "max_norm")},
        max_norm=arguments.max_norm or None,
    )
    if distributed.several() and arguments.backend == "cupy":
        distributed.choose_gpu()
    data = load_corpus(arguments.data, arguments.validation, arguments.test)
    model, tokenizer = _model_and_tokenizer(arguments, data)
    config = model.config
    block_size = arguments.block_size or config.n_positions
    if block_size > config.n_positions:
        raise InputError(f"--block-size {block_size} is longer than the context, {config.n_positions}")
    tokens = encode_split(tokenizer, data, "train")
    batches = language_batches(tokens, arguments.batch_size, block_size, arguments.seed, data.name)
    validation = []
    if settings.eval_every:
        held_out = encode_split(tokenizer, data, "validation")
        validation = text_batches(held_out, block_size, arguments.batch_size, arguments.eval_windows or None)
    record = {
        "command": "train",
        "settings": {k: v for k, v in vars(arguments).items() if k not in ("run", "resume")},
        "config": asdict(config),
        "n_parameters": model.n_parameters,
        "tokens": {"train": len(tokens)},
        "data": data.record(),
        "machine": files.provenance(),
    }
    found = distributed.launched()
    if found is not None:
        record["ranks"] = found.size
    distributed.share(lambda: _begin(out, arguments.resume, record))
    history = train(
        model,
        LanguageModelling(),
        batches,
        settings,
        validation,
        directory=out,
        resume=arguments.resume,
        progress=not arguments.quiet,
    )
    if _rank() == 0:
        tokenizer.save_pretrained(out)
        model.save_pretrained(out)
        files.write_json(out / "run.json", {**record, "result": _result(history)})
    return _report(history, arguments, settings)


def _check_out(out: Path, resume: bool) -> None:
    # What can be known before the work begins, without making the directory.
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"--out {out}: {there} is a file; a directory is needed")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: no permission to write in {there}")
    if checkpoints(out) and not resume:
        raise InputError(f"--out {out} holds a run; go on with --resume, or give another --out")
    if (out / "model.safetensors").exists() and not checkpoints(out):
        raise InputError(f"--out {out} holds a model, which would be overwritten; give another --out")


def _begin(out: Path, resume: bool, record: dict[str, Any]) -> None:
    """Say what is about to be trained, and write it down."""
    if resume and checkpoints(out):
        _check_same_run(out, record)
    elif resume:
        print(f"no checkpoint in {out}: starting from the beginning", file=sys.stderr)
    print(
        f"{record['n_parameters']:,} parameters, {record['tokens']['train']:,} training tokens from "
        f"{record['data']['name']}, vocabulary {record['config']['vocab_size']}; writing to {out}",
        file=sys.stderr,
    )
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / "run.json", record)


def _model_and_tokenizer(arguments: argparse.Namespace, data: DataSet[str]) -> tuple[GPT, AnyTokenizer]:
    overrides = {
        name: getattr(arguments, name)
        for name in ("n_layer", "n_head", "n_embd", "n_positions")
        if getattr(arguments, name) is not None
    }
    if arguments.init:
        for name in (*overrides, *(["dropout"] if arguments.dropout else [])):
            raise InputError(f"{name} is given, but --init {arguments.init} comes with its own")
        return _load(arguments.init, arguments, arguments.dtype)
    backend = _backend(arguments)  # before a tokenizer is trained for nothing
    tokenizer = _tokenizer(arguments, data)
    p = arguments.dropout
    config: GPTConfig = preset(arguments.preset, vocab_size=tokenizer.vocab_size, **overrides)
    config = replace(
        config,
        embd_pdrop=p,
        attn_pdrop=p,
        resid_pdrop=p,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return GPT(config, arguments.seed, arguments.dtype, backend), tokenizer


def _tokenizer(arguments: argparse.Namespace, data: DataSet[str]) -> AnyTokenizer:
    if arguments.tokenizer == "char":
        return CharTokenizer.train([*data.train, *data.validation, *data.test])
    if arguments.tokenizer == "bpe":
        return Tokenizer.train(data.train, arguments.vocab_size, progress=not arguments.quiet)
    return load_tokenizer(arguments.tokenizer)


# Settings that a resumed run may change: where things lie (what they hold is compared), what is shown, kept.
_FREE = ("out", "data", "init", "recipe", "quiet", "workers", "checkpoint_every", "log_every")


def _check_same_run(out: Path, record: dict[str, Any]) -> None:
    # A resumed run must see the same data and model as before.
    before = files.read_json(out / "run.json")
    try:
        theirs, mine = before["settings"], record["settings"]
        for name in (name for name in mine if name not in _FREE):
            if theirs.get(name) != mine[name]:
                raise InputError(
                    f"cannot resume {out}: it was made with {name} = {theirs.get(name)}, this run has {mine[name]}"
                )
        if before["data"]["splits"] != record["data"]["splits"]:
            raise InputError(f"cannot resume {out}: it was trained on other data than {record['data']['name']} is now")
        if before["config"] != record["config"]:
            raise InputError(f"cannot resume {out}: it is of a model with another configuration")
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"cannot resume {out}: run.json in it is not the record of a run") from None


def _result(history: History) -> dict[str, Any]:
    return {
        "stopped": history.stopped,
        "steps": history.steps[-1] if history.steps else 0,
        "train_loss": history.losses[-1] if history.losses else None,
        "validation_loss": history.eval_losses[-1] if history.eval_losses else None,
        "best_loss": history.best_loss,
        "best_step": history.best_step,
        "seconds": round(history.seconds, 2),
    }


def _report(history: History, arguments: argparse.Namespace, settings: TrainConfig) -> int:
    done = history.steps[-1] if history.steps else 0
    line = f"{done:,} steps in {history.seconds:,.0f} s"
    if history.losses:
        line += f", training loss {history.losses[-1]:.4f}"
    if history.eval_losses:
        line += f", validation loss {history.eval_losses[-1]:.4f}"
        line += f" (best {history.best_loss:.4f} at step {history.best_step})"
    print(line)
    if history.stopped == "interrupted":
        print(
            f"stopped by Ctrl-C after step {done} of {settings.steps}; everything is saved. "
            "To go on, give the same command with --resume",
            file=sys.stderr,
        )
        return 128 + signal.SIGINT
    print(f'now: python -m minigpt generate --model {arguments.out} --prompt "…"')
    return 0


def _load(directory: str, arguments: argparse.Namespace, dtype: str | None = None) -> tuple[GPT, AnyTokenizer]:
    model = GPT.from_pretrained(directory, dtype, _backend(arguments))
    tokenizer = load_tokenizer(directory)
    files.check_vocabulary(tokenizer.vocab_size, model.config)
    return model, tokenizer


def _backend(arguments: argparse.Namespace) -> Backend:
    try:
        return get_backend(arguments.backend, precision=arguments.precision)
    except ValueError as error:
        raise InputError(f"--{error}") from None


def _generate(arguments: argparse.Namespace) -> int:
    model, tokenizer = _load(arguments.model, arguments)
    end = tokenizer.eos_token_id
    prompt = tokenizer.encode(arguments.prompt)
    if not prompt:
        if end is None:
            raise InputError("this model has no token to begin a document with: give a --prompt")
        prompt = [end]
    new = arguments.max_new_tokens
    if new is None:
        new = max(0, min(NEW_TOKENS, model.config.n_positions - len(prompt)))
    ids = model.generate(
        [prompt] * arguments.num_samples,
        new,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        eos_token_id=end,
    )
    for i, row in enumerate(ids.tolist()):
        written = row[len(prompt) :]
        if end is not None and end in written:
            written = written[: written.index(end)]
        if i:
            print("-" * 80)
        print(arguments.prompt + tokenizer.decode(written))
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    model, tokenizer = _load(arguments.model, arguments)
    data = load_corpus(arguments.data, arguments.validation, arguments.test)
    splits = ("train", "validation", "test") if arguments.split == "all" else (arguments.split,)
    documents = [d for s in splits for d in data.split(s)]
    if not documents:
        raise InputError(f"{data.name} has nothing in its {arguments.split} split")
    score = evaluate_text(model, tokenizer, documents, arguments.block_size)
    if arguments.json:
        print(
            json.dumps(
                {
                    "model": arguments.model,
                    "data": data.name,
                    "split": arguments.split,
                    "loss": score.loss,
                    "perplexity": score.perplexity,
                    "bits_per_byte": score.bits_per_byte,
                    "tokens": score.tokens,
                    "bytes": score.bytes,
                }
            )
        )
    else:
        print(f"{data.name} ({arguments.split}): {score.tokens:,} tokens, {score.bytes:,} bytes")
        print(
            f"loss {score.loss:.4f} nats a token, perplexity {score.perplexity:.2f}, "
            f"{score.bits_per_byte:.4f} bits a byte"
        )
    return 0
