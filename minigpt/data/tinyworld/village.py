"""The general domain: what happens in the village.

A plot draws its state (who, what, where, how many), says it in sentences, and lists the questions that it
answers. It returns whether the story ends well.
"""

from __future__ import annotations

from minigpt.data.tinyworld import world
from minigpt.data.tinyworld.tale import SHORTEST, Tale

CHEERFUL = (
    "{P} [laughed|smiled] and [hugged|thanked] {Q}.",
    "{Q} was [glad|happy] [too|again].",
    "They [sang|danced] [together|all evening].",
    "It was a [happy|lovely|merry] [day|evening] for everyone.",
    "{P} felt [warm|happy|proud] [inside|again].",
    "{Q} gave {P} a [kind smile|warm hug].",
    "Everyone [clapped|cheered] for {P}.",
    "The two friends shared a [sweet bun|warm pie].",
    "{P} told {Q} a funny story, and they laughed.",
    "The sun shone, and the birds sang.",
    "{Q} promised to help {P} again.",
    "From that day on {P} and {Q} were good friends.",
)
GLOOMY = (
    "{P} [cried|sighed] and went home alone.",
    "{Q} was [angry|sad] [too|again].",
    "They did not [speak|laugh] [on the way home|all evening].",
    "It was a [sad|dark|bitter] [day|evening] for everyone.",
    "{P} felt [cold|tired|afraid] [inside|again].",
    "{Q} gave {P} a [cold look|hard answer].",
    "Nobody [clapped|cheered] for {P}.",
    "There was only a stale [bun|pie] for supper.",
    "{P} shouted at {Q}, and they quarrelled.",
    "The rain fell, and the wind howled.",
    "{Q} refused to help {P} again.",
    "From that day on {P} and {Q} were not friends.",
)
PLAIN = (
    "Then {P} [went|walked] home.",
    "{Q} closed the door.",
    "The bell of the church rang.",
    "{P} put everything back on the shelf.",
    "A cart rolled down the road.",
    "{Q} looked out of the window.",
    "They talked about the harvest.",
    "{P} ate some bread and cheese.",
    "{Q} went back to work.",
    "After that the evening came.",
)
INTRODUCTIONS = (
    "{P} was a {Ptrait} {Pjob} who lived near the {Phome}.",
    "Near the {Phome} lived {P}, a {Ptrait} {Pjob}.",
    "There once was a {Ptrait} {Pjob} called {P}.",
)
OPENINGS = (
    "It was a {weather} {time} in {season}.",
    "It happened on a {weather} {time} in {season}.",
    "One {weather} {time} in {season} the village was very quiet.",
)
HABITS = (
    "Everyone knew that {P} loved {Plikes}.",
    "{P} liked {Plikes} more than anything, but {Pshe} never ate {Pdislikes}.",
    "{P} had known {Q} the {Qjob} for many years.",
    "{PShe} was up early that day.",
    "{PShe} had a lot of work to do, as always.",
)


def _introduce(t: Tale) -> None:
    season, weather, time = (t.chance.pick(x) for x in (world.SEASONS, world.WEATHER, world.TIMES))
    t.slots |= {"season": season, "weather": weather, "time": time}  # wording only: not in the key
    t.colour(*OPENINGS)
    t.say(*INTRODUCTIONS)
    t.colour(*HABITS)


def _two_places(t: Tale) -> None:
    here, there = t.chance.some(world.PLACES, 2)
    t.state(A=here, B=there)


