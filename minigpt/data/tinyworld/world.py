"""The world: who lives in it, what there is, and how the words are inflected.

Everything else in this package only arranges what stands here. The people of the general domain (a village)
never change: Anna is a baker in every story, so a language model can learn facts about her as well as
grammar. The target domain (ships and harbours in space) has other people, places, things and causes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Person:
    """One inhabitant; the same in every story.

    Attributes
    ----------
    name : str
    she : bool
        Whether the person's pronoun is "she".
    job : str
    trait, likes, dislikes, home : str
        Of villagers only. Likes and dislikes are foods in the plural; the home is a place without article.
    """

    name: str
    she: bool
    job: str
    trait: str = ""
    likes: str = ""
    dislikes: str = ""
    home: str = ""

    def words(self, letter: str) -> dict[str, str]:
        """Slots for templates: ``{P}`` the name, ``{Pshe}``, ``{PShe}``, ``{Pher}``, ``{Pjob}``, …"""
        she, her, him = ("she", "her", "her") if self.she else ("he", "his", "him")
        return {
            letter: self.name,
            letter + "she": she,
            letter + "She": she.capitalize(),
            letter + "her": her,
            letter + "him": him,
            letter + "job": self.job,
            letter + "trait": self.trait,
            letter + "likes": self.likes,
            letter + "dislikes": self.dislikes,
            letter + "home": self.home,
        }


def listed(text: str) -> tuple[str, ...]:
    """The items of a list with commas between them."""
    return tuple(item.strip() for item in text.split(","))


def _people(table: str) -> tuple[Person, ...]:
    rows = [line.split() for line in table.strip().splitlines()]
    return tuple(Person(name, pronoun == "she", *rest) for name, pronoun, *rest in rows)


# ---------------------------------------------------------------- general domain: the village
#   name  pronoun job        trait     likes     dislikes  home
PEOPLE = _people("""
    Anna   she  baker       kind      plums     onions    mill
    Tom    he   miller      patient   pears     eggs      river
    Mia    she  gardener    curious   cherries  turnips   orchard
    Ben    he   smith       strong    onions    plums     bridge
    Lucy   she  teacher     clever    apples    beans     school
    Jack   he   fisher      quiet     eggs      pears     pond
    Rosa   she  tailor      proud     buns      carrots   market
    Paul   he   carpenter   careful   carrots   cherries  forest
    Clara  she  nurse       gentle    pies      turnips   well
    Oscar  he   farmer      stubborn  beans     buns      barn
    Emma   she  painter     shy       cherries  apples    tower
    Hugo   he   shepherd    lazy      pies      beans     hill
    Nora   she  weaver      modest    pears     onions    river
    Max    he   postman     brave     plums     carrots   inn
    Ida    she  cook        busy      onions    cherries  market
    Leo    he   potter      funny     apples    eggs      mill
    Greta  she  innkeeper   loud      turnips   pears     inn
    Fred   he   ferryman    calm      beans     apples    river
    Lily   she  singer      young     buns      turnips   tower
    Karl   he   doctor      wise      carrots   buns      hill
    Ruth   she  beekeeper   strict    eggs      plums     meadow
    Sam    he   clockmaker  tidy      turnips   pies      school
    Eva    she  judge       fair      apples    carrots   well
    Noah   he   woodcutter  tall      pies      onions    forest
""")
PLACES = listed("""
    at the mill, in the barn, at the market, in the garden, by the river, on the bridge, in the forest,
    at the school, in the old tower, at the inn, by the well, on the hill, in the orchard, by the pond,
    in the meadow, in the church
""")
THINGS = listed("""
    kite, key, hat, lamp, drum, flute, ring, basket, book, scarf, bell, spoon, ball, coat, letter, knife,
    cup, brush, clock, doll
""")
LOOKS = ("red", "blue", "green", "yellow", "white", "black", "brown", "golden", "little", "new")
HIDING = ("under a stone", "in the tall grass", "behind a barrel", "between two logs", "under the dry leaves")
ANIMALS = ("dog", "cat", "goat", "duck", "hen", "rabbit", "fox", "crow", "donkey", "pig")
THIEVES = ("crow", "dog", "fox", "goat", "cat")
FOODS = {
    "apples": "apple",
    "plums": "plum",
    "pears": "pear",
    "eggs": "egg",
    "carrots": "carrot",
    "onions": "onion",
    "cherries": "cherry",
    "turnips": "turnip",
    "buns": "bun",
    "pies": "pie",
}
HARVEST = tuple(food for food in FOODS if food not in ("buns", "pies", "eggs"))
DISHES = listed("""
    bean soup, onion soup, fish stew, plum jam, apple cake, carrot bread, goat cheese, nut pie
