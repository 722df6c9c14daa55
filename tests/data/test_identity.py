"""When two documents are the same."""

import pytest

from sparsecl.data.identity import DIGEST_BYTES, document_digest, words


@pytest.mark.parametrize(
    "other",
    [
        'He said: "It is done."',
        "he said it is done",
        "He  said,\n\n'it is done'...",
        "HE SAID: \u201cIT IS DONE!\u201d",
        "\ufeffHe said: it is do\u00adne\u2028",
        "He\u00a0said \u2014 it is done\x0c",
        "\uff28\uff45 said it is done",
    ],
)
def test_near_copies_are_the_same_document(other):
    assert document_digest(other) == document_digest("He said: it is done.")
    assert words(other) == [b"he", b"said", b"it", b"is", b"done"]


def test_unicode_forms_are_the_same():
    assert document_digest("caf\u00e9 \ufb01n") == document_digest("CAFE\u0301 fin")
    assert document_digest("Stra\u00dfe") == document_digest("STRASSE")


CODE = "total_1 = a * (b - c) / d % 2 + x"


@pytest.mark.parametrize(
    "other",
    [
        "total_2 = a * (b - c) / d % 2 + x",
        "total 1 = a * (b - c) / d % 2 + x",
        "total_1 = a + (b - c) / d % 2 + x",
        "total_1 = a * (b + c) / d % 2 + x",
        "total_1 = a * (b - c) / d & 2 + x",
        "total_1 == a * (b - c) / d % 2 + x",
        "total_1 = a * (b - c) / d % 2 + y",
        "total_1 = a * (b - c) / d % 2",
    ],
)
def test_another_letter_digit_or_operator_is_another_document(other):
    assert document_digest(other) != document_digest(CODE)


def test_vowel_signs_are_parts_of_words():
    assert document_digest("\u0915\u093f") != document_digest("\u0915\u0940")
    assert words("\u0939\u093f\u0928\u094d\u0926\u0940\u0964") == [
        "\u0939\u093f\u0928\u094d\u0926\u0940".encode()
    ]


def test_a_text_without_words_is_what_it_is():
    texts = ["...", "!!!", ". ..", "", "\u2026", "\u200b"]
    assert len({document_digest(text) for text in texts}) == len(texts)
    assert document_digest("... !") == document_digest(" ...\n!")


def test_ascii_has_one_rule_with_the_rest():
    text = "".join(map(chr, range(1, 128))) * 2
    assert words(text) == words(text + " \u00e9")[:-1]
    assert len(document_digest(text)) == DIGEST_BYTES
