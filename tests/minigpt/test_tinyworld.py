"""tinyworld: the same everywhere, right, free of leaks, and out of reach of a bag of words.

Answers are checked by code that knows nothing of the generator: regular expressions on the stories, a parser
of the dialect, an evaluator of card hands that works by enumeration, interpreters of reviews and activities.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.data import tinyworld
from minigpt.data.base import SPLITS, DataSet, Example, fingerprint
from minigpt.data.tinyworld import games, reviews, sentences, topics, world
from minigpt.errors import InputError

ROOT = Path(__file__).resolve().parents[2]

SMALL = {
    "stories": lambda: tinyworld.stories(40, held_out=10),
    "stories target": lambda: tinyworld.stories(40, domain="target", seed=3, held_out=10),
    "sentiment": lambda: tinyworld.sentiment(40, noise=0.2, held_out=10),
    "sentiment target": lambda: tinyworld.sentiment(40, domain="target", held_out=10),
    "topic": lambda: tinyworld.topic(42, noise=0.1, held_out=12),
    "questions": lambda: tinyworld.questions(40, held_out=10),
    "questions target": lambda: tinyworld.questions(40, domain="target", held_out=10),
    "rewriting": lambda: tinyworld.rewriting(40, held_out=10),
    "translation": lambda: tinyworld.translation(40, held_out=10),
    "addition": lambda: tinyworld.addition(40, held_out=10),
    "cards": lambda: tinyworld.cards(40, held_out=10),
    "preferences": lambda: tinyworld.preferences(40, held_out=10),
    "corpus": lambda: tinyworld.corpus(100, held_out=10),
}
# SHA-256 of train + validation + test of each data set above. Base models are trained on this text: a change
# of any of these lines is a new VERSION.
COMMITTED = {
    "stories": "90c1a19afa5a045a96f756720a4d7ec7b7dbf7b158c14a28a982d3e5aa07d883",
    "stories target": "3fcf29888e8542d14cfee297f3a0161514f511ec9f954cd9dae8dfa34791489b",
    "sentiment": "5339c36b90387ad0672b4e2d3fee41a328dfdaea8ab2d053779a495eaaa4f5cc",
    "sentiment target": "03f9069ca214a9782e73184d1838d0d60f3238202aad4d386163f8bc5186d223",
    "topic": "fe0d71734b8b25a6f083a25c24c0511fadd07620b84d00d78b45218c136832b4",
    "questions": "4a0359833f4e45d55f346dcf8b1b2ba2f16b942f3497e3a25edce36a04b8e76a",
    "questions target": "cd22fd356c5e7e2f201ccaedf192cea8684a4761913781366e28519973a20fb5",
    "rewriting": "074173fd832b98e7868649c058a9d01b090c228d8ba7cb3e6915ae35b3bc89d2",
    "translation": "2c9bcd15c6a9b2da1961e4efae4d88d9b2df1e32f856945ebda05a61b886de6c",
    "addition": "f2770e6a9ce2fab85a82bf109be7e75eb72e314d5a3e8054b0208ba4dab63ac8",
    "cards": "3d0d6a117fdfda7b544fd1b75f2e5fd64b92f4c7fe900652bee42cd7e11eab41",
    "preferences": "33900567486c7c2f55cd6ea9e3a5af0523b76112feb191d3541d5972d8e5be86",
    "corpus": "5cd3da5ea956638f63b7548f29a1deb35c67a0f9f44b8ca818740893cf6134dc",
}


def everything(data: DataSet) -> list:
    return data.train + data.validation + data.test


def digests() -> dict[str, str]:
    return {name: fingerprint(everything(make())) for name, make in SMALL.items()}


# ---------------------------------------------------------------- the same everywhere
def test_records_are_those_committed() -> None:
    assert digests() == COMMITTED


def test_hash_randomisation_changes_nothing() -> None:
    script = (
        "import json, sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]; import test_tinyworld as t;"
        "print(json.dumps(t.digests()))"
    )
    for hash_seed in ("1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(ROOT), str(Path(__file__).parent)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == COMMITTED


@pytest.mark.parametrize("name", ["stories", "sentiment", "topic", "questions", "cards", "preferences", "corpus"])
def test_first_records_do_not_depend_on_how_many_are_asked_for(name: str) -> None:
    function = getattr(tinyworld, name)
    few, many = function(30, held_out=12), function(90, held_out=24)
    for split in SPLITS:
        assert few.split(split) == many.split(split)[: len(few.split(split))]
    assert function(30, seed=1, held_out=12).train != few.train


def test_provenance_says_what_was_asked_for() -> None:
    data = tinyworld.sentiment(20, noise=0.25, domain="target", seed=7, held_out=10)
    assert data.provenance == {
        "source": "tinyworld",
        "version": tinyworld.VERSION,
        "task": "sentiment",
        "n": 20,
        "held_out": 10,
        "domain": "target",
        "noise": 0.25,
        "seed": 7,
        "question": reviews.QUESTION,
    }
    assert [len(data.split(s)) for s in SPLITS] == [20, 10, 10]
    json.dumps(data.record())


# ---------------------------------------------------------------- form
@pytest.fixture(scope="module")
def corpus() -> DataSet:
    return tinyworld.corpus(6000)


def test_stories_have_60_to_200_words() -> None:
    for domain in ("general", "target"):
        lengths = [len(text.split()) for text in everything(tinyworld.stories(1500, domain=domain, held_out=50))]
        assert min(lengths) >= 60
        assert max(lengths) <= 200


def test_labelled_texts_are_short() -> None:
    for data in (tinyworld.sentiment(500), tinyworld.sentiment(500, domain="target"), tinyworld.topic(500)):
        assert max(len(e.text.split()) for e in everything(data)) <= 40


def test_plain_ascii_and_no_template_is_left_over(corpus: DataSet) -> None:
    texts = everything(corpus)
    for make in SMALL.values():
        for record in everything(make()):
            texts += [str(value) for value in vars(record).values()] if not isinstance(record, str) else [record]
    for text in texts:
        assert text.isascii()
        assert not re.search(r"[{}|\[\]]| {2}| [.,?]|\ba [aeiou]", re.sub(r"^\(.*\)$", "", text)), text


def test_vocabulary_of_the_general_domain_is_small(corpus: DataSet) -> None:
    words = {word for text in corpus.train for word in re.findall(r"[a-z']+", text.lower())}
    assert 600 <= len(words) <= 900


def test_prompts_end_in_answer_and_completions_start_with_a_space() -> None:
    for name in ("questions", "rewriting", "translation", "addition", "cards"):
        for pair in everything(getattr(tinyworld, name)(100, held_out=20)):
            assert pair.prompt.endswith("\nAnswer:")
            assert re.fullmatch(r" \S.*\S| \S", pair.completion)
            assert pair.references[0] == pair.completion
            assert len(set(pair.references)) == len(pair.references)
    for pair in everything(tinyworld.translation(100, held_out=20)):
        assert len(pair.completion.split()) >= 4


def test_as_pairs_asks_for_the_name_of_the_label() -> None:
    data = tinyworld.topic(60, held_out=12)
    pairs = tinyworld.as_pairs(data)
    for example, pair in zip(everything(data), everything(pairs), strict=True):
        assert pair.prompt == f"{example.text}\nQuestion: {topics.QUESTION}\nAnswer:"
        assert pair.completion == " " + topics.LABELS[example.label]
    own = DataSet("own", [Example("x", 1)], [], [], label_names=("no", "yes"))
    assert tinyworld.as_pairs(own, question="Is it?").train[0].completion == " yes"


# ---------------------------------------------------------------- no leaks
def meeting_state(text: str) -> tuple[str, ...] | None:
    """Who met whom where, from any wording of the beginning of that story."""
    met = re.search(r"One \w+ (?:she|he) met (\w+) the \w+ ([^.]+)\.", text)
    if met is None:
        return None
    main = re.search(r"called (\w+)\.|lived (\w+), a|([A-Z]\w+) was an? \w+ \w+ who", text)
    return (next(name for name in main.groups() if name), *met.groups())


def sums_of(text: str) -> set[tuple[int, ...]]:
    pairs = re.findall(r"What is ([\d ]+) plus ([\d ]+)\?", text)
    return {tuple(sorted(int(number.replace(" ", "")) for number in pair)) for pair in pairs}


def test_no_text_is_in_two_splits(corpus: DataSet) -> None:
    for data in [
        corpus,
        *(make() for make in SMALL.values()),
        tinyworld.sentiment(3000),
        tinyworld.topic(3000),
    ]:
        keys = [
            {r if isinstance(r, str) else getattr(r, "prompt", None) or r.text for r in data.split(s)} for s in SPLITS
        ]
        for one, other in itertools.combinations(keys, 2):
            assert not one & other, data.name
        assert len(set(map(repr, data.train))) == len(data.train)


def test_the_same_events_are_in_one_split_whatever_the_wording_task_and_seed(corpus: DataSet) -> None:
    seen = {split: set() for split in SPLITS}
    for data in (
        corpus,
        tinyworld.corpus(3000, seed=5),
        tinyworld.questions(2000),
        tinyworld.preferences(2000),
    ):
        for split in SPLITS:
            texts = [r if isinstance(r, str) else r.prompt for r in data.split(split)]
            seen[split] |= {meeting_state(part) for text in texts for part in text.split("\n\n")} - {None}
    assert min(map(len, seen.values())) > 200
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other


def test_sums_are_in_one_split_turned_round_or_not(corpus: DataSet) -> None:
    seen = {split: set() for split in SPLITS}
    for data in (
        tinyworld.addition(6000),
        tinyworld.addition(300, digits=3),
        tinyworld.addition(60, digits=1, held_out=5),
    ):
        for split in SPLITS:
            seen[split] |= {s for pair in data.split(split) for s in sums_of(pair.prompt)}
    for split in SPLITS:
        learnt = {s for text in corpus.split(split) for s in sums_of(text)}
        assert learnt
        seen[split] |= learnt
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other


def test_sentences_are_in_one_split_whatever_is_done_with_them(corpus: DataSet) -> None:
    seen = {split: set() for split in SPLITS}
    for data in (tinyworld.rewriting(2500), tinyworld.translation(2500), corpus):
        for split in SPLITS:
            for record in data.split(split):
                text = record if isinstance(record, str) else record.prompt
                for clause in re.findall(r"(?:Rewrite|Translate)[^:\n]*: [^\n]*\.", text):
                    seen[split] |= {state_of(clause.split(": ", 1)[1])} - {None}
    assert min(map(len, seen.values())) > 500
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other


def state_of(sentence: str) -> tuple[str, ...] | None:
    """Subject, verb, quality, thing and place of an active sentence of any tense; None for orders."""
    form = r"(?:The )?(\w+) (\w+) (?:the|an?|[a-z]+) (\w+) (\w+) ((?:at|in|by|on) the [\w ]+)\."
    parts = re.fullmatch(form, sentence)
    if parts is None:
        return None
    who, did, quality, thing, place = parts.groups()
    verbs = [v for v in world.VERBS if did in (v.third, v.past)]
    things = [t for v in verbs for t in v.objects if thing in (t, sentences.plural(t))]
    return (who, verbs[0].base, quality, things[0], place) if things else None


def test_games_are_in_one_split_whatever_the_suits_are_called() -> None:
    def state(prompt: str) -> str:
        hands = [re.findall(r"(\d) (\w+)", line) for line in prompt.split("\n")[:2]]
        forms = []
        for order in itertools.permutations("abcd"):
            name = dict(zip(games.SUITS, order, strict=True))
            forms.append(sorted(tuple(sorted(r + name[s] for r, s in hand)) for hand in hands))
        return str(min(forms))

    data = tinyworld.cards(1000, held_out=200)
    seen = [{state(pair.prompt) for pair in data.split(split)} for split in SPLITS]
    for one, other in itertools.combinations(seen, 2):
        assert not one & other


def test_corpus_leaves_out_what_later_lessons_teach(corpus: DataSet) -> None:
    words = Counter(word for text in everything(corpus) for word in re.findall(r"\w+", text))
    dialect = {made + suffix for made in sentences.LEXICON.values() for suffix in ("", "en", "im", "uk")}
    assert not dialect & {word.lower() for word in words}
    assert not {"Translate", "hand", "hands", "swords"} & set(words)
    assert not {p.name for p in world.CREW} & set(words)
    assert not {"Log", "log", "positive"} & set(words)
    assert not re.search(r"plus \d \d", " ".join(corpus.train))
    assert reviews.QUESTION not in "\n".join(corpus.train)
    assert topics.QUESTION not in "\n".join(corpus.train)
    shares = {
        "Rewrite in": 0.05,
        "plus": 0.03,
        "Question: ": 0.12,
    }
    for mark, share in shares.items():
        assert sum(mark in text for text in corpus.train) / len(corpus.train) == pytest.approx(share, abs=0.015)


# ---------------------------------------------------------------- labels
def test_labels_are_balanced_in_every_prefix() -> None:
    for data, k in ((tinyworld.sentiment(300, held_out=120), 2), (tinyworld.topic(300, held_out=120), 6)):
        for split in SPLITS:
            labels = [e.label for e in data.split(split)]
            for end in (k, 10 * k, 96):
                assert set(Counter(labels[:end]).values()) == {end // k}
            assert len({tuple(labels[i : i + k]) for i in range(0, 10 * k, k)}) > 1, "always the same order"
    winners = Counter(pair.completion for pair in tinyworld.cards(600).train)
    assert winners == {" first": 300, " second": 300}


def test_noise_replaces_the_stated_share_of_labels_and_sets_the_ceiling() -> None:
    for task, k in ((tinyworld.sentiment, 2), (tinyworld.topic, 6)):
        clean, some, more, all_ = (task(1500, noise=noise, held_out=500) for noise in (0.0, 0.2, 0.5, 1.0))
        assert clean.ceiling == 1.0
        for noisy, noise in ((some, 0.2), (more, 0.5), (all_, 1.0)):
            assert noisy.ceiling == pytest.approx(1 - noise * (k - 1) / k)
            assert [e.text for e in noisy.train] == [e.text for e in clean.train]
            for split in SPLITS:
                agree = np.mean(
                    [a.label == b.label for a, b in zip(noisy.split(split), clean.split(split), strict=True)]
                )
                assert agree == pytest.approx(noisy.ceiling, abs=0.04)
        changed = [{i for i in range(1500) if d.train[i] != clean.train[i]} for d in (some, more, all_)]
        assert changed[0] < changed[1] < changed[2]


GOOD = world.listed("""
    good, fine, lovely, great, nice, pleasant, charming, wonderful, excellent, delightful,
    reliable, smooth, solid, superb, efficient, precise, sturdy, optimal, flawless, first class
