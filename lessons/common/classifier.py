"""A classifier on a GPT's trunk: concat pooling over the real tokens, and a head.

Howard, Ruder (2018), "Universal Language Model Fine-tuning for Text Classification", arXiv:1801.06146, section 3.3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.array import Array, namespace
from minigpt import GPT
from minigpt.context import Context
from minigpt.data.tokens import check_ids
from minigpt.errors import InputError
from minigpt.layers import Backward, Dropout, Layer, Linear
from minigpt.objectives import Batch
from minigpt.parameters import Gradients


def concat_pool_forward(hidden: Array, lengths: Array) -> tuple[Array, Any]:
    """[last, maximum, mean] of each row's hidden states, padding left out.

    Parameters
    ----------
    hidden : (B, T, C)
    lengths : (B,) integers in [1, T]
        Real tokens of each row; padding stands on the right.

    Returns
    -------
    pooled : (B, 3·C)
    cache
        The shape (B, T, C), `lengths`, which places are real (B, T, 1), and the place of each column's maximum (B, C).
    """
    xp = namespace(hidden)
    B, T, _ = hidden.shape
    real = (xp.arange(T)[None, :] < lengths[:, None])[..., None]  # (B, T, 1)
    last = hidden[xp.arange(B), lengths - 1]  # (B, C)
    highest = xp.where(real, hidden, -xp.inf).argmax(1)  # (B, C): at which place each column is largest
    largest = xp.take_along_axis(hidden, highest[:, None], axis=1)[:, 0]
    mean = xp.where(real, hidden, 0).sum(1) / lengths[:, None].astype(hidden.dtype)
    return xp.concatenate((last, largest, mean), axis=1), (hidden.shape, lengths, real, highest)


def concat_pool_backward(dpooled: Array, cache: Any) -> Array:
    """Gradient with respect to the hidden states.

    The last state gets its third of the gradient as it is, the place of each column's maximum gets that column's, and
    the mean hands 1/length to every real token; what meets in one place adds up. Padding gets nothing.

    Parameters
    ----------
    dpooled : (B, 3·C)
    cache
        As from `concat_pool_forward`.

    Returns
    -------
    dhidden : (B, T, C)
    """
    ### BEGIN SOLUTION
    xp = namespace(dpooled)
    (B, _, C), lengths, real, highest = cache
    dlast, dlargest, dmean = dpooled[:, :C], dpooled[:, C : 2 * C], dpooled[:, 2 * C :]
    share = dmean / lengths[:, None].astype(dpooled.dtype)
    dhidden = xp.where(real, share[:, None], 0)  # (B, T, C)
    rows, columns = xp.arange(B), xp.arange(C)
    dhidden[rows, lengths - 1] += dlast
    dhidden[rows[:, None], highest, columns[None, :]] += dlargest
    return dhidden
    ### END SOLUTION


class Head(Layer):
    """From pooled states to scores: dropout and a linear layer, with a hidden layer of ReLU units between if wanted.

    Parameters
    ----------
    width : int
        3·C.
    n_labels : int
    hidden : int
        Units of the hidden layer; 0 for none. ULMFiT has 50.
    dropout : float
    seed : int
    dtype : dtype
    asarray : callable
        To the model's device.
    """

    def __init__(
        self, width: int, n_labels: int, hidden: int, dropout: float, seed: int, dtype: Any, asarray: Callable[..., Any]
    ) -> None:
        rng = np.random.default_rng([seed, n_labels])

        def linear(name: str, inputs: int, outputs: int) -> Linear:
            weight = rng.normal(0.0, inputs**-0.5 if name == "score_hidden" else 0.02, (inputs, outputs))
            return Linear(name, asarray(weight.astype(dtype)), asarray(np.zeros(outputs, dtype)))

        self.drop = Dropout(dropout)
        self.hidden = linear("score_hidden", width, hidden) if hidden else None
        self.score = linear("score", hidden or width, n_labels)

    def forward(self, x: Array, ctx: Context) -> tuple[Array, Backward]:
        """(B, 3·C) -> (B, n_labels)."""
        below = ctx.keep
        x, dropped_back = self.drop.forward(x, ctx)
        drop_back = dropped_back if below else None
        hidden_back = active = None
        if self.hidden is not None:
            x, hidden_back = self.hidden.forward(x, ctx)
            active = x > 0  # ReLU, and its gradient
            x = x * active
        scores, score_back = self.score.forward(x, ctx)

        def backward(dscores: Array, grads: Gradients) -> Array | None:
            dx = score_back(dscores, grads)
            if hidden_back is not None and dx is not None:
                dx = hidden_back(dx * active, grads)
            return None if drop_back is None else drop_back(dx, grads)

        return scores, backward


class Classifier(Layer):
    """A GPT's trunk under a classifier head; texts are padded on the right.

    Parameters
    ----------
    trunk : GPT
    n_labels : int
    seed : int
        Of the head's weights.
    hidden : int
        Units of the head's hidden layer; 0 for none.
    dropout : float
        On the pooled states, while training.

    Attributes
    ----------
    head : Head
        Its parameters are called ``score.weight``, ``score.bias`` (and ``score_hidden.…``).
    """

    def __init__(self, trunk: GPT, n_labels: int, seed: int = 0, hidden: int = 0, dropout: float = 0.1) -> None:
        self.trunk = trunk
        self.n_labels = n_labels
        width = 3 * trunk.config.n_embd
        self.head = Head(width, n_labels, hidden, dropout, seed, trunk.dtype, trunk.backend.asarray)

    # What training asks of a model is the trunk's.
    config = property(lambda self: self.trunk.config)
    backend = property(lambda self: self.trunk.backend)
    dtype = property(lambda self: self.trunk.dtype)
    n_virtual = property(lambda self: self.trunk.n_virtual)

    def context(self, **settings: Any) -> Context:
        """A pass context; see `GPT.context`."""
        return self.trunk.context(**settings)

    def copy(self) -> Classifier:
        """A classifier of its own on the same trunk weights; see `GPT.copy`."""
        twin = copy.copy(self)
        twin.trunk = self.trunk.copy()
        twin.head = copy.deepcopy(self.head)
        return twin

    @property
    def n_parameters(self) -> int:
        """Number of parameters, the head's included."""
        return sum(p.data.size for p in self.parameters())

    def forward(self, ids: Array, ctx: Context, lengths: Array | None = None) -> tuple[Array, Backward]:
        """Scores of every label.

        Parameters
        ----------
        ids : (B, T) integers
        ctx : Context
        lengths : (B,) integers, optional
            Real tokens of each row; all T by default.

        Returns
        -------
        scores : (B, n_labels)
        backward : (dscores, grads) -> None
        """
        hidden, trunk_back = self.trunk.forward(ids, ctx)
        if lengths is None:
            lengths = ctx.backend.xp.full(ids.shape[0], ids.shape[1])
        pooled, cache = concat_pool_forward(hidden, lengths)
        below = (trunk_back, cache) if ctx.keep else None  # of a frozen trunk nothing is kept
        scores, head_back = self.head.forward(pooled, ctx)
        ctx.see("scores", scores)

        def backward(dscores: Array, grads: Gradients) -> None:
            dpooled = head_back(dscores, grads)
            if below is not None:
                trunk_back, cache = below
                trunk_back(concat_pool_backward(dpooled, cache), grads)

        return scores, backward

    def logits(self, ids: Any, lengths: Any = None) -> Array:
        """Scores of every label.

        Parameters
        ----------
        ids : (B, T) integers
        lengths : (B,) integers, optional
            Real tokens of each row; all T by default.

        Returns
        -------
        scores : (B, n_labels)

        Raises
        ------
        ValueError
            If ids or lengths do not fit.
        """
        ids = self.trunk.check_ids(ids)
        return self.forward(ids, self.context(), self.check_lengths(lengths, ids.shape))[0]

    def loss_and_grads(self, ids: Any, labels: Any, lengths: Any = None) -> tuple[float, dict[str, Array]]:
        """Mean cross-entropy of the labels, and its gradients.

        Parameters
        ----------
        ids : (B, T) integers
        labels : (B,) integers
            -100 is not scored.
        lengths : (B,) integers, optional

        Returns
        -------
        loss : float
        grads : dict of str to array
            Trainable parameters only.

        Raises
        ------
        ValueError
            If something does not fit, or no label is scored.
        """
        ids = self.trunk.check_ids(ids)
        batch = {"ids": ids, "labels": self.backend.asarray(labels)}
        lengths = self.check_lengths(lengths, ids.shape)
        if lengths is not None:
            batch["lengths"] = lengths
        grads = Gradients(self.parameters(), self.backend)
        objective = Classification()
        loss, backward = objective.forward(self, batch, objective.total(batch), self.context(grad=True))
        backward(grads)
        return self.backend.read(loss)[0], grads.as_dict()

    def check_lengths(self, lengths: Any, shape: tuple[int, ...]) -> Array | None:
        """`lengths` on the model's device, or a ValueError that names what is wrong."""
        if lengths is None:
            return None
        lengths = self.backend.asarray(lengths)
        require_lengths(lengths, shape)
        return lengths


