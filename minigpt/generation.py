"""Sampling and generation with a key/value cache."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

from minigpt.context import KVCache
from minigpt.errors import InputError
from minigpt.heads import lm_logits

if TYPE_CHECKING:
    from minigpt.decoding import Decoder
    from minigpt.model import GPT


def generate(
    model: GPT,
    ids: Any,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    eos_token_id: int | None = None,
    lengths: Any = None,
) -> np.ndarray:
    """See `GPT.generate`."""
    backend, config = model.backend, model.config
    prompt = model.check_ids(ids)
    B, T = prompt.shape
    _check_settings(max_new_tokens, temperature, top_k, top_p, eos_token_id, config.vocab_size)
    room = config.n_positions - model.n_virtual
    if T + max_new_tokens > room:
        raise InputError(
            f"a prompt of {T} tokens and {max_new_tokens} new ones do not fit into the model's context of {room}"
        )
    rng = np.random.default_rng(seed)
    out = np.empty((B, T + max_new_tokens), dtype=np.int64)
    out[:, :T] = backend.to_numpy(prompt)
    if max_new_tokens == 0:
        return out

    mask, positions = _padding(lengths, B, T, max_new_tokens)
    cache = KVCache(
        backend, config.n_layer, B, config.n_head, config.n_positions, config.n_embd // config.n_head, model.dtype
    )
    decoder = _decoder(model, cache)
    done = np.zeros(B, dtype=bool)
    seen = 0
    for t in range(T, T + max_new_tokens):
        key_mask = None if mask is None else mask[:, :t]
        places = None if positions is None else positions[:, seen:t] + model.n_virtual
        if decoder is not None and seen:
            logits = decoder.step(out[:, seen], None if places is None else places[:, 0], key_mask)
        else:
            ctx = model.context(
                cache=cache,
                key_mask=None if key_mask is None else backend.asarray(key_mask),
                positions=None if places is None else backend.asarray(places),
            )
            hidden, _ = model.forward(backend.asarray(out[:, seen:t]), ctx)
            logits = backend.to_numpy(lm_logits(hidden[:, -1], model.wte, ctx))  # (B, V)
        tokens = sample(logits, rng, temperature, top_k, top_p)
        if eos_token_id is not None:
            tokens = np.where(done, eos_token_id, tokens)
            done |= tokens == eos_token_id
        out[:, t] = tokens
        if eos_token_id is not None and done.all():
            return out[:, : t + 1]
        seen = t
    return out


def sample(
    logits: np.ndarray,
    rng: np.random.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> np.ndarray:
    """Draw one token a row; one uniform number a row is used, whatever the settings.

    Parameters
    ----------
    logits : (B, V)
    rng : numpy Generator
    temperature, top_k, top_p
        As in `GPT.generate`.

    Returns
    -------
    tokens : (B,) int64
    """
    if temperature == 0:
        return logits.argmax(-1)
    scaled = logits.astype(np.float64)
    scaled -= scaled.max(-1, keepdims=True)
    with np.errstate(over="ignore"):  # a difference that becomes infinite leaves a probability of 0
        scaled /= temperature
    if top_k is not None and top_k < scaled.shape[-1]:
        kth = np.partition(scaled, -top_k, axis=-1)[:, -top_k, None]
        scaled = np.where(scaled < kth, -np.inf, scaled)
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum(-1, keepdims=True)
    if top_p is not None and top_p < 1:
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        ordered = np.take_along_axis(probabilities, order, -1)
        before = ordered.cumsum(-1) - ordered
        ordered[before >= top_p] = 0.0
        np.put_along_axis(probabilities, order, ordered, -1)
        probabilities /= probabilities.sum(-1, keepdims=True)
    cumulative = probabilities.cumsum(-1)
    threshold = rng.random((scaled.shape[0], 1)) * cumulative[:, -1:]
    return (cumulative[:, :-1] <= threshold).sum(-1)


def _decoder(model: GPT, cache: KVCache) -> Decoder | None:
    # A fast form like those of `kernels`: a student's copy of the course has none and goes through the layers.
    if importlib.util.find_spec("minigpt.decoding") is None:
        return None
    from minigpt.decoding import Decoder, is_plain

    return Decoder(model, cache) if is_plain(model) else None


def _padding(lengths: Any, B: int, T: int, new: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    # Which places hold a token, and their positions, for prompts that stand at the right end of their rows.
    if lengths is None:
        return None, None
    lengths = np.asarray(lengths)
    if lengths.shape != (B,) or lengths.min() < 1 or lengths.max() > T:
        raise InputError(f"lengths must be {B} integers from 1 to {T}, not {lengths.tolist()}")
    places = np.arange(T + new)[None, :] - (T - lengths)[:, None]
    return places >= 0, np.maximum(places, 0)


def _check_settings(
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    eos_token_id: int | None,
    vocab_size: int,
) -> None:
    for name, value, lowest in (("max_new_tokens", max_new_tokens, 0), ("top_k", top_k, 1)):
        if value is not None and (not hasattr(value, "__index__") or value < lowest):
            raise InputError(f"{name} is {value}; it must be a whole number of {lowest} or more")
    if not (temperature >= 0 and np.isfinite(temperature)):
        raise InputError(f"temperature is {temperature}; it must be 0 (greedy) or a positive number")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; it must be above 0 and at most 1")
    if eos_token_id is not None and not 0 <= eos_token_id < vocab_size:
        raise InputError(f"eos_token_id {eos_token_id} is outside the vocabulary, 0 to {vocab_size - 1}")
