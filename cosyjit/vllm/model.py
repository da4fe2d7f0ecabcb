"""The language model of CosyVoice2 as vLLM runs it: its own Qwen2, and a bias in the head."""

from typing import Any

from torch import Tensor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.utils import PPMissingLayer, maybe_prefix


class CosyVoice2ForCausalLM(Qwen2ForCausalLM):  # type: ignore[misc]  # mypy runs without vLLM
    """Qwen2 over speech tokens. Without the bias, vLLM would drop `lm_head.bias` without a word, and tokens go wrong.

    The signatures are those that vLLM calls, from 0.11 on.
    """

    lm_head: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if not isinstance(self.lm_head, PPMissingLayer):  # which other ranks of a pipeline have
            self.lm_head = ParallelLMHead(
                self.config.vocab_size,
                self.config.hidden_size,
                bias=True,
                quant_config=self.quant_config,
                prefix=maybe_prefix(prefix, "lm_head"),
            )

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """The scores of the tokens, (N, tokens), of hidden states (N, D); None on a rank that does not gather them."""
        logits: Tensor | None = self.logits_processor(self.lm_head, hidden_states, self.lm_head.bias)
        return logits
