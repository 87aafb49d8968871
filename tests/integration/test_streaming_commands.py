"""`persona4rec produce` and `persona4rec dlq`, as their users run them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kafka import TopicPartition

from reranker.dead_letters import DeadLetter, DeadLetters
from reranker.kafka import KafkaSettings, reader
from tests.integration.processes import environment, eventually
from tests.integration.streaming import PARTITIONS, broker

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    with broker(tmp_path_factory.mktemp("broker")) as running:
        yield running.settings()


def persona4rec(kafka: KafkaSettings, *arguments: object) -> "subprocess.CompletedProcess[str]":
    where = {"KAFKA_BOOTSTRAP": kafka.bootstrap, "KAFKA_TOPIC_PREFIX": kafka.topic_prefix}
    command = [sys.executable, "-m", "persona4rec", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(where), timeout=60)


def records(kafka: KafkaSettings, topic: str, number: int) -> list[tuple[bytes, dict[str, object]]]:
    """Return that many records of a topic, as key and value."""
    found: list[tuple[bytes, dict[str, object]]] = []

    def read() -> int:
        for polled in consumer.poll(200).values():
            found.extend((record.key, json.loads(record.value)) for record in polled)
        return len(found)

    with closing(reader(kafka)) as consumer:
        consumer.assign([TopicPartition(kafka.topic(topic), partition) for partition in range(PARTITIONS)])
        eventually(read, f"{number} records of {topic}", lambda count: count >= number)
    return found


def test_a_dataset_s_lines_become_events_and_bad_ones_are_counted(kafka: KafkaSettings, tmp_path: Path) -> None:
    interactions = tmp_path / "interactions.csv"
    interactions.write_text("user_id,item_id,rating,timestamp\nann,i1,4,1735689600000\nbob,i2,,\nann,i2,,2025-01-02\n")
    done = persona4rec(kafka, "produce", interactions, "--topic", "interactions")
    assert "2 events sent to interactions" in done.stdout
    assert done.returncode == 1
    assert "1 lines of" in done.stderr
    assert "line 3: no timestamp" in done.stderr
    assert sorted(records(kafka, "interactions", 2), key=str) == [
        (
            b"ann",
            {
                "eventId": "i1@1735689600000",
                "userId": "ann",
                "itemId": "i1",
                "eventTime": "1735689600000",
                "rating": 4.0,
            },
        ),
        (b"ann", {"eventId": "i2@1735776000000", "userId": "ann", "itemId": "i2", "eventTime": "1735776000000"}),
    ]


def test_the_topic_s_own_json_goes_as_it_stands_at_the_rate_asked_for(kafka: KafkaSettings, tmp_path: Path) -> None:
    events = [{"reviewId": f"r{n}", "userId": "ann", "itemId": f"i{n}", "eventTime": 5, "text": "é"} for n in range(20)]
    file = tmp_path / "reviews.jsonl"
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    done = persona4rec(kafka, "produce", file, "--topic", "reviews", "--rate", 20)
    assert done.returncode == 0, done.stderr
    seconds = float(done.stdout.split()[-2])
    assert seconds >= 0.9
    found = records(kafka, "reviews", 20)
    assert sorted(key for key, _ in found) == sorted(b"i%d" % n for n in range(20))
    assert sorted((value for _, value in found), key=str) == sorted(events, key=str)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["produce", "nowhere.csv", "--topic", "interactions"], "nowhere.csv cannot be read"),
        (["produce", __file__, "--topic", "published"], "choose of interactions"),
        (["dlq", "list", "--topic", "published"], "choose of interactions"),
        (["dlq", "discard"], "either ids, or --all"),
        (["dlq", "redrive", "a/0/1", "--all"], "either ids, or --all"),
        (["dlq", "show", "a/0/1"], "there is no dead letter a/0/1"),
        (["ingest", "--replay", "yesterday"], "replay is 'yesterday'"),
        (["ingest", "--metrics-port", "99999"], "setting metrics_port"),
        (["ingest", "--kafka", "127.0.0.1:1"], "no Kafka broker can be used at 127.0.0.1:1"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    kafka: KafkaSettings, tmp_path: Path, arguments: list[str], told: str
) -> None:
    if arguments[0] == "ingest":
        arguments = [*arguments, f"--histories={tmp_path / 'h.sqlite'}"]
    done = persona4rec(kafka, *arguments)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_dead_letters_are_listed_shown_sent_again_and_discarded(kafka: KafkaSettings) -> None:
    sent = [
        DeadLetter(
            kafka.topic("items"), 0, n, 1_735_689_600_000, b"i%d" % n, b"rub\x1b[31mbish \xff", (), "E", "why not"
        )
        for n in range(3)
    ]
    with closing(DeadLetters(kafka)) as letters:
        letters.put(sent)
    listed = persona4rec(kafka, "dlq", "list", "--topic", "items").stdout
    assert all(letter.letter_id in listed for letter in sent)
    assert "3 dead letters" in listed
    shown = persona4rec(kafka, "dlq", "show", sent[1].letter_id).stdout
    assert "why not" in shown
    assert "bish \\xff" in shown
    assert "\x1b[31m" not in shown
    assert persona4rec(kafka, "dlq", "redrive", sent[0].letter_id).stdout.startswith("1 sent again")
    assert persona4rec(kafka, "dlq", "discard", "--all", "--topic", "items").stdout.startswith("2 discarded")
    assert "no dead letters" in persona4rec(kafka, "dlq", "list").stdout
