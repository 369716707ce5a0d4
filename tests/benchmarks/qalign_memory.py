"""What Q-ALIGN's weights weigh, by precision, from the full-size config on the meta device.

    python tests/benchmarks/qalign_memory.py > tests/benchmarks/results/qalign_memory.md

bitsandbytes quantises the linear layers but for the last; the rest stays in 16 bits. 8-bit: a float32 scale a row.
4-bit (NF4): a float32 scale a block of 64. What a backward pass needs comes on top.
"""

import torch
from torch import nn

from lbgen_hf.rewards.quality.optional_pyiqa import llama_kept
from lbgen_hf.rewards.quality.qalign import import_port


def count_weights() -> tuple[int, int, int]:
    """How many weights there are, how many of them are in layers that are quantised, and the rows of those layers."""
    _, replace_llama = import_port()
    from pyiqa.archs.q_align.modeling_mplug_owl2 import MPLUGOwl2Config, MPLUGOwl2LlamaModel

    config = MPLUGOwl2Config()  # its defaults are one-align's: 32 layers of 4096, a vision model of 24 layers at 448
    with llama_kept(), torch.device("meta"):
        replace_llama()
        model = MPLUGOwl2LlamaModel(config)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    last = config.vocab_size * config.hidden_size
    total = sum(parameter.numel() for parameter in model.parameters()) + last
    return total, sum(layer.weight.numel() for layer in linear), sum(layer.out_features for layer in linear)


def main() -> None:
    total, quantised, rows = count_weights()
    sizes = {
        "float32": 4 * total,
        "bfloat16, float16": 2 * total,
        "8-bit": quantised + 4 * rows + 2 * (total - quantised),
        "4-bit": quantised / 2 + quantised / 64 * 4 + 2 * (total - quantised),
    }
    print(f"Q-ALIGN has {total / 1e9:.2f} billion weights.\n\n| precision | GiB |\n|---|---|")
    for precision, size in sizes.items():
        print(f"| {precision} | {size / 2**30:.1f} |")


if __name__ == "__main__":
    main()
