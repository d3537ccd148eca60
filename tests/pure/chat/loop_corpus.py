"""Texts that repeat themselves for a reason: code, tables, lists and the like, made from seeds."""

import json
from random import Random

WORDS = [
    *("amber", "basin", "cargo", "delta", "ember", "field", "grain", "harbor", "island", "jacket"),
    *("kernel", "ladder", "meadow", "needle", "orbit", "paper", "quartz", "river", "signal"),
    *("timber", "update", "valley", "window", "yellow", "zenith", "total", "count", "name"),
]
TYPES = ["int", "str", "float", "bool", "bytes"]


def document(seed):
    """The text of `seed`, a few thousand characters: every kind comes in turn."""
    random = Random(seed)
    return KINDS[seed % len(KINDS)](random)


def word(random):
    return random.choice(WORDS)


def rows(random, least=40, most=160):
    return range(1, random.randint(least, most))


def dataclass_code(random):
    """Fields, checks and tests that differ in a name alone."""
    lines = ["from dataclasses import dataclass", "", ""]
    for _ in rows(random, 3, 9):
        name, fields = word(random).title(), random.sample(WORDS, random.randint(2, 9))
        lines += ["@dataclass", f"class {name}:"]
        lines += [f"    {field}: {random.choice(TYPES)} = 0" for field in fields]
        lines += ["", "    def check(self) -> None:"]
        for field in fields:
            lines += [f"        if self.{field} < 0:", f"            raise ValueError('{field}')"]
        lines += ["", ""]
    return "\n".join(lines)


def test_code(random):
    lines = ["import pytest", ""]
    for i in rows(random, 20, 50):
        lines += [
            "",
            f"def test_case_{i}():",
            f"    assert solve({i}) == {random.randint(0, 9)}",
            "",
        ]
    return "\n".join(lines)


def branches(random):
    lines = ["def kind_of(code):"]
    for i in rows(random):
        lines += [f"    if code == {i}:", f'        return "{word(random)}"']
    return "\n".join([*lines, "    return None"])


def deep_markup(random):
    depth = random.randint(10, 25)
    opened = [f"{'  ' * i}<div>" for i in range(depth)]
    lists = [f"{'  ' * depth}<li>{word(random)} {i}</li>" for i in rows(random)]
    return "\n".join([*opened, *lists, *(f"{'  ' * i}</div>" for i in reversed(range(depth)))])


def markdown_table(random):
    """Columns of which most cells say the same."""
    num_columns = random.randint(2, 9)
    head = "| " + " | ".join(random.choices(WORDS, k=num_columns)) + " |"
    lines = [head, "|" + " --- |" * num_columns]
    for i in rows(random):
        cells = [str(i), *(random.choice(["yes", "no", "-", "0"]) for _ in range(num_columns - 1))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sparse_table(random):
    """Nothing but the number of a row tells it from the next one."""
    tail = " | ".join(["-"] * random.randint(1, 8))
    return "\n".join(f"| {i} | {tail} |" for i in rows(random))


def csv(random):
    lines = ["id,name,amount,currency,status"]
    for i in rows(random):
        state = random.choice(["paid", "paid", "paid", "open"])
        lines.append(f"{i},{word(random)},{random.randint(0, 20)}.00,EUR,{state}")
    return "\n".join(lines)


def log_lines(random):
    return "\n".join(
        f"2026-01-02 03:{i // 60:02}:{i % 60:02} INFO worker {random.randint(0, 3)}: step done"
        for i in rows(random)
    )


def json_array(random):
    names = random.sample(WORDS, random.randint(2, 6))
    values = [{name: random.randint(0, 2) for name in names} for _ in rows(random, 30, 80)]
    return json.dumps(values, indent=random.choice([None, 2]))


def numbers(random):
    """Few different ones, as in a matrix of zeros and ones."""
    lines = []
    for _ in rows(random, 10, 40):
        lines.append("[" + ", ".join(random.choices("0001", k=random.randint(5, 30))) + "],")
    return "\n".join(lines)


def numbered_list(random):
    verb = word(random)
    return "\n".join(f"{i}. Take the {verb} to the {word(random)}." for i in rows(random))


def counting(random):
    step = random.randint(1, 9)
    return ", ".join(str(i * step) for i in range(1, random.randint(200, 600)))


def multiplication(random):
    of = random.randint(2, 99)
    return "\n".join(f"{of} x {i} = {of * i}" for i in rows(random))


def prose(random):
    """Sentences of one build, some of them word for word the same, as a song's refrain is."""
    refrain = f"And the {word(random)} went down to the {word(random)} again. " * 3
    pieces = []
    for _ in rows(random, 8, 30):
        for _ in range(random.randint(1, 4)):
            pieces.append(f"The {word(random)} is not the {word(random)}, said the {word(random)}.")
        pieces.append(refrain)
    return " ".join(pieces)


def thinking_aloud(random):
    lines = []
    for i in rows(random, 30, 90):
        lines.append(
            f"Wait, let me check {word(random)} again. Case {i}: the {word(random)} holds."
        )
    return "\n\n".join(lines)


def separators(random):
    """Lines of one character, as long as lines are."""
    lines = []
    for _ in rows(random, 10, 30):
        lines += [
            random.choice("-=#*_~") * random.randint(20, 100),
            f"{word(random)} {word(random)}",
        ]
    return "\n".join(lines)


KINDS = [
    dataclass_code, test_code, branches, deep_markup, markdown_table, sparse_table, csv, log_lines,
    json_array, numbers, numbered_list, counting, multiplication, prose, thinking_aloud, separators,
]  # fmt: skip
