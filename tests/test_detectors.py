"""Detectors: every kind in the forms it is written in, through every encoding, and not what only looks like it.

Values are put together here, or are the documentation examples of their standard, so that no key stands in a file.
"""

from __future__ import annotations

import base64
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import PrivacyError
from edge_sdk.privacy.canaries import canaries
from edge_sdk.privacy.detectors import Finding, find, merged
from edge_sdk.privacy.patterns import DROPPED

RANDOM = Random(4)
CARD, IBAN, MAIL = "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "jo.doe@example.org"


def drawn(length: int, alphabet: str = "abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789") -> str:
    return "".join(RANDOM.choices(alphabet, k=length))


def found(text: str) -> list[tuple[str, str]]:
    return [(finding.kind, text[finding.start : finding.end]) for finding in find(text)]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("KEY", f"-----BEGIN RSA PRIVATE KEY-----\n{drawn(64)}\nx\n-----END RSA PRIVATE KEY-----"),
        ("KEY", f"-----BEGIN OPENSSH PRIVATE KEY-----\\n{drawn(64)}\\n-----END OPENSSH PRIVATE KEY-----"),
        ("KEY", "AKIA" + drawn(16, "ABCDEFGH234567")),
        ("KEY", "ASIA" + drawn(16, "ABCDEFGH234567")),
        ("KEY", "AIza" + drawn(35)),
        ("KEY", "ghp_" + drawn(36)),
        ("KEY", "github_pat_" + drawn(60)),
        ("KEY", "glpat-" + drawn(20)),
        ("KEY", "xoxb-" + drawn(12, "0123456789") + "-" + drawn(24)),
        ("KEY", "sk_live_" + drawn(24)),
        ("KEY", "sk-proj-" + drawn(40)),
        ("KEY", "sk-ant-api03-" + "a" * 40),
        ("KEY", "hf_" + "a" * 34),
        ("KEY", "https://hooks.slack.com/services/T0000/B0000/" + drawn(24)),
        ("TOKEN", f"eyJ{drawn(20)}.{drawn(30)}.{drawn(20)}"),
        ("CARD", CARD),
        ("CARD", CARD.replace(" ", "")),
        ("CARD", CARD.replace(" ", "-")),
        ("CARD", "3782 822463 10005"),
        ("CARD", "5555.5555.5555.4444"),
        ("IBAN", IBAN),
        ("IBAN", IBAN.replace(" ", "")),
        ("IBAN", "GB82 WEST 1234 5698 7654 32"),
        ("EMAIL", MAIL),
        ("EMAIL", "jörg+x@sub.müller.example"),
        ("EMAIL", "jo (at) example (dot) org"),
        ("IP", "192.168.17.4"),
        ("IP", "2001:db8::8a2e:370:7334"),
        ("IP", "fe80::1ff:fe23:4567:890a"),
        ("MAC", "00:1B:44:11:3a:b7"),
        ("PHONE", "+49 30 901820"),
        ("PHONE", "+1 (212) 555-0123"),
        ("PHONE", "0044 20 7946 0958"),
        ("PHONE", "(212) 555-0123"),
        ("PHONE", "212.555.0123"),
        ("PHONE", "01 23 45 67 89"),
        ("PHONE", "0171/1234567"),
        ("PHONE", "020 7946 0958"),
        ("PHONE", "07700 900123"),
        ("ID", "219-09-9999"),
        ("ID", "QQ 12 34 56 C".replace("QQ", "AB")),
        ("ID", "12345678Z"),
        ("ID", "2 55 08 14 168 025 38"),
        ("ID", "86 095 742 719"),
        ("ID", "529.982.247-25"),
        ("ID", "11010519491231002X"),
        ("ID", "756.9217.0769.85"),
        ("ID", "6f1ed002-ab55-4d0f-8b7c-9f4b1c2d3e4f"),
        ("SECRET", drawn(48)),
        ("SECRET", drawn(32, "0123456789abcdef")),
    ],
)
def test_every_kind_is_found_whole_and_alone(kind: str, value: str) -> None:
    for text in (value, f"It is {value}, they say.", f'["{value}"]', f"({value})\n"):
        assert found(text) == [(kind, value)], text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("password=hunter2", "hunter2"),
        ("my password is hunter2", "hunter2"),
        ('{"db_password": "ab\\"cd ef", "x": 1}', '"ab\\"cd ef"'),
        ("PASSWD: 'two words'", "'two words'"),
        ("export API_KEY=abcdef", "abcdef"),
        ("client_secret -> abcdefgh", "abcdefgh"),
        ("<password>letmein</password>", "letmein</password>"),
        ("Das Passwort lautet Sommer24!", "Sommer24!"),
        ("the pin is 4921", "4921"),
        ("your verification code is 482913", "482913"),
        ("Authorization: Basic am86cHc=", "am86cHc="),
        ("curl -u jo:letmein https://x.example", "jo:letmein"),
        ("postgres://jo:p@ss/w@db.example/main", "jo:p@ss/w@db.example/main"),
        ("redis://:letmein@cache:6379/0", ":letmein@cache:6379/0"),
        ("git clone https://abcdefghijklmnopqrst@code.example/x", "abcdefghijklmnopqrst@code.example/x"),
        ("seed phrase: apple river stone cloud table", "apple river stone cloud table"),
        ("aws AKIAABCDEFGH23456723\nthen " + "abcd/" * 8, "abcd/" * 8),
        ("card, CVV 123", "123"),
        ("account number 12345678", "12345678"),
        ("call me at 555 0123", "555 0123"),
        ("no,card\n1,4111111111111111,5555555555554444,2125550123", "4111111111111111"),
        ("no,card\n1,4111111111111111,5555555555554444,2125550123", "5555555555554444"),
        ("no,card\n1,4111111111111111,5555555555554444,2125550123", "2125550123"),
        ("xDE89370400440532013000y", "DE89370400440532013000"),
        ("a short eyJhbGciOiJub25lIn0.e30. token", "eyJhbGciOiJub25lIn0.e30."),
    ],
)  # fmt: skip
def test_what_stands_beside_a_telling_word_is_found(text: str, value: str) -> None:
    assert any(value in part for _, part in found(text)), found(text)


