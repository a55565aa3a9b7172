"""A small grammar that makes captions of people doing things: a corpus for the demo, in which an axis has a meaning."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Scene:
    """Who does what, with what, and where: one of each makes a caption."""

    who: tuple[str, ...]
    does: tuple[str, ...]
    where: tuple[str, ...]


_LABOUR = _Scene(
    who=(
        "a bricklayer",
        "two roofers",
        "a welder in a scorched apron",
        "three men in hard hats",
        "an old blacksmith",
        "a lumberjack",
        "four dock workers",
        "a bearded man in overalls",
        "two plumbers",
        "a mason covered in dust",
        "a road crew",
        "a miner with a headlamp",
        "a scaffolder",
        "two movers",
        "a man with rolled-up sleeves",
    ),
    does=(
        "hauls sacks of cement",
        "splits logs with a heavy axe",
        "pours concrete into a wooden frame",
        "hammers a glowing iron bar",
        "shovels wet gravel",
        "lifts a steel beam with a chain",
        "drills into a wall",
        "digs a trench for a water pipe",
        "stacks timber",
        "breaks up the pavement with a jackhammer",
        "carries a bathtub up the stairs",
        "mixes mortar in a barrow",
        "cuts a rusty pipe with a grinder",
        "unloads crates of engine parts",
        "tightens the bolts of a crane",
    ),
    where=(
        "at a building site",
        "in a shipyard",
        "beside the railway",
        "under a half-built bridge",
        "in a dim workshop",
        "on top of a warehouse",
        "at the edge of a quarry",
        "behind the old factory",
        "in the rain",
    ),
)
_SPORT = _Scene(
    who=(
        "a girl in a red jersey",
        "two girls in shin guards",
        "a teenage gymnast",
        "the girls of a school team",
        "a young goalkeeper",
        "a girl with a ponytail",
        "three young swimmers",
        "a figure skater of about twelve",
        "a girl on a diving board",
        "two sisters in tracksuits",
        "a volleyball captain",
        "a young fencer",
    ),
    does=(
        "kicks the ball past a defender",
        "serves over the net",
        "practises a backflip",
        "sprints for the finish line",
        "swings at a fast pitch",
        "leaps over the last hurdle",
        "spins on one skate",
        "throws a javelin",
        "dribbles around two opponents",
        "raises a trophy with both hands",
        "does a cartwheel",
        "blocks a shot at the last second",
        "warms up before the relay",
        "high-fives the whole bench",
    ),
    where=(
        "on a muddy pitch",
        "in the school gym",
        "during the county final",
        "in front of a cheering crowd",
        "at an indoor arena",
        "on the beach court",
        "under bright floodlights",
        "at the summer camp",
    ),
)
_WOMEN = _Scene(
    who=(
        "a woman in a lab coat",
        "two nurses",
        "a grandmother in a yellow scarf",
        "a woman with a laptop",
        "the owner of a flower shop",
        "a bride and her aunt",
        "a tall woman wearing sunglasses",
        "a surgeon",
        "an architect in a grey suit",
        "three women at a table",
        "a ceramics teacher",
        "a young lawyer",
    ),
    does=(
        "examines a slide under the microscope",
        "arranges tulips in a vase",
        "knits a sweater",
        "sketches a floor plan",
        "tells a long story",
        "waits for the tram",
        "paints the rim of a bowl",
        "argues politely on the phone",
        "tries on a hat",
        "reads the morning paper",
        "shares a pot of mint tea",
        "counts coins at the till",
        "wraps a present",
        "explains a chart to a visitor",
    ),
    where=(
        "by the window",
        "in a quiet library",
        "at a corner cafe",
        "in a crowded market",
        "on the hospital's third floor",
        "near the fountain",
        "in the back of a bookshop",
        "at the bus station",
        "on a sunny balcony",
    ),
)
_CHILDREN = _Scene(
    who=(
        "a toddler in striped pyjamas",
        "two brothers",
        "a boy with a missing tooth",
        "a class of first graders",
        "a small child",
        "the twins next door",
        "a baby in a high chair",
        "four cousins",
        "a boy in rubber boots",
    ),
    does=(
        "jumps into a puddle",
        "builds a castle out of cardboard",
        "blows soap bubbles",
        "feeds breadcrumbs to the ducks",
        "hides under the kitchen table",
        "smears jam on a clean shirt",
        "chases a paper kite",
        "draws a purple dinosaur",
        "giggles at a hand puppet",
        "shares an ice cream",
        "stares at a snail",
        "races down the slide",
    ),
    where=(
        "in the back yard",
        "at a birthday party",
        "on the playground",
        "in the kindergarten",
        "during the first snow",
        "at the zoo",
        "on grandmother's carpet",
        "in a blanket fort",
    ),
)
_DOGS = _Scene(
    who=(
        "a spotted terrier",
        "two greyhounds",
        "a wet labrador",
        "a sheepdog with one blue eye",
        "a tiny poodle",
        "an old bulldog",
        "a pack of huskies",
        "a brown puppy",
        "a stray dog",
        "a beagle on a long leash",
    ),
    does=(
        "shakes off the water",
        "fetches a chewed stick",
        "barks at the mail van",
        "rolls in the leaves",
        "sniffs at a picnic basket",
        "herds a dozen sheep",
        "sleeps in the sun",
        "tugs at a rope",
        "leaps after a frisbee",
        "digs up a bone",
        "pulls a sled",
        "begs for a biscuit",
    ),
    where=(
        "along the shore",
        "in a field of clover",
        "beside a campfire",
        "on the porch",
        "across the frozen lake",
        "at the dog park",
        "in fresh snow",
        "behind a white fence",
    ),
)
_MUSIC = _Scene(
    who=(
        "a street violinist",
        "a jazz trio",
        "the church choir",
        "a drummer with green hair",
        "an accordion player",
        "a cellist in black",
        "a brass band",
        "two folk singers",
        "a pianist",
        "a bass player with his eyes closed",
    ),
    does=(
        "plays a slow waltz",
        "tunes up before the concert",
        "rehearses the second verse",
        "bows to the audience",
        "improvises over a walking bass",
        "hums a lullaby",
        "strikes the final chord",
        "tests the microphone",
        "turns the page of a score",
        "plays the same riff again",
    ),
    where=(
        "in the subway",
        "on a small wooden stage",
        "at a wedding",
        "in an empty hall",
        "at the harbour festival",
        "under a string of lanterns",
        "in a smoky club",
        "on the steps of the museum",
    ),
)
_SCENERY = _Scene(
    who=(
        "a narrow river",
        "the old lighthouse",
        "a row of poplars",
        "a rusty tractor",
        "the harbour wall",
        "a snow-capped ridge",
        "an abandoned chapel",
        "a field of sunflowers",
        "a line of parked bicycles",
        "a wooden pier",
        "the market square",
    ),
    does=(
        "lies in thick fog",
        "glows in the evening light",
        "casts a long shadow",
        "stands half hidden by ivy",
        "shimmers in the heat",
        "is reflected in the water",
        "stretches towards the horizon",
        "is dusted with frost",
        "looks deserted",
    ),
    where=(
        "at dawn",
        "below a sky of torn clouds",
        "after the storm",
        "near the border",
        "at the end of the valley",
        "on a winter morning",
        "just outside the village",
        "before the first train",
    ),
)
_SCENES = (_LABOUR, _SPORT, _WOMEN, _CHILDREN, _DOGS, _MUSIC, _SCENERY)

_WHILE = (
    "while a neighbour watches from a doorway",
    "while the radio plays an old song",
    "as the sun goes down",
    "while somebody takes a photograph with a phone",
    "as a flock of gulls passes overhead",
    "while a yellow bus waits at the crossing",
    "as the bells of the town begin to ring",
    "while two strangers talk about the weather",
    "as the wind picks up",
)
_OPENINGS = (
    "in the early morning,",
    "on a hot afternoon,",
    "late in the evening,",
    "once again,",
    "a few minutes before noon,",
    "on the last day of the holidays,",
    "without any hurry,",
)
MAX_WORDS = 25
_PLURAL_HEADS = ("two ", "three ", "four ", "the girls ", "the twins ")
_VERBS = {"is": "are", "does": "do"}


def captions(n: int, seed: int = 0) -> list[str]:
    """`n` distinct captions of 4 to 25 words, the same for the same seed on every machine.

    Raises:
        ValueError: `n` is negative or more than the grammar readily gives (20,000).

    Examples:
        >>> captions(2)[0].endswith(".")
        True
    """
    if not 0 <= n <= 20_000:
        raise ValueError(f"n: got {n}; it must be between 0 and 20,000")
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < n:
        caption = _caption(rng)
        if len(caption.split()) <= MAX_WORDS:
            found[caption] = None
    return list(found)


def _caption(rng: random.Random) -> str:
    scene = _pick(rng, _SCENES)
    who = _pick(rng, scene.who)
    does = _pick(rng, scene.does)
    words = [who, _agree(who, does)]
    if rng.random() < 0.7:
        words.append(_pick(rng, scene.where))
    if rng.random() < 0.3:
        words.append(_pick(rng, _WHILE))
    if rng.random() < 0.15:
        words.insert(0, _pick(rng, _OPENINGS))
    text = " ".join(words)
    return text[0].upper() + text[1:] + "."


def _agree(who: str, does: str) -> str:
    """The verb phrase in the number of its subject: "splits logs" of two men is "split logs"."""
    if not who.startswith(_PLURAL_HEADS) and " and " not in who:
        return does
    verb, _, rest = does.partition(" ")
    if verb in _VERBS:
        plural = _VERBS[verb]
    elif verb.endswith("ies") and verb != "lies":
        plural = verb.removesuffix("ies") + "y"
    else:
        plural = verb.removesuffix("es" if verb.endswith(("ches", "xes")) else "s")
    return f"{plural} {rest}"


def _pick(rng: random.Random, options: Sequence[_T]) -> _T:
    # Of random's methods only random() is promised to give the same numbers in every version of Python.
    return options[int(rng.random() * len(options))]
