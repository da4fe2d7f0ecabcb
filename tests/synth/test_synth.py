"""Stand-in model directories: complete, of the published form, the same from the same seed, fit to run."""

import functools
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from torch import Tensor, nn

from cosyjit.configuration.config import Config
from cosyjit.encoders.registry import build_encoder
from cosyjit.errors import OutputError, SelectionError
from cosyjit.estimators.parameters import parameters
from cosyjit.estimators.registry import build_estimator
from cosyjit.synth.synth import SyntheticCheckpoint, declare, synth
from tests.support.processes import snapshot

COMPONENTS = [
    ("cosyvoice", "llm.text_encoder", "llm.pt", "text_encoder."),
    ("cosyvoice", "llm.llm", "llm.pt", "llm."),
    ("cosyvoice", "flow.encoder", "flow.pt", "encoder."),
    ("cosyvoice2", "flow.encoder", "flow.pt", "encoder."),
]

FAMILIES = ("cosyvoice", "cosyvoice2", "cosyvoice3")

DESCRIBED: Final = ("CosyVoice-BlankEN/config.json", "CosyVoice-BlankEN/generation_config.json")
TOKENIZER: Final = tuple(f"CosyVoice-BlankEN/{name}" for name in ("merges.txt", "tokenizer_config.json", "vocab.json"))

