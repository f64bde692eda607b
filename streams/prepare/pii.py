"""Scrubbing: personal data and secrets in a text become `[kind]`, before a shard is written.

Forms and numbering plans are the libraries' (python-stdnum, phonenumbers); what stands here is where in a text they are
asked. Masks are tried in this order: a token may hold an address, an account number may look like a phone.

Anybody may write these texts: every rule takes time in proportion to the length of a text, whatever it is made of.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from string import ascii_letters

import phonenumbers
from stdnum import iban as stdnum_iban

_AT_OR_DIGIT = re.compile(r"[@\d]")
_SEVEN_DIGITS = re.compile(r"\d(?:[\s().\-/]*\d){6}")


def _suspicious(text: str) -> bool:
    """Nothing is masked in a text without any of these: many texts are done here."""
    return bool(_AT_OR_DIGIT.search(text)) or _long_word(text) or "BEGIN" in text or text.count(":") > 1


def _long_word(text: str) -> bool:
    """Whether it has a word of 16 characters, as every key has."""
    return len(text) > 15 and max(map(len, text.split()), default=0) > 15


def card(text: str) -> bool:
    """A payment card's number: 13 to 19 digits with the checksum of ISO/IEC 7812-1 (Luhn's).

    Not python-stdnum's, which takes twenty times as long: a long row of digits asks for it at every one of them.
    """
    digits = text.replace(" ", "").replace("-", "")
    if not (13 <= len(digits) <= 19 and digits.isascii() and digits.isdigit()):
        return False
    backwards = digits.encode()[::-1]
    return (sum(backwards[::2].translate(_VALUE)) + sum(backwards[1::2].translate(_DOUBLED))) % 10 == 0


def iban(text: str) -> bool:
    """A bank account's number by ISO 13616: its country's form and mod 97 = 1 (not what its bank adds to that)."""
    letters = text.replace(" ", "").replace("-", "")
    if not (letters.isascii() and letters.isalnum() and letters[:2].isalpha() and letters[2:4].isdigit()):
        return False
    number = int((letters[4:] + letters[:4]).translate(_IN_DIGITS))  # asked first: the library takes ten times as long
    return number % 97 == 1 and bool(stdnum_iban.is_valid(text, check_country=False))


def ip(text: str) -> bool:
    """An address of IPv4 or IPv6 (a time such as 12:30:00 is none)."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# Where a match is masked (start, end; equal for nowhere), and where the search goes on: always further right.
Found = tuple[int, int, int]
Place = Callable[[re.Match[str], int], Found]
# Whether a text of some kind is left as it is.
Keep = Callable[[str, str], bool]


def _whole(match: re.Match[str], seen: int) -> Found:
    return match.start(), match.end(), match.end()


def _address(match: re.Match[str], seen: int) -> Found:
    start, end = match.span()
    return (start, end, end) if ip(match.group()) else (end, end, end)


def _blocks(check: Callable[[str], bool]) -> Place:
    """The longest run of blocks that passes `check`: the pattern is greedy, and an expiry date or a code that follows
    a number is taken for its last block. `seen` is where the match before ended, so that no run is checked twice.
    """

    def place(match: re.Match[str], seen: int) -> Found:
        first, last = match.span()
        gaps = [first + gap.start() for gap in _GAP.finditer(match.group())]
        starts, ends = [first, *(gap + 1 for gap in gaps)], [*(gap for gap in gaps if gap > seen), last]
        spans = sorted(((s, e) for s in starts for e in ends if s + 12 < e), key=lambda span: span[0] - span[1])
        for start, end in spans:
            if check(match.string[start:end]):
                return start, end, end
        return last, last, gaps[0] + 1 if gaps else last

    return place


def _web_token(match: re.Match[str], seen: int) -> Found:
    """From where the first part of a JSON web token begins in the first of three parts. Looked for within it, because
    a pattern that starts at every `eyJ` of a long part costs its square.
    """
    start = _TOKEN_START.search(match.group("first"))
    if start is None:
        return match.end("first"), match.end("first"), match.end("first")
    return match.start() + start.start(), match.end(), match.end()


