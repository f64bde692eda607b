"""The preparation rules: which records make rows, what is dropped and why, and what is masked."""

from __future__ import annotations

import time
from typing import Any

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from stdnum import luhn

from schemas.codec import Envelope
from schemas.events import Message, RecordSubmitted
from schemas.policy import ModelPolicy
from schemas.shards import SHARD_SCHEMA
from streams.prepare import pii
from streams.prepare import text as text_module
from streams.prepare.pii import card, iban, ip, scrub
from streams.prepare.rules import MAX_CHARACTERS, Dropped, Prepared, prepare
from streams.prepare.text import noise, repair, repetitive
from tests.ids import SPLIT_KEY

ENVELOPE = Envelope(id="training.raw/0/7", type="RecordSubmitted", source="", time_ms=1_763_700_000_000)
POLICY = ModelPolicy()
USER = Message(role="user", content="Where is my card?")
ASSISTANT = Message(role="assistant", content="card_arrival")


def prepared(policy: ModelPolicy = POLICY, /, **fields: Any) -> Prepared | Dropped:
    return prepare(RecordSubmitted(model="support", **fields), ENVELOPE, policy, SPLIT_KEY)


def row(policy: ModelPolicy = POLICY, /, **fields: Any) -> dict[str, Any]:
    result = prepared(policy, **fields)
    assert isinstance(result, Prepared), result
    return result.row


QUESTION = {"prompt": "Where is my card?"}
DROPS: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({**QUESTION, "kind": "poem", "completion": "x"}, "unknown kind"),
    "assistant alone": ({"messages": [ASSISTANT]}, "no user turn to answer"),
    "system last": ({"messages": [USER, Message(role="system", content="x")], "completion": "y"}, "no user turn to answer"),
    "answered twice": ({"messages": [USER, ASSISTANT], "completion": "y"}, "no user turn to answer"),
    "no answer": (QUESTION, "no answer"),
    "blank answer": ({**QUESTION, "completion": " \n"}, "no answer"),
    "answer of control characters": ({**QUESTION, "completion": "\x00\x07"}, "no answer"),
    "blank prompt": ({"prompt": "  ", "completion": "x"}, "empty prompt"),
    "prompt of control characters": ({"prompt": "\x00", "completion": "x"}, "empty prompt"),
    "no pair": ({**QUESTION, "kind": "preference", "chosen": "x"}, "no pair of answers"),
    "blank pair": ({**QUESTION, "kind": "preference", "chosen": "x", "rejected": "\x01"}, "no pair of answers"),
    "no label": ({**QUESTION, "kind": "kto", "completion": "x"}, "no label"),
    "too long": ({**QUESTION, "completion": "x" * MAX_CHARACTERS}, "too long"),
    "repetitive answer": ({**QUESTION, "completion": "so " * 40}, "repetitive"),
    "repetitive prompt": ({"prompt": "help me " * 40, "completion": "x"}, "repetitive"),
}  # fmt: skip


@pytest.mark.parametrize("case", DROPS)
def test_each_reason_to_drop(case: str) -> None:
    fields, reason = DROPS[case]
    assert prepared(**fields) == Dropped(reason)


def test_the_longest_record_that_fits_is_kept() -> None:
    fits = MAX_CHARACTERS - len(QUESTION["prompt"])
    text = " ".join(str(n * n) for n in range(9_999))
    assert isinstance(prepared(**QUESTION, completion=text[:fits]), Prepared)
    assert prepared(**QUESTION, completion=text[: fits + 1]) == Dropped("too long")


def test_every_form_of_one_example_is_the_same_row() -> None:
    forms: list[dict[str, Any]] = [
        {**QUESTION, "completion": "card_arrival"},
        {"messages": [USER], "completion": "card_arrival"},
        {"messages": [USER, ASSISTANT]},
    ]
    rows = [row(**form) for form in forms]
    assert rows[0] == rows[1] == rows[2]
    blank = {"tool_calls": "", "tool_call_id": "", "name": "", "weight": None}
    assert rows[0]["messages"] == [{"role": "user", "content": "Where is my card?", **blank}]
    assert {*rows[0], "partition", "offset"} - {"named", "open"} == set(SHARD_SCHEMA.names)


