"""The target domain: the terse logs of ships and harbours in space. Plots as in `village`."""

from __future__ import annotations

from minigpt.data.tinyworld import world
from minigpt.data.tinyworld.tale import SHORTEST, Tale

ROUTINE = (
    "Hull sound, air clean, [engines|reactor] stable.",
    "Fuel at [thirty|fifty|seventy|ninety] percent.",
    "Course unchanged.",
    "{P} on watch[ until noon| until midnight|].",
    "Radio contact with [the harbour|the tower|control] every hour.",
    "Gravity normal on all decks.",
    "Crew count complete.",
    "Next report [at noon|at midnight|tomorrow].",
    "Speed reduced near the [asteroids|outer ring|beacon].",
    "Temperature in the hangar [low|high|normal].",
    "Drill held for the whole crew.",
    "Airlock seals checked twice.",
)
SUCCESS = ("Morale high.", "All systems ready.", "Mission on schedule.", "Commendation entered for {P}.")
FAILURE = ("Morale low.", "Mission behind schedule.", "Repairs requested from control.", "Inquiry ordered.")


def _log(t: Tale) -> None:
    ship, day = t.chance.pick(world.SHIPS), t.chance.between(2, 99)
    t.state(ship=ship)
    t.slots["day"] = str(day)
    t.say("Log of the {ship}, day {day}.", "Day {day}, log of the {ship}.")
    t.colour(*ROUTINE)


def _missing_part(t: Tale) -> bool:
    t.meet("PQ", world.CREW)
    here, there = t.chance.some(world.DECKS, 2)
    part, grade, machine = (t.chance.pick(x) for x in (world.PARTS, world.GRADES, world.MACHINES))
    well = t.chance.happens(0.7)
    t.state(A=here, B=there, part=part, grade=grade, machine=machine, well=str(well))
    _log(t)
    t.say("{Pjob} {P} reported the {grade} {part} missing.")
    t.say("{P} searched {A} without result.")
    t.colour(*ROUTINE)
    t.ask("What did {P} report missing?", "the {grade} {part}")
    t.ask("Where did {P} search?", "{A}")
    t.ask("Who reported the {part} missing?", "{P}")
    if well:
        t.say("{Qjob} {Q} located it {B}.")
        t.say("A {machine} had moved it there by mistake.", "Cause: a {machine} had moved it during loading.")
        t.ask("Who located the {part}?", "{Q}")
        t.ask("Where was the {part} located?", "{B}")
    else:
        t.say("{Qjob} {Q} searched {B}, also without result.")
        t.say("Cause: a {machine} had dumped it into space.")
        t.ask("Where did {Q} search?", "{B}")
    return well


def _cargo(t: Tale) -> bool:
    t.meet("PQ", world.CREW)
    station, goods, hazard = (t.chance.pick(x) for x in (world.STATIONS, world.CARGO, world.HAZARDS))
    loaded = t.chance.between(4, 12)
    gone = t.chance.between(1, loaded - 2)
    numbers = {"n": loaded, "k": gone, "left": loaded - gone}
    t.state(B=station, goods=goods, hazard=hazard, **{name: world.NUMBERS[v] for name, v in numbers.items()})
    _log(t)
    t.say("Loaded {n} {goods} {B}.")
    t.say("{Qjob} {Q} signed for the cargo.")
    t.colour(*ROUTINE)
    t.say("{hazard} struck the hold and destroyed {k} of them.")
    t.say("{left} {goods} left.", "Remaining cargo: {left} {goods}.")
    t.say("{Pjob} {P} secured the rest.")
    t.ask("How many {goods} were loaded?", "{n}")
    t.ask("How many {goods} were left?", "{left}")
    t.ask("Where was the cargo loaded?", "{B}")
    t.ask("Who signed for the cargo?", "{Q}")
    t.ask("Who secured the rest?", "{P}")
    return gone <= loaded // 2


def _repair(t: Tale) -> bool:
    t.meet("PQ", world.CREW)
    part, grade, kit, deck = (t.chance.pick(x) for x in (world.PARTS, world.GRADES, world.KIT, world.DECKS))
    hazard, hours = t.chance.pick(world.HAZARDS), t.chance.between(2, 12)
    well = t.chance.happens(0.6)
    t.state(part=part, grade=grade, kit=kit, B=deck, hazard=hazard, n=world.NUMBERS[hours], well=str(well))
    _log(t)
    t.say("{hazard} damaged the {grade} {part} {B}.")
    t.say("{Pjob} {P} sent {Qjob} {Q} to repair it with {kit}.")
    t.colour(*ROUTINE)
    t.say("Repair took {n} hours.", "{Q} worked {n} hours without a break.")
    t.say("Tests passed." if well else "Tests failed twice.")
    t.ask("What was damaged?", "the {grade} {part}")
    t.ask("Where was the {part}?", "{B}")
    t.ask("Who did the repair?", "{Q}")
    t.ask("What did {Q} use?", "{kit}")
    t.ask("How many hours did the repair take?", "{n}")
    return well


def _distress(t: Tale) -> bool:
    t.meet("PQR", world.CREW)
    station, deck = t.chance.pick(world.STATIONS), t.chance.pick(world.DECKS)
    aboard = t.chance.between(2, 12)
    well = t.chance.happens(0.6)
    t.state(B=station, A=deck, n=world.NUMBERS[aboard], well=str(well))
    _log(t)
    t.state(other=t.chance.pick([s for s in world.SHIPS if s != t.slots["ship"]]))
    t.say("{Pjob} {P} received a distress call from the {other} {B}.")
    t.say("Fire {A}, {n} people aboard.")
    t.say("{Qjob} {Q} [changed course|turned the ship] at once.")
    t.colour(*ROUTINE)
    t.say("All {n} brought over safely by {R}." if well else "{R} launched the shuttle, but nobody answered.")
    t.ask("Which ship sent a distress call?", "the {other}")
    t.ask("Who received the call?", "{P}")
    t.ask("Where was the {other}?", "{B}")
    t.ask("Where was the fire?", "{A}")
    t.ask("How many people were aboard?", "{n}")
    return well


def _delay(t: Tale) -> bool:
    t.meet("PQ", world.CREW)
    bound, held = t.chance.some(world.STATIONS, 2)
    goods, cause = t.chance.pick(world.CARGO), t.chance.pick(("flares", "traffic", "debris", "an inspection"))
    days = t.chance.between(2, 12)
    well = t.chance.happens(0.5)
    t.state(A=bound, B=held, goods=goods, cause=cause, n=world.NUMBERS[days], well=str(well))
    _log(t)
    t.say("Delivery of {goods} due {A}.")
    t.say("Because of {cause}, held {B} for {n} days.")
    t.say("{Pjob} {P} used the time to train {Qjob} {Q}.")
    t.colour(*ROUTINE)
    t.say("Clearance given, delivery made." if well else "Clearance refused, delivery cancelled.")
    t.ask("Where was the ship held?", "{B}")
    t.ask("How many days was the ship held?", "{n}")
    t.ask("Where was the delivery due?", "{A}")
    t.ask("Who trained {Q}?", "{P}")
    t.ask("What was the delivery?", "{goods}")
    return well


def end(t: Tale, well: bool) -> None:
    t.colour(*ROUTINE)
    t.say(*(SUCCESS if well else FAILURE))
    while t.words() < SHORTEST - 2:
        t.say(*ROUTINE)
    t.say("End of log.", "Log closed.")


PLOTS = {
    "missing part": _missing_part,
    "cargo": _cargo,
    "repair": _repair,
    "distress": _distress,
    "delay": _delay,
}