""")
BAD = world.listed("""
    bad, poor, dull, awful, weak, nasty, boring, terrible, dreadful, horrible,
    faulty, shaky, useless, sloppy, flawed, outdated, clumsy, dismal, defective, second rate
""")


def verdict(text: str) -> int:
    """What the writer thinks, read off the text by rules of its own."""
    value = dict.fromkeys(GOOD, 1) | dict.fromkeys(BAD, 0)
    word = "(" + "|".join(sorted(value, reverse=True)) + ")"
    if found := re.search(rf"(?:The|the) ([\w ]+?) was (better|worse) than the (?:{word[1:-1]} )?([\w ]+)\.", text):
        left = re.sub(rf"^{word} ", "", found[1])
        opening = text.split(". ")[0]
        right = found[3]
        assert (left in opening) != (right in opening)
        return int((found[2] == "better") == (left in opening))
    if found := re.search(
        rf"(?:thought|expected) .* to be {word}, and it was( not)?|would be {word}\. I was (right|wrong)",
        text,
    ):
        adjective, unfulfilled = found[1] or found[3], found[2] or found[4] == "wrong"
        return value[adjective] ^ bool(unfulfilled)
    if found := re.search(rf"called it {word}, and s?he was (right|wrong)", text):
        return value[found[1]] ^ (found[2] == "wrong")
    if found := re.search(rf"I (?:call|found) (?:it|the [\w ]+) {word}\.", text):
        return value[found[1]]
    if found := re.search(rf"Although .* {word}, .* {word}", text):
        return value[found[2]]
    if found := re.search(rf"{word}, although", text):
        return value[found[1]]
    if found := re.search(rf", but the .* was {word}", text):
        return value[found[1]]
    if found := re.search(rf"(?:was never|was not(?: really| at all)?|Nobody .* was|would not call .*) {word}", text):
        return 1 - value[found[1]]
    return value[re.search(rf"was {word}", text)[1]]


@pytest.mark.parametrize("domain", ["general", "target"])
def test_sentiment_is_what_the_writer_thinks(domain: str) -> None:
    for example in everything(tinyworld.sentiment(2000, domain=domain)):
        assert verdict(example.text) == example.label, example.text


TOPIC_WORDS = {
    "cooking": "bread soup eggs stew",
    "fishing": "trout net boat worms",
    "gardening": "beans roses weeds cherries",
    "music": "flute songs drum tune",
    "building": "roof shed boards fence",
    "sewing": "coat scarf quilt skirt",
}


def subject(text: str) -> str:
    """What the main person does in the end, read off the text by rules of its own."""
    topic_of = {word: name for name, words in TOPIC_WORDS.items() for word in words.split()}
    opening, rest = text.split(". ", 1)
    person = re.search(r"about (\w+)|what (\w+) did|^(\w+) the", opening)
    person = next(name for name in person.groups() if name)

    def first(passage: str) -> str:
        return topic_of[re.search(r"\b(" + "|".join(topic_of) + r")\b", passage)[1]]

    if found := re.search(rf"{person} could (.*?) or (.*?)\. \w+ chose the (first|second)", rest):
        return first(found[1] if found[3] == "first" else found[2])
    if found := re.search(rf"asked {person} to (.*?)(, and s?he said yes|\. S?[Hh]e said no and (.*?)\.)", rest):
        return first(found[3] or found[1])
    if found := re.search(rf"{person} wanted to .*?(?:but then s?he|In the end s?he) (.*?)\.", rest):
        return first(found[1])
    if found := re.search(rf"Instead of .*?, {person} (.*?)\.", rest):
        return first(found[1])
    return first(re.search(rf"{person} (.*?)(?: instead| because|\.)", rest)[1])


def test_topic_is_what_the_main_person_does() -> None:
    for example in everything(tinyworld.topic(2000)):
        assert subject(example.text) == topics.LABELS[example.label], example.text


# ---------------------------------------------------------------- bags of words
def count_words(texts: list[str], vocabulary: dict[str, int]) -> np.ndarray:
    counts = np.zeros((len(texts), len(vocabulary) + 1), dtype=np.float32)
    counts[:, -1] = 1  # the bias
    for row, text in zip(counts, texts, strict=True):
        for word in re.findall(r"[a-z]+", text.lower()):
            if word in vocabulary:
                row[vocabulary[word]] += 1
    return counts


def bag_of_words_accuracy(data: DataSet, steps: int = 200) -> float:
    """Test accuracy of softmax regression on word counts, trained on the full batch with Adam's steps."""
    texts, labels = [e.text for e in data.train], np.array([e.label for e in data.train])
    vocabulary = {
        word: i for i, word in enumerate(sorted({w for t in texts for w in re.findall(r"[a-z]+", t.lower())}))
    }
    x = count_words(texts, vocabulary)
    k = labels.max() + 1
    weight, mean, square = (np.zeros((x.shape[1], k), dtype=np.float32) for _ in range(3))
    for step in range(1, steps + 1):
        score = x @ weight
        score = np.exp(score - score.max(axis=1, keepdims=True))
        score /= score.sum(axis=1, keepdims=True)
        score[np.arange(len(x)), labels] -= 1
        gradient = x.T @ score / len(x)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        weight -= 0.1 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)
    guess = (count_words([e.text for e in data.test], vocabulary) @ weight).argmax(axis=1)
    return float(np.mean(guess == [e.label for e in data.test]))


