"""What the whole suite shares: real servers on free ports, one of each a session."""

import os
import socket
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

from offline.dataset import Dataset
from offline.encoder import load_encoder
from offline.publish import Document, documents
from offline.vector_cache import CachedEncoder
from persona4rec.demo import CATALOGUE

# What it notes names files by their paths on this machine: that is for the environment, not for the working tree.
set_hypothesis_home_dir(Path(sys.prefix) / "hypothesis")
# An example may meet a kernel that is compiled first, or a machine that others use: time is no property here.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

SHARED = Path(__file__).parents[2] / "shared"
"""Real data that some tests use where it is there; it is no part of the project."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With REQUIRE_ALL=1 a skipped test fails, so that a machine meant to run everything cannot quietly run less."""
    report = yield
    if os.environ.get("REQUIRE_ALL") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_ALL is set, but this was skipped: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs the real data of ../shared, which is not there")
    return SHARED


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> CachedEncoder:
    """The bundled encoder; a text is embedded once a session, whichever of its processes (pytest-xdist) asks first."""
    own = tmp_path_factory.getbasetemp()
    folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    return CachedEncoder(load_encoder(), folder / "vectors")


@pytest.fixture(scope="session")
def catalogue() -> Dataset:
    return Dataset.open(CATALOGUE)


@pytest.fixture(scope="session")
def books(catalogue: Dataset) -> tuple[Document, ...]:
    return tuple(documents(catalogue))