def test_preference_and_kto_rows_keep_what_they_are_about() -> None:
    pair = row(**QUESTION, kind="preference", chosen="soon", rejected="go away")
    assert (pair["chosen"], pair["rejected"], pair["completion"], pair["label"]) == ("soon", "go away", "", None)
    thumb = row(**QUESTION, kind="kto", completion="soon", label=False)
    assert (thumb["completion"], thumb["label"]) == ("soon", False)
    assert thumb["content_hash"] != row(**QUESTION, kind="kto", completion="soon", label=True)["content_hash"]


def test_a_row_has_the_identity_that_was_given_or_its_origin() -> None:
    assert row(**QUESTION, completion="x", record_id="r1")["record_id"] == "r1"
    first = row(**QUESTION, completion="x")
    assert first["record_id"] == "training.raw/0/7" and first["submitted_ms"] == 1_763_700_000_000
    shouted = row(prompt="WHERE is  my card?", completion="y")
    assert first["subject_id"] == shouted["subject_id"], "the same question is in the same split"
    assert row(**QUESTION, completion="x", subject_id="s")["subject_id"] == "s"
    assert first["content_hash"] == row(prompt="WHERE is  my card?", completion="X")["content_hash"]


SECRETS = {
    "key": ["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTYifQ.SflKxwRJSMeKKF2QT4fw", "glpat-abcdefghijklmnopqrst", "sk-proj-abcdefghij0123456789", "sk-abcdefghijklmnop", "pk_live_51Habcdefghijklmnop", "ghp_abcdefghijklmnopqrstuvwx", "AKIAIOSFODNN7EXAMPLE1"],
    "email": ["jane.doe+shop@mail.example.org", "ü.x@example.co.uk", "_a@b-c.de"],
    "iban": ["DE89370400440532013000", "DE89 3704 0044 0532 0130 00", "GB82 WEST 1234 5698 7654 32", "BE68 5390 0754 7034"],
    "card": ["4111111111111111", "4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005"],
    "phone": ["+49 30 901820", "+1 415-555-2671", "+442079460958", "+33 1 42 68 53 00"],
    "ip": ["2001:db8::8a2e:370:7334", "fe80::1", "192.168.0.1", "8.8.8.8", "255.255.255.255"],
}  # fmt: skip
HARMLESS = [
    "4111 1111 1111 1112", "4111111111111", "12345678901234567890", "DE88 3704 0044 0532 0130 00", "GB82 WEST 1234",
    "256.1.1.1", "version 1.2.3", "room @ 5", "a@b", "sk-short", "a skateboarding-competition-winner", "order 1234567",
    "at 12:30:45", "ratio 3:2", "std::vector", "ISBN 978-3-16", "2026-11-21", "id 550e8400-e29b-41d4-a716-446655440000",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "secret"), [(kind, secret) for kind, list_ in SECRETS.items() for secret in list_])
def test_personal_data_is_masked_wherever_it_stands(kind: str, secret: str) -> None:
    for text in ("{}", "it is {}, please", "({})", "{}.", "a\n{}\nb", "{} BIC", "nr {} exp 12/27"):
        clean, found = scrub(text.format(secret))
        assert clean == text.format(f"[{kind}]") and dict(found) == {kind: 1}


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_alike_stays(text: str) -> None:
    assert scrub(text) == (text, {})


def test_a_national_phone_number_is_one_where_its_country_is_configured() -> None:
    text = "ring me at 030 90182-0 or (415) 555-2671"
    assert scrub(text) == (text, {})
    assert scrub(text, ["DE"])[0] == "ring me at [phone] or (415) 555-2671"
    assert scrub(text, ["DE", "US"]) == ("ring me at [phone] or [phone]", {"phone": 2})


