"""Which e-mail addresses are valid, and which are the same person."""

import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core import emails
from core.emails import EMAIL_MAX_CHARACTERS, normalise_email


@pytest.mark.parametrize(
    "email",
    [
        "user@example.com",
        "a@b.co",
        "first.last+tag@sub.example.co.uk",
        "o'brien@example.com",
        "!#$%&'*+-/=?^_`{|}~@example.com",
        "1@2.com",
        "user@a-b.example",
        "дмитрий@example.com",
        "user@xn--bcher-kva.example",
    ],
)
def test_a_normalised_address_stays_as_it_is(email: str) -> None:
    assert normalise_email(email) == email


@pytest.mark.parametrize(
    "email",
    [
        "",
        "@",
        "plain",
        "plain.example.com",
        "@example.com",
        "user@",
        "user@@example.com",
        "us@er@example.com",
        ".user@example.com",
        "user.@example.com",
        "us..er@example.com",
        "us er@example.com",
        "us,er@example.com",
        "us(er)@example.com",
        "us<er>@example.com",
        "us\\er@example.com",
        '"user"@example.com',
        '"us@er"@example.com',
        "User <user@example.com>",
        "user@.example.com",
        "user@example..com",
        "user@example.com.",
        "user@-example.com",
        "user@example-.com",
        "user@exa_mple.com",
        "user@exa mple.com",
        "user@[127.0.0.1]",
        "user@[IPv6:::1]",
        "user@127.0.0.1",
        "user@example.com:25",
        "mailto:user@example.com\n",
        f"user@{'a' * 64}.com",
        f"user@{'ü' * 63}.com",
        "user@xn--a.com",
        "user@xn--.com",
    ],
)
def test_wrong_syntax_is_no_address(email: str) -> None:
    assert normalise_email(email) is None


@pytest.mark.parametrize("email", ["user@localhost", "user@com", "user@example。", "user@xn--p1ai"])
def test_a_domain_needs_a_dot(email: str) -> None:
    assert normalise_email(email) is None


@pytest.mark.parametrize(
    "email",
    ["user@machine.local", "user@some.test", "user@example.invalid", "user@a.localhost", "user@b.example", "u@c.onion"],
)
def test_special_use_domains_are_well_formed(email: str) -> None:
    assert normalise_email(email) == email


@pytest.mark.parametrize(
    "character", ["\0", "\x01", "\t", "\n", "\r", "\x1b", "\x7f", "\x85", "\u2028", "\u200b", "\u202e"]
)
def test_control_and_invisible_characters_are_refused_anywhere(character: str) -> None:
    for email in (f"us{character}er@example.com", f"{character}user@example.com", f"user{character}@example.com"):
        assert normalise_email(email) is None
    if character != "\u200b":  # IDNA drops it in domains
        for email in (f"user@exam{character}ple.com", f"user@example.com{character}"):
            assert normalise_email(email) is None


@pytest.mark.parametrize("email", ["us\ud800er@example.com", "user@exam\udfffple.com", "\ud83d@\ude00.com", "\ud800"])
def test_lone_surrogates_are_refused(email: str) -> None:
    assert normalise_email(email) is None


@pytest.mark.parametrize("email", [" user@example.com", "user@example.com ", "\u00a0user@example.com"])
def test_trimming_is_up_to_the_caller(email: str) -> None:
    assert normalise_email(email) is None


def test_255_characters_pass_and_256_do_not() -> None:
    domain = "@" + ".".join(["d" * 60] * 3) + ".example"
    longest = "u" * (EMAIL_MAX_CHARACTERS - len(domain)) + domain
    assert len(longest) == 255
    assert normalise_email(longest) == longest
    assert normalise_email("u" + longest) is None


def test_length_is_counted_in_characters_not_bytes() -> None:
    email = "д" * 243 + "@example.com"
    assert len(email) == 255
    assert normalise_email(email) == email


