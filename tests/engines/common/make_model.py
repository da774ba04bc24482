"""Writes the weights of a tiny model beside its configuration: random, the same everywhere.

make_model.py FROM_CONFIG_DIR TO_DIR
"""

from __future__ import annotations

import pathlib
import shutil
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM

# Wider than a trained model's, so that the tokens depend on the whole prompt: a wrong block shows.
WEIGHT_SPREAD = 0.08
# Where a model gives its tokens by the embeddings that it takes them by: else every token would be followed by itself.
TIED_SPREAD = 0.008


def main(source: str, target: str) -> None:
    folder = pathlib.Path(target)
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source)).float()
    generator = torch.Generator().manual_seed(7)
    embeddings = model.get_input_embeddings().weight
    for parameter in model.parameters():
        if parameter.dim() == 2:
            tied = parameter is embeddings and model.config.tie_word_embeddings
            parameter.data.normal_(0, TIED_SPREAD if tied else WEIGHT_SPREAD, generator=generator)
    model.save_pretrained(folder, safe_serialization=True)
    # As it was: what transformers writes lacks what it does not know.
    shutil.copy(pathlib.Path(source) / "config.json", folder / "config.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