@pytest.mark.parametrize(
    "data",
    [
        lambda: tinyworld.sentiment(4000),
        lambda: tinyworld.sentiment(4000, domain="target"),
        lambda: tinyworld.sentiment(4000, noise=0.2),
        lambda: tinyworld.topic(4000),
    ],
    ids=["sentiment", "sentiment target", "sentiment noisy", "topic"],
)
def test_a_bag_of_words_stays_ten_points_under_the_ceiling(data) -> None:
    made = data()
    assert bag_of_words_accuracy(made) <= made.ceiling - 0.10


def test_the_bag_of_words_learner_learns_what_words_show() -> None:
    data = tinyworld.sentiment(1000)
    shown = [[Example(e.text, int(" the soup" in e.text.lower())) for e in data.split(s)] for s in SPLITS]
    assert bag_of_words_accuracy(DataSet("control", *shown)) > 0.98


# ---------------------------------------------------------------- answers
NUMBER = {word: i for i, word in enumerate(world.NUMBERS)}
# question -> where its answer stands in the story; {0}, {1} are what the question names.
READINGS = [
    (r"What did (\w+) lose", r"e had (a \w+ \w+) and (?:took|liked|was proud)"),
    (r"Where did (\w+) look first", r"First {0} looked ([^,]+), but"),
    (r"Which animal took the", r"(A \w+) had carried"),
    (r"Who found the (\w+)", r"(\w+) (?:went on and )?found the {0}"),
    (r"Where was the (\w+) found", r"found the {0} ([^,]+),"),
    (r"Where did (\w+) look\?", r"{0} looked ([^,]+), but found only"),
    (r"How many (\w+) did (\w+) buy", r"bought (\w+) {0} from"),
    (r"How many (\w+) were left\?", r"Only (\w+) \w+ (?:was|were) left"),
    (r"Who sold the (\w+)", r"bought \w+ {0} from (\w+)"),
    (r"Whose birthday", r"birthday of (\w+) the"),
    (r"Where did some (\w+) fall", r"fell ([^.]+)\."),
    (r"What did the storm break", r"storm broke (the \w+) of"),
    (r"Who came to help (\w+)", r"the \w+ of {0} the .*In the morning (\w+) came with"),
    (r"What did (\w+) bring", r"In the morning {0} came with (an? \w+)"),
    (r"What did (\w+) bring", r"{0} (?:came to the door with|came and brought) some ([\w ]+)\."),
    (r"How many hours did they work", r"for (\w+) hours"),
    (r"What did (\w+) give (\w+)", r"{0} gave {1} ([\w ]+)\."),
    (r"What did (\w+) give (\w+)", r"met {0}, who gave h(?:er|im) ([\w ]+)\."),
    (r"How many guests did (\w+) ask", r"{0} asked (\w+) guests"),
    (r"What did (\w+) make", r"{0} asked .* made some ([\w ]+) for them"),
    (r"Who brought the ([\w ]+)", r"(\w+) (?:came to the door with|came and brought) some {0}"),
    (r"Who came too late", r"(\w+) wanted to bring .* came too late"),
    (r"Where did (\w+) wait", r"so {0} waited ([\w ]+) for \w+ hours"),
    (r"How many hours did (\w+) wait", r"so {0} waited [\w ]+ for (\w+) hours"),
    (r"Who gave (\w+) ([\w ]+)", r"met (\w+), who gave h(?:er|im) {1}\."),
    (r"Who did (\w+) want to visit", r"wanted to visit (\w+) the"),
    (r"Where did (\w+) find the (\w+)", r"{0} found a \w+ {1} ([^.]+)\."),
    (r"What did (\w+) find", r"{0} found (a \w+ \w+) "),
    (r"How many days did it take", r"After (\w+) days"),
    (r"What did the (\w+) eat", r"(?:gave it|there it ate) (\w+)\."),
    (
        r"Who owned the (\w+)",
        r"It belonged to (\w+) the|Then (\w+) the \w+ came and said it was h(?:er|is) {0}",
    ),
    (r"Who owned the (\w+)", r"borrowed a \w+ {0} from (\w+) the"),
    (r"Who won the contest", r"(\w+) won and got|to (\w+), who won"),
    (r"Who came second", r"(\w+) came second|Second was (\w+)"),
    (r"What was the prize", r"won and got ([\w ]+)\.|judge gave ([\w ]+) to \w+, who"),
    (r"Where was the contest", r"there was a contest ([\w ]+) for the best"),
    (r"What did (\w+) borrow", r"borrowed (a \w+ \w+) from"),
    (r"Where did the (\w+) break", r"But (.+?) a \w+ ran into .* the {0} broke"),
    (r"Which animal ran into (\w+)", r" (a \w+) ran into h(?:er|im)"),
    (r"How many days did (\w+) work", r"worked for (\w+) days to pay"),
    (r"How many days did (\w+) say nothing", r"said nothing about it for (\w+) days"),
    (r"Where did (\w+) meet (\w+)", r"met {1} the \w+ ([^.]+)\."),
    (r"Who met (\w+)", r"called (\w+)\. One|^(\w+) was a|lived (\w+), a"),
    (r"What did they want to (\w+( for)?)", r"They wanted to {0} (\w+)\."),
    # the target domain
    (r"What did (\w+) report missing", r"{0} reported (the \w+ \w+) missing"),
    (r"Where did (\w+) search", r"{0} searched ([\w ]+?)(?: without result|, also)"),
    (r"Who reported the", r"(\w+) reported the"),
    (r"Who located the", r"(\w+) located it"),
    (r"Where was the (\w+) located", r"located it ([^.]+)\."),
    (r"How many ([\w ]+) were loaded", r"Loaded (\w+) {0}"),
    (r"How many ([\w ]+) were left", r"[.:] (\w+) {0}(?: left)?\."),
    (r"Where was the cargo loaded", rf"Loaded \w+ (?:{'|'.join(world.CARGO)}) ([^.]+)\."),
    (r"Who signed for the cargo", r"(\w+) signed"),
    (r"Who secured the rest", r"(\w+) secured"),
    (r"What was damaged", r"damaged (the \w+ \w+) "),
    (r"Where was the (\w+)\?", r"damaged the \w+ {0} ([^.]+)\.|call from the {0} ([^.]+)\."),
    (r"Who did the repair", r"sent \w+ (\w+) to repair"),
    (r"What did (\w+) use", r"{0} to repair it with ([\w ]+)\."),
    (r"How many hours did the repair take", r"(\w+) hours"),
    (r"Which ship sent", r"distress call from (the \w+) "),
    (r"Who received the call", r"(\w+) received"),
    (r"Where was the fire", r"Fire ([^,]+),"),
    (r"How many people were aboard", r", (\w+) people aboard"),
    (r"Where was the ship held", r"held (.+?) for \w+ days"),
    (r"How many days was the ship held", r"held .+? for (\w+) days"),
    (r"Where was the delivery due", r" due ([^.]+)\."),
    (r"Who trained", r"(\w+) used the time"),
    (r"What was the delivery", r"Delivery of ([\w ]+) due"),
]