BASE: Final[dict[str, list[str]]] = {
    "cosyvoice": [],
    "cosyvoice2": [*DESCRIBED, *TOKENIZER],
    "cosyvoice3": [*DESCRIBED, *TOKENIZER],
}
"""What describes the text model under each family's language model."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: synth(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file grows beyond 100 kB: what a full disk does to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@functools.cache
def full(family: str) -> SyntheticCheckpoint:
    return declare(family, "full")


def resolved(path: Path) -> Any:
    """The configuration as HyperPyYAML resolves it, its tags kept."""
    return YAML(typ="rt").load(resolve_references(path.read_text(encoding="utf-8")))


def options_at(config: Any, name: str) -> tuple[str, dict[str, Any]]:
    node = config
    for part in name.split("."):
        node = node[part]
    options = {key: float(value) if isinstance(value, float) else value for key, value in node.items()}
    return node.tag.value.removeprefix("!new:"), options


def load(path: Path) -> dict[str, Tensor]:
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    assert isinstance(tensors, dict)
    return tensors


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def contents(directory: Path) -> dict[str, bytes]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "component", "weights", "prefix"), COMPONENTS)
def test_each_encoder_loads_strictly_and_stays_near_one(
    written: dict[str, Path], family: str, component: str, weights: str, prefix: str
) -> None:
    class_name, options = options_at(resolved(written[family] / f"{family}.yaml"), component)
    tensors = load(written[family] / weights)
    encoder = build_encoder(class_name, options)
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    encoder.load_state_dict(own, strict=True, assign=True)
    xs = torch.randn(2, 6, options["input_size"], generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([6, 4], dtype=torch.int32)
    with torch.inference_mode():
        ys, mask = encoder(xs, lengths)
        half, _ = encoder.half()(xs.half(), lengths)
    real = mask.squeeze(1)
    assert torch.isfinite(ys).all()
    assert 0.7 < ys[real].pow(2).mean().sqrt() < 1.4
    torch.testing.assert_close(half[real].float(), ys[real], atol=0.05, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_each_estimator_loads_strictly_and_stays_near_one(written: dict[str, Path], family: str) -> None:
    class_name, options = options_at(resolved(written[family] / f"{family}.yaml"), "flow.decoder.estimator")
    prefix = "decoder.estimator."
    tensors = load(written[family] / "flow.pt")
    estimator = build_estimator(class_name, options)
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    estimator.load_state_dict(own, strict=True, assign=True)
    generator = torch.Generator().manual_seed(0)
    x, mu, cond = (torch.randn(2, 80, 9, generator=generator) for _ in range(3))
    mask, t, spks = torch.ones(2, 1, 9), torch.tensor([0.0, 0.75]), torch.randn(2, 80, generator=generator)
    with torch.inference_mode():
        y = estimator(x, mask, mu, t, spks, cond)
        half = estimator.half()(x.half(), mask.half(), mu.half(), t.half(), spks.half(), cond.half())
    assert 0.5 < y.pow(2).mean().sqrt() < 2
    torch.testing.assert_close(half.float(), y, atol=0.05, rtol=0)


@pytest.mark.parametrize("size", [*(pytest.param(size, marks=pytest.mark.slow) for size in ("tiny", "small")), "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tensors_of_the_estimator_are_those_of_its_options(family: str, size: str) -> None:
    checkpoint = full(family) if size == "full" else declare(family, size)
    node = Config(checkpoint.config, checkpoint.config_name).instance("flow.decoder.estimator")
    found = {name: shape for name, shape in shapes(checkpoint.models["flow.pt"]).items() if ".estimator." in name}
    wanted = parameters(node.class_name, node.options)
    assert found == {f"decoder.estimator.{name}": parameter.shape for name, parameter in wanted.items()}


def test_the_frequencies_of_rotations_are_not_drawn(written: dict[str, Path]) -> None:
    found = load(written["cosyvoice3"] / "flow.pt")["decoder.estimator.rotary_embed.inv_freq"]
    assert found.tolist() == pytest.approx([10000 ** (-i / 8) for i in range(8)])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_directory_is_a_configuration_and_two_files_of_tensors(written: dict[str, Path], family: str) -> None:
    assert list(contents(written[family])) == sorted([*BASE[family], f"{family}.yaml", "flow.pt", "llm.pt"])
    for name, model in declare(family, "tiny").models.items():
        tensors = load(written[family] / name)
        assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == shapes(model)
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("family", FAMILIES)
def test_one_seed_gives_one_directory(written: dict[str, Path], tmp_path: Path, family: str) -> None:
    assert contents(synth(tmp_path, family)) == contents(written[family])


def test_another_seed_gives_other_tensors_and_the_same_configuration(written: dict[str, Path], tmp_path: Path) -> None:
    synth(tmp_path, "cosyvoice", seed=-1)
    for name in ("llm.pt", "flow.pt"):
        first, second = load(written["cosyvoice"] / name), load(tmp_path / name)
        assert first.keys() == second.keys()
        assert not [key for key in first if torch.equal(first[key], second[key])]
    assert (tmp_path / "cosyvoice.yaml").read_bytes() == (written["cosyvoice"] / "cosyvoice.yaml").read_bytes()


def test_the_numbers_are_pinned(written: dict[str, Path]) -> None:
    tensors = load(written["cosyvoice"] / "llm.pt")
    pinned = {
        "llm_decoder.bias": [-0.07927, 0.032495, -0.063525],
        "llm.after_norm.weight": [1.045631, 1.068347, 1.016071],
        "llm_embedding.weight": [0.055852, -0.207032, -0.117889],
    }
    for name, values in pinned.items():
        torch.testing.assert_close(tensors[name].flatten()[:3], torch.tensor(values))


def test_tensors_of_one_name_in_two_files_differ(written: dict[str, Path]) -> None:
    name = "spk_embed_affine_layer.weight"
    first, second = (load(written["cosyvoice"] / file)[name] for file in ("llm.pt", "flow.pt"))
    assert not torch.equal(first[: second.size(0)], second[: first.size(0)])


@pytest.mark.parametrize(
    ("family", "language_model", "estimator_chunk"),
    [
        ("cosyvoice", "cosyvoice.llm.llm.TransformerLM", None),
        ("cosyvoice2", "cosyvoice.llm.llm.Qwen2LM", 50),
        ("cosyvoice3", "cosyvoice.llm.llm.CosyVoice3LM", 50),
    ],
)
def test_the_configuration_resolves(
    tmp_path: Path, family: str, language_model: str, estimator_chunk: int | None
) -> None:
    stand_in = full(family)
    path = tmp_path / stand_in.config_name
    path.write_text(stand_in.config, encoding="utf-8")
    config = resolved(path)
    assert path.name == f"{family}.yaml"
    assert "$" not in stand_in.config
    assert options_at(config, "llm")[0] == language_model
    assert options_at(config, "flow.decoder.estimator")[1].get("static_chunk_size") == estimator_chunk
    assert config["compute_fbank"]["feat_extractor"]["sampling_rate"] == config["sample_rate"]
    stages = [str(stage.tag.value).rpartition(".")[2] for stage in config["data_pipeline"]]
    assert stages[:3] == ["parquet_opener", "tokenize", "filter"]
    assert stages[-2:] == ["batch", "padding"]


@pytest.mark.parametrize(
    ("family", "weights", "published"),
    [
        ("cosyvoice", "llm.pt", 1.243e9),
        ("cosyvoice", "flow.pt", 0.420e9),
        ("cosyvoice2", "llm.pt", 2.023e9),
        ("cosyvoice2", "flow.pt", 0.451e9),
        ("cosyvoice3", "llm.pt", 2.024e9),
        ("cosyvoice3", "flow.pt", 1.330e9),
    ],
)
def test_the_full_size_is_the_published_one(family: str, weights: str, published: float) -> None:
    model = full(family).models[weights]
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert all(parameter.is_meta for parameter in model.parameters())
    assert size == pytest.approx(published, rel=0.03)


def test_the_full_shapes_are_the_published_ones() -> None:
    published: dict[tuple[str, str], dict[str, tuple[int, ...]]] = {
        ("cosyvoice", "llm.pt"): {
            "text_embedding.weight": (51866, 512),
            "text_encoder.embed.out.0.weight": (1024, 512),
            "text_encoder.encoders.5.self_attn.pos_bias_u": (16, 64),
            "text_encoder_affine_layer.weight": (1024, 1024),
            "llm_embedding.weight": (2, 1024),
            "llm.encoders.13.feed_forward.w_1.weight": (4096, 1024),
            "llm_decoder.bias": (4097,),
            "speech_embedding.weight": (4096, 1024),
            "spk_embed_affine_layer.weight": (1024, 192),
        },
        ("cosyvoice", "flow.pt"): {
            "encoder.encoders.5.feed_forward.w_2.weight": (512, 2048),
            "length_regulator.model.10.bias": (80,),
            "length_regulator.model.12.weight": (80, 80, 1),
            "decoder.estimator.down_blocks.0.0.block1.block.0.weight": (256, 320, 3),
            "decoder.estimator.down_blocks.0.2.conv.weight": (256, 256, 3),
            "decoder.estimator.mid_blocks.11.1.3.attn1.to_q.weight": (512, 256),
            "decoder.estimator.up_blocks.0.2.conv.weight": (256, 256, 4),
            "decoder.estimator.up_blocks.1.0.res_conv.weight": (256, 512, 1),
            "decoder.estimator.up_blocks.1.2.weight": (256, 256, 3),
            "decoder.estimator.final_block.block.1.weight": (256,),
        },
        ("cosyvoice2", "llm.pt"): {
            "llm.model.lm_head.weight": (151936, 896),
            "llm.model.model.layers.23.self_attn.k_proj.bias": (128,),
            "llm.model.model.layers.23.mlp.down_proj.weight": (896, 4864),
            "llm.model.model.norm.weight": (896,),
            "llm_decoder.weight": (6564, 896),
            "speech_embedding.weight": (6564, 896),
        },
        ("cosyvoice2", "flow.pt"): {
            "encoder.pre_lookahead_layer.conv1.weight": (512, 512, 4),
            "encoder.up_encoders.3.feed_forward.w_1.weight": (2048, 512),
            "decoder.estimator.down_blocks.0.2.weight": (256, 256, 3),
            "decoder.estimator.final_block.block.2.weight": (256,),
        },
        ("cosyvoice3", "llm.pt"): {
            "llm.model.model.embed_tokens.weight": (151936, 896),
            "llm.model.model.layers.23.mlp.up_proj.weight": (4864, 896),
            "llm_decoder.weight": (6761, 896),
            "speech_embedding.weight": (6761, 896),
        },
        ("cosyvoice3", "flow.pt"): {
            "input_embedding.weight": (6561, 80),
            "pre_lookahead_layer.conv1.weight": (1024, 80, 4),
            "decoder.estimator.transformer_blocks.21.attn.to_q.weight": (1024, 1024),
            "decoder.estimator.input_embed.proj.weight": (1024, 320),
        },
    }
    for (family, weights), expected in published.items():
        found = shapes(full(family).models[weights])
        assert {name: found.get(name) for name in expected} == expected
    found = shapes(full("cosyvoice2").models["flow.pt"])
    blocks = {name.split(".")[2] for name in found if name.startswith("encoder.encoders.")}
    assert len(blocks) == 6
    assert not [name for name in found if name.startswith("length_regulator")]


def test_tied_tensors_are_stored_once(written: dict[str, Path]) -> None:
    tensors = load(written["cosyvoice2"] / "llm.pt")
    head, embedding = tensors["llm.model.lm_head.weight"], tensors["llm.model.model.embed_tokens.weight"]
    assert head.data_ptr() == embedding.data_ptr()
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors) - 1


def test_cosyvoice3_has_no_bias_no_embedding_of_marks_and_no_head_of_the_text(written: dict[str, Path]) -> None:
    two, three = (load(written[family] / "llm.pt").keys() for family in ("cosyvoice2", "cosyvoice3"))
    assert two - three == {"llm_decoder.bias", "llm_embedding.weight", "llm.model.lm_head.weight"}
    assert three < two


@pytest.mark.parametrize("family", ["cosyvoice2", "cosyvoice3"])
@pytest.mark.parametrize("size", ["tiny", "small", "full"])
def test_the_base_describes_the_text_model_in_the_weights(family: str, size: str) -> None:
    stand_in = full(family) if size == "full" else declare(family, size)
    assert sorted(stand_in.base) == BASE[family]
    config, generation = (json.loads(stand_in.base[name]) for name in DESCRIBED)
    found = shapes(stand_in.models["llm.pt"])
    layer = "llm.model.model.layers.0."
    width = config["hidden_size"] // config["num_attention_heads"]
    assert found["llm.model.model.embed_tokens.weight"] == (config["vocab_size"], config["hidden_size"])
    assert found[f"{layer}mlp.gate_proj.weight"] == (config["intermediate_size"], config["hidden_size"])
    assert found[f"{layer}self_attn.k_proj.bias"] == (config["num_key_value_heads"] * width,)
    assert len({name.split(".")[4] for name in found if ".layers." in name}) == config["num_hidden_layers"]
    assert width >= 32 or size == "tiny"  # a head that vLLM takes on a CPU
    assert config["tie_word_embeddings"]
    assert config["eos_token_id"] == generation["eos_token_id"] < config["vocab_size"]


def test_the_full_base_is_that_of_qwen2() -> None:
    # https://huggingface.co/Qwen/Qwen2-0.5B/blob/main/config.json
    published = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": 151936,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
    }
    config = json.loads(full("cosyvoice3").base["CosyVoice-BlankEN/config.json"])
    assert {name: config.get(name) for name in published} == published


def refused(directory: Path, family: str = "cosyvoice", *, force: bool = False) -> str:
    """The message of the error that writing raises, in one line; nothing is changed."""
    before = snapshot(directory) if directory.is_dir() else None
    with pytest.raises(OutputError) as caught:
        synth(directory, family, force=force)
    assert "\n" not in str(caught.value)
    assert before is None or snapshot(directory) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ["llm.pt", "cosyvoice.yaml", "flow.pt"],
            "is a model directory already, with cosyvoice.yaml, flow.pt, llm.pt; name a new or an empty directory, or",
        ),
        (["cosyvoice2.yaml"], "is a model directory already, with cosyvoice2.yaml; name a new or an empty directory"),
        (["llm.pt"], "holds llm.pt and no configuration, as a synth that was killed leaves it; name a new or an empty"),
        ([".0123.tmp"], "holds .0123.tmp and no configuration, as a synth that was killed leaves it; name a new or an"),
        ([".hidden"], "is not empty, with .hidden; name a new or an empty directory, or give --force"),
        (["last.pt"], "is not empty, with last.pt; name a new or an empty directory"),
        ([f"{index}" for index in range(9)], "is not empty, with 0, 1, 2, 3, 4, …; name a new or an empty directory"),
        (["a\n\x1b[31m"], r"is not empty, with a\n\x1b[31m; name a new"),
    ],
)
def test_a_directory_that_is_not_empty_is_refused_with_what_is_there(
    names: list[str], says: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_text("old")
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path}: {says}")
    assert message.endswith("give --force, which replaces llm.pt, flow.pt, cosyvoice.yaml there and leaves the rest")


def test_a_link_counts_as_what_it_leads_to(written: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    (tmp_path / "nowhere").symlink_to("missing")
    assert synth(tmp_path / "link", "cosyvoice") == tmp_path / "link"
    assert contents(tmp_path / "model") == contents(written["cosyvoice"])
    assert "is a model directory already" in refused(tmp_path / "link")
    assert refused(tmp_path / "nowhere").startswith(f"{tmp_path}/nowhere: is a link that leads nowhere, or a device; ")


def test_what_cannot_be_replaced_is_refused_before_anything_is(tmp_path: Path) -> None:
    (tmp_path / "llm.pt").write_text("old")
    (tmp_path / "flow.pt").mkdir()
    assert (
        refused(tmp_path, force=True) == f"{tmp_path}/flow.pt: is a directory; move it away, or name another directory"
    )
    (tmp_path / "flow.pt").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "CosyVoice-BlankEN").symlink_to("elsewhere")
    assert "CosyVoice-BlankEN: is not a directory; move it" in refused(tmp_path, "cosyvoice2", force=True)
    (tmp_path / "cosyvoice3.yaml").write_text("old")
    assert "holds cosyvoice3.yaml, and beside cosyvoice2.yaml it would not" in refused(
        tmp_path, "cosyvoice2", force=True
    )


def test_by_force_what_is_published_and_what_links_lead_to_stay(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    (directory / ".cosyjit").mkdir(parents=True)
    (tmp_path / "shared.pt").write_text("old")
    (directory / "llm.pt").symlink_to("../shared.pt")
    (directory / "flow.encoder.fp16.zip").symlink_to(".cosyjit/current/flow.encoder.fp16.zip")
    (directory / ".cosyjit" / "file").write_text("old")
    synth(directory, "cosyvoice", force=True)
    assert (tmp_path / "shared.pt").read_text() == (directory / ".cosyjit" / "file").read_text() == "old"
    assert (directory / "flow.encoder.fp16.zip").is_symlink()
    assert not (directory / "llm.pt").is_symlink()


def test_by_force_files_of_the_same_names_are_replaced_and_others_stay(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "model"
    directory.mkdir(parents=True)
    for name in ("llm.pt", "cosyvoice.yaml", "notes.txt"):
        (directory / name).write_text("old")
    assert synth(directory, "cosyvoice", force=True) == directory
    assert sorted(contents(directory)) == ["cosyvoice.yaml", "flow.pt", "llm.pt", "notes.txt"]
    assert (directory / "notes.txt").read_text() == "old"
    assert "llm_embedding.weight" in load(directory / "llm.pt")
    assert "llm" in resolved(directory / "cosyvoice.yaml")


@pytest.mark.parametrize(("family", "size"), [("cosyvoice9", "tiny"), ("cosyvoice", "huge")])
def test_a_wrong_choice_is_named_with_the_right_ones(tmp_path: Path, family: str, size: str) -> None:
    with pytest.raises(
        SelectionError, match=r"'cosyvoice9'.*cosyvoice, cosyvoice2, cosyvoice3|'huge'.*tiny, small, full"
    ):
        synth(tmp_path / "new", family, size)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("name", "says"), [("file", "is a file; name a"), ("file/below", "cannot be written to (")])
def test_a_directory_that_cannot_be_is_named(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "file").write_text("")
    for force in (False, True):
        assert refused(tmp_path / name, force=force).startswith(f"{tmp_path / name}: {says}")


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    (tmp_path / "llm.pt").write_text("old")
    with pytest.raises(OutputError, match="File too large"):
        synth(tmp_path, "cosyvoice", force=True)
    assert contents(tmp_path) == {"llm.pt": b"old"}


def test_with_force_a_pipe_in_place_of_a_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "llm.pt").write_text("mine")
    os.mkfifo(tmp_path / "CosyVoice-BlankEN")
    with pytest.raises(OutputError, match=r"CosyVoice-BlankEN: is not a directory; move it away"):
        synth(tmp_path, "cosyvoice2", force=True)
    assert (tmp_path / "llm.pt").read_text() == "mine"


def test_weights_beside_other_files_are_not_called_what_a_kill_left(tmp_path: Path) -> None:
    (tmp_path / "llm.pt").touch()
    with pytest.raises(OutputError, match="as a synth that was killed leaves it"):
        synth(tmp_path, "cosyvoice")
    (tmp_path / "flow.encoder.fp16.zip").touch()
    with pytest.raises(OutputError, match=r"is not empty, with flow\.encoder\.fp16\.zip, llm\.pt; name a new"):
        synth(tmp_path, "cosyvoice")
