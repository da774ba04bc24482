"""One real vLLM engine as a process: takes commands as JSON lines on stdin, answers on stdout behind a mark.

    engine.py OPTIONS_JSON     {"model", "transfer": kv_transfer_config or null, "block_size", "blocks", "tp", "pp"}

Commands: {"do": "generate", "prompt": [...], "max_tokens": n, "params": kv_transfer_params or null},
{"do": "hashes", "prompt": [...]}, {"do": "reset"}, {"do": "metrics"}, {"do": "quit"}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

MARK = "@@kvferry "

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "PYTHONHASHSEED": "0",
}.items():
    os.environ.setdefault(name, value)


def answer(**words: Any) -> None:
    print(MARK + json.dumps(words), flush=True)


def main() -> None:
    options = json.loads(sys.argv[1])
    ranks = options["tp"] * options["pp"]
    if ranks > 1:
        # A processor for each rank.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(str(rank % (os.cpu_count() or 1)) for rank in range(ranks))
    from vllm import LLM, SamplingParams

    llm = LLM(
        options["model"],
        kv_transfer_config=options["transfer"],
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=1024,
        max_num_seqs=8,
        # Ranks of some layers take what the rank before them gives from buffers that only a warm-up makes, and on processors
        # vLLM 0.32 warms up nothing that it does not compile ("eager": for the form's sake).
        enforce_eager=options["pp"] == 1,
        compilation_config={"backend": "eager"} if options["pp"] > 1 else {},
        seed=0,
        block_size=options["block_size"],
        num_gpu_blocks_override=options["blocks"],
        enable_prefix_caching=True,
        disable_log_stats=False,
        tensor_parallel_size=options["tp"],
        pipeline_parallel_size=options["pp"],
        distributed_executor_backend="uni" if ranks == 1 else "mp",
    )
    import vllm

    answer(ready=True, version=vllm.__version__, pid=os.getpid())
    for line in sys.stdin:
        command = json.loads(line)
        match command["do"]:
            case "generate":
                extra = {"kv_transfer_params": command["params"]} if command.get("params") else None
                sampling = SamplingParams(
                    temperature=0, max_tokens=command["max_tokens"], ignore_eos=True, detokenize=False, extra_args=extra
                )
                began = time.monotonic()
                output = llm.generate([{"prompt_token_ids": command["prompt"]}], sampling, use_tqdm=False)[0]
                answer(
                    tokens=list(output.outputs[0].token_ids),
                    finish=output.outputs[0].finish_reason,
                    cached=output.num_cached_tokens,
                    params=output.kv_transfer_params,
                    seconds=round(time.monotonic() - began, 3),
                )
            case "hashes":
                answer(hashes=[h.hex() for h in hashes(llm, command["prompt"], options["block_size"])])
            case "reset":
                answer(reset=bool(llm.reset_prefix_cache()))
            case "metrics":
                answer(metrics=metrics(llm))
            case "quit":
                break
    llm.llm_engine.engine_core.shutdown()
    answer(ended=True)


def hashes(llm: Any, prompt: list[int], block_size: int) -> list[bytes]:
    """Of the prompt's full blocks, by vLLM's own functions."""
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core import kv_cache_utils

    function = get_hash_fn_by_name(llm.llm_engine.vllm_config.cache_config.prefix_caching_hash_algo)
    parent, found = None, []
    for at in range(0, len(prompt) - block_size + 1, block_size):
        parent = kv_cache_utils.hash_block_tokens(function, parent, prompt[at : at + block_size], None)
        found.append(bytes(parent))
    return found


def metrics(llm: Any) -> dict[str, float]:
    """What vLLM's Prometheus registry says of this connector and of external hits."""
    said: dict[str, float] = {}
    for metric in llm.get_metrics():
        value = getattr(metric, "value", None)
        if value and any(word in metric.name for word in ("kvferry", "external", "kv_offload")):
            labels = getattr(metric, "labels", {})
            detail = "".join(f"{{{labels[key]}}}" for key in ("kind", "tier") if key in labels)
            said[metric.name + detail] = said.get(metric.name + detail, 0) + value
    return said


if __name__ == "__main__":
    main()