def read_answers(story: str, question: str) -> set[str]:
    """All answers that the readings find in the story."""
    found = set()
    if asked_for := re.match(r"What did (\w+) bring", question):
        craft = re.search(r"for the best (\w+)\.", story)
        found = {f"{how} {craft[1]}" for how in re.findall(rf"{asked_for[1]} (?:came )?with (a \w+)", story) if craft}
    for asked, stands in READINGS:
        if match := re.match(asked, question):
            for answer in re.finditer(stands.format(*match.groups()), story):
                text = next(group for group in answer.groups() if group)
                found.add(
                    text[0].lower() + text[1:] if text.startswith(("A ", "An ")) or text.lower() in NUMBER else text
                )
    return found


@pytest.mark.parametrize("domain", ["general", "target"])
def test_answers_stand_in_the_story(domain: str) -> None:
    asked = Counter()
    for pair in everything(tinyworld.questions(3000, domain=domain)):
        story, question = pair.prompt.removesuffix("\nAnswer:").split("\nQuestion: ")
        assert read_answers(story, question) == {pair.completion[1:]}, pair
        asked[" ".join(question.split()[:2])] += 1
    assert {"Who", "What", "Where", "How"} <= {words.split()[0] for words in asked}
    assert asked["How many"] > 300


def test_what_is_left_is_what_was_bought_without_what_was_lost() -> None:
    checked = 0
    for text in tinyworld.stories(2000).train:
        if bought := re.search(r"bought (\w+) \w+ from", text):
            fell = re.search(r"broke, and (\w+) \w+ fell", text)[1]
            left, were = re.search(r"Only (\w+) \w+ (was|were) left", text).groups()
            assert NUMBER[bought[1]] - NUMBER[fell] == NUMBER[left] >= 1
            assert (were == "was") == (left == "one")
            checked += 1
    for text in tinyworld.stories(2000, domain="target").train:
        if loaded := re.search(r"Loaded (\w+) ", text):
            lost = re.search(r"destroyed (\w+) of", text)[1]
            left = re.search(r"cargo: (\w+)|(\w+) [\w ]+ left\.", text)
            assert NUMBER[loaded[1]] - NUMBER[lost] == NUMBER[next(g for g in left.groups() if g).lower()]
            checked += 1
    assert checked > 300


