"""The token format: any other text is refused, by one message, before or by the MAC."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from appliance.accounts.audit import Actor
from appliance.accounts.customers import Customers
from appliance.accounts.tokens import Tokens
from appliance.errors import Unauthenticated
from appliance.ledger import Ledger
from appliance.metrics import Registry
from appliance.vault import Keys

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def clock() -> float:
    return 1_800_000_000.0


@dataclass(frozen=True)
class Issued:
    """Tokens in memory, and the texts of them."""

    tokens: Tokens
    texts: list[str]

    def refuse(self, text: str) -> None:
        with pytest.raises(Unauthenticated, match=r"^the token is missing or not valid$"):
            self.tokens.verify(text)


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return asyncio.run(issue(tmp_path_factory.mktemp("tokens")))


async def issue(folder: Path) -> Issued:
    async with Ledger(folder, Registry()) as ledger:
        customers = await Customers(ledger, clock).__aenter__()
        tokens = await Tokens(ledger, Keys(bytes(range(32))), customers, clock).__aenter__()
        actor = Actor("system", "test")
        customer = await customers.add(actor, "Zoo")
        return Issued(tokens, [(await tokens.add(actor, customer.id)).token for _ in range(50)])


def test_the_shape_is_fixed(issued: Issued) -> None:
    for text in issued.texts:
        assert len(text) == 64
        assert text.startswith("xapp_")
        assert set(text[5:]) <= set(BASE62)
    assert len(set(issued.texts)) == 50


@given(st.sampled_from(range(50)), st.integers(0, 63), st.one_of(st.sampled_from(BASE62), st.characters()))
def test_one_other_character_is_refused(issued: Issued, index: int, position: int, character: str) -> None:
    text = issued.texts[index]
    assume(text[position] != character)
    issued.refuse(text[:position] + character + text[position + 1 :])


@given(st.sampled_from(range(50)), st.integers(0, 64), st.text(min_size=1, max_size=8))
def test_more_characters_are_refused(issued: Issued, index: int, position: int, added: str) -> None:
    text = issued.texts[index]
    issued.refuse(text[:position] + added + text[position:])


@given(st.sampled_from(range(50)), st.integers(0, 63), st.integers(1, 64))
def test_fewer_characters_are_refused(issued: Issued, index: int, position: int, count: int) -> None:
    text = issued.texts[index]
    issued.refuse(text[:position] + text[position + count :])


@given(st.sampled_from(range(50)), st.sampled_from(range(50)), st.integers(6, 58))
def test_two_halves_of_two_tokens_are_refused(issued: Issued, first: int, second: int, cut: int) -> None:
    spliced = issued.texts[first][:cut] + issued.texts[second][cut:]
    assume(spliced not in issued.texts)
    issued.refuse(spliced)


@given(st.permutations(range(59)))
def test_the_characters_in_another_order_are_refused(issued: Issued, order: list[int]) -> None:
    text = issued.texts[0]
    mixed = text[:5] + "".join(text[5 + position] for position in order)
    assume(mixed != text)
    issued.refuse(mixed)


@given(st.text())
def test_any_text_is_refused(issued: Issued, text: str) -> None:
    issued.refuse(text)


@given(st.text(alphabet=BASE62, min_size=59, max_size=59))
def test_any_text_of_the_right_shape_is_refused(issued: Issued, tail: str) -> None:
    issued.refuse("xapp_" + tail)


@given(st.integers(0, 49))
def test_the_genuine_text_is_accepted(issued: Issued, index: int) -> None:
    assert issued.tokens.verify(issued.texts[index]).token_id == issued.texts[index][5:15]
