"""`persona4rec import` as its user runs it: a process of its own, with what can befall one."""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from offline.dataset import Dataset
from offline.errors import DatasetError
from tests.benchmarks.import_reviews import write_metadata, write_reviews
from tests.persona4rec.running import complaint, environment, eventually, persona4rec, succeeded

pytestmark = pytest.mark.integration

WRITTEN = ["interactions.csv", "items.jsonl", "reviews.jsonl"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files to import, made once."""
    folder = tmp_path_factory.mktemp("made")
    write_reviews(folder / "few.jsonl", 50)
    write_reviews(folder / "many.jsonl", 8000)
    write_metadata(folder / "meta.jsonl", 400)
    return folder


@pytest.fixture
def files(made: Path, tmp_path: Path) -> Path:
    """Where the command runs: the files, and room for `out`."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def amazon(reviews: str, *options: str) -> list[str]:
    return ["import", "amazon", "--reviews", reviews, "--meta", "meta.jsonl", "--out", "out", *options]


def start(files: Path, before: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "persona4rec", *amazon("many.jsonl")],
        cwd=files,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,  # noqa: PLW1509 - this process has no other threads
    )


def start_and_stop_in_the_middle(files: Path) -> subprocess.Popen[str]:
    """Start an import and hold it when it has written some of the reviews, so that it cannot be done too soon."""
    process = start(files)
    reviews = files / "out" / ".import" / "reviews.jsonl"
    eventually(lambda: reviews.exists() and reviews.stat().st_size > 100_000, "reviews are being written")
    process.send_signal(signal.SIGSTOP)
    return process


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_it_tells_what_became_of_every_line(files: Path) -> None:
    told = succeeded(persona4rec(*amazon("few.jsonl"), cwd=files))
    assert "few.jsonl" in told
    assert "written to out: items.jsonl 400, reviews.jsonl" in told
    assert len(list(Dataset.open(files / "out").items())) == 400


def test_killed_in_the_middle_it_leaves_no_half_of_a_dataset(files: Path) -> None:
    process = start_and_stop_in_the_middle(files)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(DatasetError, match="holds no items"):
        list(Dataset.open(files / "out").items())
    succeeded(persona4rec(*amazon("few.jsonl"), cwd=files))
    assert sorted(path.name for path in (files / "out").iterdir()) == WRITTEN
    before = content(files / "out")
    process = start_and_stop_in_the_middle(files)
    process.kill()
    process.wait()
    assert content(files / "out") == before


def test_a_second_one_is_refused_and_a_terminated_one_cleans_up(files: Path) -> None:
    process = start_and_stop_in_the_middle(files)
    told = complaint(persona4rec(*amazon("few.jsonl"), cwd=files))
    assert told == "error: another import is writing to out: wait for it, or name another --out"
    process.terminate()
    process.send_signal(signal.SIGCONT)
    process.wait()
    assert list((files / "out").iterdir()) == []


def test_a_full_disk_is_told_in_one_line_and_changes_nothing(files: Path) -> None:
    def no_large_files() -> None:
        # The kernel then refuses to write on, as a full disk does, with another number for the error.
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))

    succeeded(persona4rec(*amazon("few.jsonl"), cwd=files))
    before = content(files / "out")
    process = start(files, no_large_files)
    out, error = process.communicate()
    told = complaint(subprocess.CompletedProcess(process.args, process.returncode, out, error))
    assert told.startswith("error: out cannot be written: [Errno 27] File too large")
    assert content(files / "out") == before
    assert not (files / "out" / ".import").exists()


def test_options_choose_what_is_imported(files: Path) -> None:
    times = ("--since", "2010-01-01", "--until", "2020-01-01T00:00:00Z")
    succeeded(persona4rec(*amazon("many.jsonl", *times, "--category", "fiction", "--min-per-item", "2"), cwd=files))
    dataset = Dataset.open(files / "out")
    moments = [review.timestamp or 0 for review in dataset.reviews()]
    assert 1_262_304_000_000 <= min(moments) <= max(moments) < 1_577_836_800_000
    items = [event.item_id for event in dataset.interactions()]
    assert min(map(items.count, set(items))) >= 2
    assert {item.item_id for item in dataset.items()} == set(items)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["amazon", "--reviews", "none.jsonl"], "none.jsonl cannot be read: [Errno 2]"),
        (["amazon", "--reviews", "many.jsonl", "--since", "2020"], "--since is '2020': write a date like"),
        (["table", "--items", "meta.jsonl"], "has no column for item.item_id. Its columns are main_category, title,"),
        (["table", "--items", "meta.jsonl", "--map", "item.title"], "--map is 'item.title': write FIELD=COLUMN"),
        (["yelp", "."], "must hold one *business.json"),
        (["movielens", "."], "must hold movies.csv and ratings.csv"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(files: Path, arguments: list[str], told: str) -> None:
    assert told in complaint(persona4rec("import", *arguments, "--out", "out", cwd=files))


def test_tables_by_the_command(files: Path) -> None:
    rows = [{"sku": "a", "who": f"u{number}", "body": "good", "at": number} for number in range(3)]
    (files / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = ("review.item_id=sku", "review.user_id=who", "review.text=body", "review.timestamp=at")
    mapping = [part for pair in pairs for part in ("--map", pair)]
    command = ["import", "table", "--reviews", "mine.jsonl", "--time-unit", "s", *mapping, "--out", "out"]
    succeeded(persona4rec(*command, cwd=files))
    assert [review.timestamp for review in Dataset.open(files / "out").reviews()] == [0, 1000, 2000]