def test_people_are_the_same_in_every_story(corpus: DataSet) -> None:
    names = "(" + "|".join(person.name for person in world.PEOPLE) + ")"
    jobs: dict[str, set[str]] = {}
    loves: dict[str, set[str]] = {}
    for text in corpus.train:
        for name, job in re.findall(rf"{names} the (\w+)\b(?! at once)", text) + re.findall(
            rf"{names} was an? \w+ (\w+) who", text
        ):
            jobs.setdefault(name, set()).add(job)
        for name, food in re.findall(rf"{names} loved (\w+)", text) + re.findall(rf"{names} liked (\w+) more", text):
            loves.setdefault(name, set()).add(food)
    assert len(jobs) == len(loves) == len(world.PEOPLE) == 24
    assert all(len(known) == 1 for known in [*jobs.values(), *loves.values()])


def test_rewritings() -> None:
    past = {verb.third: verb.past for verb in world.VERBS}
    base = {form: verb.base for verb in world.VERBS for form in (verb.third, verb.past)}
    participle = {form: verb.participle for verb in world.VERBS for form in (verb.third, verb.past)}
    counts = Counter()
    for pair in everything(tinyworld.rewriting(2000)):
        instruction, given = re.match(r"Rewrite (.*?): (.*)\nAnswer:", pair.prompt).groups()
        counts[instruction] += 1
        answer = pair.completion[1:]
        if instruction == "in a polite way":
            assert answer == f"Could you please {given[0].lower()}{given[1:-1]}?"
            assert f" Please {given[0].lower()}{given[1:]}" in pair.references
            continue
        who, did, what, where = re.fullmatch(r"((?:The )?\w+) (\w+) (the \w+ \w+) (.*)\.", given).groups()
        is_past = did in past.values()
        if instruction == "in the past":
            assert answer == f"{who} {past[did]} {what} {where}."
        elif instruction == "in the negative":
            assert answer == f"{who} {'did' if is_past else 'does'} not {base[did]} {what} {where}."
        else:
            actor = who.replace("The ", "the ")
            was = "was" if is_past else "is"
            assert answer == f"{what.capitalize()} {was} {participle[did]} by {actor} {where}."
    assert len(counts) == 4
    assert min(counts.values()) > 400


