"""Customer messages that no customer wrote: seeded, composed from the hand-written parts beside.

Every name of a company is invented. Row `id` depends on the seed and the id alone, so that a
longer table begins with the shorter one; only `random.Random.random` is used, which Python
promises to repeat for a seed.
"""

import random
import re
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

PARTS = Path(__file__).parent / "parts"
START = datetime(2026, 1, 5, 6, 0, tzinfo=UTC)
CHANNELS = ("email", "chat", "review", "ticket")
BLANKS = ("", " ", "   \n\t ", "\n\n", "\u00a0", "\u3000 ")
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()

Item = TypeVar("Item")
Sections = dict[str, tuple[str, ...]]


class Message(NamedTuple):
    """One row of the demo's table."""

    id: int
    channel: str
    country: str | None
    created_at: datetime
    text: str | None


class Dice:
    """Choices that are the same for a seed, in every version of Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def below(self, number: int) -> int:
        """Return 0 to number - 1."""
        return int(self._random() * number)

    def between(self, low: int, high: int) -> int:
        """Return low to high, both included."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        """Say yes with this probability."""
        return self._random() < probability

    def pick(self, items: Sequence[Item]) -> Item:
        """Return one of the items."""
        return items[self.below(len(items))]

    def some(self, items: Sequence[Item], number: int) -> list[Item]:
        """Return so many different items, in any order; all, if there are fewer."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(min(number, len(left)))]


def messages(rows: int, seed: int) -> Iterator[Message]:
    """Yield the messages 1 to rows, in order of their time."""
    for number in range(1, rows + 1):
        yield message(number, seed)


def message(number: int, seed: int) -> Message:
    """Return message `number`; about 2 in 100 repeat the text of an earlier one exactly."""
    dice = Dice(seed * 1_000_003 + number)
    created = START + timedelta(minutes=number * 97 + dice.below(97), seconds=dice.below(60))
    # One in 269 is very long; the sixth of the first row's ids is, so that small tables have one.
    if number % 269 == 6:
        writer = Writer(dice, created)
        return Message(number, writer.channel, writer.country, created, writer.long_text())
    lot = dice.below(1000)
    if lot < 20 and number > 20:
        earlier = message(dice.between(1, number - 1), seed)
        if earlier.text is None or len(earlier.text) < 4000:
            return Message(number, earlier.channel, earlier.country, created, earlier.text)
    if lot < 32:
        return Message(number, dice.pick(CHANNELS), None, created, None)
    if lot < 41:
        return Message(number, dice.pick(CHANNELS), None, created, dice.pick(BLANKS))
    if lot < 210:
        channel = dice.pick(CHANNELS)
        country, text = foreign(dice)
        return Message(number, channel, country, created, spoil(text, dice, channel))
    writer = Writer(dice, created)
    text = spoil(writer.text(), dice, writer.channel)
    return Message(number, writer.channel, writer.country, created, text)