def require_lengths(lengths: Array, shape: tuple[int, ...]) -> None:
    """Make sure that every row of a (B, T) batch has from 1 to T real tokens.

    Raises
    ------
    ValueError
        One line that names the first length that is wrong.
    """
    B, T = shape
    if tuple(lengths.shape) != (B,) or lengths.dtype.kind not in "iu":
        raise InputError(f"lengths must be {B} integers, not {lengths.dtype} of shape {tuple(lengths.shape)}")
    lowest, highest = int(lengths.min()), int(lengths.max())
    if lowest < 1 or highest > T:
        wrong = lowest if lowest < 1 else highest
        raise InputError(f"a length of {wrong} is outside of 1 to {T}, the width of the batch")


class Classification:
    """Cross-entropy of the labels. Batches hold `ids` (B, T), `labels` (B,) and `lengths` (B,), on the host."""

    def total(self, batch: Batch) -> float:
        """Number of labels that are scored."""
        return float((batch["labels"] >= 0).sum())

    def forward(
        self, model: Classifier, batch: Batch, total: float, ctx: Context
    ) -> tuple[float, Callable[[Gradients], None]]:
        """See `minigpt.objectives.Objective`.

        Raises
        ------
        ValueError
            If a label is not one of the head's, none is scored, or ids or lengths do not fit.
        """
        backend = model.backend
        labels = batch["labels"]
        if labels.shape != batch["ids"].shape[:1] or labels.dtype.kind not in "iu":
            raise InputError(
                f"labels must be {batch['ids'].shape[0]} integers, not {labels.dtype} of shape {labels.shape}"
            )
        if total == 0:
            raise InputError("no label to score: all are -100")
        scored = labels[labels != -100]
        if scored.size and not 0 <= int(scored.min()) <= int(scored.max()) < model.n_labels:
            wrong = int(scored.min()) if int(scored.min()) < 0 else int(scored.max())
            raise InputError(f"label {wrong} is not one of the head's, 0 to {model.n_labels - 1}")
        ids, lengths = batch["ids"], batch.get("lengths")
        if lengths is not None:
            require_lengths(lengths, ids.shape)
            ids = ids[:, : int(lengths.max())]
            lengths = backend.asarray(lengths)
        room = model.config.n_positions - model.n_virtual
        if ids.shape[1] > room:
            raise InputError(f"{ids.shape[1]} tokens do not fit into the model's context of {room}")
        check_ids(ids, model.config.vocab_size)
        scores, back = model.forward(backend.asarray(ids), ctx, lengths)
        loss, cache = backend.ops.cross_entropy_forward(scores, backend.asarray(labels), total)
        return loss, lambda grads: back(backend.ops.cross_entropy_backward(cache), grads)
