"""OpenVINO GenAI, as cpu_inference.py drives it: a GGUF file, which it converts itself, threads;
then prompts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from infer_protocol import serve


def build(path: str, threads: int) -> tuple[Callable[[list[int], int], tuple[float, float]], str]:
    import numpy as np
    import openvino as ov
    import openvino_genai as api

    pipeline = api.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
    settings = api.GenerationConfig()
    settings.do_sample, settings.ignore_eos = False, True

    def run(prompt: list[int], tokens: int) -> tuple[float, float]:
        settings.max_new_tokens = tokens + 1
        ids = np.array([prompt], dtype=np.int64)
        inputs = api.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        start = time.perf_counter()
        found = pipeline.generate(inputs, settings)
        seconds = time.perf_counter() - start
        assert len(found.tokens[0]) == tokens + 1, len(found.tokens[0])
        first = found.perf_metrics.get_ttft().mean / 1000
        return first, (seconds - first) / tokens

    return run, f"OpenVINO GenAI {api.__version__}"


if __name__ == "__main__":
    serve(build, sys.argv[1], int(sys.argv[2]))
