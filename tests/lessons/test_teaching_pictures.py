"""Pictures that explain rather than report: what is drawn is what the mathematics says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from kernels import get_backend
from lessons import lesson_10_rlhf as rl
from lessons import lesson_11_comparison as comparison
from lessons import lesson_12_quantization as quantization
from lessons.common import prompts, quantization_pictures, rlhf_pictures
from lessons.common.rlhf import best_of_kl

NUMPY = get_backend("numpy")


def lines(axes: Any) -> list[np.ndarray]:
    """The (n, 2) points of each line."""
    return [np.asarray(line.get_xydata()) for line in axes.get_lines()]


# ---------------------------------------------------------------------------------------------- lesson 10


@pytest.mark.parametrize("beta", [0.05, 0.5, 3.0])
def test_the_tilted_policy_is_the_best_one(beta: float) -> None:
    rng = np.random.default_rng(0)
    reference, rewards = rng.dirichlet(np.ones(6)), rng.standard_normal(6)

    def objective(policy: np.ndarray) -> float:
        return float(policy @ rewards - beta * (policy * np.log(policy / reference)).sum())

    best = rlhf_pictures.tilted(reference, rewards, beta)
    assert best.sum() == pytest.approx(1)
    for _ in range(50):
        other = best * np.exp(0.1 * rng.standard_normal(6))
        assert objective(other / other.sum()) < objective(best)


def test_a_low_price_over_optimises() -> None:
    titles = [rlhf_pictures.price_picture(beta).axes[0].get_title(loc="left") for beta in (1.0, 0.2, 0.03)]
    learnt, true = (
        [float(title.split(f"{name} reward ")[1].split(",")[0]) for title in titles] for name in ("learnt", "true")
    )
    assert learnt[0] < learnt[1] < learnt[2]
    assert true[2] < true[0] < true[1]


def test_credit_is_the_lessons_own() -> None:
    weights, worth = rlhf_pictures.credit_picture(rl.gae, (0.0, 0.5, 1.0)).axes
    for lam, drawn in zip((0.0, 0.5, 1.0), lines(weights), strict=True):
        assert drawn[:, 1] == pytest.approx([lam**i for i in range(12)])
    nothing, half, everything = lines(worth)[:3]
    assert nothing[:, 1] == pytest.approx([0] * 6 + [0.7] + [0] * 4 + [0.3])
    assert everything[:, 1] == pytest.approx([1.0] * 7 + [0.3] * 5)
    assert half[5, 1] == pytest.approx(0.5 * 0.7 + 0.5**6 * 0.3)


def test_the_clipped_loss_pulls_where_it_should() -> None:
    figure = rlhf_pictures.clip_picture(rl.ppo_policy_loss_forward, rl.ppo_policy_loss_backward, 0.3)
    for column, advantage in enumerate((1.0, -1.0)):
        ratio, pull = lines(figure.axes[2 + column])[0].T
        alone = ratio > 1.3 + 1e-9 if advantage > 0 else ratio < 0.7 - 1e-9
        assert alone.any()
        assert not pull[alone].any()
        clear = ~alone & (abs(ratio - (1 + 0.3 * advantage)) > 1e-6)
        assert pull[clear] == pytest.approx(advantage * ratio[clear])
        loss = lines(figure.axes[column])[0][:, 1]
        assert loss == pytest.approx(-np.minimum(advantage * ratio, advantage * np.clip(ratio, 0.7, 1.3)))


def test_averaged_over_seeds() -> None:
    def arm(level: float) -> dict[str, Any]:
        return {"curve": [{"learnt": level + i, "true": 2 * level, "kl": i * level, "beta": 1.0} for i in range(3)]}

    results = {
        "arms": [{"PPO": arm(1.0)}, {"PPO": arm(3.0)}],
        "best_of": [
            {"1": [0.1, 1.0], "16": [0.5, 3.0], "2": [0.3, 2.0]},
            {"1": [0.3, 1.0], "16": [0.7, 5.0], "2": [0.3, 2.0]},
        ],
    }
    curves, best_of = rlhf_pictures.averaged(results, {"β = 1": "PPO"})
    assert curves == {"β = 1": [{"learnt": 2.0 + i, "true": 4.0, "kl": 2.0 * i} for i in range(3)]}
    assert list(best_of) == [1, 2, 16]
    assert best_of[16] == pytest.approx((best_of_kl(16), 4.0, 0.6))


# ---------------------------------------------------------------------------------------------- lesson 9


def test_the_columns_of_the_input() -> None:
    rng = np.random.default_rng(0)
    prompt, tokens = rng.standard_normal((3, 5)), rng.standard_normal((2, 5))
    axes = prompts.input_picture(prompt, tokens, ["a", "b"], "title").axes[0]
    drawn = np.asarray(axes.get_images()[0].get_array())
    assert drawn[:, :3] == pytest.approx(prompt.T)
    assert drawn[:, 4:] == pytest.approx(tokens.T)
    assert [
        (tick, label.get_text()) for tick, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    ] == [
        (1.0, "prompt"),
        (4, "a"),
        (5, "b"),
    ]


def test_answers_stand_under_the_right_one() -> None:
    chances = np.array([[0.7, 0.2], [0.1, 0.6], [0.5, 0.5]])
    axes = prompts.answers_picture({"it": np.log(chances)}, np.array([1, 0, 1]), (" no", " yes")).axes[0]
    heights = np.array([bar.get_height() for bar in axes.patches]).reshape(2, 3)
    assert heights == pytest.approx(chances[[1, 0, 2]].T)  # by the right answer: the second prompt first
    assert [label.get_text() for label in axes.get_xticklabels()] == ["no", "yes"]


def test_sizes_of_a_record_in_order() -> None:
    points = {"1": [{"loss": 3.0}], "20": [{"loss": 1.0}, {"loss": 2.0}], "5": [{"loss": 4.0}]}
    assert prompts.of_sizes(points, "loss") == [(1.0, [3.0]), (5.0, [4.0]), (20.0, [1.0, 2.0])]


# ---------------------------------------------------------------------------------------------- lesson 12


def test_usage_of_levels() -> None:
    even = np.linspace(-1, 1, 160001)
    figure = quantization_pictures.usage_picture(even, {"a": np.array([-1.0, 0, 1]), "b": quantization.nf4_codebook()})
    shares = [bar.get_height() for bar in figure.axes[0].patches]
    assert shares == pytest.approx([25, 50, 25], abs=0.01)
    assert "as good as 2.8 levels" in figure.axes[0].get_title(loc="left")  # 2^1.5
    assert sum(bar.get_height() for bar in figure.axes[1].patches) == pytest.approx(100)


def test_the_error_of_a_block_leaves_out_its_largest() -> None:
    block, again = np.array([0.3, -0.4, 5.0]), np.array([0.3, 0.1, 5.0])
    title = quantization_pictures.block_picture(block, again, np.array([-1.0, 1.0])).axes[0].get_title(loc="left")
    assert title == "Largest weight 5.00: the others are off by 100.0% of their size"


# ---------------------------------------------------------------------------------------------- lesson 11


def test_intervals_of_repeated_experiments() -> None:
    title = comparison.seeds_picture(5, 400).axes[0].get_title(loc="left")
    missed = int(title.split(": ")[1].split()[0])
    assert 0.02 < missed / 400 < 0.08


def test_how_to_compare_is_right_as_it_stands() -> None:
    assert [c.name for d in comparison.DERIVATIONS for c in d.check(NUMPY) if not c.ok] == []


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("choose_rate", lambda rates, losses: int(np.nanargmin(losses)) if np.isfinite(losses).any() else -1),
        ("choose_rate", lambda rates, losses: int(np.argmin(losses))),
        ("mean_interval", lambda values, level=0.95: _normal(values)),
        ("paired_interval", lambda a, b, level=0.95: comparison.mean_interval(_apart(a.values(), b.values()))),
        ("pareto_front", lambda cost, quality: np.array([_no_better(cost, quality, i) for i in range(len(cost))])),
    ],
)  # fmt: skip
def test_a_wrong_way_to_compare_is_seen(name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, name, wrong)
    assert not all(c.ok for d in comparison.DERIVATIONS for c in d.check(NUMPY))


def _apart(first: Iterable[float], second: Iterable[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]


def _no_better(cost: np.ndarray, quality: np.ndarray, i: int) -> bool:
    return not ((cost <= cost[i]) & (quality > quality[i])).any()


def _normal(values: list[float]) -> tuple[float, float, float]:
    margin = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(np.mean(values)), float(np.mean(values)) - margin, float(np.mean(values)) + margin


def test_what_is_not_written_yet_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def todo(*arguments: Any, **settings: Any) -> Any:
        raise NotImplementedError

    for name in ("choose_rate", "mean_interval", "paired_interval", "pareto_front"):
        monkeypatch.setattr(comparison, name, todo)
    assert all(c.missing for d in comparison.DERIVATIONS for c in d.check(NUMPY))
