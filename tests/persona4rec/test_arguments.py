from pathlib import Path

import pytest

from persona4rec import arguments
from reranker.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "ks"), [("5,10,20", [5, 10, 20]), ("20, 5,10", [5, 10, 20]), ("10", [10]), ("5,5", [5])]
)
def test_cut_offs_are_sorted_and_each_there_once(text: str, ks: list[int]) -> None:
    assert arguments.cut_offs(text) == ks


@pytest.mark.parametrize("text", ["", "5,", "5;10", "ten", "5.5", "0", "5,-1"])
def test_cut_offs_that_are_none_are_quoted(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^--k is '{text}': "):
        arguments.cut_offs(text)


def test_a_model_is_one_that_is_there() -> None:
    assert [arguments.model("als"), arguments.model("bpr")] == ["als", "bpr"]
    with pytest.raises(ConfigurationError, match="no candidate model 'ALS': choose als or bpr"):
        arguments.model("ALS")


# ---- candidates ------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "candidates.csv"


def test_candidates_may_be_written_on_the_command_line() -> None:
    assert arguments.candidates("dune, emma", "u") == [("dune", None), ("emma", None)]
    many = [f"item-{number:04}" for number in range(100)]
    assert arguments.candidates(",".join(many), "u") == [(item_id, None) for item_id in many]


def test_candidates_of_a_file_have_scores_where_it_says_so(file: Path) -> None:
    file.write_text("item_id,score\ndune,1.5\nemma,\n")
    assert arguments.candidates(str(file), "u") == [("dune", 1.5), ("emma", None)]
    file.write_text("item_id\ndune\n")
    assert arguments.candidates(str(file), "u") == [("dune", None)]


def test_candidates_of_other_users_are_left_out(file: Path) -> None:
    file.write_text("user_id,item_id,score\nv,dune,1\nu,emma,2\nv,persuasion,3\n")
    assert arguments.candidates(str(file), "u") == [("emma", 2.0)]
    with pytest.raises(ConfigurationError, match=f"{file} holds no candidates of user w"):
        arguments.candidates(str(file), "w")


def test_a_file_that_is_not_there_is_not_taken_for_an_item(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"--candidates {file} is not a file"):
        arguments.candidates(str(file), "u")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"id,score\ndune,1\n", "has no column item_id; its first line must be item_id"),
        (b"", "has no column item_id"),
        (b"item_id,score\ndune,much\n", "score 'much' is not a number"),
        (b"item_id,score\ndune,1\n,2\n", "line 3: item_id must not be empty"),
        (b"item_id,score\n\xff\xfe,1\n", "cannot be read: "),
        (b"item_id\n" + b"x" * 200_000 + b"\n", "cannot be read: field larger than field limit"),
    ],
    ids=["no column", "empty", "no number", "no id", "no text", "too long"],
)
def test_a_bad_file_is_named_with_what_is_wrong(content: bytes, told: str, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=told) as raised:
        arguments.candidates(str(file), "u")
    assert str(file) in str(raised.value)


# ---- held-out pairs --------------------------------------------------------------------------------------------------


def test_pairs_are_read_in_their_order_whatever_else_the_file_holds(file: Path) -> None:
    file.write_text("rating,user_id,item_id\n5,u,dune\n4,v,emma\n")
    assert arguments.pairs(file) == [("u", "dune"), ("v", "emma")]


def test_the_mark_that_some_editors_write_first_is_no_part_of_a_column(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfuser_id,item_id\r\nu,dune\r\n")
    assert arguments.pairs(file) == [("u", "dune")]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("user_id,item_id\n", "holds no pairs: it needs lines of user_id,item_id below its header"),
        ("user_id,book\nu,dune\n", "has no column item_id; its first line must be user_id,item_id"),
        ("user_id,item_id\nu,dune\nv\n", "line 3: user_id and item_id must not be empty"),
    ],
)
def test_a_bad_test_file_is_named_with_what_is_wrong(content: str, told: str, file: Path) -> None:
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=told) as raised:
        arguments.pairs(file)
    assert str(file) in str(raised.value)


def test_a_test_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{file} cannot be read"):
        arguments.pairs(file)


# ---- settings --------------------------------------------------------------------------------------------------------


def test_a_flag_wins_over_the_environment_and_that_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arguments.settings({"gamma": None}).gamma == 0.9
    monkeypatch.setenv("PERSONA4REC_GAMMA", "0.5")
    assert arguments.settings({"gamma": None}).gamma == 0.5
    assert arguments.settings({"gamma": 0.7}).gamma == 0.7


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PERSONA4REC_GAMMA", "2", "setting gamma is '2': .* PERSONA4REC_GAMMA$"),
        ("PERSONA4REC_GRPC_PORT", "many", "setting grpc_port is 'many': .* PERSONA4REC_GRPC_PORT$"),
        ("PERSONA4REC_MAX_CANDIDATES", "0", "setting limits.candidates is '0': .* PERSONA4REC_MAX_CANDIDATES$"),
        ("PERSONA4REC_LIMITS", "{", 'environment variable .*"limits"'),
    ],
)
def test_a_bad_setting_is_named_with_where_it_comes_from(
    name: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=told):
        arguments.settings({})
