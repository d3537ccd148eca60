"""The vocabulary of the text tasks.

Small, so that the demo model's tokenizer has a token for nearly every word, and of words that a
person would use in a request of their own.
"""

from __future__ import annotations

__all__ = [
    "CITIES",
    "COLOURS",
    "FOODS",
    "LETTERS",
    "LIST_WORDS",
    "NAMES",
    "PRODUCTS",
    "THINGS",
    "joined",
]

NAMES = (
    "Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Henry",
    "Ivan", "Julia", "Kim", "Leo", "Maria", "Nina", "Oscar", "Paul",
)  # fmt: skip
CITIES = (
    "Paris", "London", "Berlin", "Rome", "Madrid", "Oslo", "Vienna", "Lisbon",
    "Tokyo", "Delhi", "Cairo", "Sydney", "Boston", "Beijing", "Seoul", "Lima",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "orange", "purple")
THINGS = (
    "apples", "pears", "books", "pens", "coins", "cards", "balls", "cookies",
    "stamps", "shells", "cups", "flowers",
)  # fmt: skip
FOODS = ("tea", "rice", "milk", "bread", "soup", "cake", "pizza", "fish")
PRODUCTS = ("lamp", "chair", "table", "phone", "bag", "clock", "bike", "coat")
LIST_WORDS = (
    *COLOURS, *FOODS, *PRODUCTS,
    "dog", "cat", "bird", "sun", "moon", "tree", "river", "stone",
)  # fmt: skip
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")


def joined(words: list[str]) -> str:
    """As a sentence lists them: "tea", "tea and rice", "tea, rice and milk"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
