"""Says as JSON what torch sees of this machine: run as a process of its own."""

import json
import sys

import torch

from cosyjit.torchscript.gate import has_arithmetic


def main() -> None:
    """Print one object."""
    gpus = [torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())]
    found = {
        "version": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "quantized": torch.backends.quantized.engine,
        "fp16": has_arithmetic(torch.float16),
        "bf16": has_arithmetic(torch.bfloat16),
        "cuda": torch.version.cuda,
        "gpus": gpus,
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