""")
FIXTURES = ("fence", "roof", "gate", "door", "cart", "window", "wall", "shed")
TOOLS = ("hammer", "saw", "rope", "ladder", "spade", "bucket")
GIFTS = listed("""
    a bag of plums, a pot of honey, a loaf of bread, a round cheese, a jug of milk, a cherry pie
""")
SEASONS = ("spring", "summer", "autumn", "winter")
WEATHER = ("cold", "bright", "windy", "foggy", "mild", "cloudy")
TIMES = ("morning", "day", "evening", "afternoon")
NUMBERS = listed("""
    zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve
""")

# ---------------------------------------------------------------- target domain: ships and harbours in space
CREW = _people("""
    Vega   she  captain
    Orlo   he   pilot
    Tesk   he   engineer
    Juno   she  officer
    Hale   he   medic
    Rin    she  navigator
    Bram   he   trader
    Zora   she  gunner
    Dax    he   mechanic
    Ilse   she  steward
    Korr   he   miner
    Yara   she  scientist
    Pell   he   cadet
    Sable  she  inspector
""")
SHIPS = ("Heron", "Comet", "Meridian", "Swallow", "Orion", "Tempest", "Falcon", "Aurora")
STATIONS = listed("""
    at dock four, at the signal tower, in orbit of Titan, at the fuel depot, at the ring station,
    at the moon base, near the asteroid belt, at the outer gate
""")
DECKS = listed("""
    in the cargo hold, in the engine room, in the airlock, on the crew deck, in the med bay,
    in the reactor room, in the hangar, on the upper deck
""")
PARTS = ("sensor", "valve", "filter", "antenna", "beacon", "cable", "battery", "nozzle", "scanner", "radio")
GRADES = ("spare", "main", "port", "backup", "rear")
CARGO = ("fuel cells", "oxygen tanks", "ore crates", "medical kits", "ration packs", "solar panels")
MACHINES = ("drone", "loader", "robot", "probe")
HAZARDS = ("A solar flare", "A meteor", "A power surge", "A radiation burst", "A dust cloud")
KIT = ("a plasma torch", "a sealing kit", "a pressure gauge", "a torque wrench", "a circuit tester")


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def count(number: int, plural: str) -> str:
    """``count(3, "apples")`` is "three apples", ``count(1, "apples")`` is "one apple"."""
    return f"{NUMBERS[number]} {FOODS.get(plural, plural[:-1]) if number == 1 else plural}"


# ---------------------------------------------------------------- verbs for rewriting and translation
@dataclass(frozen=True)
class Verb:
    """The forms of one verb and the things that it is done to."""

    base: str
    third: str
    past: str
    participle: str
    objects: tuple[str, ...]


def _verbs(table: str) -> tuple[Verb, ...]:
    rows = [line.split() for line in table.strip().splitlines()]
    return tuple(Verb(row[0], row[1], row[2], row[3], tuple(row[4:])) for row in rows)


VERBS = _verbs("""
    paint  paints   painted  painted  fence door gate wall cart window
    open   opens    opened   opened   door gate window letter box basket
    close  closes   closed   closed   door gate window box shed book
    carry  carries  carried  carried  basket box lamp bucket ladder drum
    wash   washes   washed   washed   cup coat spoon window cart scarf
    find   finds    found    found    key ring hat letter ball book
    take   takes    took     taken    rope hammer saw lamp hat flute
    see    sees     saw      seen     kite tower cart fox goat crow
    feed   feeds    fed      fed      goat hen duck donkey rabbit pig
    mend   mends    mended   mended   fence roof coat wall clock kite
    hide   hides    hid      hidden   ring key letter doll cup knife
    buy    buys     bought   bought   scarf bell brush spoon coat donkey
    call   calls    called   called   dog cat goat donkey fox duck
    break  breaks   broke    broken   cup window clock saw drum lamp
    hold   holds    held     held     rope lamp ladder cup ball kite
    lose   loses    lost     lost     key ring ball hat brush doll
""")
QUALITIES = ("old", "new", "red", "blue", "green", "big", "small", "black", "white", "heavy")