_VALUE = bytes((code - ord("0")) % 10 for code in range(256))
_DOUBLED = bytes(sum(divmod(2 * value, 10)) for value in _VALUE)
_IN_DIGITS = {ord(letter): str(int(letter, 36)) for letter in ascii_letters}
_GAP, _TOKEN_START = re.compile("[ -]"), re.compile(r"\beyJ[A-Za-z0-9_-]{8}")
# Kind, where a text without it need not be looked through (the cheaper test), what is looked for, what of it is masked.
_MASKS: tuple[tuple[str, Callable[[str], object], re.Pattern[str], Place], ...] = (
    ("key", lambda text: "BEGIN" in text,
     re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), _whole),
    ("key", _long_word,
     re.compile(r"\b(?:(?:sk|pk|rk|ghp|gho|ghs|glpat|hf|xox[abp])[-_]|AKIA|ASIA|AIza)[A-Za-z0-9_-]{16,}\b"), _whole),
    ("key", lambda text: "eyJ" in text,
     re.compile(r"(?<![A-Za-z0-9_-])(?P<first>[A-Za-z0-9_-]{11,})\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), _web_token),
    ("key", lambda text: "earer " in text, re.compile(r"(?<=[Bb]earer )[A-Za-z0-9._~+/-]{16,}=*"), _whole),
    # Tried once per run of characters: from every one of them, a long run without an @ would cost its square. Those
    # that stand side by side are one: what is left of a run behind a mask would be another's beginning.
    ("email", lambda text: "@" in text, re.compile(r"(?<![\w.+-])(?:[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b)+"), _whole),
    ("iban", re.compile(r"[A-Z]{2}\d{2}").search,
     re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b"), _blocks(iban)),
    ("card", _SEVEN_DIGITS.search, re.compile(r"\b\d(?:[ -]?\d){12,18}\b"), _blocks(card)),
    ("ip", re.compile(r"\d\.\d{1,3}\.\d").search,
     re.compile(r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b"), _address),
    ("ip", lambda text: text.count(":") > 1,
     re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![\w:])"), _address),
)  # fmt: skip


def _mask_all(kind: str, text: str) -> bool:
    return False


def scrub(text: str, phone_regions: Sequence[str] = (), keep: Keep = _mask_all) -> tuple[str, dict[str, int]]:
    """`text` with personal data replaced by `[kind]`, and how often each kind was found.

    Phone numbers with a country's code are found everywhere, those without only for `phone_regions` (ISO 3166). What
    `keep` says yes to, by its kind and its text, stays.
    """
    found: dict[str, int] = {}
    if not _suspicious(text):
        return text, found
    for kind, possible, pattern, place in _MASKS:
        if possible(text):
            text = _masked(text, kind, pattern, place, found, keep)
    return _without_phones(text, phone_regions, found, keep), found


def _masked(
    text: str, kind: str, pattern: re.Pattern[str], place: Place, found: dict[str, int], keep: Keep
) -> str:
    """One pass from left to right, which goes on behind each mask: looking through the whole text again after each
    costs the square of a text that is made of numbers.
    """
    kept: list[str] = []
    done = position = seen = 0
    while match := pattern.search(text, position):
        start, end, position = place(match, seen)
        seen = match.end()
        if start < end and not keep(kind, text[start:end]):
            kept += text[done:start], f"[{kind}]"
            done = seen = end
            found[kind] = found.get(kind, 0) + 1
    return "".join([*kept, text[done:]])


def _without_phones(text: str, regions: Sequence[str], found: dict[str, int], keep: Keep) -> str:
    if not _SEVEN_DIGITS.search(text):
        return text
    for region in regions or (None,):
        kept: list[str] = []
        done = 0
        for match in phonenumbers.PhoneNumberMatcher(text, region):
            # A bracket around the whole number is taken for the beginning of an area code.
            start = match.start + (match.raw_string.count("(") > match.raw_string.count(")"))
            if keep("phone", text[start : match.end]):
                continue
            kept += text[done:start], "[phone]"
            done = match.end
        if kept:
            found["phone"] = found.get("phone", 0) + len(kept) // 2
            text = "".join([*kept, text[done:]])
    return text
