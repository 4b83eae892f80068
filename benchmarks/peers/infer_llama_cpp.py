"""llama.cpp through its C interface, as cpu_inference.py drives it: a model file, threads; then
prompts."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable

from infer_protocol import serve


def build(path: str, threads: int) -> tuple[Callable[[list[int], int], tuple[float, float]], str]:
    import llama_cpp as api

    @api.llama_log_callback
    def quiet(level: int, text: bytes, data: object) -> None:
        if level == 4:
            sys.stderr.write(text.decode("utf-8", "replace"))

    api.llama_log_set(quiet, ctypes.c_void_p(0))
    api.llama_backend_init()
    model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp does not load {path}")
    settings = api.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = 1024, 512, 512
    settings.n_threads = settings.n_threads_batch = threads
    context = api.llama_init_from_model(model, settings)
    memory = api.llama_get_memory(context)
    sampler = api.llama_sampler_init_greedy()

    def step(tokens: list[int]) -> int:
        array = (api.llama_token * len(tokens))(*tokens)
        status = api.llama_decode(context, api.llama_batch_get_one(array, len(tokens)))
        assert status == 0, status
        return int(api.llama_sampler_sample(sampler, context, -1))

    def run(prompt: list[int], tokens: int) -> tuple[float, float]:
        api.llama_memory_clear(memory, True)
        start = time.perf_counter()
        token = step(prompt)
        first = time.perf_counter()
        for _ in range(tokens):
            token = step([token])
        return first - start, (time.perf_counter() - first) / tokens

    run.keep = quiet  # type: ignore[attr-defined]
    return run, f"llama.cpp {api.__version__}"


if __name__ == "__main__":
    serve(build, sys.argv[1], int(sys.argv[2]))
