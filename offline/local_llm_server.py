"""The child process that serves a GGUF model file: `python -m offline.local_llm_server PATH NAME SLOTS CONTEXT`.

It writes its base URL to stdout when it is ready, and ends when its stdin does.
"""

import os
import sys

import xllamacpp

LOOPBACK = "127.0.0.1"


def serve(path: str, name: str, slots: int, context: int) -> None:
    # llama.cpp writes to stdout as it likes: the parent shall read nothing there but the address.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = xllamacpp.Server(_params(path, name, slots, context))
    print(f"{server.listening_address}/v1", file=answer, flush=True)
    answer.close()
    sys.stdin.buffer.read()
    # Its threads have nothing to save; joining them would wait for the requests in progress.
    os._exit(0)


def _params(path: str, name: str, slots: int, context: int) -> xllamacpp.CommonParams:
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {name}
    params.hostnames = [LOOPBACK]
    params.port = 0
    params.n_parallel = slots
    params.n_ctx = slots * context
    params.use_jinja = True
    # llama.cpp counts the machine's processors: threads beyond those of a cpuset would spin for each other.
    if len(os.sched_getaffinity(0)) < (os.cpu_count() or 1):
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    return params


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
