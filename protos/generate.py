"""Write the generated code of protos/ below the given folder: `python protos/generate.py FOLDER`."""

import sys
import sysconfig
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
WELL_KNOWN = Path(protoc.__file__).parent / "_proto"


def generate(out: Path) -> None:
    """Generate modules and type stubs; the grpc stub is typed by mypy-protobuf, since protoc types messages only."""
    sources = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    services = [str(PROTOS / "reranker/v1/reranker.proto")]
    paths = [f"--proto_path={PROTOS}", f"--proto_path={WELL_KNOWN}"]
    scripts = Path(sysconfig.get_path("scripts"))
    plugins = [f"--plugin={scripts / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    _run([*paths, *plugins, f"--python_out={out}", f"--mypy_out={out}", *sources])
    _run([*paths, *plugins, f"--grpc_python_out={out}", f"--mypy_grpc_out={out}", *services])


def _run(arguments: list[str]) -> None:
    if protoc.main(["protoc", *arguments]) != 0:
        sys.exit(f"protoc failed: {' '.join(arguments)}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
