from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest

from runtime.secret import Secret


@dataclasses.dataclass(frozen=True)
class Holder:
    token: Secret


def test_no_way_of_printing_shows_it() -> None:
    """repr, str, format, f-string and a dataclass's repr all give the same stars."""
    secret = Secret("s3cret")
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>20}", f"{secret}", repr(Holder(secret))]
    assert all("s3cret" not in text for text in shown)
    assert secret.reveal() == "s3cret"


def test_it_is_not_pickled_copied_serialised_or_hashed() -> None:
    """Ways in which a secret could leave by accident raise TypeError."""
    secret = Secret("s3cret")
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        copy.deepcopy(secret)
    with pytest.raises(TypeError):
        json.dumps({"token": secret})
    with pytest.raises(TypeError):
        hash(secret)


def test_equality_and_emptiness() -> None:
    """Equal by content, never equal to plain text; an empty one is false."""
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert Secret("a")
    assert not Secret("")
