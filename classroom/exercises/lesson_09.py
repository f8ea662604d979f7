"""Lesson 9, soft prompts: cases and typical mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from classroom.exercise import Alternative, Case, Exercise, Rng, Wrong
from classroom.exercises.draws import distinct

LESSON = "lessons.lesson_09_soft_prompts"


def cases_prepend_forward(rng: np.random.Generator) -> Sequence[Case]:
    """A prompt for all rows and one a row; every axis of size 1 once."""
    B, T, P, C = distinct(rng, 4)

    def case(name: str, B: int, T: int, P: int, own: bool = False) -> Case:
        return Case(
            name,
            {
                "tokens": rng.standard_normal((B, T, C)),
                "prompt": rng.standard_normal((B, P, C) if own else (P, C)),
                "positions": rng.standard_normal((P, C)),
            },
        )

    return [
        case("one prompt for all rows", B, T, P),
        case("a prompt for each row", B, T, P, own=True),
        case("one row", 1, T, P),
        case("a prompt of one vector", B, T, 1),
        case("one token", B, 1, P),
        case("as many rows as vectors", P, T, P),
        case("as many rows as vectors, a prompt for each row", P, T, P, own=True),
    ]


def cases_prepend_backward(rng: np.random.Generator) -> Sequence[Case]:
    """Prompts longer and shorter than the text; every axis of size 1 once."""
    B, T, P, C = sorted(distinct(rng, 4))

    def case(name: str, B: int, T: int, P: int) -> Case:
        return Case(name, {"dx": rng.standard_normal((B, P + T, C)), "P": P})

    return [
        case("prompt longer than the text", B, T, P),
        case("prompt shorter than the text", B, P, T),
        case("one row", 1, T, P),
        case("a prompt of one vector", B, T, 1),
        case("one token", B, 1, P),
        case("as many vectors as tokens", B, P, P),
    ]


def cases_prefix_forward(rng: np.random.Generator) -> Sequence[Case]:
    """First, last and middle layers; every axis of size 1 once."""
    B, P, H, D = distinct(rng, 4, high=6)
    L = int(rng.integers(3, 6))

    def case(name: str, layer: int, L: int = L, H: int = H, B: int = B, P: int = P, D: int = D) -> Case:
        matrix = rng.standard_normal((P, 2 * L * H * D))
        return Case(name, {"prompt_embeddings": matrix, "layer": layer, "n_layer": L, "n_head": H, "B": B})

    return [
        case("first layer", 0),
        case("middle layer", L // 2),
        case("last layer", L - 1),
        case("one layer", 0, L=1),
        case("one head", 1, H=1),
        case("one row", 1, B=1),
        case("one vector", 1, P=1),
        case("heads of size one", 1, D=1),
        case("as many vectors as heads, of the same size", 1, P=H, D=H),
    ]


def cases_prefix_backward(rng: np.random.Generator) -> Sequence[Case]:
    """As the forward's; what is there already stays, but in one case that starts from zeros."""
    B, P, H, D = distinct(rng, 4, high=6)
    L = int(rng.integers(3, 6))

    def case(name: str, layer: int, L: int = L, H: int = H, B: int = B, P: int = P, D: int = D, held: int = 1) -> Case:
        dk, dv = rng.standard_normal((2, B, H, P, D))
        dprompt = held * rng.standard_normal((P, 2 * L * H * D))
        return Case(name, {"dk": dk, "dv": dv, "dprompt": dprompt, "layer": layer, "n_layer": L})

    return [
        case("nothing there yet", 1, held=0),
        case("first layer", 0),
        case("middle layer", L // 2),
        case("last layer", L - 1),
        case("one layer", 0, L=1),
        case("one head", 1, H=1),
        case("one row", 1, B=1),
        case("one vector", 1, P=1),
        case("as many vectors as heads, of the same size", 1, P=H, D=H),
    ]


def pool_of(rng: np.random.Generator, V: int, m: int) -> np.ndarray:
    """m tokens of V in any order, neither the first ones nor all."""
    return rng.permutation(np.arange(2, V))[:m]


def cases_sample_vocab_init(rng: np.random.Generator) -> Sequence[Case]:
    """More and fewer tokens in the pool than vectors."""
    m, C = int(rng.integers(8, 12)), int(rng.integers(2, 6))
    table = rng.standard_normal((m + int(rng.integers(6, 10)), C))

    def case(name: str, n: int, pool: np.ndarray) -> Case:
        return Case(name, {"table": table, "n": n, "rng": Rng(int(rng.integers(1_000_000))), "pool": pool})

    pool = pool_of(rng, len(table), m)
    return [
        case("fewer vectors than tokens in the pool", m - 3, pool),
        case("as many vectors as tokens in the pool", m, pool),
        case("more vectors than tokens in the pool", m + 3, pool),
        case("more vectors than tokens in the vocabulary", len(table) + 2, pool),
        case("one vector", 1, pool),
        case("a pool of one token", 3, pool[:1]),
        case("the whole vocabulary as the pool", m, np.arange(len(table))),
    ]


def cases_text_init(rng: np.random.Generator) -> Sequence[Case]:
    """Texts longer and shorter than the prompt, with tokens that come twice, first and last ids among them."""
    V, C = int(rng.integers(9, 14)), int(rng.integers(2, 6))
    table = rng.standard_normal((V, C))
    m = int(rng.integers(4, 7))

    def case(name: str, ids: Sequence[int] | np.ndarray, n: int) -> Case:
        return Case(name, {"table": table, "ids": [int(i) for i in ids], "n": n})

    ids = rng.permutation(np.arange(1, V - 1))[:m]
    twice = [V - 1, *ids[:2], 0, ids[0]]
    return [
        case("longer text", ids, m - 2),
        case("text of the same length", ids, m),
        case("shorter text, a part of it left over", ids, 2 * m + 1),
        case("shorter text, a whole number of times", ids, 3 * m),
        case("one vector", ids, 1),
        case("one token", ids[:1], 3),
        case("a token twice", twice, 8),
    ]


def cases_class_label_init(rng: np.random.Generator) -> Sequence[Case]:
    """Labels of one and of several tokens, fewer and more of them than vectors."""
    m, C = int(rng.integers(6, 10)), int(rng.integers(2, 6))
    table = rng.standard_normal((m + int(rng.integers(5, 9)), C))
    pool = pool_of(rng, len(table), m)

    def case(name: str, lengths: Sequence[int], n: int, labels: list[list[int]] | None = None) -> Case:
        labels = labels or [[int(i) for i in rng.permutation(len(table))[:k]] for k in lengths]
        seed = Rng(int(rng.integers(1_000_000)))
        return Case(name, {"table": table, "labels": labels, "n": n, "rng": seed, "pool": pool})

    return [
        case("labels, and more vectors", (2, 1, 3), 7),
        case("as many labels as vectors", (3, 2, 1, 2), 4),
        case("more labels than vectors", (2, 3, 2, 1, 3), 3),
        case("one label of one token", (1,), 4),
        case("one vector", (3, 2), 1),
        case("a token twice in a label", (), 5, [[0, len(table) - 1, 0], [3, 3, 3, 1]]),
        case("more vectors than labels and pool together", (2, 3), m + 5),
    ]


def cases_nearest_tokens(rng: np.random.Generator) -> Sequence[Case]:
    """Vectors and embeddings of very different lengths; equal and opposite directions."""
    P, C, V = sorted(distinct(rng, 3, high=6))
    V += 4

    def case(name: str, P: int, k: int, table: np.ndarray | None = None) -> Case:
        if table is None:
            table = rng.standard_normal((V, C)) * rng.uniform(0.2, 5, (V, 1))
        vectors = rng.standard_normal((P, C)) * rng.uniform(0.2, 5, (P, 1))
        return Case(name, {"vectors": vectors, "table": table, "k": k})

    # rows along the axes, of lengths that are powers of 2: their cosines with a vector are equal to the last bit
    axes = np.kron(np.array([[1.0], [4.0], [0.5]]), np.eye(C))[rng.permutation(3 * C)]
    shifted = 3 + rng.standard_normal((V, C))
    return [
        case("lengths far apart", P, 3),
        case("all tokens", P, V),
        case("the nearest only", P, 1),
        case("one vector", 1, 4),
        case("several tokens in one direction", P, 2 * C, axes),
        case("opposite directions", P, len(axes) + C, np.concatenate((axes, -2 * np.eye(C)))),
        case("embeddings that point the same way", P, 4, shifted),
    ]


def cases_majority(rng: np.random.Generator) -> Sequence[Case]:
    """Clear votes, and ties that the lowest, the highest and the last choice would win."""
    N = int(rng.integers(5, 9))
    low, middle, high = sorted(int(i) for i in rng.choice(np.arange(1, 9), 3, replace=False))

    def case(name: str, choices: Any) -> Case:
        return Case(name, {"choices": np.asarray(choices)})

    leader = rng.integers(0, 9, N)
    others = [(leader + d) % 9 for d in (1, 2, 3)]
    most = rng.permuted(np.stack([*others, leader, leader, leader, leader]), axis=0)
    more = rng.permuted(np.stack([*others, leader, leader]), axis=0)

    def columns(*votes: Sequence[int]) -> np.ndarray:
        return np.array(votes).T

    return [
        case("more than half of the votes", most),
        case("most votes, though not half", more),
        case("two against two", columns([high, low, low, high], [low, high, low, high], [middle, high, high, middle])),
        case(
            "a tie that the first voter is not in", columns([middle, high, low, high, low], [0, low, high, low, high])
        ),
        case("a tie that the others reach first", columns([high, low, low, middle, high], [low, high, high, 0, low])),
        case("the first voter is outvoted", columns([middle, high, high, low, high], [middle, low, low, high, low])),
        case("the winners vote last", columns([low, middle, high, high], [high, low, 0, 0])),
        case("all different", columns([middle, low, high], [high, middle, low], [middle, high, low])),
        case("one voter", rng.integers(0, 9, (1, N))),
        case("one question", rng.integers(0, 3, (7, 1))),
        case("many choices", rng.choice([0, 17, 1000, 401], (6, N))),
        case("few choices, many questions", rng.integers(0, 3, (4, 4 * N))),
    ]


EXERCISES = (
    Exercise(
        id="9.01",
        function=f"{LESSON}:prepend_forward",
        title="Soft prompt: vectors before the tokens",
        points=2,
        cases=cases_prepend_forward,
        wrong=(
            Wrong(
                "positions-left-out",
                "The prompt's position embeddings are missing: the vectors stand at places too.",
                "prompt + positions",
                "prompt",
            ),
            Wrong(
                "prompt-behind-the-text",
                "The vectors stand behind the tokens; they belong before them.",
                "xp.concatenate((xp.broadcast_to(vectors, (tokens.shape[0], *vectors.shape[-2:])), tokens), axis=1)",
                "xp.concatenate((tokens, xp.broadcast_to(vectors, (tokens.shape[0], *vectors.shape[-2:]))), axis=1)",
            ),
            Wrong(
                "positions-backwards",
                "The position embeddings are added in the wrong order: vector i gets that of place i.",
                "prompt + positions",
                "prompt + positions[::-1]",
            ),
            Wrong(
                "first-prompt-for-all",
                "With a prompt for each row every row gets the first row's.",
                "vectors = prompt + positions",
                "vectors = (prompt if prompt.ndim == 2 else prompt[0]) + positions",
            ),
            Wrong(
                "positions-subtracted",
                "The position embeddings are taken away from the prompt instead of added.",
                "prompt + positions",
                "prompt - positions",
            ),
            Wrong(
                "rows-averaged",
                "With a prompt for each row all rows get the mean of them.",
                "vectors = prompt + positions",
                "vectors = (prompt if prompt.ndim == 2 else prompt.mean(0)) + positions",
            ),
        ),
        alternatives=(
            Alternative(
                "own buffer",
                "B, T, C = tokens.shape\n"
                "P = positions.shape[0]\n"
                "x = np.empty((B, P + T, C), dtype=tokens.dtype)\n"
                "x[:, P:] = tokens\n"
                "x[:, :P] = prompt\n"
                "x[:, :P] += positions\n"
                "return x\n",
            ),
            Alternative(
                "loop",
                "rows = []\n"
                "for b, text in enumerate(tokens):\n"
                "    own = prompt[b] if prompt.ndim == 3 else prompt\n"
                "    rows.append(np.vstack([own + positions, text]))\n"
                "return np.array(rows)\n",
            ),
        ),
    ),
    Exercise(
        id="9.02",
        function=f"{LESSON}:prepend_backward",
        title="Soft prompt: gradients of the prompt and of the tokens",
        points=1,
        cases=cases_prepend_backward,
        wrong=(
            Wrong(
                "mean-over-rows",
                "The prompt's gradient is averaged over the rows; what is read several times adds up.",
                "dx[:, :P].sum(0)",
                "dx[:, :P].mean(0)",
            ),
            Wrong(
                "first-row-only",
                "Only one row's gradient reaches the prompt, which stands in every row.",
                "dx[:, :P].sum(0)",
                "dx[0, :P]",
            ),
            Wrong(
                "prompt-behind-the-text",
                "The prompt's gradient is taken from the last places; the prompt stands at the first.",
                "dx[:, :P].sum(0), dx[:, P:]",
                "dx[:, -P:].sum(0), dx[:, :-P]",
            ),
            Wrong(
                "tokens-from-the-start",
                "The tokens' gradient is cut from the first places; the tokens stand behind the prompt.",
                "dx[:, P:]",
                "dx[:, : dx.shape[1] - P]",
            ),
            Wrong(
                "tokens-gradient-shared",
                "The tokens' gradient is summed over the rows too; every row has tokens of its own.",
                "dx[:, P:]",
                "np.broadcast_to(dx[:, P:].sum(0), dx[:, P:].shape)",
            ),
        ),
        alternatives=(
            Alternative(
                "einsum",
                "dprompt, dtokens = np.split(dx, [P], axis=1)\nreturn np.einsum('bpc->pc', dprompt), dtokens.copy()\n",
            ),
            Alternative(
                "loop",
                "dprompt = np.zeros((P, dx.shape[2]))\nfor row in dx:\n    dprompt += row[:P]\n"
                "return dprompt, np.stack([row[P:] for row in dx])\n",
            ),
        ),
    ),
    Exercise(
        id="9.03",
        function=f"{LESSON}:prefix_forward",
        title="Prefix: one layer's keys and values",
        points=3,
        cases=cases_prefix_forward,
        wrong=(
            Wrong(
                "keys-and-values-swapped",
                "Keys and values have changed places: of a layer's two parts the first are the keys.",
                "k, v = of_layer",
                "v, k = of_layer",
            ),
            Wrong(
                "all-keys-first",
                "The matrix is read as all layers' keys and then all layers' values; a layer's two stand side by side.",
                "[:, 2 * layer : 2 * layer + 2]",
                "[:, layer::n_layer]",
            ),
            Wrong(
                "layer-counted-once",
                "Layer l's keys are taken from part l; every layer before has two parts.",
                "[:, 2 * layer : 2 * layer + 2]",
                "[:, layer : layer + 2]",
            ),
            Wrong(
                "size-before-heads",
                "A part is read with the numbers of all heads interleaved; each head's numbers stand together.",
                "reshape(P, 2 * n_layer, n_head, -1)",
                "reshape(P, 2 * n_layer, -1, n_head).swapaxes(2, 3)",
            ),
            Wrong(
                "reshaped-instead-of-transposed",
                "The axes were renamed by a reshape; that cuts the rows anew instead of exchanging axes.",
                "of_layer.transpose(1, 2, 0, 3)",
                "of_layer.reshape(2, n_head, P, -1)",
            ),
            Wrong(
                "layers-from-the-end",
                "The layers are counted from the last one.",
                "[:, 2 * layer : 2 * layer + 2]",
                "[:, 2 * (n_layer - 1 - layer) : 2 * (n_layer - layer)]",
            ),
            Wrong(
                "vectors-first-axis",
                "The matrix is read as if its rows were layers, not vectors.",
                "prompt_embeddings.reshape(P, 2 * n_layer, n_head, -1)",
                "prompt_embeddings.reshape(2 * n_layer, P, n_head, -1).swapaxes(0, 1)",
            ),
        ),
        alternatives=(
            Alternative(
                "loop",
                "P, width = prompt_embeddings.shape\n"
                "C = width // (2 * n_layer)\n"
                "D = C // n_head\n"
                "k = np.zeros((B, n_head, P, D))\n"
                "v = np.zeros((B, n_head, P, D))\n"
                "start = 2 * layer * C\n"
                "for h in range(n_head):\n"
                "    k[:, h] = prompt_embeddings[:, start + h * D : start + (h + 1) * D]\n"
                "    v[:, h] = prompt_embeddings[:, start + C + h * D : start + C + (h + 1) * D]\n"
                "return k, v\n",
            ),
            Alternative(
                "einsum",
                "P = len(prompt_embeddings)\n"
                "parts = prompt_embeddings.reshape(P, n_layer, 2, n_head, -1)\n"
                "both = np.einsum('plshd,b->slbhpd', parts, np.ones(B))[:, layer]\n"
                "return both[0], both[1]\n",
            ),
            Alternative(
                "tiled",
                "P = prompt_embeddings.shape[0]\n"
                "parts = np.split(prompt_embeddings, 2 * n_layer, axis=1)\n"
                "heads = [np.swapaxes(parts[2 * layer + i].reshape(P, n_head, -1), 0, 1) for i in (0, 1)]\n"
                "return tuple(np.tile(part, (B, 1, 1, 1)) for part in heads)\n",
            ),
        ),
    ),
    Exercise(
        id="9.04",
        function=f"{LESSON}:prefix_backward",
        title="Prefix: gradient of the matrix",
        points=3,
        cases=cases_prefix_backward,
        mutates=("dprompt",),
        wrong=(
            Wrong(
                "overwritten",
                "The gradient that was there already is overwritten; it must be added to.",
                "of_layers[:, 2 * layer] += dk.sum(0).swapaxes(0, 1)\n"
                "of_layers[:, 2 * layer + 1] += dv.sum(0).swapaxes(0, 1)",
                "of_layers[:, 2 * layer] = dk.sum(0).swapaxes(0, 1)\n"
                "of_layers[:, 2 * layer + 1] = dv.sum(0).swapaxes(0, 1)",
            ),
            Wrong(
                "keys-and-values-swapped",
                "The gradients of keys and values have changed places.",
                "of_layers[:, 2 * layer] += dk.sum(0).swapaxes(0, 1)\n"
                "of_layers[:, 2 * layer + 1] += dv.sum(0).swapaxes(0, 1)",
                "of_layers[:, 2 * layer] += dv.sum(0).swapaxes(0, 1)\n"
                "of_layers[:, 2 * layer + 1] += dk.sum(0).swapaxes(0, 1)",
            ),
            Wrong(
                "mean-over-rows",
                "The gradients are averaged over the batch; every row read the same prefix, so they add up.",
                "of_layers[:, 2 * layer] += dk.sum(0).swapaxes(0, 1)\n"
                "of_layers[:, 2 * layer + 1] += dv.sum(0).swapaxes(0, 1)",
                "of_layers[:, 2 * layer] += dk.mean(0).swapaxes(0, 1)\n"
                "of_layers[:, 2 * layer + 1] += dv.mean(0).swapaxes(0, 1)",
            ),
            Wrong(
                "all-keys-first",
                "The matrix is filled with all layers' keys and then all values; a layer's two stand side by side.",
                "of_layers[:, 2 * layer] += dk.sum(0).swapaxes(0, 1)\nof_layers[:, 2 * layer + 1] +=",
                "of_layers[:, layer] += dk.sum(0).swapaxes(0, 1)\nof_layers[:, n_layer + layer] +=",
            ),
            Wrong(
                "reshaped-instead-of-transposed",
                "Heads and vectors were exchanged by a reshape; that cuts the rows anew instead of exchanging axes.",
                "dk.sum(0).swapaxes(0, 1)\nof_layers[:, 2 * layer + 1] += dv.sum(0).swapaxes(0, 1)",
                "dk.sum(0).reshape(P, H, D)\nof_layers[:, 2 * layer + 1] += dv.sum(0).reshape(P, H, D)",
            ),
            Wrong(
                "first-row-only",
                "Only one row's gradient arrives; every row of the batch read the prefix.",
                "of_layers[:, 2 * layer] += dk.sum(0).swapaxes(0, 1)\n"
                "of_layers[:, 2 * layer + 1] += dv.sum(0).swapaxes(0, 1)",
                "of_layers[:, 2 * layer] += dk[0].swapaxes(0, 1)\nof_layers[:, 2 * layer + 1] += dv[0].swapaxes(0, 1)",
            ),
            Wrong(
                "keys-in-both-places",
                "The values' part gets the keys' gradient too.",
                "dv.sum(0)",
                "dk.sum(0)",
            ),
        ),
        alternatives=(
            Alternative(
                "loop",
                "B, H, P, D = dk.shape\n"
                "C = H * D\n"
                "for b in range(B):\n"
                "    for h in range(H):\n"
                "        start = 2 * layer * C + h * D\n"
                "        dprompt[:, start : start + D] += dk[b, h]\n"
                "        dprompt[:, start + C : start + C + D] += dv[b, h]\n"
                "return dprompt\n",
            ),
            Alternative(
                "one slice",
                "P, width = dprompt.shape\n"
                "C = width // (2 * n_layer)\n"
                "both = np.einsum('sbhpd->pshd', np.stack([dk, dv])).reshape(P, 2 * C)\n"
                "dprompt[:, 2 * layer * C : 2 * (layer + 1) * C] += both\n"
                "return dprompt\n",
            ),
        ),
    ),
    Exercise(
        id="9.05",
        function=f"{LESSON}:sample_vocab_init",
        title="A prompt that starts from words",
        points=1,
        cases=cases_sample_vocab_init,
        wrong=(
            Wrong(
                "always-with-replacement",
                "Tokens are drawn with replacement although the pool has enough of them: some come twice.",
                "replace=n > len(pool)",
                "replace=True",
            ),
            Wrong(
                "places-instead-of-tokens",
                "Places in the pool are used as if they were token ids.",
                "rng.choice(pool,",
                "rng.choice(len(pool),",
            ),
            Wrong(
                "whole-vocabulary",
                "Tokens are drawn from the whole vocabulary; only those of the pool are allowed.",
                "rng.choice(pool, n, replace=n > len(pool))",
                "rng.choice(len(table), n, replace=n > len(table))",
            ),
            Wrong(
                "sorted",
                "The drawn tokens are sorted; they keep the order in which they were drawn.",
                "rng.choice(pool, n, replace=n > len(pool))",
                "np.sort(rng.choice(pool, n, replace=n > len(pool)))",
            ),
            Wrong(
                "not-drawn",
                "The first tokens of the pool are taken; they must be drawn.",
                "rng.choice(pool, n, replace=n > len(pool))",
                "np.resize(pool, n)",
            ),
        ),
        alternatives=(
            Alternative(
                "places first",
                "m = pool.shape[0]\n"
                "places = rng.choice(m, size=n, replace=False) if n <= m else rng.choice(m, size=n)\n"
                "return np.stack([table[pool[i]] for i in places])\n",
            ),
        ),
    ),
    Exercise(
        id="9.06",
        function=f"{LESSON}:text_init",
        title="A prompt that starts from a text",
        points=1,
        cases=cases_text_init,
        wrong=(
            Wrong(
                "each-token-repeated",
                "Each token is repeated before the next one comes; the text as a whole is to be repeated.",
                "np.resize(np.asarray(ids), n)",
                "np.repeat(np.asarray(ids), -(-n // len(ids)))[:n]",
            ),
            Wrong(
                "from-the-end",
                "The vectors end where the text ends; they begin where it begins.",
                "np.resize(np.asarray(ids), n)",
                "np.resize(np.asarray(ids)[::-1], n)[::-1]",
            ),
            Wrong(
                "last-token-again",
                "A text that is too short is filled up with its last token; the text begins again.",
                "np.resize(np.asarray(ids), n)",
                "np.asarray(ids)[np.minimum(np.arange(n), len(ids) - 1)]",
            ),
            Wrong(
                "filled-with-token-0",
                "A text that is too short is filled up with token 0; the text begins again.",
                "np.resize(np.asarray(ids), n)",
                "np.pad(np.asarray(ids)[:n], (0, max(0, n - len(ids))))",
            ),
            Wrong(
                "each-token-once",
                "A token that the text has twice is taken once only.",
                "np.asarray(ids)",
                "np.asarray(list(dict.fromkeys(ids)))",
            ),
        ),
        alternatives=(
            Alternative("loop", "return np.array([table[ids[i % len(ids)]] for i in range(n)])\n"),
            Alternative(
                "tiled list", "again = list(ids) * (n // len(ids) + 1)\nreturn table.take(again[:n], axis=0)\n"
            ),
        ),
    ),
    Exercise(
        id="9.07",
        function=f"{LESSON}:class_label_init",
        title="A prompt that starts from the labels",
        points=2,
        cases=cases_class_label_init,
        needs=("9.05",),
        wrong=(
            Wrong(
                "sum-instead-of-mean",
                "A label's embeddings are summed; its vector is their mean.",
                ".mean(0)",
                ".sum(0)",
            ),
            Wrong(
                "first-token-only",
                "A label of several tokens gets the embedding of its first one; all of them count.",
                ".mean(0)",
                "[0]",
            ),
            Wrong(
                "each-token-once",
                "A token that a label has twice counts once only in the mean.",
                "np.asarray(ids)",
                "np.unique(ids)",
            ),
            Wrong(
                "labels-last",
                "The drawn vectors stand before the labels' vectors; the labels come first.",
                "(means, sample_vocab_init(table, n - len(means), rng, pool))",
                "(sample_vocab_init(table, n - len(means), rng, pool), means)",
            ),
            Wrong(
                "too-many-drawn",
                "As many tokens are drawn as there are vectors, and some thrown away; draw those that are missing.",
                "sample_vocab_init(table, n - len(means), rng, pool)",
                "sample_vocab_init(table, n, rng, pool)[len(means) :]",
            ),
            Wrong(
                "labels-again",
                "The vectors that are left over repeat the labels; they are drawn from the pool.",
                "sample_vocab_init(table, n - len(means), rng, pool)",
                "means[np.arange(n - len(means)) % len(means)]",
            ),
            Wrong(
                "last-labels",
                "Of more labels than vectors the last ones are taken, not the first.",
                "labels[:n]",
                "labels[-n:]",
            ),
        ),
        alternatives=(
            Alternative(
                "own buffer",
                "out = np.empty((n, table.shape[1]))\n"
                "for i, ids in enumerate(labels[:n]):\n"
                "    out[i] = sum(table[token] for token in ids) / len(ids)\n"
                "k = min(n, len(labels))\n"
                "if k < n:\n"
                "    out[k:] = sample_vocab_init(table, n - k, rng, pool)\n"
                "return out\n",
            ),
            Alternative(
                "counts",
                "used = list(labels)[:n]\n"
                "counts = np.stack([np.bincount(ids, minlength=len(table)) for ids in used])\n"
                "means = (counts @ table) / counts.sum(1, keepdims=True)\n"
                "return np.vstack([means, sample_vocab_init(table, n - len(used), rng, pool)])\n",
            ),
        ),
    ),
    Exercise(
        id="9.08",
        function=f"{LESSON}:nearest_tokens",
        title="The words that a prompt points to",
        points=2,
        cases=cases_nearest_tokens,
        wrong=(
            Wrong(
                "embeddings-not-normalised",
                "The product is not divided by the lengths of the embeddings, so that long ones win.",
                "table = table / np.linalg.norm(table, axis=1, keepdims=True)\n",
                "",
            ),
            Wrong(
                "vectors-not-normalised",
                "The product is not divided by the lengths of the vectors: the order is right, the cosines are not.",
                "vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)\n",
                "",
            ),
            Wrong(
                "farthest-first",
                "The tokens come with the smallest cosine first.",
                "np.argsort(-cosines",
                "np.argsort(cosines",
            ),
            Wrong(
                "highest-id-of-equals",
                "Of tokens with the same cosine the highest id comes first; it should be the lowest.",
                'np.argsort(-cosines, axis=1, kind="stable")',
                '(cosines.shape[1] - 1 - np.argsort(-cosines[:, ::-1], axis=1, kind="stable"))',
            ),
            Wrong(
                "opposite-counts-as-near",
                "Tokens in the opposite direction count as near: the sign of the cosine is lost.",
                "np.argsort(-cosines",
                "np.argsort(-abs(cosines)",
            ),
            Wrong(
                "cosines-not-reordered",
                "The cosines are those of the first ids of the vocabulary, not of the tokens found.",
                "np.take_along_axis(cosines, ids, axis=1)",
                "cosines[:, :k]",
            ),
            Wrong(
                "normalised-over-tokens",
                "The embeddings are divided by a length over the vocabulary; each has a length of its own.",
                "np.linalg.norm(table, axis=1, keepdims=True)",
                "np.linalg.norm(table, axis=0, keepdims=True)",
            ),
            Wrong(
                "squared-lengths",
                "The product is divided by squared lengths of the embeddings.",
                "np.linalg.norm(table, axis=1, keepdims=True)",
                "(table**2).sum(1, keepdims=True)",
            ),
            Wrong(
                "centred",
                "The embeddings' mean is taken away first: that is a correlation, not the cosine.",
                "vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)\n",
                "vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)\ntable = table - table.mean(0)\n",
            ),
        ),
        alternatives=(
            Alternative(
                "loop",
                "ids = np.zeros((len(vectors), k), dtype=int)\n"
                "cosines = np.zeros((len(vectors), k))\n"
                "lengths = np.sqrt((table * table).sum(axis=1))\n"
                "for p, vector in enumerate(vectors):\n"
                "    cos = (table * vector).sum(axis=1) / (np.sqrt((vector * vector).sum()) * lengths)\n"
                "    order = sorted(range(len(table)), key=lambda i: (-cos[i], i))[:k]\n"
                "    ids[p], cosines[p] = order, cos[order]\n"
                "return ids, cosines\n",
            ),
            Alternative(
                "einsum",
                "lengths = np.sqrt(np.einsum('pc,pc->p', vectors, vectors))[:, None]\n"
                "others = np.sqrt(np.einsum('vc,vc->v', table, table))\n"
                "cosines = np.einsum('pc,vc->pv', vectors, table) / (lengths * others)\n"
                "ids = np.lexsort((np.broadcast_to(np.arange(len(table)), cosines.shape), -cosines), axis=1)[:, :k]\n"
                "return ids, cosines[np.arange(len(vectors))[:, None], ids]\n",
            ),
        ),
    ),
    Exercise(
        id="9.09",
        function=f"{LESSON}:majority",
        title="Several prompts that vote",
        points=2,
        cases=cases_majority,
        wrong=(
            Wrong(
                "lowest-of-tied",
                "Of tied choices the lowest number wins; it should be the one that the first voter among theirs chose.",
                "np.take_along_axis(choices, votes.argmax(0)[None], axis=0)[0]",
                "np.array([np.bincount(c).argmax() for c in choices.T])",
            ),
            Wrong(
                "last-voter-of-tied",
                "Of tied choices the last voter's wins; it should be the first's.",
                "votes.argmax(0)",
                "(len(votes) - 1 - votes[::-1].argmax(0))",
            ),
            Wrong(
                "first-voter",
                "The first voter decides alone.",
                "votes.argmax(0)",
                "(0 * votes.argmax(0))",
            ),
            Wrong(
                "fewest-votes",
                "The choice with the fewest votes wins.",
                "votes.argmax(0)",
                "votes.argmin(0)",
            ),
            Wrong(
                "median",
                "The median of the choices is taken; they are names, not amounts.",
                "np.take_along_axis(choices, votes.argmax(0)[None], axis=0)[0]",
                "np.median(choices, axis=0).astype(choices.dtype)",
            ),
            Wrong(
                "highest-of-tied",
                "Of tied choices the highest number wins; it should be what the first voter among theirs chose.",
                "votes.argmax(0)",
                "(votes * (choices.max() + 1) + choices).argmax(0)",
            ),
            Wrong(
                "first-voter-unless-outvoted-by-half",
                "A choice wins only with more than half of the votes; the most votes are enough.",
                "votes.argmax(0)",
                "np.where(2 * votes.max(0) > len(votes), votes.argmax(0), 0)",
            ),
        ),
        alternatives=(
            Alternative(
                "loop",
                "chosen = np.empty(choices.shape[1], dtype=choices.dtype)\n"
                "for n in range(choices.shape[1]):\n"
                "    column = choices[:, n].tolist()\n"
                "    chosen[n] = max(column, key=column.count)\n"
                "return chosen\n",
            ),
            Alternative(
                "counter",
                "from collections import Counter\n"
                "return np.array([Counter(column.tolist()).most_common(1)[0][0] for column in choices.T])\n",
            ),
        ),
    ),
)
