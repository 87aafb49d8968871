"""What the kernels need of the machine; what they compute is tested where it is used."""

import os
import subprocess
import sys


def test_kernels_work_where_no_machine_code_can_be_kept() -> None:
    script = "import numpy, reranker.kernels as k; print(k.ranks(numpy.array([1, 3, 2], numpy.float32)).tolist())"
    # Below a file nobody can make a directory, whoever runs this.
    nowhere = {"NUMBA_CACHE_DIR": f"{__file__}/cache"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | nowhere)
    assert (done.returncode, done.stdout.strip()) == (0, "[3, 1, 2]"), done.stderr