# ---------------------------------------------------------------- the dialect
def read_dialect(text: str) -> str:
    """Ombric back into English, word by word from both ends."""
    english = {made: word for word, made in sentences.LEXICON.items()}
    words = text.removesuffix(".").split()

    def root(word: str) -> tuple[str, str]:
        word = word.lower()
        return (english[word], "") if word in english else (english[word[:-2]], word[-2:])

    names = {person.name for person in world.PEOPLE}
    who = words[0] if words[0] in names else "The " + root(words[0])[0]
    verb, tense = root(words[-1])
    verb = next(v for v in world.VERBS if v.base == verb)
    middle = [root(word) for word in words[1:-1]]
    at = next(i for i, (word, _) in enumerate(middle) if word in ("at", "in", "by", "on"))
    (thing, ending), *more = middle[:at]
    preposition, (place, _), *kind = middle[at][0], *middle[at + 1 :]
    if ending == "im":
        what = f"{more[1][0]} {more[0][0]} {sentences.plural(thing)}"
    else:
        noun = f"{more[0][0]} {thing}"
        what = f"the {noun}" if ending == "en" else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    where = " ".join([preposition, "the", *(word for word, _ in kind), place])
    return f"{who} {verb.past if tense == 'uk' else verb.third} {what} {where}."