@cache
def sections(name: str) -> Sections:
    """Read a file of parts: `## title`, then one part a line."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in (PARTS / name).read_text("utf-8").splitlines():
        if line.startswith("## "):
            title = line[3:]
            found[title] = []
        elif line.strip() and not line.startswith("# "):
            found[title].append(line.replace("\\n", "\n"))
    return {title: tuple(lines) for title, lines in found.items()}


@cache
def listing(name: str, section: str) -> dict[str, tuple[str, ...]]:
    """Read the `key: a, b, c` lines of a section; semicolons separate where they occur."""
    return {
        key: tuple(value.strip() for value in re.split(";" if ";" in values else ",", values))
        for key, values in (
            line.split(": ", 1) for line in sections(name)[section] if not line.startswith("- ")
        )
    }


@cache
def words(section: str) -> tuple[str, ...]:
    """Read a section of english.txt that is one list, separated by semicolons."""
    return tuple(
        word.strip() for line in sections("english.txt")[section] for word in line.split(";")
    )


@cache
def countries() -> tuple[str, ...]:
    """List the countries that have names, places and a currency."""
    return tuple(title for title in sections("people.txt") if title != "sectors")


@cache
def languages() -> tuple[str, ...]:
    """List the sections of languages.txt, those of other scripts twice: they are rarer."""
    titles = tuple(sections("languages.txt"))
    return (*titles, *titles[:10])


class Writer:
    """Somebody who writes in English: a name, a place, a mood, a topic."""

    def __init__(self, dice: Dice, created: datetime) -> None:
        self.dice = dice
        self.created = created
        self.country = dice.pick(countries())
        self.home = listing("people.txt", self.country)
        self.channel = dice.pick(CHANNELS)
        self.topic = dice.pick(tuple(listing("people.txt", "sectors")))
        # 0 furious, 1 annoyed, 2 neutral, 3 mixed, 4 pleased, 5 delighted
        self.temper = dice.pick((0, 0, 1, 1, 1, 2, 2, 3, 4, 4, 4, 5, 5))
        self.mood = ("negative", "negative", "neutral", "mixed", "positive", "positive")[
            self.temper
        ]
        self.name = f"{dice.pick(self.home['given'])} {dice.pick(self.home['family'])}"
        self.kept: dict[str, str] = {"me": self.name, "me_first": self.name.split()[0]}

    def part(self, section: str) -> str:
        """Return one filled-in part of a section."""
        return self.fill(self.dice.pick(sections("english.txt")[section]))

    def parts(self, section: str, number: int) -> list[str]:
        """Return several different filled-in parts of a section."""
        return [
            self.fill(part) for part in self.dice.some(sections("english.txt")[section], number)
        ]

    def fill(self, template: str) -> str:
        """Choose the wordings and fill in the names of one part."""
        sentence: dict[str, str] = {}

        def value(match: re.Match[str]) -> str:
            name = match[1]
            if name == "n":
                return str(self.dice.between(2, 9))
            if name in self.kept:
                return self.kept[name]
            if name not in sentence:
                sentence[name] = self.value(name)
            return sentence[name]

        return re.sub(r"\{(\w+)\}", value, choose(template, self.dice))

    def value(self, name: str) -> str:
        """Make up what a name stands for; what a message is about stays the same in it."""
        dice = self.dice
        sectors = listing("people.txt", "sectors")
        keep = True
        if name == "company":
            value = dice.pick(sectors[self.topic])
        elif name == "city":
            value = dice.pick(self.home["city"])
        elif name == "country":
            value = self.home["country"][0]
        elif name == "city2":
            value = dice.pick(self.elsewhere()["city"])
        elif name == "product":
            value = dice.pick(words("products"))
        elif name == "street":
            value = dice.pick(self.home["street"])
        elif name == "order":
            value = (
                f"{dice.pick('ABCDKLRSTX')}{dice.pick('EHMNPQ')}-{dice.between(10_000, 999_999)}"
            )
        elif name.startswith("agent"):
            place = self.elsewhere()
            first, last = dice.pick(place["given"]), dice.pick(place["family"])
            self.kept |= {"agent": f"{first} {last}", "agent_first": first, "agent_family": last}
            return self.kept.get(name) or self.person()
        else:
            keep = False
            value = self.passing(name)
        if keep:
            self.kept[name] = value
        return value

    def passing(self, name: str) -> str:
        """Make up what may change from sentence to sentence."""
        dice = self.dice
        sectors = listing("people.txt", "sectors")
        if name == "person":
            return self.person()
        if name == "first":
            return dice.pick(self.home["given"])
        if name == "city3":
            return dice.pick(self.elsewhere()["city"])
        if name == "rival":
            others = [
                company for company in sectors[self.topic] if company != self.kept.get("company")
            ]
            return dice.pick(others)
        if name == "company2":
            return dice.pick(sectors[dice.pick(tuple(sectors))])
        if name == "amount":
            return amount(dice, self.home["money"][0])
        if name == "minutes":
            return str(dice.between(11, 94))
        if name == "weekday":
            return dice.pick(WEEKDAYS)
        if name in ("date", "later"):
            days = dice.between(2, 60) if name == "later" else -dice.between(1, 120)
            return date(dice, self.created + timedelta(days=days))
        if name == "hour":
            return dice.pick(("{}:{:02}", "{}.{:02}", "{}:{:02}")).format(
                dice.between(6, 22), dice.pick((0, 15, 20, 30, 45, 50))
            )
        if name == "phone":
            return f"555-01{dice.between(10, 99)}"
        if name == "code":
            return dice.pick(("E-", "0x", "ERR_", "")) + str(dice.between(100, 99_999))
        if name == "accent":
            return dice.pick(words("accents"))
        if name == "typo":
            letters = list(self.name)
            at = dice.below(len(letters) - 1)
            letters[at], letters[at + 1] = letters[at + 1], letters[at]
            return "".join(letters)
        raise KeyError(name)

    def person(self) -> str:
        """Make up a full name, mostly of the writer's own country."""
        dice = self.dice
        if dice.chance(0.03):
            return dice.pick(listing("languages.txt", dice.pick(languages()))["person"])
        place = self.home if dice.chance(0.6) else self.elsewhere()
        first, last = dice.pick(place["given"]), dice.pick(place["family"])
        if dice.chance(0.08):
            return f"{dice.pick(('Dr', 'Mrs', 'Mr', 'Prof.'))} {last}"
        return f"{last} {first}" if dice.chance(0.03) else f"{first} {last}"

    def elsewhere(self) -> dict[str, tuple[str, ...]]:
        """Return a country's names and places: half the time one's own."""
        if self.dice.chance(0.5):
            return self.home
        return listing("people.txt", self.dice.pick(countries()))

    def sentences(self, number: int) -> list[str]:
        """Compose what is said: the matter first, then what one thinks of it."""
        dice = self.dice
        tones = {"mixed": ("negative", "positive")}.get(self.mood, (self.mood,))
        pool = [part for tone in tones for part in sections("english.txt")[f"{self.topic} {tone}"]]
        matter = [self.fill(part) for part in dice.some(pool, (number + 1) // 2)]
        rest = number - len(matter)
        more = self.parts(f"more {self.mood}", rest)
        if len(more) < rest:
            more += self.parts("aside", rest - len(more))
        if self.mood != "neutral" and dice.chance(0.25):
            more += self.parts("aside", 1)
        if self.mood == "negative" and dice.chance(0.5):
            more += self.parts("demand negative", 1)
        if self.mood == "neutral" and dice.chance(0.5):
            more += self.parts("demand neutral", 1)
        if self.mood == "positive" and dice.chance(0.4):
            more += self.parts("thanks", 1)
        return [upper_first(sentence) for sentence in matter + more]

    def text(self) -> str:
        """Write a message as its channel has it: two words, or a page."""
        dice = self.dice
        tone = "negative" if self.mood == "mixed" else self.mood
        if self.channel == "chat":
            if dice.chance(0.3):
                return self.part(f"tiny {tone}")
            text = self.temperament(self.sentences(dice.between(1, 3)), " ")
            return text.lower().replace(".", "") if dice.chance(0.25) else text
        if self.channel == "review":
            text = self.temperament(self.sentences(dice.between(1, 5)), " ")
            stars = (1, 1, 3, 3, 5, 5)[self.temper]
            if dice.chance(0.3):
                return f"{'★' * stars}{'☆' * (5 - stars)} {text}"
            return f"{self.part(f'headline {tone}')}\n{text}" if dice.chance(0.6) else text
        if self.channel == "ticket":
            text = self.temperament(self.sentences(dice.between(1, 6)), dice.pick((" ", "\n")))
            head = dice.pick(
                (
                    "Subject: {}\nOrder: {order}\nCustomer: {me}\n\n",
                    "[#{order}] {}\n",
                    "{me} ({city}): ",
                    "Summary: {}\nReported by: {me}, {company2}\n---\n",
                    "",
                )
            )
            return self.fill(head.replace("{}", self.part(f"headline {tone}"))) + text
        long = dice.chance(0.15)
        body = self.sentences(dice.between(9, 16) if long else dice.between(2, 7))
        if long:
            body[3:3] = self.parts("event", dice.between(3, 9))
        paragraphs = [
            self.temperament(body[begin : begin + 4], " ") for begin in range(0, len(body), 4)
        ]
        return "\n\n".join([self.part("greeting"), *paragraphs, self.part("signoff")])

    def temperament(self, parts: list[str], between: str) -> str:
        """Join sentences, the furious louder and the delighted brighter than the rest."""
        dice = self.dice
        if self.temper == 0 and dice.chance(0.35):
            at = dice.below(len(parts))
            parts[at] = parts[at].upper()
        if self.temper in (0, 5) and dice.chance(0.4):
            parts = [re.sub(r"\.$", "!" * dice.between(1, 3), part) for part in parts]
        text = between.join(parts)
        if self.temper in (0, 1) and dice.chance(0.12):
            text += " " + dice.pick(words("emoji"))
        if self.temper in (4, 5) and dice.chance(0.25):
            text += " " + dice.pick(words("emoji positive")) * dice.between(1, 2)
        return text

    def long_text(self) -> str:
        """Write a letter or a support thread of some 1,500 to 2,600 words."""
        dice = self.dice
        self.mood, self.temper = dice.pick((("negative", 1), ("negative", 0), ("positive", 4)))
        size = dice.between(1500, 2600)
        thread = dice.chance(0.4)
        self.channel = "ticket" if thread else "email"
        lines = [self.part("greeting"), self.part("chronicle opening")]
        time, written = self.created - timedelta(days=160), 0
        while written < size:
            time += timedelta(minutes=dice.between(300, 6000))
            line = self.entry(time) if thread else self.paragraph(time)
            lines.append(line)
            written += len(line.split())
        lines += [self.part(f"chronicle closing {self.mood}"), self.part("signoff")]
        return ("\n" if thread else "\n\n").join(lines)

    def entry(self, time: datetime) -> str:
        """Write one line of a thread; another clerk has taken over."""
        self.move_on()
        said = " ".join(self.parts("thread", self.dice.between(1, 2)))
        if self.dice.chance(0.4):
            said = f"{said} {self.part('event')}"
        return f"[{time:%Y-%m-%d %H:%M}] {self.fill('{agent} ({company}, {city2})')}: {said}"

    def paragraph(self, time: datetime) -> str:
        """Write one paragraph of a letter: other places and other people again."""
        self.move_on()
        dice = self.dice
        said = self.parts("event", dice.between(1, 3))
        if dice.chance(0.6):
            said += self.parts(f"more {self.mood}", 1)
        if dice.chance(0.3):
            tone = self.dice.pick(("negative", self.mood))
            said.insert(1, self.part(f"{self.topic} {tone}"))
        text = " ".join(upper_first(sentence) for sentence in said)
        return f"{time.day} {MONTHS[time.month - 1]}: {text}" if dice.chance(0.2) else text

    def move_on(self) -> None:
        """Forget who and what the last paragraph was about."""
        for name in ("agent", "agent_first", "agent_family", "city2", "order"):
            self.kept.pop(name, None)
        if self.dice.chance(0.15):
            self.kept.pop("product", None)


def foreign(dice: Dice) -> tuple[str, str]:
    """Write a message in another language; return the country and the text."""
    title = dice.pick(languages())
    names = listing("languages.txt", title)
    templates = [line[2:] for line in sections("languages.txt")[title] if line.startswith("- ")]
    country = title.split()[1]
    money = listing("people.txt", country)["money"][0] if country in countries() else "$"

    def value(match: re.Match[str]) -> str:
        name = match[1]
        return amount(dice, money) if name == "amount" else dice.pick(names[name])

    said = [
        re.sub(r"\{(\w+)\}", value, choose(template, dice))
        for template in dice.some(templates, dice.pick((1, 1, 1, 2, 2, 3)))
    ]
    text = dice.pick((" ", "\n")).join(upper_first(sentence) for sentence in said)
    if dice.chance(0.2):
        text += f"\n\n{dice.pick(names['person'])}, {dice.pick(names['city'])}"
    return country, text


def choose(template: str, dice: Dice) -> str:
    """Take one wording of each `[this|that]`."""
    return re.sub(
        r"\[([^\[\]]*\|[^\[\]]*)\]", lambda match: dice.pick(match[1].split("|")), template
    )


def amount(dice: Dice, money: str) -> str:
    """Make up a sum of money, as somebody might write it."""
    number = dice.pick((dice.between(3, 99), dice.between(100, 2400)))
    cents = dice.pick(("", "", ".50", ".99", ".00", f".{dice.between(10, 98)}"))
    if money in ("€", "zł", "₴") and dice.chance(0.7):
        return f"{number}{cents.replace('.', ',')} {money}"
    if money in ("¥", "₩", "₦", "KSh"):
        return f"{money}{number * 100:,}"
    return f"{money}{number}{cents}"


def date(dice: Dice, day: datetime) -> str:
    """Write a day as somebody might write it."""
    month = MONTHS[day.month - 1]
    ending = {1: "st", 2: "nd", 3: "rd"}.get(
        day.day % 10 if day.day not in (11, 12, 13) else 0, "th"
    )
    return dice.pick(
        (
            f"{day.day} {month}",
            f"{month} {day.day}",
            f"{day:%Y-%m-%d}",
            f"the {day.day}{ending} of {month}",
        )
    )


def upper_first(text: str) -> str:
    """Begin with a capital, where the script has any."""
    return text[:1].upper() + text[1:]


def spoil(text: str, dice: Dice, channel: str) -> str:
    """Do to a text what keyboards, phones and web forms do to texts."""
    if dice.chance(0.12):  # what some phones and file systems write: accents as marks of their own
        text = unicodedata.normalize("NFD", text)
    if channel == "chat" and dice.chance(0.25) and len(text) > 12:
        for _ in range(dice.between(1, 3)):
            at = dice.between(1, len(text) - 3)
            if text[at : at + 2].isascii() and text[at : at + 2].isalpha():
                text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    lot = dice.below(200)
    if lot == 0:
        text = text.replace(" ", "\u00a0")
    elif lot == 1:
        text = text.replace(". ", ".<br>").replace("'", "&#39;")
    elif lot == 2:
        text = f"\ufeff{text}\u200b"
    elif lot == 3:
        text = f"<b>{text}</b> <script>alert('hello')</script>"
    elif lot == 4:
        text = text.replace("\n", "\r\n") + "\r\n> On an earlier day somebody wrote:\r\n> > ?"
    return text
