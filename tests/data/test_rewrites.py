"""Query rewriting: what is cut from a conversation, what no two splits share, and what is refused in a file."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernllm.core.config import InputError
from modernllm.data.rewrites import (
    QUERY,
    SPLITS,
    TURN_WORDS,
    WORDS,
    conversation_text,
    kept_turns,
    overlap_between,
    query_of,
    read_rewrites,
)
from modernllm.data.sources import NotAvailable

STAND_IN = "generated_rewrites"


@given(st.lists(st.text(max_size=300), max_size=50), st.text(max_size=200))
def test_the_query_and_the_first_turn_stay_and_the_oldest_others_go(history, query):
    text, (turns, left_out) = conversation_text(history, query), kept_turns(history, query)
    said = [" ".join(turn.split()) for turn in history if turn.strip()]
    shortened = [" ".join(turn.split()[:TURN_WORDS]) for turn in said]
    assert text.split("\n") == [*turns, QUERY + " ".join(query.split())] and query_of(text) == " ".join(query.split())
    assert len(turns) + left_out == len(said) and turns[:1] == shortened[:1]
    assert turns[1:] == shortened[1:][left_out:]
    assert len(turns) <= 1 or len(f"{query} {' '.join(turns)}".split()) <= WORDS


def test_a_long_query_stays_whole():
    query = "why " * 400
    assert kept_turns(["Who was Ada?", "A painter."], query) == (["Who was Ada?"], 1)
    assert query_of(conversation_text(["Who was Ada?"], query)) == query.strip()


def test_no_two_splits_share_a_row_or_a_conversation():
    parts = {split: read_rewrites(split, stand_in=STAND_IN).rows for split in SPLITS}
    assert not overlap_between(parts).drop(columns=["a", "b", "rows of a"]).to_numpy().any()
    assert all(row["input"] == conversation_text(row["history"], row["query"]) for rows in parts.values() for row in rows)


def test_dev_is_a_tenth_of_the_conversations():
    for split in ("train", "validation"):
        full, dev = (read_rewrites(split, portion, STAND_IN) for portion in ("full", "dev"))
        groups = [{row["group"] for row in rows.rows} for rows in (full, dev)]
        assert groups[1] < groups[0] and len(groups[1]) == max(1, round(len(groups[0]) / 10))
        assert all(row in full.rows for row in dev.rows) and dev.fingerprint != full.fingerprint
    assert read_rewrites("test", "dev", STAND_IN).rows == read_rewrites("test", "full", STAND_IN).rows


def test_without_data_and_without_a_stand_in_it_is_said_where_to_get_it():
    with pytest.raises(NotAvailable, match="canard"):
        read_rewrites("train")


@pytest.fixture
def write(tmp_path):
    def write(rows):
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        return path
    return write


def turns(n, conversation=False):
    rows = [{"history": [f"Who is N{k}?", "A painter."][: 2 * i], "query": f"What is {i}{k}?", "rewrite": f"What is N{k} {i}?"}
            for k in range(n) for i in range(2)]
    return [{**row, "conversation": k // 2} if conversation else row for k, row in enumerate(rows)]


def test_an_own_file_has_the_three_splits(write):
    read = {split: read_rewrites(split, write(turns(30, conversation=True))) for split in SPLITS[:3]}
    assert [len({row["group"] for row in rows.rows}) for rows in read.values()] == [24, 3, 3]
    assert all(rows.source == "own" and not rows.generated and rows.split == split for split, rows in read.items())
    with pytest.raises(InputError, match="validation, test"):
        read_rewrites("out_of_domain", write(turns(30)))


def test_a_history_is_a_list_or_lines_and_the_first_turn_names_the_conversation(write):
    rows = [{**row, "history": "\n".join(row["history"])} for row in turns(30)]
    read = [Counter(row["input"] for split in SPLITS[:3] for row in read_rewrites(split, write(some)).rows)
            for some in (turns(30), rows)]
    assert read[0] == read[1]


def test_a_row_of_train_that_the_test_has_is_left_out(write):
    rows = turns(30, conversation=True)
    test = read_rewrites("test", write(rows)).rows[0]
    copy = {"history": ["Hello."], "query": test["query"].upper() + " !", "rewrite": test["rewrite"]}
    copies = [copy | {"conversation": name} for name in "abcdefghij"]
    train = read_rewrites("train", write([*rows, *copies]))
    assert not any(row["query"].lower().startswith(test["query"].lower()) for row in train.rows) and "left out" in train.note


@pytest.mark.parametrize("bad, said", [
    ({"history": 3}, "history is '3'"),
    ({"history": ["a", 4]}, "history is"),
    ({"query": " "}, "query is ' '"),
    ({"rewrite": None}, "rewrite is 'None'"),
    ({"rewrite": "\ud800"}, "surrogate"),
    ("{\n", "is not JSON"),
    ("[1]\n", "is a list"),
    ('{"query": "a"}\n', "no column 'history'"),
])
def test_a_bad_line_is_named(write, bad, said):
    rows = turns(10)
    with pytest.raises(InputError, match=rf"mine.jsonl:21: .*{said}"):
        read_rewrites("train", write([*rows, bad if isinstance(bad, str) else rows[0] | bad]))


def test_what_is_no_portion_and_no_file_is_refused(write):
    with pytest.raises(InputError, match="query rewriting has no set 'half'; allowed: full, dev, or a .jsonl file"):
        read_rewrites("train", "half")
    with pytest.raises(InputError, match="9 conversations; needed: 10"):
        read_rewrites("train", write(turns(9, conversation=True)))


def test_the_real_sets(real_mirror):
    parts = {split: read_rewrites(split) for split in SPLITS}
    assert [len(rows) for rows in parts.values()] == [4895, 654, 838, 1139]
    assert not overlap_between({split: rows.rows for split, rows in parts.items()}).iloc[:, 3:].to_numpy().any()
    assert "1,190 rows that validation, test, out_of_domain have too and 424 repeated ones" in parts["train"].note
