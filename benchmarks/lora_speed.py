"""LoRA fine-tuning speed against peft on transformers: steps a second.

Every measurement is a process of its own, and the sides take turns: ours, peft, ours, … Both start from the same base
and the same adapter, see the same batches and must report the same losses. Ours is the trainer's step with its worker
processes; theirs is transformers' GPT-2 with peft's LoRA, scaled-dot-product attention, fused AdamW over the adapters
alone, clipping, and no cache, metrics or `Trainer` around it.

    python -m benchmarks.lora_speed            # all, five pairs
    python -m benchmarks.lora_speed --quick    # one look
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    SIZES,
    Comparison,
    Size,
    child_task,
    in_turns,
    machine,
    machine_line,
    markdown_table,
    note,
    run_child,
    write_results,
)
from benchmarks.training_speed import check_same_work, timed_steps

MODULE = "benchmarks.lora_speed"
SIDES = ("ours", "peft")
BASE_M = Size(vocab_size=1024, n_positions=128, n_layer=4, n_head=4, n_embd=128, batch_size=16)
CASES: dict[str, tuple[Size, list[str], int]] = {
    "base-m, c_attn": (BASE_M, ["c_attn"], 50),
    "base-m, all": (BASE_M, ["c_attn", "c_proj", "c_fc"], 50),
    "10m, c_attn": (SIZES["10m"], ["c_attn"], 15),
    "10m, all": (SIZES["10m"], ["c_attn", "c_proj", "c_fc"], 15),
}
"""Size, target modules, timed steps."""
RANK, ALPHA = 8, 16
AIM = 1.5


# ---------------------------------------------------------------------------------------------- in the child


class PeftTrainer:
    """One training step: forward, backward, clip to global norm 1, fused AdamW on the adapters.

    Parameters
    ----------
    sizes : mapping
        As in `GPTConfig`.
    weights : dict of str to array
        Of the base, our names.
    adapter : path
        A `peft` directory.
    """

    def __init__(self, sizes: dict[str, int], weights: dict[str, np.ndarray], adapter: str) -> None:
        import peft
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            **sizes, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, use_cache=False, attn_implementation="sdpa",
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        base = GPT2LMHeadModel(config)
        base.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, strict=False)
        base.tie_weights()
        self.model = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True).train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)

    def step(self, ids: np.ndarray, targets: np.ndarray) -> float:
        """One step on a batch (B, T); the loss before it."""
        import torch
        from torch.nn import functional as F

        logits = self.model(input_ids=torch.from_numpy(ids)).logits
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), torch.from_numpy(targets).view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """What a child process does."""
    size = Size(**task["size"])
    if task["side"] == "ours":
        from benchmarks.ours import OurTrainer
        from lessons.lesson_07_lora import LoRA
        from minigpt import GPT, GPTConfig

        tuned = LoRA.load(GPT(GPTConfig(**size.sizes), seed=0), task["adapter"])
        with OurTrainer(size.sizes, size.batch_size, model=tuned) as trainer:
            return {**timed_steps(trainer.step, size, task["steps"]), "processes": trainer.workers}
    import torch

    torch.set_num_threads(task["threads"])
    with np.load(task["weights"]) as file:
        rival = PeftTrainer(size.sizes, dict(file), task["adapter"])
    return {**timed_steps(rival.step, size, task["steps"]), "threads": torch.get_num_threads()}


# ---------------------------------------------------------------------------------------------- in the parent


def save_start(size: Size, targets: list[str], directory: str) -> tuple[str, str]:
    """The base's weights and a fresh adapter, as files that both sides load."""
    from lessons.lesson_07_lora import LoRA
    from minigpt import GPT, GPTConfig

    base = GPT(GPTConfig(**size.sizes), seed=0)
    weights, adapter = Path(directory) / "weights.npz", Path(directory) / "adapter"
    np.savez(weights, **base.state())  # type: ignore[arg-type]
    method = LoRA(r=RANK, lora_alpha=ALPHA, target_modules=targets)
    method.save(method.apply(base), adapter)
    return str(weights), str(adapter)


def compare(name: str, pairs: int, steps: int, threads: int, quiet: float) -> dict[str, Any]:
    """Both sides on one case."""
    size, targets, _ = CASES[name]
    note(f"{name}: {size}")
    with tempfile.TemporaryDirectory() as directory:
        weights, adapter = save_start(size, targets, directory)
        task = {"size": asdict(size), "weights": weights, "adapter": adapter, "steps": steps, "threads": threads}

        def measurement(side: str) -> Any:
            return lambda: run_child(MODULE, {**task, "side": side})

        results = in_turns({side: measurement(side) for side in SIDES}, pairs, quiet)
    worst = check_same_work(name, results)
    ms = {side: [run["ms"] for run in runs] for side, runs in results.items()}
    comparison = Comparison(ms["ours"], ms["peft"])
    return {
        "size": asdict(size),
        "target_modules": targets,
        "rank": RANK,
        "steps": steps,
        "runs": results,
        "loss_difference": worst,
        "steps_per_second": {side: 1e3 / statistics.median(times) for side, times in ms.items()},
        "peak_mb": {side: max(run["peak_mb"] for run in runs) for side, runs in results.items()},
        "ratio": {"text": comparison.text, "all": comparison.ratios, "median": statistics.median(comparison.ratios)},
        "aim": AIM,
        "busiest_other": max(run["others"] for runs in results.values() for run in runs),
    }


def report(record: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = []
    for name, c in record["cases"].items():
        speed, peak = c["steps_per_second"], c["peak_mb"]
        rows.append(
            [name, f"{speed['ours']:.1f}", f"{speed['peft']:.1f}", c["ratio"]["text"], AIM, f"{peak['ours']:.0f}",
             f"{peak['peft']:.0f}", f"{c['loss_difference']:.0e}", c["busiest_other"]]
        )  # fmt: skip
    return "\n\n".join(
        [
            "# LoRA fine-tuning speed",
            machine_line(record["machine"])
            + f"; PyTorch with {record['threads']} threads, ours with as many processes; peft {record['peft']}.",
            f"Steps a second at r = {RANK}; ratio = peft's time over ours in the same pair, median (smallest-largest), "
            "above 1 we are quicker; peak resident memory in MB (ours: all processes, shared pages once); cores that "
            "other work took meanwhile.",
            markdown_table(
                ["case", "ours", "peft", "ratio", "aim", "ours MB", "peft MB", "loss differs by", "others"], rows
            ),
        ]
    )


def main() -> None:
    task = child_task(sys.argv[1:])
    if task is not None:
        print(json.dumps(measure(task)))
        return
    import importlib.metadata

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this one; may be given again")
    parser.add_argument("--pairs", type=int, default=5, help="how often each side is measured")
    parser.add_argument("--quick", action="store_true", help="one pair of few steps")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--quiet", type=float, default=120.0, metavar="S", help="wait so long for an idle machine")
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "machine": machine(),
        "threads": arguments.threads,
        "peft": importlib.metadata.version("peft"),
        "cases": {},
    }
    for name in arguments.case or CASES:
        steps = math.ceil(CASES[name][2] / 4) if arguments.quick else CASES[name][2]
        pairs = 1 if arguments.quick else arguments.pairs
        record["cases"][name] = compare(name, pairs, steps, arguments.threads, arguments.quiet)
    write_results("lora_speed_quick" if arguments.quick else "lora_speed", record, report(record))


if __name__ == "__main__":
    main()