def _lost(t: Tale) -> bool:
    t.meet("PQ", world.PEOPLE)
    _two_places(t)
    thing, look, animal = (t.chance.pick(x) for x in (world.THINGS, world.LOOKS, world.THIEVES))
    well = t.chance.happens(0.7)
    t.state(thing=thing, look=look, animal=animal, well=str(well))
    _introduce(t)
    t.say("{PShe} had a {look} {thing} and [took it everywhere|liked it very much|was proud of it].")
    t.say("[One day|One morning|One evening] the {thing} was gone.")
    t.colour("{P} looked under the bed, on the shelf and behind the door.", "{PShe} asked everyone on the road.")
    t.say("First {P} looked {A}, but the {thing} was not there.")
    t.say("Then {P} asked {Q} for help.", "Then {Q} came to help.")
    t.ask("What did {P} lose?", "a {look} {thing}")
    t.ask("Where did {P} look first?", "{A}")
    t.ask("Which animal took the {thing}?", "a {animal}")
    if well:
        t.slots["spot"] = t.chance.pick(world.HIDING)
        t.say("{Q} found the {thing} {B}, {spot}.", "{Q} went on and found the {thing} {B}, {spot}.")
        t.say("A {animal} had carried it there.")
        t.ask("Who found the {thing}?", "{Q}")
        t.ask("Where was the {thing} found?", "{B}")
    else:
        t.say("{Q} looked {B}, but found only [dust|leaves|stones].")
        t.say("A {animal} had carried the {thing} away, and nobody saw it again.")
        t.ask("Where did {Q} look?", "{B}")
    return well


def _market(t: Tale) -> bool:
    t.meet("PQR", world.PEOPLE)
    food = t.chance.pick(world.HARVEST)
    bought = t.chance.between(4, 12)
    gone = t.chance.between(1, bought - 1)
    where = t.chance.pick(("into the river", "down the hill", "into the mud", "into the well"))
    well = t.chance.happens(0.6)
    t.state(food=food, n=world.NUMBERS[bought], n_food=world.count(bought, food), k_food=world.count(gone, food))
    t.state(
        left=world.NUMBERS[bought - gone],
        left_food=world.count(bought - gone, food),
        where=where,
        well=str(well),
    )
    t.slots["were"] = "was" if bought - gone == 1 else "were"
    _introduce(t)
    t.say("It was the birthday of {Q} the {Qjob}, and {P} wanted to [make a pie|bake a cake] with {food}.")
    t.say(
        "At the market {Pshe} bought {n_food} from {R}.",
        "{PShe} went to the market and bought {n_food} from {R}.",
    )
    t.colour("{R} asked for a good price, and {P} paid at once.", "The market was full of people and carts.")
    t.say("On the way home the basket broke, and {k_food} fell {where}.")
    t.say("Only {left_food} {were} left.")
    t.ask("How many {food} did {P} buy?", "{n}")
    t.ask("How many {food} were left?", "{left}")
    t.ask("Who sold the {food}?", "{R}")
    t.ask("Whose birthday was it?", "{Q}")
    t.ask("Where did some {food} fall?", "{where}")
    if well:
        t.say("{P} used them all the same, and {Q} [liked|praised] every bite.")
    else:
        t.say("That was not enough, and {Q} got nothing.")
    return well


def _mending(t: Tale) -> bool:
    t.meet("PQ", world.PEOPLE)
    fixture, tool, gift = (t.chance.pick(x) for x in (world.FIXTURES, world.TOOLS, world.GIFTS))
    hours = t.chance.between(2, 9)
    well = t.chance.happens(0.7)
    t.state(fixture=fixture, tool=world.a(tool), gift=gift, n=world.NUMBERS[hours], well=str(well))
    _introduce(t)
    t.say("One night a storm broke the {fixture} of {Q} the {Qjob}.")
    t.colour("The wind had been very strong.", "{Q} did not know what to do.", "{Q} had slept badly all night.")
    t.say("In the morning {P} came with {tool}[ to help| and some wood|].")
    t.say("They worked on the {fixture} for {n} hours.")
    t.colour("{P} held the boards, and {Q} counted the nails.", "It was hard work, because the wood was heavy.")
    t.ask("What did the storm break?", "the {fixture}")
    t.ask("Who came to help {Q}?", "{P}")
    t.ask("What did {P} bring?", "{tool}")
    t.ask("How many hours did they work?", "{n}")
    if well:
        t.say("In the end the {fixture} was as good as new, and {Q} gave {P} {gift}.")
        t.ask("What did {Q} give {P}?", "{gift}")
    else:
        t.say("But the wood was too wet, and the {fixture} broke again.")
    return well


