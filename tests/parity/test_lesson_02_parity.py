"""Learning rates equal to AllenNLP's slanted triangle, PyTorch's OneCycleLR and an AdamW with parameter groups there.

The golden file of the default tests (tests/golden/one_cycle.json) is made here, by PyTorch and not by our code. To
make it again::

    MINIGPT_UPDATE_GOLDEN=1 python -m pytest tests/parity/test_lesson_02_parity.py -k golden
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lessons.lesson_02_ulmfit_target import (  # noqa: E402
    SCHEDULES,
    Full,
    layer_groups,
    members,
    one_cycle,
    rate_groups,
    slanted_triangular,
)
from minigpt import GPT, GPTConfig  # noqa: E402
from minigpt.objectives import LanguageModelling  # noqa: E402
from minigpt.training import TrainConfig, train  # noqa: E402
from tests.helpers import error  # noqa: E402

pytestmark = pytest.mark.parity
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent.parent / "golden" / "one_cycle.json"


@pytest.mark.parametrize(("cut_frac", "ratio"), [(0.1, 32), (0.3, 10), (0.02, 100)])
def test_slanted_triangle_is_allennlps(cut_frac: float, ratio: float) -> None:
    # allennlp/training/learning_rate_schedulers/slanted_triangular.py, without unfreezing
    for num_steps in range(1, 501):
        cut = int(num_steps * cut_frac)
        props = [step / cut if step < cut else 1 - (step - cut) / (num_steps - cut) for step in range(num_steps)]
        theirs = [0.01 * (1 + prop * (ratio - 1)) / ratio for prop in props]
        ours = [slanted_triangular(step, num_steps, 0.01, cut_frac, ratio) for step in range(num_steps)]
        assert error(ours, theirs) < 1e-14, num_steps


def their_one_cycle(steps: int, lr: float, pct_start: float, div: float, div_final: float) -> list[float]:
    """PyTorch's rates. It divides the first rate by its `final_div_factor`, where fastai divides the peak."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=lr,
        total_steps=steps,
        pct_start=pct_start,
        anneal_strategy="cos",
        cycle_momentum=False,
        div_factor=div,
        final_div_factor=div_final / div,
    )
    rates = scheduler.get_last_lr()
    while len(rates) < steps:
        optimizer.step()
        scheduler.step()
        rates += scheduler.get_last_lr()
    return rates


@pytest.mark.parametrize(
    ("pct_start", "div", "div_final"), [(0.25, 25.0, 1e5), (0.3, 10.0, 1e4), (0.99, 5.0, 1e5), (0.1, 25.0, 25.0)]
)
def test_one_cycle_is_pytorchs(pct_start: float, div: float, div_final: float) -> None:
    for steps in [*range(2, 60), 100, 137, 500]:
        if pct_start * steps <= 1 + 1e-9:
            continue  # PyTorch divides by zero, or peaks before the first step
        theirs = their_one_cycle(steps, 0.02, pct_start, div, div_final)
        ours = [one_cycle(step, steps, 0.02, pct_start, div, div_final) for step in range(steps)]
        assert error(ours, theirs) < 1e-12, steps


def test_golden_one_cycle() -> None:
    made = {str(steps): their_one_cycle(steps, 0.02, 0.25, 25.0, 1e5) for steps in (5, 8, 19, 40)}
    if os.environ.get("MINIGPT_UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    stored = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert set(stored) == set(made)
    for steps, rates in made.items():
        assert error(stored[steps], rates) < 1e-12


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ten_steps_with_parameter_groups_are_pytorchs(schedule: str) -> None:
    """Full fine-tuning of transformers' GPT-2 by torch's AdamW, a group a layer with rates of their own."""
    settings = {"vocab_size": 29, "n_positions": 9, "n_embd": 12, "n_layer": 3, "n_head": 3}
    base = GPT(GPTConfig(**settings), seed=1, dtype="float64")
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            **settings, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, attn_implementation="eager"
        )
    ).double()
    named = dict(theirs.named_parameters())
    with torch.no_grad():
        for p in base.parameters():
            named[p.name].copy_(torch.from_numpy(p.data))
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(10):
        ids, targets = rng.integers(0, 29, (2, 4, 9))
        targets[rng.random(targets.shape) < 0.2] = -100
        batches.append({"ids": ids, "targets": targets})

    tuned = Full().apply(base)
    groups = layer_groups(tuned)
    config = TrainConfig(10, beta1=0.9, beta2=0.999, weight_decay=0.0, max_norm=None, workers=1)
    rates = rate_groups(groups, 10, 0.01, schedule, 2.6)
    train(tuned, LanguageModelling(), lambda step: batches[step], config, groups=rates, progress=False)

    peaks = [0.01 / 2.6**depth for depth in (2, 1, 0)]
    optimizer = torch.optim.AdamW(
        [{"params": [named[name] for name in names]} for names in members(groups, named)],
        betas=(0.9, 0.999),
        weight_decay=0.0,
    )
    for step, batch in enumerate(batches):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = SCHEDULES[schedule](step, 10, peak)
        logits = theirs(torch.from_numpy(batch["ids"])).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(batch["targets"]).flatten(), ignore_index=-100
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for p in tuned.parameters():
        # A key's bias moves no score: its gradient is rounding, which AdamW blows up to full steps.
        ours, wanted = p.data, named[p.name].detach().numpy()
        if p.name.endswith("c_attn.bias"):
            ours, wanted = (np.delete(a, slice(12, 24)) for a in (ours, wanted))
        assert error(ours, wanted) < 1e-9, p.name
