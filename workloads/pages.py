"""What web of clusters/emojivoto makes of the answers of emoji and voting: values, then HTML. Pure.

The pages need no script and nothing from elsewhere; everything that comes from another program is escaped.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

MAX_EMOJI = 500
"""Emoji that are shown; a list with more is refused. The list that emoji has is some 80."""
_MAX_TEXT = 64
"""Characters of a shortcode, and of an emoji."""
LEADERS = 10
"""Lines of the leaderboard."""

TITLE = "Emoji Vote"
"""The title of every page; tests of a browser look for it."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of the pages: no script, nothing from elsewhere, forms go to us."""

_STYLE = """
body { margin: 0 auto; max-width: 60rem; padding: 1rem; font-family: system-ui, sans-serif }
body { color: #222; background: #fdf6e3 }
h1 { color: #b22 } h2 { border-bottom: 2px solid #b22 }
form { display: flex; flex-wrap: wrap; gap: .3rem }
button { font-size: 1.8rem; padding: .3rem .5rem; background: #fff; cursor: pointer }
button { border: 1px solid #ccc; border-radius: .4rem }
button:hover { background: #ffe8a0 }
.told { padding: .6rem 1rem; border-left: .4rem solid #2a2; background: #efe }
.wrong { padding: .6rem 1rem; border-left: .4rem solid #b22; background: #fee }
td { padding: .1rem .8rem } td.votes { text-align: right }
"""


class AnswerError(Exception):
    """Another program's answer is not what was expected; the message says what is wrong."""


def emoji_of(text: str) -> dict[str, str]:
    """Shortcode → emoji, of the answer of emoji's `/list`, in its order. AnswerError for anything else."""
    return dict(_pair(item, "emoji", str) for item in _items(text))


def votes_of(text: str) -> dict[str, int]:
    """Shortcode → votes, of the answer of voting's `/results`, in its order. AnswerError for anything else."""
    return dict(_pair(item, "votes", int) for item in _items(text))


def _items(text: str) -> list[Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AnswerError(f"expected a JSON list: {error}") from error
    if not isinstance(tree, list) or len(tree) > MAX_EMOJI:
        raise AnswerError(f"expected a JSON list of at most {MAX_EMOJI}")
    return tree


def _pair(item: object, key: str, kind: type) -> tuple[str, Any]:
    if isinstance(item, dict):
        code, value = item.get("shortcode"), item.get(key)
        if isinstance(code, str) and type(value) is kind and _is_short(code) and _is_short(str(value)):
            return code, value
    raise AnswerError(f"expected of each a shortcode and {key} ({kind.__name__}), of at most {_MAX_TEXT} characters")


def _is_short(text: str) -> bool:
    """Whether it can be shown. JSON can also write halves of characters, which no page can have."""
    return len(text) <= _MAX_TEXT and not any("\ud800" <= character <= "\udfff" for character in text)


def front(emoji: Mapping[str, str], votes: Mapping[str, int], voted: str, peer: str) -> str:
    """The page: what can be voted for, who leads, and thanks for `voted`, where that is one of them."""
    told = ""
    if voted in emoji:
        told = f'<p class="told">You voted for {_both(voted, emoji)}. Thank you.</p>\n'
    buttons = "\n".join(
        f'<button name="shortcode" value="{_text(code)}" title="{_text(code)}">{_text(character)}</button>'
        for code, character in emoji.items()
    )
    rows = "\n".join(
        f'<tr><td>{_both(code, emoji)}</td><td class="votes">{count}</td></tr>' for code, count in _leaders(votes)
    )
    board = f"<table>\n{rows}\n</table>" if rows else "<p>Nobody has voted yet.</p>"
    return _page(
        f'{told}<p>Tap your favourite.</p>\n<form method="post" action="/vote">\n{buttons}\n</form>\n'
        f"<h2>Leaderboard</h2>\n{board}\n<p><small>Served by {_text(peer)}.</small></p>"
    )


def trouble(what: str, reason: str) -> str:
    """The page for what cannot be done now."""
    return _page(
        f'<p class="wrong">{_text(what)}</p>\n<p><small>{_text(reason)}</small></p>\n<p><a href="/">Back</a></p>'
    )


def _leaders(votes: Mapping[str, int]) -> Sequence[tuple[str, int]]:
    return sorted(votes.items(), key=lambda item: (-item[1], item[0]))[:LEADERS]


def _both(code: str, emoji: Mapping[str, str]) -> str:
    return f"{_text(emoji.get(code, ''))} <code>{_text(code)}</code>"


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _page(body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{TITLE}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{TITLE}</h1>\n{body}\n</body>\n</html>\n"
    )
