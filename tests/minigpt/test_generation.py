"""Generation: the cache changes nothing, rows do not see each other, and draws follow the distribution."""

import numpy as np
import pytest

from kernels import Backend, get_backend
from kernels.backend import OPS
from minigpt import GPT, GPTConfig
from minigpt.context import KVCache
from minigpt.decoding import Decoder, is_plain
from minigpt.errors import InputError
from minigpt.generation import sample
from minigpt.heads import lm_logits
from minigpt.layers import Layer
from tests.helpers import error
from tests.seams import SEAMS
from tests.standin import poison_empty

V, C, N = 13, 6, 16
BACKENDS = {
    "fast": get_backend("numpy"),
    "reference": get_backend("numpy", OPS),
    "layers": Backend("layers", np, "_fast"),  # of another name, so that every token goes through the layers
}


def make(backend="fast", dtype="float64"):
    """A tiny model whose weights are large enough for greedy tokens to vary."""
    config = GPTConfig(vocab_size=V, n_positions=N, n_embd=C, n_layer=2, n_head=2)
    model = GPT(config, dtype=dtype, backend=BACKENDS[backend])
    rng = np.random.default_rng(3)
    for p in model.parameters():
        p.data += rng.normal(0, 0.7, size=p.data.shape).astype(dtype)
    return model


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """What `empty` gives is full of NaN: the cache's buffers are never read before they are written."""
    poison_empty(monkeypatch)


@pytest.fixture
def prompt():
    return np.random.default_rng(1).integers(0, V, size=(3, 5))


def naive(model, ids, new):
    """The likeliest token after all tokens so far, found without a cache."""
    ids = np.array(ids)
    for _ in range(new):
        ids = np.concatenate((ids, model.logits(ids)[:, -1].argmax(-1)[:, None]), axis=1)
    return ids


# ------------------------------------------------------------------------------------------- the cache


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("T", [1, 2, 5])
def test_cached_equals_uncached(backend, T, prompt):
    model = make(backend)
    expected = naive(model, prompt[:, :T], N - T)
    ids = model.generate(prompt[:, :T], max_new_tokens=N - T, temperature=0)
    assert ids.dtype == np.int64
    assert ids.tolist() == expected.tolist()
    assert len(np.unique(ids[:, T:])) > 3, "one token over and over shows nothing"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("parts", [[1] * 9, [4, 5], [3, 1, 5], [8, 1], [9]])
