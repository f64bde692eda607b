"""Scrubbing: personal data and secrets in a text become `[kind]`, before a shard is written.

Checksums and numbering plans are the libraries' (python-stdnum, phonenumbers); what stands here is where in a text
they are asked. Masks are tried in this order: a token may hold an address, an account number may look like a phone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence

import phonenumbers
from stdnum import iban as stdnum_iban
from stdnum import luhn as stdnum_luhn

_AT_OR_DIGIT = re.compile(r"[@\d]")
_SEVEN_DIGITS = re.compile(r"\d(?:[\s().\-/]*\d){6}")


def _suspicious(text: str) -> bool:
    """Nothing is masked in a text without any of these: many texts are done here."""
    return bool(_AT_OR_DIGIT.search(text)) or _long_word(text) or "BEGIN" in text or text.count(":") > 1


def _long_word(text: str) -> bool:
    """Whether it has a word of 16 characters, as every key has."""
    return len(text) > 15 and max(map(len, text.split()), default=0) > 15


# Kind, where a text without it need not be looked through (the cheaper test), and what is looked for.
_MASKS: tuple[tuple[str, Callable[[str], object], re.Pattern[str]], ...] = (
    ("key", lambda text: "BEGIN" in text,
     re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)),
    ("key", _long_word,
     re.compile(r"\b(?:(?:sk|pk|rk|ghp|gho|ghs|glpat|hf|xox[abp])[-_]|AKIA|ASIA|AIza)[A-Za-z0-9_-]{16,}\b")),
    ("key", lambda text: "eyJ" in text,
     re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")),  # a JSON web token
    ("key", lambda text: "earer " in text, re.compile(r"(?<=[Bb]earer )[A-Za-z0-9._~+/-]{16,}=*")),
    # Tried once per run of characters: from every one of them, a long run without an @ would cost its square.
    ("email", lambda text: "@" in text, re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b")),
    ("iban", re.compile(r"[A-Z]{2}\d{2}").search,
     re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b")),
    ("card", _SEVEN_DIGITS.search, re.compile(r"\b\d(?:[ -]?\d){12,18}\b")),
    ("ip", re.compile(r"\d\.\d{1,3}\.\d").search,
     re.compile(r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b")),
    ("ip", lambda text: text.count(":") > 1,
     re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![\w:])")),
)  # fmt: skip


def card(text: str) -> bool:
    """A payment card's number: 13 to 19 digits with the checksum of ISO/IEC 7812-1."""
    digits = text.replace(" ", "").replace("-", "")
    return 13 <= len(digits) <= 19 and bool(stdnum_luhn.is_valid(digits))


def iban(text: str) -> bool:
    """A bank account's number by ISO 13616: its country's form and mod 97 = 1 (not what its bank adds to that)."""
    return bool(stdnum_iban.is_valid(text, check_country=False))


def ip(text: str) -> bool:
    """An address of IPv4 or IPv6 (a time such as 12:30:00 is none)."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


_CHECKS: dict[str, Callable[[str], bool]] = {"card": card, "iban": iban}


def scrub(text: str, phone_regions: Sequence[str] = ()) -> tuple[str, dict[str, int]]:
    """`text` with personal data replaced by `[kind]`, and how often each kind was found.

    Phone numbers with a country's code are found everywhere, those without only for `phone_regions` (ISO 3166).
    """
    found: dict[str, int] = {}
    if not _suspicious(text):
        return text, found
    for kind, possible, pattern in _MASKS:
        if possible(text):
            text = _masked(text, kind, pattern, found)
    return _without_phones(text, phone_regions, found), found


def _masked(text: str, kind: str, pattern: re.Pattern[str], found: dict[str, int]) -> str:
    def mask(match: re.Match[str]) -> str:
        whole = match.group()
        start, end = 0, len(whole)
        if kind in _CHECKS:
            start, end = _checked(whole, _CHECKS[kind])
        elif kind == "ip" and not ip(whole):
            end = 0
        if end <= start:
            return whole
        found[kind] = found.get(kind, 0) + 1
        return f"{whole[:start]}[{kind}]{whole[end:]}"

    before = -1
    while before != found.get(kind, 0):  # what is left beside a masked number may be one with what follows
        before = found.get(kind, 0)
        text = pattern.sub(mask, text)
    return text


def _checked(text: str, check: Callable[[str], bool]) -> tuple[int, int]:
    """Where the longest run of blocks stands that passes `check`; (0, 0) where none does.

    The pattern is greedy: an expiry date or a code that follows a number is taken for its last block.
    """
    gaps = [match.start() for match in re.finditer("[ -]", text)]
    starts, ends = [0, *(gap + 1 for gap in gaps)], [*gaps, len(text)]
    spans = sorted(((start, end) for start in starts for end in ends if start + 12 < end), key=lambda s: s[0] - s[1])
    return next((span for span in spans if check(text[span[0] : span[1]])), (0, 0))


def _without_phones(text: str, regions: Sequence[str], found: dict[str, int]) -> str:
    if not _SEVEN_DIGITS.search(text):
        return text
    for region in regions or (None,):
        matches = list(phonenumbers.PhoneNumberMatcher(text, region))
        for match in reversed(matches):
            # A bracket around the whole number is taken for the beginning of an area code.
            start = match.start + (match.raw_string.count("(") > match.raw_string.count(")"))
            text = f"{text[:start]}[phone]{text[match.end :]}"
        if matches:
            found["phone"] = found.get("phone", 0) + len(matches)
    return text