def test_a_private_key_goes_whole_even_where_its_end_is_missing() -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----"
    assert scrub(f"mine: {key} ok")[0] == "mine: [key] ok"
    assert scrub(f"mine: {key[:45]}")[0] == "mine: [key]"
    assert scrub("Authorization: Bearer abcdefghijklmnop1234")[0] == "Authorization: Bearer [key]"


@pytest.mark.parametrize("text", ["4111 1111 1111 1111 12/27", "4111 1111 1111 1111 123", "12 4111 1111 1111 1111"])
def test_a_code_beside_a_card_does_not_hide_it(text: str) -> None:
    assert "1111 1111" not in scrub(text)[0]


def test_several_of_several_kinds_are_counted() -> None:
    text = "a@b.de c@d.de 10.0.0.1 4111 1111 1111 1111 12 4111 1111 1111 1111"
    assert scrub(text) == ("[email] [email] [ip] [card] 12 [card]", {"email": 2, "ip": 1, "card": 2})


def test_masks_are_counted_over_all_texts_of_a_record() -> None:
    result = prepared(
        kind="preference", messages=[Message(role="system", content="I am at 10.0.0.1"), USER],
        chosen="ask a@b.de", rejected="ask c@d.de",
    )
    assert isinstance(result, Prepared) and result.masked == {"ip": 1, "email": 2}
    assert result.row["chosen"] == "ask [email]"


@pytest.mark.parametrize("digits", ["4111111111111111", "5500 0000 0000 0004", "378282246310005", "6011-1111-1111-1117"])
def test_card(digits: str) -> None:
    assert card(digits)
    for wrong in range(1, 10):
        last = str((int(digits[-1]) + wrong) % 10)
        assert not card(digits[:-1] + last), "any other last digit is wrong"
    assert not card("0" * 12) and not card("0" * 20), "no card has so few or so many digits"


@given(st.text("0123456789 -٣a", max_size=24))
def test_the_checksum_is_the_librarys(text: str) -> None:
    digits = text.replace(" ", "").replace("-", "")
    assert card(text) == (13 <= len(digits) <= 19 and luhn.is_valid(digits))


@pytest.mark.parametrize("text", ["DE89370400440532013000", "NL91 ABNA 0417 1643 00", "NO9386011117947"])
def test_iban(text: str) -> None:
    assert iban(text)
    assert not iban(text[:-1] + str((int(text[-1]) + 1) % 10))
    assert not iban(text[:-2] + text[-1] + text[-2]) or text[-1] == text[-2], "two digits exchanged"
    assert not iban(text[4:] + text[:4]) and not iban(text[:14])


@pytest.mark.parametrize("unit", ["a.", "a", "sk-", "a@", "1 ", "1", "AB12 ", "1.", "-", "a:", "::", "+1 ", "eyJ", "-----BEGIN "])
def test_no_text_is_slow_to_scrub(unit: str) -> None:
    """A record of 32,000 characters must not hold a transaction up; the square of that took 4 s."""
    began = time.process_time()
    scrub(unit * (MAX_CHARACTERS // len(unit)), ["US", "DE"])
    assert time.process_time() - began < 2.0


def test_repair_mends_what_was_decoded_wrongly() -> None:
    assert repair("  cafÃ© ") == "café"
    assert repair("e\u0301te\u0301") == "été"
    assert repair("a\x00b\x1b[31mc") == "abc"
    assert repair("line one\nline two") == "line one\nline two"


pieces = st.sampled_from(
    [*(secret for list_ in SECRETS.values() for secret in list_), *HARMLESS, " ", "-", ".", "@", "\n", ", ", "12", "&amp;"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), st.lists(pieces, max_size=8).map("".join)))
def test_scrubbing_twice_changes_nothing(text: str) -> None:
    once, _ = scrub(text)
    assert scrub(once) == (once, {})


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), st.text(alphabet="aÃ©â€™ &lt;amp#\x00\n\u0301"), st.lists(pieces, max_size=8).map("".join)))
def test_repairing_twice_changes_nothing(text: str) -> None:
    assert repair(repair(text)) == repair(text)


