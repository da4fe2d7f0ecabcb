"""What the pages of hubs are answered with."""

import pytest

from cosyjit.errors import SourceError
from cosyjit.sources.source import open_source


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("https://www.modelscope.cn/models/iic/CosyVoice-300M", "iic/CosyVoice-300M"),
        ("https://modelscope.cn/models/iic/CosyVoice2-0.5B/files", "iic/CosyVoice2-0.5B"),
        ("http://modelscope.ai/models/iic/CosyVoice2-0.5B/?tab=files#x", "iic/CosyVoice2-0.5B"),
        ("https://huggingface.co/FunAudioLLM/CosyVoice2-0.5B", "hf:FunAudioLLM/CosyVoice2-0.5B"),
        ("https://hf.co/FunAudioLLM/CosyVoice2-0.5B/tree/main", "hf:FunAudioLLM/CosyVoice2-0.5B"),
        ("https://u:secret@huggingface.co:443/a/b.git", "hf:a/b"),
    ],
)
def test_the_page_of_a_model_is_answered_with_the_source(address: str, source: str) -> None:
    with pytest.raises(SourceError) as error:
        open_source(address)
    assert str(error.value).endswith(f": is an address; give {source}")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        "https://example.com/models/iic/CosyVoice-300M",
        "https://modelscope.cn/datasets/iic/x",
        "https://huggingface.co/datasets/a/b",
        "https://huggingface.co/FunAudioLLM",
        "https://[/a/b",
    ],
)
def test_other_addresses_are_answered_with_what_a_source_is(address: str) -> None:
    with pytest.raises(SourceError) as error:
        open_source(address)
    assert str(error.value).startswith(f"{address}: is an address; give a model directory, with one of ")
