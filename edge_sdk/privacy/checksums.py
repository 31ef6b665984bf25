"""Check digits of payment cards, bank accounts and national identity numbers.

Pure arithmetic on text that a pattern has already found; separators are ignored. It knows nothing of patterns.
"""

from __future__ import annotations

import re

# Length of an IBAN by country, from the SWIFT registry.
_IBAN_LENGTHS = {
    entry[:2]: int(entry[2:])
    for entry in (
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 "
        "EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 "
        "KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 "
        "PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 "
        "UA29 VA22 VG24 XK20 YE30"
    ).split()
}
_NOT_DIGIT, _NOT_ALPHANUMERIC = re.compile(r"[^0-9]"), re.compile(r"[^A-Za-z0-9]")


def digits_of(text: str) -> str:
    """The ASCII digits of a text.

    >>> digits_of("41-11 x1")
    '41111'
    """
    return _NOT_DIGIT.sub("", text)


def luhn(text: str) -> bool:
    """ISO/IEC 7812-1 annex B.

    >>> luhn("4111 1111 1111 1111"), luhn("4111 1111 1111 1112")
    (True, False)
    """
    digits = [int(digit) for digit in reversed(digits_of(text))]
    doubled = (2 * digit - 9 * (digit > 4) for digit in digits[1::2])
    return bool(digits) and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def card(text: str) -> bool:
    """13 to 19 digits with the beginning of a card issuer and a right check digit.

    >>> card("5555-5555-5555-4444"), card("2019 2020 2021 2022")
    (True, False)
    """
    digits = digits_of(text)
    issuer = digits[:1] in ("4", "5", "6") or digits[:2] in ("30", "34", "35", "36", "37", "38", "39", "81", "82")
    issuer = issuer or "2200" <= digits[:4] <= "2204" or "2221" <= digits[:4] <= "2720"
    return issuer and 13 <= len(digits) <= 19 and luhn(digits)


def iban_length(text: str) -> int:
    """How many characters of `text` are an IBAN with right check digits (ISO 13616); 0 when none is.

    >>> iban_length("DE89 3704 0044 0532 0130 00 and more"), iban_length("DE88 3704 0044 0532 0130 00")
    (27, 0)
    """
    wanted = _IBAN_LENGTHS.get(text[:2].upper())
    if wanted is None:
        return 0
    taken = 0
    for end, character in enumerate(text, 1):
        taken += character.isascii() and character.isalnum()
        if taken == wanted:
            return end if _mod97(_NOT_ALPHANUMERIC.sub("", text[:end])) else 0
    return 0


def _mod97(iban: str) -> bool:
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1


def social_security(text: str) -> bool:
    """A US social security number that can have been given out.

    >>> social_security("219-09-9999"), social_security("666-12-3456")
    (True, False)
    """
    digits = digits_of(text)
    return digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"


def spanish_id(text: str) -> bool:
    """DNI and NIE: the letter is the number modulo 23.

    >>> spanish_id("12345678Z"), spanish_id("X1234567L"), spanish_id("12345678A")
    (True, True, False)
    """
    compact = _NOT_ALPHANUMERIC.sub("", text).upper()
    number = compact[:-1].translate(str.maketrans("XYZ", "012"))
    return compact[-1] == "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23]


def french_id(text: str) -> bool:
    """NIR: 13 digits and 97 less their remainder (2A and 2B are Corsica).

    >>> french_id("2 55 08 14 168 025 38"), french_id("2 55 08 14 168 025 39")
    (True, False)
    """
    compact = _NOT_ALPHANUMERIC.sub("", text).upper().replace("2A", "19").replace("2B", "18")
    return len(compact) == 15 and compact.isdigit() and 97 - int(compact[:13]) % 97 == int(compact[13:])


def german_id(text: str) -> bool:
    """Steuer-Identifikationsnummer: ISO 7064 MOD 11,10, and of the first ten digits one or two occur repeatedly.

    >>> german_id("86 095 742 719"), german_id("86 095 742 718")
    (True, False)
    """
    digits, product = digits_of(text), 10
    for digit in digits[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return 8 <= len(set(digits[:10])) <= 9 and (11 - product) % 10 == int(digits[10])


def polish_id(text: str) -> bool:
    """PESEL: a date of birth and a weighted sum.

    >>> polish_id("44051401359"), polish_id("44051401358")
    (True, False)
    """
    digits = [int(digit) for digit in digits_of(text)]
    month, day = (digits[2] * 10 + digits[3]) % 20, digits[4] * 10 + digits[5]
    weighted = sum(digit * weight for digit, weight in zip(digits, (1, 3, 7, 9) * 3, strict=False))
    return 1 <= month <= 12 and 1 <= day <= 31 and (weighted - digits[10] * 7 + digits[10]) % 10 == 0


def brazilian_id(text: str) -> bool:
    """CPF: two check digits modulo 11.

    >>> brazilian_id("529.982.247-25"), brazilian_id("529.982.247-26")
    (True, False)
    """
    digits = [int(digit) for digit in digits_of(text)]

    def check(length: int) -> int:
        weights = range(length + 1, 1, -1)
        return sum(d * w for d, w in zip(digits, weights, strict=False)) * 10 % 11 % 10

    return len(set(digits)) > 1 and [check(9), check(10)] == digits[9:]


def chinese_id(text: str) -> bool:
    """Resident identity card, GB 11643: ISO 7064 MOD 11-2.

    >>> chinese_id("11010519491231002X"), chinese_id("110105194912310021")
    (True, False)
    """
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(text[:17]))
    return "10X98765432"[total % 11] == text[17].upper()


def swiss_id(text: str) -> bool:
    """AHV number: 13 digits from 756 with the check digit of EAN-13.

    >>> swiss_id("756.9217.0769.85"), swiss_id("756.9217.0769.84")
    (True, False)
    """
    digits = [int(digit) for digit in digits_of(text)]
    return len(digits) == 13 and (sum(digits[::2]) + 3 * sum(digits[1::2])) % 10 == 0
