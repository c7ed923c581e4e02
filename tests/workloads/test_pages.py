"""The pages of web, and what it takes from emoji and voting."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from workloads import pages

EVIL = "<script>alert(1)</script>\"'&"


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes it."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Notes it."""
        self.text += data


def test_lists_are_read() -> None:
    """As emoji and voting answer."""
    assert pages.emoji_of('[{"shortcode": ":taco:", "emoji": "T", "more": 1}]') == {":taco:": "T"}
    assert pages.votes_of('[{"shortcode": ":taco:", "votes": 3}]') == {":taco:": 3}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "{}",
        "[" * 100_000,
        "[1]",
        '[{"shortcode": 1, "emoji": "x", "votes": 1}]',
        '[{"shortcode": ":a:", "emoji": true, "votes": true}]',
        '[{"shortcode": ":a:", "emoji": "\\ud800", "votes": 1e5}]',
        '[{"shortcode": "\\udfff", "emoji": "x", "votes": 1}]',
        json.dumps([{"shortcode": "a" * 65, "emoji": "x", "votes": 1}]),
        json.dumps([{"shortcode": "a", "emoji": "x" * 65, "votes": 10**64}]),
        json.dumps([{"shortcode": str(number), "emoji": "x", "votes": 1} for number in range(501)]),
        "[" + "1" * 5000 + "]",
    ],
)
def test_another_answer_is_the_others_failure(answer: str) -> None:
    """AnswerError for whatever it is."""
    with pytest.raises(pages.AnswerError, match="expected"):
        pages.emoji_of(answer)
    with pytest.raises(pages.AnswerError, match="expected"):
        pages.votes_of(answer)


def test_the_page_has_all_emoji_and_the_leaders() -> None:
    """A button for each, ten lines of leaders, thanks for a vote; a plain form, no script, nothing from elsewhere."""
    emoji = {f":e{number}:": chr(0x1F600 + number) for number in range(20)}
    votes = {f":e{number}:": number for number in range(1, 15)}
    page = Tags(pages.front(emoji, votes, ":e3:", "web-0"))
    assert [found["value"] for tag, found in page.tags if tag == "button"] == list(emoji)
    assert [found for tag, found in page.tags if tag == "form"] == [{"method": "post", "action": "/vote"}]
    assert sum(tag == "tr" for tag, _ in page.tags) == pages.LEADERS
    assert page.text.index(":e14:") < page.text.index(":e5:")
    assert "You voted for \U0001f603 :e3:" in page.text
    assert "web-0" in page.text
    assert {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe"} == set()
    assert not [found for _, found in page.tags if {"src", "onclick", "onload"} & set(found)]


def test_a_page_without_votes_says_so() -> None:
    """And thanks nobody for an emoji that there is not."""
    page = Tags(pages.front({":a:": "A"}, {}, ":b:", "web-0"))
    assert "Nobody has voted yet." in page.text
    assert "Thank you" not in page.text


def test_everything_is_escaped() -> None:
    """What others say is text, wherever it stands."""
    whole = (
        pages.front({EVIL: EVIL}, {EVIL: 1}, EVIL, EVIL),
        pages.trouble(EVIL, EVIL),
    )
    for page in whole:
        found = Tags(page)
        assert "script" not in {tag for tag, _ in found.tags}
        assert EVIL in found.text
    assert [found["value"] for tag, found in Tags(whole[0]).tags if tag == "button"] == [EVIL]
