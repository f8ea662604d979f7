"""The course as a whole: which lesson stands on which, and whether this machine can run them."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from kernels import get_backend
from lessons.common import plotting
from minigpt import bases
from minigpt.corpora import load_corpus
from minigpt.files import provenance

NEEDS: Mapping[int, tuple[str, tuple[int, ...]]] = {
    1: ("pretraining", ()),
    2: ("ULMFiT:\ntarget text", (1,)),
    3: ("ULMFiT:\nclassifier", (2,)),
    4: ("instruction\ntuning", (1,)),
    5: ("importance\nranking", (4,)),
    6: ("low rank:\nSVD", (1,)),
    7: ("LoRA", (6,)),
    8: ("adapters", (7,)),
    9: ("soft\nprompts", (7,)),
    10: ("rewards:\nPPO, DPO", (4,)),
    11: ("the\ncomparison", (3, 5, 8, 9, 10, 12)),
    12: ("NF4 and\nQLoRA", (7,)),
    14: ("many\nmachines", (1,)),
    13: ("kernels", (1,)),
}
"""Number of a lesson → its name, and the lessons that it stands on."""

# Where each lesson is drawn: column by how many lessons lead to it, row by the road that it lies on.
PLACES = {
    1: (0, 2), 2: (1, 0), 3: (2, 0), 4: (1, 1), 5: (2, 1), 10: (2, 2), 6: (1, 4), 7: (2, 4), 13: (1, 2),
    9: (3, 3), 8: (3, 4), 12: (3, 5), 11: (4.3, 2), 14: (1, 3),
}  # fmt: skip


@plotting.style()
def map_picture(highlight: int | None = None) -> Figure:
    """The lessons as boxes, an arrow from each to those that need it.

    Parameters
    ----------
    highlight : int, optional
        A lesson to stand out.
    """
    figure, ax = plotting.new(height=4.6)
    boxes = {}
    for number, (name, _) in NEEDS.items():
        x, y = PLACES[number]
        colour = plotting.VERMILLION if number == highlight else plotting.BLUE
        box = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": colour, "linewidth": 1.6}
        boxes[number] = ax.text(x, y, f"{number}  {name}", ha="center", va="center", fontsize=10, bbox=box)
    for number, (_, needs) in NEEDS.items():
        for before in needs:
            # From middle to middle, cut off at the boxes, whose sizes are known once they are drawn: hence the order.
            how = {"arrowstyle": "->", "color": plotting.GREY, "linewidth": 1.2, "shrinkA": 1, "shrinkB": 1}
            how |= {"patchA": boxes[before].get_bbox_patch(), "patchB": boxes[number].get_bbox_patch()}
            ax.annotate("", xy=PLACES[number], xytext=PLACES[before], arrowprops=how, zorder=4)
    ax.set_xlim(-0.45, 4.75)
    ax.set_ylim(5.5, -0.5)
    ax.set_title("Which lesson stands on which")
    ax.axis("off")
    return figure


def machine_rows() -> list[list[str]]:
    """What there is on this machine, and whether it is enough: rows of what, found, and a word to it.

    Returns
    -------
    rows : list of [what, found, remark]
    """
    made = provenance()
    try:
        get_backend("cupy")
        gpu, remark = "usable", "the notebooks will use it"
    except ValueError as error:
        gpu, remark = "none", f"not needed ({error})"
    model, tokenizer = bases.load("base-s")
    ids = np.array([tokenizer.encode("The garden behind the house was quiet. " * 8)[:64]] * 8)
    model.loss_and_grads(ids[:, :-1], ids[:, 1:])  # the first pass warms up
    began = time.perf_counter()
    loss, _ = model.loss_and_grads(ids[:, :-1], ids[:, 1:])
    speed = ids.size / (time.perf_counter() - began)
    documents = load_corpus("pydocs")
    return [
        ["Python", str(made["python"]), "3.11 or newer"],
        ["NumPy, its BLAS", f"{made['numpy']}, {' and '.join(blas['name'] for blas in made['blas']) or 'unknown'}", ""],
        ["cores", str(made["cores"]), "two are enough"],
        ["GPU through CuPy", gpu, remark],
        ["text to learn from", f"{len(documents.train):,} documents", "of your Python, NumPy and Matplotlib"],
        ["a base model", f"{model.n_parameters:,} parameters", f"loads, and gives a loss of {loss:.2f}"],
        ["training speed", f"{speed:,.0f} tokens a second", "5,000 and more: lessons take their two minutes"],
    ]