def test_translations_can_be_read_back() -> None:
    for pair in everything(tinyworld.translation(3000)):
        assert read_dialect(pair.completion[1:]) == pair.prompt.removeprefix("Translate: ").removesuffix("\nAnswer:")


def test_no_two_words_share_a_translation() -> None:
    words = list(sentences.LEXICON.values())
    assert len(set(words)) == len(words) > 100
    assert all(word[-1] in "aeio" for word in words), "an ending would not be recognised"


# ---------------------------------------------------------------- games
def test_sums_are_right() -> None:
    for digits in (1, 2, 4):
        n = 60 if digits == 1 else 1000
        for pair in everything(tinyworld.addition(n, digits=digits, held_out=8)):
            a, b = re.fullmatch(r"Question: What is ((?:\d )*\d) plus ((?:\d )*\d)\?\nAnswer:", pair.prompt).groups()
            a, b = int(a.replace(" ", "")), int(b.replace(" ", ""))
            assert max(a, b) < 10**digits
            assert pair.completion == "".join(f" {digit}" for digit in str(a + b))


def order_of_all_hands() -> dict[frozenset, int]:
    """Every hand's place among all 4,960, found by listing the categories, weakest first."""
    pack = list(itertools.product(range(2, 10), games.SUITS))
    hands = [frozenset(hand) for hand in itertools.combinations(pack, 3)]

    def ranks(hand: frozenset) -> list[int]:
        return sorted(rank for rank, _ in hand)

    three = {h for h in hands if len(set(ranks(h))) == 1}
    straight = {h for h in hands if ranks(h) in [[low, low + 1, low + 2] for low in range(2, 8)]}
    flush = {h for h in hands if len({suit for _, suit in h}) == 1} - straight
    pair = {h for h in hands if len(set(ranks(h))) == 2}
    rest = set(hands) - three - straight - flush - pair
    assert [len(x) for x in (rest, pair, flush, straight, three)] == [3000, 1344, 200, 384, 32]
    place: dict[frozenset, int] = {}
    level = 0
    for group in (rest, pair, flush, straight, three):
        by_rank: dict[tuple[int, ...], list[frozenset]] = {}
        for hand in group:
            falling = ranks(hand)[::-1]
            order = sorted(falling, key=lambda rank, falling=falling: (falling.count(rank), rank), reverse=True)
            by_rank.setdefault(tuple(order), []).append(hand)
        for order in sorted(by_rank):
            level += 1
            place |= dict.fromkeys(by_rank[order], level)
    return place


