"""Decodes with the vLLM of this environment, as the public runtime does; a program of its own.

    python decodes.py REQUESTS

REQUESTS is a file of torch's: a list of requests, each a dictionary of a folder, a dtype and prompts, which are
embeddings, (T, D). The answer is a line of JSON: for each request and each prompt the tokens that are decoded
greedily, and for each of these the log-probabilities of some tokens.
"""

import json
import sys
from typing import Any

import torch
from vllm import EngineArgs, LLMEngine, SamplingParams

STEPS = 12


def decode(request: dict[str, Any]) -> list[dict[str, Any]]:
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=request["folder"],
            dtype=request["dtype"],
            skip_tokenizer_init=True,
            enable_prompt_embeds=True,
            gpu_memory_utilization=0.2,
            enforce_eager=True,  # to compile takes a minute for each start
            max_model_len=256,
        )
    )
    sampling = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True, logprobs=5, detokenize=False)
    for number, prompt in enumerate(request["prompts"]):
        engine.add_request(str(number), {"prompt_embeds": prompt.to(getattr(torch, request["dtype"]))}, sampling)
    answers: dict[str, Any] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                (completion,) = output.outputs
                answers[output.request_id] = {
                    "tokens": list(completion.token_ids),
                    "log_probabilities": [
                        {token: each.logprob for token, each in step.items()} for step in completion.logprobs
                    ],
                }
    return [answers[str(number)] for number in range(len(request["prompts"]))]


if __name__ == "__main__":
    sys.stdout.write(json.dumps([decode(each) for each in torch.load(sys.argv[1], weights_only=True)]) + "\n")
