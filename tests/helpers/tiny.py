"""Gemma-2's real code with random weights, small enough for anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hsae_lens.models.text_files import cpython_reference


def tokenizer() -> Any:
    """A byte-level BPE of 500 tokens, learnt from CPython's reference text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(cpython_reference()[:10], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


def write_gemma2(folder: Path) -> Path:
    """Two layers of width 32 and their tokenizer, as a local Hugging Face folder."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    words = tokenizer()
    words.save_pretrained(folder)
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        sliding_window=64,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    Gemma2ForCausalLM(config).save_pretrained(folder)
    return folder