def _feast(t: Tale) -> bool:
    t.meet("PQR", world.PEOPLE)
    dish, other = t.chance.some(world.DISHES, 2)
    guests = t.chance.between(3, 12)
    well = t.chance.happens(0.7)
    t.state(dish=dish, other=other, n=world.NUMBERS[guests], well=str(well))
    _introduce(t)
    t.say("{P} asked {n} guests to supper and made some {dish} for them.")
    t.say("But {Pshe} [read a letter from|talked too long with|ran out to look for] {R} and forgot the fire.")
    t.say(
        "So the {dish} burned, because nobody was watching it.",
        "Because nobody watched it, the {dish} burned.",
    )
    t.colour("The kitchen was full of smoke.", "A black cloud came out of the window.")
    t.ask("How many guests did {P} ask to supper?", "{n}")
    t.ask("What did {P} make?", "{dish}")
    if well:
        t.say("Then {Q} came to the door with some {other}.", "By good luck {Q} came and brought some {other}.")
        t.say("There was enough for all the guests.")
        t.ask("What did {Q} bring?", "{other}")
        t.ask("Who brought the {other}?", "{Q}")
    else:
        t.say("{Q} wanted to bring some {other}, but {Qshe} came too late.")
        t.say("All the guests went home hungry.")
        t.ask("Who came too late?", "{Q}")
    return well


def _journey(t: Tale) -> bool:
    t.meet("PQR", world.PEOPLE)
    place, gift = t.chance.pick(world.PLACES), t.chance.pick(world.GIFTS)
    ride = t.chance.pick(("on foot", "by cart", "by boat", "on a donkey"))
    trouble = t.chance.pick(("it began to snow", "a storm came up", "the fog grew thick", "heavy rain began to fall"))
    hours = t.chance.between(2, 9)
    well = t.chance.happens(0.6)
    t.state(B=place, gift=gift, ride=ride, trouble=trouble, n=world.NUMBERS[hours], well=str(well))
    _introduce(t)
    t.say("{PShe} wanted to visit {Q} the {Qjob} and set out {ride}.")
    t.colour("{PShe} had not seen {Q} since last {season}.", "The road was long, and there was nobody on it.")
    t.say("On the way {trouble}, so {P} waited {B} for {n} hours.")
    t.say("There {Pshe} met {R}, who gave {Phim} {gift}.")
    t.ask("Where did {P} wait?", "{B}")
    t.ask("How many hours did {P} wait?", "{n}")
    t.ask("Who gave {P} {gift}?", "{R}")
    t.ask("What did {R} give {P}?", "{gift}")
    t.ask("Who did {P} want to visit?", "{Q}")
    if well:
        t.say("Late in the evening {P} came to the house of {Q}[ at last|].")
    else:
        t.say("It was too late to go on, so {P} turned back and never saw {Q}.")
        t.alone = True
    return well


def _stray(t: Tale) -> bool:
    t.meet("PQ", world.PEOPLE)
    place, animal, food = (
        t.chance.pick(world.PLACES),
        t.chance.pick(world.ANIMALS),
        t.chance.pick(tuple(world.FOODS)),
    )
    colour = t.chance.pick(("black", "white", "brown", "grey"))
    days = t.chance.between(2, 12)
    well = t.chance.happens(0.6)
    t.state(A=place, animal=animal, colour=colour, food=food, n=world.NUMBERS[days], well=str(well))
    _introduce(t)
    t.say("One day {P} found a {colour} {animal} {A}.")
    t.say("It could not walk, because its leg was hurt.", "Its leg was hurt, so it could not walk.")
    t.say("{P} took it home and gave it {food}.", "{PShe} carried it home, and there it ate {food}.")
    t.colour("At first the {animal} was afraid of {Phim}.", "It slept by the fire every night.")
    t.say("After {n} days the {animal} could run again.")
    t.ask("Where did {P} find the {animal}?", "{A}")
    t.ask("What did {P} find?", "a {colour} {animal}")
    t.ask("How many days did it take?", "{n}")
    t.ask("What did the {animal} eat?", "{food}")
    t.ask("Who owned the {animal}?", "{Q}")
    if well:
        t.say("It belonged to {Q} the {Qjob}, but {Q} let {P} keep it.")
    else:
        t.say("Then {Q} the {Qjob} came and said it was {Qher} {animal}, and {P} had to give it back.")
    return well