def test_logits_from_a_cache(backend, parts):
    # Passes of any lengths, one after the other: queries with keys from before.
    model = make(backend)
    ids = np.random.default_rng(0).integers(0, V, size=(2, 9))
    cache = KVCache(model.backend, 2, 2, 2, N, C // 2, model.dtype)
    got, start = [], 0
    for n in parts:
        ctx = model.context(cache=cache)
        hidden, _ = model.forward(ids[:, start : start + n], ctx)
        got.append(lm_logits(hidden, model.wte, ctx))
        start += n
        assert cache.length == start
    assert error(np.concatenate(got, axis=1), model.logits(ids)) < 1e-12


@pytest.mark.parametrize("backend", ["fast", "reference"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("T", [1, 4])
def test_decoder_says_what_the_layers_say(backend, dtype, B, T):
    model = make(backend, dtype)
    for p in model.parameters():
        p.data.flags.writeable = False
    ids = np.random.default_rng(0).integers(0, V, size=(B, N))
    expected = make(backend).logits(ids)
    cache = KVCache(model.backend, 2, B, 2, N, C // 2, model.dtype)
    model.forward(ids[:, :T], model.context(cache=cache))
    decoder = Decoder(model, cache)
    for t in range(T, N):
        logits = decoder.step(ids[:, t])
        assert logits.dtype == dtype
        assert error(logits, expected[:, t]) < {"float64": 1e-12, "float32": 1e-4}[dtype]
        assert cache.length == t + 1


@pytest.mark.parametrize("B", [1, 2])
def test_decoder_with_padding(B):
    model = make()
    ids, lengths = np.random.default_rng(0).integers(0, V, size=(B, 9)), np.array([2, 5])[:B]
    places = np.arange(9) - (5 - lengths)[:, None]
    real, positions = places >= 0, np.maximum(places, 0)
    cache = KVCache(model.backend, 2, B, 2, N, C // 2, model.dtype)
    model.forward(ids[:, :5], model.context(cache=cache, key_mask=real[:, :5], positions=positions[:, :5]))
    decoder = Decoder(model, cache)
    for t in range(5, 9):
        logits = decoder.step(ids[:, t], positions[:, t], real[:, : t + 1])
        for b, n in enumerate(lengths):
            alone = model.logits(ids[b : b + 1, 5 - n : t + 1])[0, -1]
            assert error(logits[b], alone) < 1e-12


def test_decoder_with_large_scores():
    model = make()
    for block in model.h:
        block.attn.c_attn.weight.data[...] *= 50
    ids = np.random.default_rng(0).integers(0, V, size=(2, N))
    assert model.generate(ids[:, :3], N - 3, temperature=0).tolist() == naive(model, ids[:, :3], N - 3).tolist()


class Doubled(Layer):
    """A layer that is not GPT-2's."""

    def __init__(self, inner, name):
        self.inner = inner

    def forward(self, x, ctx):
        y, back = self.inner.forward(x, ctx)
        return 2 * y, lambda dy, grads: back(2 * dy, grads)


@pytest.mark.parametrize("pattern", ["h.1.attn.c_attn", "h.0.mlp.c_fc", "h.0.mlp", "embedding"])
def test_replaced_layers_are_not_passed_over(pattern, prompt):
    model = make()
    assert is_plain(model)
    model.replace(pattern, Doubled)
    assert not is_plain(model)
    expected = naive(model, prompt, 8)
    assert expected.tolist() != naive(make(), prompt, 8).tolist()
    assert model.generate(prompt, 8, temperature=0).tolist() == expected.tolist()


def test_which_models_are_plain():
    assert is_plain(make("reference"))
    assert not is_plain(make("layers"))
    for seam in SEAMS.values():
        assert not is_plain(seam(make(), 2))


def test_prompt_is_included_and_left_alone(prompt):
    model = make()
    before = prompt.copy()
    ids = model.generate(prompt, max_new_tokens=4, seed=2)
    assert ids.shape == (3, 9)
    assert (ids[:, :5] == prompt).all()
    assert (prompt == before).all()
    assert ((ids >= 0) & (ids < V)).all()
    assert model.generate(prompt, max_new_tokens=0).tolist() == prompt.tolist()
    assert model.generate(prompt.tolist(), max_new_tokens=4, seed=2).tolist() == ids.tolist()
    assert model.generate(prompt.astype("uint16"), max_new_tokens=4, seed=2).tolist() == ids.tolist()


def test_context_can_be_filled_to_the_end():
    model = make()
    assert model.generate(np.zeros((1, 1), dtype=int), max_new_tokens=N - 1).shape == (1, N)
    assert model.generate(np.zeros((1, N), dtype=int), max_new_tokens=0).shape == (1, N)
    with pytest.raises(InputError, match=f"a prompt of 1 tokens and {N} new ones do not fit.*context of {N}"):
        model.generate(np.zeros((1, 1), dtype=int), max_new_tokens=N)


def test_float32(prompt):
    ids = make(dtype="float32").generate(prompt, max_new_tokens=8, temperature=0)
    assert ids.tolist() == naive(make(dtype="float32"), prompt, 8).tolist()


def test_dropout_is_off(prompt):
    sizes = {"vocab_size": V, "n_positions": N, "n_embd": C, "n_layer": 2, "n_head": 2}
    plain = GPT(GPTConfig(**sizes), seed=1)
    model = GPT(GPTConfig(**sizes, attn_pdrop=0.5, embd_pdrop=0.5, resid_pdrop=0.5), seed=1)
    assert error(model.logits(prompt), plain.logits(prompt)) == 0
    assert model.generate(prompt, 5, seed=1).tolist() == plain.generate(prompt, 5, seed=1).tolist()


# ------------------------------------------------------------------------------------- unequal lengths


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[5, 2, 1], [1, 1, 1], [5, 5, 5], [3, 4, 5]])
def test_left_padded_rows_are_as_if_alone(backend, lengths, prompt):
    model = make(backend)
    for filler in (12, 0):  # whatever stands in the padding must not matter
        padded = prompt.copy()
        for b, n in enumerate(lengths):
            padded[b, : 5 - n] = filler
        ids = model.generate(padded, max_new_tokens=9, temperature=0, lengths=lengths)
        assert ids.shape == (3, 14)
        for b, n in enumerate(lengths):
            alone = naive(model, prompt[b : b + 1, 5 - n :], 9)[0]
            assert ids[b, 5 - n :].tolist() == alone.tolist()


def test_full_lengths_change_nothing(prompt):
    model = make()
    expected = model.generate(prompt, 6, seed=3, top_k=4).tolist()
    for lengths in ([5, 5, 5], np.array([5, 5, 5])):
        assert model.generate(prompt, 6, seed=3, top_k=4, lengths=lengths).tolist() == expected


@pytest.mark.parametrize("lengths", [[5, 5], [5, 0, 1], [6, 5, 5], [[5, 5, 5]], 5])
def test_bad_lengths_are_named(lengths, prompt):
    with pytest.raises(InputError, match="lengths must be 3 integers from 1 to 5"):
        make().generate(prompt, 2, lengths=lengths)


# --------------------------------------------------------------------------------------------- the end


def expected_with_eos(free, T, eos):
    """What a run with an end token has to give, from the run without."""
    ids = free.copy()
    for row in ids:
        met = np.flatnonzero(row[T:] == eos)
        if len(met):
            row[T + met[0] :] = eos
    ended = [np.flatnonzero(row[T:] == eos)[:1] for row in ids]
    if all(len(e) for e in ended):
        return ids[:, : T + max(e[0] for e in ended) + 1]
    return ids


@pytest.mark.parametrize("eos", range(V))
def test_rows_end_with_eos(eos, prompt):
    model = make()
    free = model.generate(prompt, 11, temperature=0)
    ids = model.generate(prompt, 11, temperature=0, eos_token_id=eos)
    assert ids.tolist() == expected_with_eos(free, 5, eos).tolist()


def test_all_the_ways_to_end_occur(prompt):
    """The cases above are worth something: ended early, filled up, never met."""
    model = make()
    free = model.generate(prompt, 11, temperature=0)
    results = [(eos, expected_with_eos(free, 5, eos)) for eos in range(V)]
    whole = [(eos, ids) for eos, ids in results if ids.shape[1] == 16]
    assert any((ids == free).all() and not (free[:, 5:] == eos).any() for eos, ids in whole)
    assert any((ids != free).any() for _, ids in whole)
    one = free[:1]
    shortest = model.generate(prompt[:1], 11, temperature=0, eos_token_id=int(one[0, 5]))
    assert shortest.shape == (1, 6)
    eos = int(one[0, 5])
    both = model.generate(prompt[[0, 0]], 11, temperature=0, eos_token_id=eos)
    assert both.tolist() == [[*prompt[0], eos]] * 2


def test_eos_in_the_prompt_does_not_end(prompt):
    model = make()
    free = model.generate(prompt, 6, temperature=0)
    eos = next(t for t in prompt[0] if t not in free[0, 5:])
    assert model.generate(prompt[:1], 6, temperature=0, eos_token_id=int(eos)).tolist() == free[:1].tolist()


# -------------------------------------------------------------------------------------------- sampling


def test_seeds(prompt):
    model = make()
    same = [model.generate(prompt, 9, seed=7).tolist() for _ in range(2)]
    assert same[0] == same[1]
    assert len({str(model.generate(prompt, 9, seed=seed).tolist()) for seed in range(5)}) == 5
    greedy = {str(model.generate(prompt, 9, seed=seed, temperature=0).tolist()) for seed in range(5)}
    assert len(greedy) == 1
    assert model.generate(prompt, 9).tolist() == model.generate(prompt, 9, seed=0, temperature=1.0).tolist()


LOGITS = np.array([1.5, -1.0, 0.3, 2.0, 0.3, -3.0, 0.9])
DRAWS = 40_000


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def frequencies(**settings):
    rows = np.broadcast_to(LOGITS, (DRAWS, len(LOGITS)))
    tokens = sample(rows, np.random.default_rng(12), **settings)
    assert tokens.shape == (DRAWS,)
    assert tokens.dtype == np.int64
    return np.bincount(tokens, minlength=len(LOGITS))


def assert_distribution(counts, probabilities):
    """Pearson's χ², with a limit that chance passes once in ten thousand; nothing outside the support."""
    assert (counts[probabilities == 0] == 0).all()
    kept = probabilities > 0
    expected = DRAWS * probabilities[kept] / probabilities.sum()
    statistic = ((counts[kept] - expected) ** 2 / expected).sum()
    limit = {1: 0.0, 2: 15.1, 3: 18.4, 4: 21.1, 5: 23.5, 6: 25.7, 7: 27.9}[int(kept.sum())]
    assert statistic <= limit, f"χ² is {statistic:.1f}, above {limit}"


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature(temperature):
    assert_distribution(frequencies(temperature=temperature), softmax(LOGITS / temperature))


@pytest.mark.parametrize("k", [1, 2, 3, 7, 50])
def test_top_k(k):
    kept = np.argsort(-LOGITS)[:k]  # the two equal logits are the fourth and fifth
    probabilities = np.zeros(7)
    probabilities[kept] = softmax(LOGITS)[kept]
    assert_distribution(frequencies(top_k=k), probabilities)


@pytest.mark.parametrize("p", [1e-9, 0.3, 0.5, 0.72, 0.95, 0.9999, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_p(p, temperature):
    """The smallest set of likeliest tokens whose probabilities reach p."""
    probabilities = softmax(LOGITS / temperature)
    kept, total = [], 0.0
    for token in np.argsort(-probabilities, kind="stable"):
        if total >= p:
            break
        kept.append(token)
        total += probabilities[token]
    expected = np.zeros(7)
    expected[kept] = probabilities[kept]
    assert_distribution(frequencies(top_p=p, temperature=temperature), expected)


def test_top_k_comes_before_top_p():
    # p counts within the three that are kept: it reaches into the second of them.
    three = np.argsort(-LOGITS)[:3]
    probabilities = np.zeros(7)
    probabilities[three] = softmax(LOGITS[three])
    order = np.argsort(-probabilities)
    p = probabilities[order[0]] + 0.5 * probabilities[order[1]]
    expected = probabilities.copy()
    expected[order[2:]] = 0
    assert_distribution(frequencies(top_k=3, top_p=p), expected)


def test_the_number_drawn_decides():
    """One uniform number a row: the token in whose stretch of the cumulative probabilities it falls."""

    class Numbers:
        def __init__(self, numbers):
            self.numbers = np.array(numbers)

        def random(self, shape):
            assert shape == (len(self.numbers), 1)
            return self.numbers[:, None]

    probabilities = np.array([0.0, 0.25, 0.5, 0.0, 0.25])
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities)
    draws = [0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-53]
    tokens = sample(np.tile(logits, (6, 1)), Numbers(draws))
    assert tokens.tolist() == [1, 1, 2, 2, 4, 4]


def test_greedy_takes_the_first_of_equals():
    logits = np.array([[0.0, 3.0, 3.0], [5.0, 5.0, 5.0], [-1.0, -2.0, 0.0]])
    assert sample(logits, np.random.default_rng(0), temperature=0).tolist() == [1, 0, 2]


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_large_logits(scale):
    logits = np.array([[1.0, 2.0, 3.0]], dtype="float32") * np.float32(scale)
    token = int(sample(logits, np.random.default_rng(0), temperature=0.5)[0])
    assert token == logits[0].argmax()


def test_settings_reach_the_sampler(prompt):
    model = make()
    for settings in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}):
        assert model.generate(prompt, 9, seed=5, **settings).tolist() == naive(model, prompt, 9).tolist()
    plain, *others = (
        model.generate(prompt, 9, seed=5, **settings).tolist()
        for settings in ({}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 0.4})
    )
    assert all(other != plain for other in others)


def test_generated_tokens_follow_the_model():
    # 4,000 rows with the same prompt are 4,000 draws from the model's own distribution.
    model = make()
    prompt = np.tile([[3, 1, 4]], (4000, 1))
    tokens = model.generate(prompt, 1, seed=1, temperature=2.0)[:, -1]
    probabilities = softmax(model.logits(prompt[:1])[0, -1] / 2.0)
    share = np.bincount(tokens, minlength=V) / 4000
    assert abs(share - probabilities).max() < 4 * np.sqrt(0.25 / 4000)


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(("settings", "message"), [
    ({"max_new_tokens": -1}, "max_new_tokens is -1; it must be a whole number of 0 or more"),
    ({"temperature": -0.5}, "temperature is -0.5"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"temperature": float("inf")}, "temperature is inf"),
    ({"top_k": 0}, "top_k is 0; it must be a whole number of 1 or more"),
    ({"top_p": 0.0}, "top_p is 0.0"),
    ({"top_p": 1.5}, "top_p is 1.5"),
    ({"top_p": float("nan")}, "top_p is nan"),
    ({"eos_token_id": V}, f"eos_token_id {V} is outside the vocabulary, 0 to {V - 1}"),
    ({"eos_token_id": -1}, "eos_token_id -1"),
])  # fmt: skip
def test_bad_settings_are_named(settings, message, prompt):
    with pytest.raises(InputError, match=message) as raised:
        make().generate(prompt, **{"max_new_tokens": 2, **settings})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("ids", "message"), [
    ([[0, V]], f"token id {V} is outside"),
    ([[-1]], "token id -1 is outside"),
    ([1, 2], r"shape \(B, T\)"),
    ([[]], "not float64 of shape|hold no token"),
    (np.zeros((1, N + 1), dtype=int), "do not fit"),
])  # fmt: skip
def test_bad_prompts_are_named(ids, message):
    with pytest.raises(InputError, match=message):
        make().generate(ids, max_new_tokens=1)


# ------------------------------------------------------------------- learned vectors before the tokens


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seam", SEAMS)
def test_learned_vectors_stay_in_the_cache(seam, backend, prompt):
    P = 3
    model = SEAMS[seam](make(backend), P)
    new = N - P - 5
    expected = naive(model, prompt, new)
    assert expected.tolist() != naive(make(backend), prompt, new).tolist()
    assert model.generate(prompt, new, temperature=0).tolist() == expected.tolist()
    lengths = [5, 3, 1]
    ids = model.generate(prompt, new, temperature=0, lengths=lengths)
    for b, n in enumerate(lengths):
        assert ids[b, 5 - n :].tolist() == naive(model, prompt[b : b + 1, 5 - n :], new)[0].tolist()
    with pytest.raises(InputError, match=f"do not fit into the model's context of {N - P}"):
        model.generate(prompt, new + 1)


def test_a_tiny_temperature_is_nearly_greedy():
    logits = np.random.default_rng(0).normal(size=(3, 9)) * 5
    assert (sample(logits, np.random.default_rng(1), temperature=1e-310) == logits.argmax(-1)).all()