@pytest.mark.parametrize(
    "spellings",
    [
        ["user@example.com", "USER@EXAMPLE.COM", "User@Example.Com"],
        ["jos\u00e9@example.com", "jose\u0301@example.com", "JOSÉ@example.com", "JOSE\u0301@example.com"],
        # The small letter has a composed form, the capital has none.
        ["a\u1e96@example.com", "ah\u0331@example.com", "aH\u0331@example.com"],
        ["u@bücher.example", "u@BÜCHER.example", "u@bu\u0308cher.example", "U@XN--BCHER-KVA.example"],
        ["u@straße.de", "u@xn--strae-oqa.de"],
        ["u@例え.jp", "u@例え。jp", "u@xn--r8jz45g.jp"],
        ["\u03c9@example.com", "\u03a9@example.com", "\u2126@example.com"],
        ["u@\uff45xample.com", "u@example.com"],
    ],
)
def test_spellings_of_one_address_are_one_person(spellings: list[str]) -> None:
    assert len({normalise_email(spelling) for spelling in spellings}) == 1
    assert normalise_email(spellings[0]) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("first.last@example.com", "firstlast@example.com"),
        ("user+tag@example.com", "user@example.com"),
        ("jose@example.com", "josé@example.com"),
        ("u@straße.de", "u@strasse.de"),
        ("user@a.example", "user@b.example"),
    ],
)
def test_different_addresses_are_different_people(one: str, other: str) -> None:
    assert None not in {normalise_email(one), normalise_email(other)}
    assert normalise_email(one) != normalise_email(other)


_any_text = st.text(st.characters())
_likely = st.builds(
    "{}@{}.{}".format,
    st.text(st.characters(categories=["L", "M", "N", "P", "S"]), min_size=1, max_size=20),
    st.text(st.characters(categories=["L", "M", "N"]), min_size=1, max_size=10),
    st.sampled_from(["com", "рф", "EXAMPLE"]),
)


@given(_any_text | st.builds("{}@{}".format, _any_text, _any_text) | st.emails() | _likely)
@example("İ@example.com")
@example("ΑΣ@example.com")
@example("\u1fbe@example.com")
def test_any_text_has_at_most_one_identity_and_that_is_stable(text: str) -> None:
    email = normalise_email(text)
    if email is None:
        return
    assert email.encode()
    assert unicodedata.is_normalized("NFC", email)
    assert email == email.lower()
    assert email.rpartition("@")[2].isascii()
    if len(email) <= EMAIL_MAX_CHARACTERS:
        assert normalise_email(email) == email


def test_every_character_that_has_a_lower_or_composed_form_keeps_one_identity() -> None:
    for character in map(chr, range(0x110000)):
        if character != unicodedata.normalize("NFC", character.lower()):
            email = normalise_email(f"a{character}@example.com")
            assert email is None or normalise_email(email) == email, ascii(character)


# The shortcut for ordinary addresses.

NEARLY_ORDINARY = st.from_regex(emails._ORDINARY) | st.from_regex(
    re.compile(r"[A-Za-z0-9_+.-]{1,70}@([A-Za-z0-9-]{1,65}[.]){0,4}[A-Za-z0-9-]{1,12}\n?\Z")
)


@settings(max_examples=2_000)
@given(NEARLY_ORDINARY)
@example("K@example.com")  # the Kelvin sign lower-cases to k
@example("user@example.com\n")
@example("a--b@ab--cd.example")
def test_the_shortcut_agrees_with_the_library(email: str) -> None:
    shortcut = normalise_email(email)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emails, "_ORDINARY", re.compile(r"(?!)"))
        assert normalise_email(email) == shortcut


def test_ordinary_addresses_take_the_shortcut() -> None:
    for email in ["user@example.com", "First.Last@gmail.com", "user+tag@mail.example.co.uk", "a_b-c@x1.io"]:
        assert emails._ORDINARY.match(email)