def _contest(t: Tale) -> bool:
    t.meet("PQR", world.PEOPLE)
    craft = t.chance.pick(("cheese", "pie", "song", "kite", "coat", "basket", "lamp"))
    adjectives = t.chance.some(("big", "small", "plain", "strange", "round", "simple", "rare"), 3)
    prize = t.chance.pick(("a golden cup", "a silver spoon", "a white goat", "a new hat", "a red scarf"))
    place = t.chance.pick(world.PLACES)
    order = t.chance.shuffled("PQR")
    t.state(craft=craft, prize=prize, A=place, first=t.slots[order[0]], second=t.slots[order[1]])
    t.state(**dict(zip(("p_adj", "q_adj", "r_adj"), adjectives, strict=True)))
    _introduce(t)
    t.say("One day there was a contest {A} for the best {craft}.")
    t.say("{P} came with a {p_adj} {craft}, {Q} with a {q_adj} one and {R} with a {r_adj} one.")
    t.colour("The judge looked at them for a long time.", "Many people had come to watch.")
    t.say("{first} won and got {prize}.", "The judge gave {prize} to {first}, who won.")
    t.say("{second} came second.", "Second was {second}.")
    t.ask("Who won the contest?", "{first}")
    t.ask("Who came second?", "{second}")
    t.ask("What was the prize?", "{prize}")
    t.ask("Where was the contest?", "{A}")
    t.ask("What did {Q} bring?", "a {q_adj} {craft}")
    return order[0] == "P"


def begin_meeting(t: Tale) -> None:
    """Two people meet: the beginning of a story in which anything can happen next."""
    t.meet("PQ", world.PEOPLE)
    t.state(A=t.chance.pick(world.PLACES))
    _introduce(t)
    t.say("One {time} {Pshe} met {Q} the {Qjob} {A}.")


def _meeting(t: Tale) -> bool:
    begin_meeting(t)
    t.slots["food"] = t.chance.pick(tuple(world.FOODS))
    t.slots["done"] = t.chance.pick(("look for", "buy", "count", "sell"))
    t.say("They wanted to {done} {food}.")
    t.ask("Where did {P} meet {Q}?", "{A}")
    t.ask("Who met {Q}?", "{P}")
    t.ask("What did they want to {done}?", "{food}")
    well = t.chance.happens(0.5)
    if not t.brief:
        t.say(*(CHEERFUL if well else GLOOMY))
        t.say(*PLAIN)
    return well


def _borrowing(t: Tale) -> bool:
    t.meet("PQ", world.PEOPLE)
    thing, look, animal = (t.chance.pick(x) for x in (world.THINGS, world.LOOKS, world.ANIMALS))
    place = t.chance.pick(world.PLACES)
    days = t.chance.between(2, 9)
    well = t.chance.happens(0.5)
    t.state(thing=thing, look=look, animal=animal, A=place, n=world.NUMBERS[days], well=str(well))
    _introduce(t)
    t.say("{PShe} borrowed a {look} {thing} from {Q} the {Qjob}.")
    t.say("But {A} a {animal} ran into {Phim}, and the {thing} broke.")
    t.colour("{P} did not sleep that night.", "There were pieces everywhere.")
    t.ask("What did {P} borrow?", "a {look} {thing}")
    t.ask("Where did the {thing} break?", "{A}")
    t.ask("Which animal ran into {P}?", "a {animal}")
    t.ask("Who owned the {thing}?", "{Q}")
    if well:
        t.say("{P} told {Q} the truth at once and worked for {n} days to pay for it.")
        t.ask("How many days did {P} work?", "{n}")
    else:
        t.say("{P} said nothing about it for {n} days, and then {Q} found out.")
        t.ask("How many days did {P} say nothing?", "{n}")
    return well


def end(t: Tale, well: bool) -> None:
    mood: tuple[str, ...] = CHEERFUL if well else GLOOMY
    if t.alone:
        mood = tuple(m for m in mood if "{Q}" not in m and "They" not in m)
    t.colour(*(p for p in PLAIN if not (t.alone and "{Q}" in p)))
    t.colour(*mood)
    t.colour(*mood)
    while t.words() < SHORTEST:
        t.say(*mood)


PLOTS = {
    "lost": _lost,
    "market": _market,
    "mending": _mending,
    "feast": _feast,
    "journey": _journey,
    "stray": _stray,
    "contest": _contest,
    "borrowing": _borrowing,
    "meeting": _meeting,
}