SOUND = "".join(sorted(text_module._SOUND))
OTHER_SCRIPTS = "、。「」わたしのカバーー包裹在哪里한국어🙂📦"
lines = st.text(alphabet=" abcdefgeinrstuABC.,?!-'\"0123\n\t" + SOUND + OTHER_SCRIPTS, max_size=60)


@settings(max_examples=1_000, deadline=None)
@given(st.one_of(lines, st.text(alphabet="a ?Ã©â€Â¤è\n" + SOUND, max_size=12)))
def test_what_is_taken_for_sound_is_what_ftfy_leaves_as_it_is(text: str) -> None:
    if text_module._sound(text):
        assert ftfy.fix_text(text, normalization="NFC") == text


def test_most_texts_are_known_for_sound_without_ftfy() -> None:
    texts = ["Wo ist mein Paket? Ich warte für 30 € schon 5 Tage.\nDanke, Käthe", "two\nlines", "Où est mon colis, à Liège ?", "私の荷物はどこ。🙂"]
    assert all(map(text_module._sound, texts))
    assert not any(map(text_module._sound, ["cafÃ©", "a &amp;\nb", "“so”", "e\u0301", "a\x00", "größer", "Ã "]))


def test_repetition_needs_length() -> None:
    assert not repetitive("no " * 29) and repetitive("no " * 30)
    assert not repetitive(" ".join(f"word{n}" for n in range(40)))


def test_a_run_of_one_character_is_found_wherever_it_begins() -> None:
    before = "Why is this sold out in blue"
    assert all(repetitive(before[:start] + "a" * 30 + " here") for start in range(len(before)))
    assert not any(repetitive(before[:start] + "a" * 29 + " here") for start in range(len(before)))


def test_a_loop_is_repetitive_whatever_its_words() -> None:
    assert repetitive("a" * 30) and not repetitive("a" * 29) and not repetitive("-" * 10)
    assert repetitive("the parcel is late, please tell me where it is " * 12)
    assert repetitive("包裹在哪里？" * 80) and not repetitive("包裹在哪里？我上周订了，还没有到。")


@pytest.mark.parametrize("text", ["¯\\_(ツ)_/¯ " * 5, "|||---|||---|||---|||---", "{}[]();;<>==!!&&||**//++"])
def test_noise_is_dropped_in_any_script(text: str) -> None:
    assert noise(text) and prepared(prompt=text, completion="x") == Dropped("noise")


@pytest.mark.parametrize("text", ["где моя посылка, я жду её уже неделю", "私の荷物はどこにありますか、一週間待っています", "?!?!", "👍", "$ 12.50 + $ 3.20 = $ 15.70 ???"])
def test_language_is_no_noise(text: str) -> None:
    assert not noise(text) and not repetitive(text)


def test_what_no_person_wrote_is_never_in_a_hold_out() -> None:
    said = row(prompt="Where is it?", completion="x")
    made = row(prompt="Where is it?", completion="x", origin="synthetic", source_record="r")
    assert (said["split"], said["judges"]) == ("", True), "its unit decides"
    assert (made["split"], made["judges"], made["source_record"]) == ("train", False, "r")


def test_ip() -> None:
    assert ip("::1") and ip("10.0.0.1") and not ip("12:30:45") and not ip("1.2.3")


@pytest.mark.parametrize("mask", pii._MASKS, ids=[f"{kind} {number}" for number, (kind, *_) in enumerate(pii._MASKS)])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.slow
def test_no_cheap_test_hides_what_its_pattern_finds(mask, data) -> None:
    _, possible, pattern, place = mask
    text = data.draw(st.from_regex(pattern))
    match = pattern.search(text)
    assert match
    start, end, _ = place(match, 0)
    if start == end and place is pii._web_token:  # three parts of anything: most are no token
        return
    assert possible(text) and pii._suspicious(text)


