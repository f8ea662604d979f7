"""nanoGPT's CPU recipe for tiny Shakespeare: our command line and its shipped recipe against PyTorch with
the same.

Character level, 4 layers, 4 heads, width 128, T = 64, B = 12, 2,000 steps, no dropout; AdamW with betas 0.9
and 0.99, decay 0.1 on matrices only, clipping at 1; learning rate up to 1e-3 in 100 steps and down a cosine
to 1e-4; GPT-2's initialisation; nine tenths of the text for training. Both runs are timed whole, from
starting the process to the trained weights on disk, without evaluations on the way. Afterwards one function
scores both on the whole validation split, in disjoint windows.

    python -m benchmarks.shakespeare_recipe [--seeds 3] [--steps 2000]
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    ROOT,
    SIZES,
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

MODULE = "benchmarks.shakespeare_recipe"
RECIPE = "shakespeare-char"
PUBLISHED = 1.88
MARGIN, SHARE = 0.01, 0.9
"""Allowed: a mean loss above the rival's by so much, in so much of its time."""


def read_tokens(path: str, n_train: float = 0.9) -> tuple[np.ndarray, np.ndarray, int]:
    """Training and validation ids of a text, its characters numbered in order, and how many there are."""
    text = Path(path).read_text(encoding="utf-8")
    characters = sorted(set(text))
    number = {c: i for i, c in enumerate(characters)}
    ids = np.array([number[c] for c in text], dtype=np.int64)
    cut = int(n_train * len(ids))
    return ids[:cut], ids[cut:], len(characters)


def train_rival(task: dict[str, Any]) -> dict[str, Any]:
    """PyTorch's run of the recipe; the weights go to a file under our names."""
    import torch

    from benchmarks.rivals import TorchGPT, TorchTrainer, nanogpt_schedule

    torch.set_num_threads(task["threads"])
    tokens, _, V = read_tokens(task["data"])
    sizes = SIZES["mini"].sizes | {"vocab_size": V}
    T, B, steps = sizes["n_positions"], SIZES["mini"].batch_size, task["steps"]
    rng = np.random.default_rng(task["seed"])
    # GPT-2's initialisation by the rival's own generator, so that the seeds differ as much as ours do.
    weights = gpt2_initial(sizes, rng)
    trainer = TorchTrainer(sizes, weights, compiled=task["compiled"])
    losses = []
    for step in range(steps):
        starts = rng.integers(0, len(tokens) - T, B)
        window = tokens[starts[:, None] + np.arange(T + 1)]
        ids, targets = np.ascontiguousarray(window[:, :-1]), np.ascontiguousarray(window[:, 1:])
        losses.append(trainer.step(ids, targets, lr=nanogpt_schedule(step, steps)))
    state = {}
    for name, tensor in trainer.model.state_dict().items():
        array = tensor.numpy()
        linear = name.endswith(".weight") and ".c_" in name
        state[f"transformer.{name}"] = array.T if linear else array
    np.savez(task["out"], **state)
    assert isinstance(trainer.model, TorchGPT)
    return {"train_loss": float(np.mean(losses[-50:])), "peak_mb": peak_megabytes()}