def test_the_better_hand_wins() -> None:
    place = order_of_all_hands()
    kinds = Counter()
    for pair in everything(tinyworld.cards(2000)):
        lines = pair.prompt.split("\n")
        hands = [[(int(r), s) for r, s in re.findall(r"(\d) (\w+)", line)] for line in lines[:2]]
        assert len({*hands[0], *hands[1]}) == 6
        first, second = (place[frozenset(hand)] for hand in hands)
        assert pair.completion == (" first" if first > second else " second")
        assert first != second
        kinds.update(games.strength(tuple(hand))[0] for hand in hands)
    assert min(kinds.values()) > 0.12 * sum(kinds.values())


# ---------------------------------------------------------------- preferences
def test_rankings_follow_the_true_reward() -> None:
    for k in (2, 4, 7):
        data = tinyworld.preferences(150, k=k, held_out=20)
        best = Counter()
        for ranking in everything(data):
            assert len(ranking.responses) == len(ranking.rewards) == k
            assert ranking.rewards == tuple(tinyworld.true_reward(ranking.prompt, r) for r in ranking.responses)
            assert all(abs(a - b) >= 0.01 for a, b in itertools.combinations(ranking.rewards, 2))
            assert all(re.fullmatch(r" \S.*\S", response) for response in ranking.responses)
            best[int(np.argmax(ranking.rewards))] += 1
        assert len(best) == k, "the best response must not stand at a fixed place"
        assert max(best.values()) < 2.2 * sum(best.values()) / k


PROMPT = "Tom was a patient miller who lived near the river. One day he met Anna the baker by the pond."
HAPPY = " Tom laughed and hugged Anna. It was a merry day for everyone. The sun shone, and the birds sang."


def test_reward_prefers_what_it_says_it_prefers() -> None:
    best = tinyworld.true_reward(PROMPT, HAPPY)
    assert best > 0.95
    worse = {
        "gloomy": " Tom cried and went home alone. It was a sad day for everyone. The wind howled.",
        "negated": " They did not laugh all evening. Nobody cheered for Tom. Tom and Anna were not friends.",
        "plain": " They talked about the harvest. Anna went back to work. Tom ate some bread and cheese.",
        "repeated": " Tom laughed and hugged Anna." * 6,
        "repeated with other people": " Tom felt happy again. Anna felt happy again. Tom felt happy again.",
        "about others": HAPPY.replace("Tom", "Rosa").replace("Anna", "Karl"),
        "about nobody": " It was a merry day for everyone. The sun shone, and the birds sang.",
        "word salad": " Happy merry glad Tom friends laughed Anna sang danced warm proud kind lovely smiled.",
        "shuffled": " hugged and Anna laughed Tom. for merry day everyone was It a. sang birds The the sun.",
        "too short": " Tom laughed and hugged Anna.",
        "broken off": HAPPY.removesuffix(" birds sang."),
        "endless": HAPPY + HAPPY.replace("day", "evening") * 4,
        "another task": HAPPY + "\nQuestion: What is 2 plus 2?\nAnswer: 4",
        "empty": "",
        "marks only": " ... !?",
    }
    for name, response in worse.items():
        assert tinyworld.true_reward(PROMPT, response) < best - 0.04, name
    assert tinyworld.true_reward(PROMPT, worse["gloomy"]) < tinyworld.true_reward(PROMPT, worse["plain"])
    for name in ("repeated", "word salad", "empty", "marks only"):
        assert tinyworld.true_reward(PROMPT, worse[name]) < 0.15, name


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80), st.text(max_size=200))
def test_reward_of_any_text_is_between_0_and_1(prompt: str, response: str) -> None:
    assert 0 <= tinyworld.true_reward(prompt, response) <= 1
    assert all(0 <= factor <= 1 for factor in tinyworld.reward_factors(prompt, response).values())


def test_stories_of_the_grammar_are_well_formed() -> None:
    for text in tinyworld.stories(300, seed=9).train:
        assert tinyworld.reward_factors("", text)["form"] > 0.99


# ---------------------------------------------------------------- what cannot be had
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tinyworld.stories(0), "n must be a whole number of at least 1, not 0"),
        (lambda: tinyworld.stories(True), "n must be"),
        (
            lambda: tinyworld.questions(5, held_out=2.5),
            "held_out must be a whole number of at least 1, not 2.5",
        ),
        (lambda: tinyworld.stories(5, domain="moon"), "no domain 'moon'; there are general, target"),
        (lambda: tinyworld.sentiment(5, domain=""), "no domain"),
        (lambda: tinyworld.sentiment(5, noise=1.5), "noise must be between 0 and 1, not 1.5"),
        (lambda: tinyworld.topic(5, noise=float("nan")), "noise must be between 0 and 1, not nan"),
        (lambda: tinyworld.addition(5, digits=0), "digits must be a whole number from 1 to 6, not 0"),
        (lambda: tinyworld.addition(1000, digits=1, held_out=5), "1,000 train records wanted, but only"),
        (lambda: tinyworld.preferences(5, k=1), "k must be a whole number from 2 to 9, not 1"),
        (lambda: tinyworld.as_pairs(DataSet("own", [], [], [])), "own has no label names"),
        (lambda: tinyworld.as_pairs(DataSet("own", [], [], [], label_names=("a",))), "give question="),
    ],
)
def test_impossible_requests_get_one_clear_line(call, message: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