@pytest.mark.parametrize(
    "text",
    [
        "How many people lived in Berlin in 2019 2020 2021 2022?",
        "Version 1.2.3 of 2024-01-15T12:34:56 at 12:30:45, 3.14159265358979",
        "std::vector<int> a::b, x[1::2], SHA-256, UTF-8, and 1,234,567,890 people",
        "The token is valid for days; the password is required. Tokens: 512, passage 3, author: Jo, secretary: Al",
        "smollm2-135m-instruct-q4_k_m and test-http-server-2-handler, getHTTPResponseCode",
        "ISBN 978-3-16-148410-0, 4111 1111 1111 1112, DE88 3704",
        "127.0.0.1, 0.0.0.0, ::1 and 300.1.2.3",
        "pneumonoultramicroscopicsilicovolcanoconiosis " * 3,
        "https://example.org/a/long/path/to/some/page.html?query=value",
        "@decorator, me@localhost, a @ b",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert found(text) == []


def encodings(text: str) -> dict[str, str]:
    data = text.encode()
    return {
        "base64": base64.b64encode(data).decode(),
        "base64 for URLs, no padding": base64.urlsafe_b64encode(data).decode().rstrip("="),
        "base64 of UTF-16": base64.b64encode(text.encode("utf-16-le")).decode(),
        "base64 behind letters": "id" + base64.b64encode(data).decode(),
        "base64 twice": base64.b64encode(base64.b64encode(data)).decode(),
        "base32": base64.b32encode(data).decode(),
        "hexadecimal": data.hex(),
        "hexadecimal, 0x": "0x" + data.hex().upper(),
        "hexadecimal, apart": data.hex(" "),
        "percent": "".join(f"%{byte:02x}" for byte in data),
        "percent twice": "".join(f"%25{byte:02x}" for byte in data),
        "entities": "".join(f"&#{byte};" for byte in data),
        "hexadecimal entities": "".join(f"&#x{byte:x}" + ";" for byte in data),
        "backslash u": "".join(f"\\u{byte:04x}" for byte in data),
        "backslash x": "".join(f"\\x{byte:02x}" for byte in data),
        "full width": "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
        "zero width": "\u200b".join(text),
        "soft hyphens": "\u00ad".join(text),
        "Arabic digits": text.translate({48 + digit: 0x660 + digit for digit in range(10)}),
        "Devanagari digits": text.translate({48 + digit: 0x966 + digit for digit in range(10)}),
        "mathematical digits": text.translate({48 + digit: 0x1D7CE + digit for digit in range(10)}),
        "Cyrillic letters": text.translate(str.maketrans("aeopcxAEOPCXD", "аеорсхАЕОРСХD")),
        "no-break spaces": text.replace(" ", "\u00a0"),
        "other hyphens": text.replace("-", "\u2011"),
        "letters for digits": text.replace("1", "l", 1) if text[:1].isdigit() else text,
    }


@pytest.mark.parametrize("value", [CARD, IBAN, MAIL, "+49 30 901820", "192.168.17.4", "ghp_" + "a1B2" * 9])
@pytest.mark.parametrize("name", encodings(""))
def test_an_encoded_value_is_found_as_its_whole_run(name: str, value: str) -> None:
    encoded = encodings(value)[name]
    text = f"Here: {encoded} (end)"
    spans = find(text)
    start, end = text.index(encoded), text.index(encoded) + len(encoded)
    assert [(span.start, span.end) for span in spans] == [(start, end)], spans


def test_base64_over_several_lines_is_one_run() -> None:
    encoded = base64.encodebytes(("x " * 60 + MAIL + " y" * 60).encode()).decode().rstrip("\n")
    spans = find(f"Content:\n\n{encoded}\n\nEnd")
    assert {span.kind for span in spans} <= {"EMAIL", *DROPPED}
    kept = set(f"Content:\n\n{encoded}\n\nEnd"[spans[0].end :].split())
    assert spans[0].start == 10
    assert kept <= {"End"}


def test_encodings_nested_without_end_are_an_error_and_not_endless_work() -> None:
    text = MAIL
    for _ in range(5):
        text = base64.b32encode(text.encode()).decode().lower()  # lower case: no rule drops it, each needs decoding
        text = text.encode().hex()
    try:
        assert find(text)  # found, or refused, but never silently passed
    except PrivacyError as error:
        assert "encoded" in str(error)


@given(st.text())
def test_any_text_gives_findings_in_order_within_it(text: str) -> None:
    last = -1
    for finding in find(text):
        assert last < finding.start < finding.end <= len(text)
        last = finding.end


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9), st.sampled_from(["EMAIL", "CARD", "KEY"]))))
def test_merging_covers_the_same_places_once(raw: list[tuple[int, int, str]]) -> None:
    findings = [Finding(start, start + length, kind) for start, length, kind in raw]
    together = merged(findings)
    covered = {at for finding in findings for at in range(finding.start, finding.end)}
    assert covered == {at for finding in together for at in range(finding.start, finding.end)}
    assert all(before.end < after.start for before, after in pairwise(together))
    for finding in together:
        parts = [each for each in findings if finding.start <= each.start < finding.end]
        assert (finding.kind in DROPPED) == any(each.kind in DROPPED for each in parts)


