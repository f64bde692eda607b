"""Masks in answers: what a customer is told may hold the company's own address, which is taught as it is.

What a model's policy names in `own_contacts` is never masked in an answer. Anything else is, and its keyed hash is
kept, so that a string that many were given can be recognised (`streams.prepare.masks`). Cards, account numbers and keys
always are.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.policy import ModelPolicy
from streams.prepare.pii import scrub

ALWAYS = frozenset(("key", "iban", "card"))


@dataclass(frozen=True)
class ScrubbedAnswers:
    """Answers as they are stored, and as they would be without the masks of what may be the company's own (None where
    there are none); `masks` are keyed hashes of those, `always` says that something was masked for good."""

    masked: dict[str, str]
    open: dict[str, str] | None
    masks: list[str]
    always: bool

    @property
    def any_masked(self) -> bool:
        return bool(self.masks) or self.always


def scrub_answers(answers: Mapping[str, str], policy: ModelPolicy, key: bytes, found: Counter[str]) -> ScrubbedAnswers:
    """Mask what is personal in answers, counting it in `found` by kind; `key` hashes what may be said again."""
    own = frozenset(map(plain, policy.own_contacts))
    held: dict[str, None] = {}
    always = False

    def keep(kind: str, text: str) -> bool:
        nonlocal always
        if kind in ALWAYS:
            always = True
            return False
        if plain(text) in own:
            return True
        held[hmac.digest(key, f"mask\0{plain(text)}".encode(), "sha256").hex()[:32]] = None
        return False

    regions = policy.phone_regions
    masked = {}
    for name, text in answers.items():
        masked[name], kinds = scrub(text, regions, keep)
        found.update(kinds)
    if not held:
        return ScrubbedAnswers(masked, None, [], always)
    opened = {name: scrub(text, regions, lambda kind, _: kind not in ALWAYS)[0] for name, text in answers.items()}
    return ScrubbedAnswers(masked, opened, sorted(held), always)


def plain(text: str) -> str:
    """A contact as it is compared: a number by its digits, anything else by its letters."""
    digits = "".join(filter(str.isdigit, text))
    return digits if len(digits) >= 7 and "@" not in text else text.strip().casefold()