SYSTEM = Message(role="system", content="You serve Anna of Berlin. Today is 2026-11-03. " + "-" * 60 + " Be kind. " * 40)


def test_what_stands_before_the_last_turn_makes_no_row_unfit_and_no_question_another() -> None:
    with_it = row(messages=[SYSTEM, USER], completion="card_arrival")
    without = row(messages=[USER], completion="card_arrival")
    assert with_it["question"] == without["question"] and with_it["minhash"] == without["minhash"]
    assert with_it["input_hash"] == without["input_hash"], "an app's own words are no part of what is asked"
    later = row(messages=[USER, ASSISTANT, USER], completion="card_arrival")
    assert later["question"] == without["question"] and later["input_hash"] != without["input_hash"]


def test_what_the_company_says_of_itself_is_taught() -> None:
    policy = ModelPolicy(own_contacts=["Help@acme.example", "+49 30 901820"], phone_regions=["DE"])
    answer = "Write to help@acme.example or call +49 30 901 820."
    mine = row(policy, **QUESTION, completion=answer)
    assert mine["completion"] == answer and mine["judges"] and mine["answer_masks"] == []
    other = row(policy, **QUESTION, completion="Write to jane@private.example.")
    assert other["completion"] == "Write to [email]." and not other["judges"] and len(other["answer_masks"]) == 1
    asked = row(policy, prompt="I am at help@acme.example, or so", completion="x")
    assert "[email]" in asked["messages"][0]["content"], "a question is nobody's to publish"


@pytest.mark.parametrize("secret", ["4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "sk-abcdefghijklmnop1234"])
def test_cards_accounts_and_keys_are_masked_always(secret: str) -> None:
    said = row(ModelPolicy(own_contacts=[secret]), **QUESTION, completion=f"Pay to {secret} or write to a@b.example")
    assert secret not in said["completion"] and secret not in said["open"]["completion"]
    assert "a@b.example" in said["open"]["completion"] and not said["open"]["judges"]


@pytest.mark.parametrize("sampled", ["bad", "unrated", "synthetic", "augmented", "whatever"])
def test_rows_that_were_picked_train_and_never_judge(sampled: str) -> None:
    assert not row(**QUESTION, completion="x", sampled=sampled)["judges"]
    assert row(**QUESTION, completion="x", sampled="random")["judges"]


def test_a_document_is_its_text() -> None:
    said = row(kind="document", completion="Our shops are open from nine to six.")
    assert (said["question"], said["messages"], said["judges"]) == ("", [], False)
    assert prepared(kind="document") == Dropped("no answer")


@pytest.mark.parametrize("said_ms", [2**53, ENVELOPE.time_ms + 1, 4_102_444_800_000])
def test_an_import_from_the_future_is_of_now(said_ms: int) -> None:
    """Later words could never overrule it, and what is beyond 64 bits would stop the batch."""
    mine = imported(said_ms)
    assert (mine["submitted_ms"], mine["dated"]) == (ENVELOPE.time_ms, True)


@pytest.mark.parametrize(("said_ms", "time_ms", "dated"), [(5, 5, True), (0, ENVELOPE.time_ms, False), (-5, ENVELOPE.time_ms, False)])
def test_an_import_is_as_old_as_it_says_and_old_without_a_word(said_ms: int, time_ms: int, dated: bool) -> None:
    mine = imported(said_ms)
    assert (mine["submitted_ms"], mine["dated"]) == (time_ms, dated)
    other = row(**QUESTION, completion="x", said_ms=said_ms)
    assert (other["submitted_ms"], other["dated"]) == (ENVELOPE.time_ms, True), "an application dates no row so"


def imported(said_ms: int) -> dict[str, Any]:
    event = RecordSubmitted(model="support", **QUESTION, completion="x", origin="import", said_ms=said_ms)
    made = prepare(event, replace(ENVELOPE, source="tuneloop"), POLICY, SPLIT_KEY)
    assert isinstance(made, Prepared)
    return made.row