HOSTILE = (
    "a", "1", "1 ", "4111 ", "a@", "a.a@", "a@a.", "://:", "a://", "-----BEGIN PRIVATE KEY-----",
    "AKIAAAAAAAAAAAAAAAAA ", "password ", "password:", "password=\"", "\\", "\\a", ":", "1:", "-eyJaaaaaaaa",
    "+1", "DE89 ", "AA11", "account ", "mnemonic a", "seed phrase ab ", "\n", "aA1", "token_",
    "PuTTY-User-Key-File-", "%41", "%2541", "&", "&amp;", "&#52;", "\\u0034", "１", "é", "\u200b", "O0", "A2",
    "00 ", "YUBi", "A" * 76 + "\n", "bearer ", "AC00000000000000000000000000000000",
)  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_repetition_is_searched_in_linear_time(piece: str) -> None:
    """A pattern that backtracks would not come back from these for hours; there is no clock here."""
    find(piece * (20_000 // len(piece)) + "!")


@pytest.mark.campaign
@pytest.mark.parametrize("piece", HOSTILE)
def test_a_megabyte_of_hostile_repetition_is_searched(piece: str) -> None:
    find(piece * (1_000_000 // len(piece)) + "!")


def test_every_planted_secret_is_found_in_every_encoding() -> None:
    missed = [(canary.kind, canary.encoding) for canary in canaries(480, seed=5) if not find(canary.text)]
    assert missed == []
