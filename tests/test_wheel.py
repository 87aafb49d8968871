"""What people install: everything that is read at run time has to be in the wheel, and nothing that is not theirs."""

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
PACKAGES = ("reranker", "candidate_gen", "offline", "persona4rec")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Collection[str]:
    """Return the names in a wheel built as pip builds it, by the back end that is installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    (built,) = folder.glob("*.whl")
    with ZipFile(built) as opened:
        return frozenset(opened.namelist())


def files_of(package: str) -> set[str]:
    found = (path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(ROOT)) for path in found}


def test_every_file_of_the_packages_is_in_it(wheel: Collection[str]) -> None:
    missing = {name for package in PACKAGES for name in files_of(package)} - set(wheel)
    assert missing == set()


@pytest.mark.parametrize(
    "name",
    [
        "offline/prompts/generic/support.txt",
        "offline/prompts/books/domain.toml",
        "offline/templates/report.html",
        "persona4rec/demo_catalogue/personas.jsonl",
        "reranker/v1/reranker_pb2.pyi",
        "reranker/v1/reranker_pb2_grpc.pyi",
        "reranker/py.typed",
    ],
)
def test_what_is_no_code_is_in_it_by_name(name: str, wheel: Collection[str]) -> None:
    """Lest the test above looks at nothing."""
    assert name in wheel


@pytest.mark.parametrize("name", ["reranker.example.toml", "service_config.json"])
def test_what_the_commands_point_an_operator_to_is_installed_beside(name: str, wheel: Collection[str]) -> None:
    assert [one for one in wheel if one.endswith(f".data/data/share/persona4rec/deploy/{name}")]


def test_nothing_else_is_in_it(wheel: Collection[str]) -> None:
    own = {name for name in wheel if ".dist-info/" not in name and ".data/" not in name}
    assert {name.split("/")[0] for name in own} == set(PACKAGES)
    assert not [name for name in own if "tests" in name.split("/") or name.endswith((".pyc", ".sqlite"))]
