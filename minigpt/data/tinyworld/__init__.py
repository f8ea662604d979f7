"""A small made-up world that gives text and tasks with exact answers: the course's laboratory.

The same call gives the same records on every machine and Python version. The split of a record is decided by
a hash of the world state behind it (who, what, where, which numbers), not of its wording, with the same
shares for every task and seed: what one function puts into its test split, no other puts into a training
split. `n` counts training records; validation and test have `held_out` each, and the first records of every
split are the same for every `n`.

Prompts are plain text. A completion starts with a space and ends without a newline (the trainer adds
``<|endoftext|>``); every prompt of a task ends in ``Answer:``, and several solved prompts in one text have a
blank line between them.

============  ==============================================================================
function      prompt → completion
============  ==============================================================================
questions     ``{story}\\nQuestion: Where was the kite found?\\nAnswer:`` → `` by the river``
rewriting     ``Rewrite in the past: Anna opens the old door in the barn.\\nAnswer:`` → `` Anna …``
translation   ``Translate: Anna opens the old door in the barn.\\nAnswer:`` → `` Anna …``
addition      ``Question: What is 2 7 plus 4 5?\\nAnswer:`` → `` 7 2``
cards         ``First hand: …\\nSecond hand: …\\nQuestion: Which hand wins?\\nAnswer:`` → `` first``
as_pairs      ``{review}\\nQuestion: Is this review positive or negative?\\nAnswer:`` → `` positive``
as_pairs      ``{text}\\nQuestion: What is this story about?\\nAnswer:`` → `` fishing``
preferences   the beginning of a story, as it stands → `` {sentences}``
============  ==============================================================================

`stories` and `corpus` give documents, `sentiment` and `topic` labelled texts. See `corpus` for what base
models have seen of all this, and `true_reward` for what the preferences prefer.
"""

from minigpt.data.tinyworld.chance import VERSION
from minigpt.data.tinyworld.games import addition, cards
from minigpt.data.tinyworld.mixture import as_pairs, corpus
from minigpt.data.tinyworld.reviews import sentiment
from minigpt.data.tinyworld.reward import preferences, reward_factors, true_reward
from minigpt.data.tinyworld.sentences import rewriting, translation
from minigpt.data.tinyworld.storybook import questions, stories
from minigpt.data.tinyworld.topics import topic

__all__ = [
    "VERSION",
    "addition",
    "as_pairs",
    "cards",
    "corpus",
    "preferences",
    "questions",
    "reward_factors",
    "rewriting",
    "sentiment",
    "stories",
    "topic",
    "translation",
    "true_reward",
]
