"""E-mail addresses, phone and card numbers: what is found, what is not, and what a mask leaves."""

import time
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrated_rl.logs.personal import CARD, EMAIL, PHONE, find, in_line, luhn

FOUND = [
    ("write to anna.b+x@mail.example.co.uk.", EMAIL, "anna.b+x@mail.example.co.uk"),
    ("o'brien@example.org", EMAIL, "o'brien@example.org"),
    ("by 'jo@example.org'", EMAIL, "jo@example.org"),
    ("jo@example.org-2", EMAIL, "jo@example.org"),
    ("<JO@EXAMPLE.ORG>", EMAIL, "JO@EXAMPLE.ORG"),
    ("邮箱:zoë@example.org", EMAIL, "zoë@example.org"),
    ("call +1 (555) 123-4567 now", PHONE, "+1 (555) 123-4567"),
    ("+44 (0)20 7946 0958. 3 people", PHONE, "+44 (0)20 7946 0958"),
    ("call +44 20 7946 0958 10 am", PHONE, "+44 20 7946 0958"),
    ("+1 555 210 4477 2 people", PHONE, "+1 555 210 4477"),
    ("01223 358966 12 of us", PHONE, "01223 358966"),
    ("+33 1 23 45 67 89", PHONE, "+33 1 23 45 67 89"),
    ("0049 30 1234567", PHONE, "0049 30 1234567"),
    ("tel:+15551234567,", PHONE, "+15551234567"),
    ("555-123-4567", PHONE, "555-123-4567"),
    ("(555) 123.4567", PHONE, "(555) 123.4567"),
    ("2125550123", PHONE, "2125550123"),
    ("the number is 01223 358966", PHONE, "01223 358966"),
    ("0171/1234567", PHONE, "0171/1234567"),
    ("01 23 45 67 89", PHONE, "01 23 45 67 89"),
    ("07700900123", PHONE, "07700900123"),
    ("4111 1111 1111 1111 until 12/27", CARD, "4111 1111 1111 1111"),
    ("5500-0000-0000-0004", CARD, "5500-0000-0000-0004"),
    ("3782 822463 10005", CARD, "3782 822463 10005"),
    ("卡4111111111111111号", CARD, "4111111111111111"),
    ("4111 1111 1111 1111 12 27", CARD, "4111 1111 1111 1111"),
]
NOT_FOUND = [
    "on 2026-11-30 16:38:10.123456+00:00", "01-02-2026 16:30", "at 1680998573", "$2000000000",
    "2026-01-02 10.00.30",
    "version 10.0.19045.2965",
    "a table for 2 at 19:30", "4111 1111 1111 1112", "0000 0000 0000 0000", "1234567890123456", "100-2000",
    "a@b", "@anna",
    "id 3f2504e0-4f89-11d3-9a0c-0305e82c3301", "12 x 345 = 4140", "+" + "1" * 300, "3.14159265358979323846",
    "192.168.100.200", "1-2-3-4-5-6-7-8-9-10",
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "wanted"), FOUND)
def test_what_is_found(text: str, kind: str, wanted: str) -> None:
    (found,) = find(text)
    assert (found.kind, text[found.start : found.end]) == (kind, wanted)


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_is_not(text: str) -> None:
    assert not find(text)


@pytest.mark.parametrize(
    ("digits", "holds"), [("79927398713", True), ("79927398710", False), ("0", True), ("18", True)]
)
def test_the_check_of_luhn(digits: str, holds: bool) -> None:
    """79927398713 is the standard's usual example; of 18: 8 + (1 doubled) = 10."""
    assert luhn(digits) is holds


@given(digits=st.text("0123456789", min_size=1, max_size=18))
def test_exactly_one_last_digit_satisfies_it(digits: str) -> None:
    assert sum(luhn(digits + str(last)) for last in range(10)) == 1


def test_the_same_value_has_the_same_mask_everywhere_in_a_dialogue() -> None:
    line = {
        "id": "anna@example.org", "split": "held_out", "goal": {"phone": "01223 358966", "n": 3},
        "turns": [
            {"side": "user", "text": "I am anna@example.org, or ANNA@example.org",
             "metadata": {"by": ["+1 555 123 4567"]}},
            {"side": "policy", "text": "Not bob@example.org? Is it 01223-358966?"},
        ],
    }  # fmt: skip
    personal, masked = in_line(line, mask=True)
    assert masked == {
        "id": blake2b(b"anna@example.org", digest_size=8).hexdigest(), "split": "held_out",
        "goal": {"phone": "[phone 1]", "n": 3},
        "turns": [
            {"side": "user", "text": "I am [email 1], or [email 1]", "metadata": {"by": ["[phone 2]"]}},
            {"side": "policy", "text": "Not [email 2]? Is it [phone 1]?"},
        ],
    }  # fmt: skip
    assert personal.counts == {EMAIL: 4, PHONE: 3} and personal.dialogues == 1
    counted, same = in_line(line, mask=False)
    assert same == line and counted.counts == personal.counts


def test_keys_and_ids_are_masked_and_stay_apart() -> None:
    ages = {"ann@example.org": 3, "ANN@example.org": 4, "n": {"+44 20 7946 0958": "x"}}
    line = {"id": "+44 20 7946 0958", "split_group": "q", "turns": [{"side": "user", "text": "hi"}], "metadata": ages}
    personal, masked = in_line(line, mask=True)
    assert masked["metadata"] == {"[email 1]": 3, "[email 1] (2)": 4, "n": {"[phone 1]": "x"}}
    assert masked["id"] == blake2b(b"+44 20 7946 0958", digest_size=8).hexdigest() and masked["split_group"] == "q"
    assert personal.counts == {EMAIL: 2, PHONE: 2} and in_line(line, mask=False)[1] == line


@given(text=st.text(st.sampled_from("0123456789 -.+()@ab/"), max_size=60))
def test_finds_lie_apart_and_nothing_is_found_twice(text: str) -> None:
    found = find(text)
    assert all(one.end <= other.start for one, other in zip(found, found[1:], strict=False))
    _, masked = in_line({"id": 1, "turns": [{"side": "user", "text": text}]}, mask=True)
    kept = [text[one.end : other.start] for one, other in zip(found, found[1:], strict=False)]
    assert all(part in masked["turns"][0]["text"] for part in kept)


@pytest.mark.parametrize("part", ["+1 ", "2 ", "222 ", "a.", "a@", "0171 ", "(", "4111-", "+1(", "x@a.", "01 23 "])
def test_long_texts_take_no_longer_than_their_length(part: str) -> None:
    began = time.process_time()
    find(part * 15_000)
    assert time.process_time() - began < 5