def gpt2_initial(sizes: dict[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Normal, deviation 0.02; projections into the residual stream smaller by 1/√(2L); biases 0, gains 1."""
    C, L = sizes["n_embd"], sizes["n_layer"]
    shapes = {"wte.weight": (sizes["vocab_size"], C), "wpe.weight": (sizes["n_positions"], C)}
    for i in range(L):
        for name, shape in (
            ("attn.c_attn", (C, 3 * C)), ("attn.c_proj", (C, C)),
            ("mlp.c_fc", (C, 4 * C)), ("mlp.c_proj", (4 * C, C)),
        ):  # fmt: skip
            shapes[f"h.{i}.{name}.weight"] = shape
    weights = {}
    for name, shape in shapes.items():
        std = 0.02 / (2 * L) ** 0.5 if name.endswith("c_proj.weight") else 0.02
        weights[f"transformer.{name}"] = rng.normal(0.0, std, shape).astype(np.float32)
        if ".c_" in name:
            weights[f"transformer.{name.removesuffix('weight')}bias"] = np.zeros(shape[1], np.float32)
    norms = [f"h.{i}.ln_{j}" for i in range(L) for j in (1, 2)] + ["ln_f"]
    for name in norms:
        weights[f"transformer.{name}.weight"] = np.ones(C, np.float32)
        weights[f"transformer.{name}.bias"] = np.zeros(C, np.float32)
    return weights


def train_ours(data: Path, out: Path, seed: int, steps: int) -> dict[str, Any]:
    """Our run, through the command line a user types."""
    command = [
        sys.executable, "-m", "minigpt", "train", "--recipe", RECIPE, "--data", str(data), "--out", str(out),
        "--seed", str(seed), "--steps", str(steps), "--eval-every", "0", "--quiet",
    ]  # fmt: skip
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    log = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {"seconds": seconds, "train_loss": statistics.mean(line["loss"] for line in log[-5:])}


def validation_loss(weights: dict[str, np.ndarray], data: Path) -> tuple[float, int]:
    """Mean loss over the whole validation split in disjoint windows, and the number of tokens scored."""
    from minigpt import GPT, GPTConfig
    from minigpt.evaluation import evaluate_batches, text_batches

    _, held_out, V = read_tokens(str(data))
    sizes = SIZES["mini"].sizes | {"vocab_size": V}
    model = GPT(GPTConfig(**sizes), seed=0)
    for p in model.parameters():
        p.data[...] = weights[p.name]
    return evaluate_batches(model, text_batches(held_out, sizes["n_positions"], 32))


def our_weights(directory: Path) -> dict[str, np.ndarray]:
    """Those of a saved model."""
    from minigpt import GPT

    return GPT.from_pretrained(directory).state()


def measure_ours(data: Path, seed: int, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        result = train_ours(data, Path(directory) / "model", seed, steps)
        loss, tokens = validation_loss(our_weights(Path(directory) / "model"), data)
    return {**result, "validation_loss": loss, "tokens": tokens}


def measure_rival(data: Path, seed: int, steps: int, threads: int, compiled: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "weights.npz"
        task = {
            "data": str(data), "out": str(path), "seed": seed,
            "steps": steps, "threads": threads, "compiled": compiled,
        }  # fmt: skip
        start = time.perf_counter()
        result = run_child(MODULE, task)
        result["seconds"] = time.perf_counter() - start
        with np.load(path) as file:
            loss, tokens = validation_loss(dict(file), data)
    return {**result, "validation_loss": loss, "tokens": tokens}


def measure_nanogpt(checkout: Path, data: Path, seed: int, steps: int, threads: int) -> dict[str, Any]:
    """nanoGPT itself, by the command of its README on a copy of its files, and its own model's loss."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "nanoGPT"
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
        script = (copy / "train.py").read_text(encoding="utf-8")
        assert script.count("manual_seed(1337 +") == 1, "this is not the nanoGPT that the benchmark knows"
        script = script.replace("manual_seed(1337 +", f"manual_seed({1337 + seed} +")
        (copy / "train.py").write_text(script, encoding="utf-8")
        train, held_out, V = read_tokens(str(data))
        folder = copy / "data" / "shakespeare_char"
        folder.mkdir(parents=True, exist_ok=True)
        train.astype(np.uint16).tofile(folder / "train.bin")
        held_out.astype(np.uint16).tofile(folder / "val.bin")
        (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": V}))
        # One evaluation on one batch at either end, which is when it writes its checkpoint.
        command = [
            sys.executable, "train.py", "config/train_shakespeare_char.py", "--device=cpu", "--compile=False",
            "--eval_iters=1", f"--eval_interval={steps}", "--log_interval=100",
            "--block_size=64", "--batch_size=12",
            "--n_layer=4", "--n_head=4", "--n_embd=128", f"--max_iters={steps}", f"--lr_decay_iters={steps}",
            "--dropout=0.0", "--dtype=float32", "--always_save_checkpoint=True",
        ]  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        start = time.perf_counter()
        subprocess.run(command, cwd=copy, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        result = run_child(MODULE, {"nanogpt": str(copy), "data": str(data)})
    return {**result, "seconds": seconds}


def nanogpt_loss(task: dict[str, Any]) -> dict[str, Any]:
    """Loss of a nanoGPT checkpoint by nanoGPT's own model, over the same windows as ours."""
    import torch

    from minigpt.evaluation import text_batches

    sys.path.insert(0, task["nanogpt"])
    from model import GPT, GPTConfig  # nanoGPT's

    checkpoint = torch.load(Path(task["nanogpt"]) / "out-shakespeare-char" / "ckpt.pt", weights_only=False)
    model = GPT(GPTConfig(**checkpoint["model_args"])).eval()
    model.load_state_dict(checkpoint["model"])
    _, held_out, _ = read_tokens(task["data"])
    loss, count = 0.0, 0
    with torch.no_grad():
        for batch in text_batches(held_out, 64, 32):
            targets = torch.from_numpy(batch["targets"])
            targets[targets == -100] = -1  # what nanoGPT ignores
            scored = int((targets != -1).sum())
            _, mean = model(torch.from_numpy(batch["ids"]), targets)
            loss, count = loss + mean.item() * scored, count + scored
    return {"validation_loss": loss / count, "tokens": count}


def report(record: dict[str, Any]) -> str:
    """The result as Markdown."""
    runs = record["runs"]
    rows = []
    for side in runs["0"]:
        losses = [runs[seed][side]["validation_loss"] for seed in runs]
        seconds = [runs[seed][side]["seconds"] for seed in runs]
        ratio = ""
        if side != "ours":
            ours = [runs[seed]["ours"]["seconds"] for seed in runs]
            ratio = Comparison(ours, seconds).text
        rows.append(
            [side, ", ".join(f"{x:.4f}" for x in losses), f"{statistics.mean(losses):.4f}",
             ", ".join(f"{s:.1f}" for s in seconds), ratio]
        )  # fmt: skip
    verdict = record["verdict"]
    return "\n\n".join(
        [
            "# nanoGPT's CPU recipe for tiny Shakespeare",
            machine_line(record["machine"]),
            f"{record['steps']:,} steps; validation loss over {record['tokens']:,} tokens (the "
            "whole split, disjoint "
            f"windows) for seeds 0 to {len(runs) - 1}; seconds of the whole run; PyTorch with "
            f"{record['threads']} "
            f"threads. nanoGPT's README: {PUBLISHED}.",
            markdown_table(["side", "validation loss by seed", "mean", "seconds", "its time over ours"], rows),
            f"Our mean loss minus that of PyTorch (eager): {verdict['loss_difference']:+.4f} "
            f"(allowed: {MARGIN}); "
            f"our time as a share of its: {verdict['time_share']:.2f} (allowed: {SHARE}).",
        ]
    )


def main() -> None:
    task = child_task(sys.argv[1:])
    if task is not None:
        print(json.dumps(nanogpt_loss(task) if "nanogpt" in task else train_rival(task)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="also nanoGPT itself, a checkout of it")
    parser.add_argument("--compile", action="store_true", help="also against torch.compile")
    parser.add_argument("--quiet", type=float, default=120.0, metavar="S", help="wait so long for an idle machine")
    arguments = parser.parse_args()
    if "MINIGPT_DATA" not in os.environ:
        parser.error("set MINIGPT_DATA to the folder that holds tinyshakespeare.txt")
    data = Path(os.environ["MINIGPT_DATA"]).resolve() / "tinyshakespeare.txt"
    steps, threads = arguments.steps, arguments.threads
    record: dict[str, Any] = {"machine": machine(), "steps": steps, "threads": threads, "runs": {}}
    for seed in range(arguments.seeds):
        measures: dict[str, Any] = {
            "ours": lambda seed=seed: measure_ours(data, seed, steps),
            "eager": lambda seed=seed: measure_rival(data, seed, steps, threads, compiled=False),
        }
        if arguments.compile:
            measures["compile"] = lambda seed=seed: measure_rival(data, seed, steps, threads, compiled=True)
        if arguments.nanogpt:
            measures["nanoGPT"] = lambda seed=seed: measure_nanogpt(arguments.nanogpt, data, seed, steps, threads)
        results = in_turns(measures, 1, arguments.quiet)
        record["runs"][str(seed)] = {side: runs[0] for side, runs in results.items()}
    pairs = record["runs"].values()
    record["tokens"] = record["runs"]["0"]["ours"]["tokens"]
    record["verdict"] = {
        "loss_difference": statistics.mean(r["ours"]["validation_loss"] for r in pairs)
        - statistics.mean(r["eager"]["validation_loss"] for r in pairs),
        "time_share": statistics.median(r["ours"]["seconds"] / r["eager"]["seconds"] for r in pairs),
    }
    write_results("shakespeare_recipe" if steps == 2000 else "shakespeare_recipe_short", record, report(record))


if __name__ == "__main__":
    main()
