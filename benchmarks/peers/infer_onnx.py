"""ONNX Runtime GenAI, as cpu_inference.py drives it: a folder of its model builder, threads; then
prompts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from infer_protocol import serve


def build(path: str, threads: int) -> tuple[Callable[[list[int], int], tuple[float, float]], str]:
    import onnxruntime_genai as api

    config = api.Config(path)
    session = {"intra_op_num_threads": threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = api.Model(config)

    def run(prompt: list[int], tokens: int) -> tuple[float, float]:
        settings = api.GeneratorParams(model)
        # As long at least as at most: the end of a text ends nothing.
        length = len(prompt) + tokens + 1
        settings.set_search_options(do_sample=False, min_length=length, max_length=length)
        generator = api.Generator(model, settings)
        start = time.perf_counter()
        generator.append_tokens(prompt)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(tokens):
            generator.generate_next_token()
        seconds = time.perf_counter() - first
        assert len(generator.get_sequence(0)) == length, len(generator.get_sequence(0))
        return first - start, seconds / tokens

    return run, f"ONNX Runtime GenAI {api.__version__}"


if __name__ == "__main__":
    serve(build, sys.argv[1], int(sys.argv[2]))
