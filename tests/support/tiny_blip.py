"""A BLIP-2 of the real classes with thousands of weights instead of billions, saved as a folder to load captions from.

Its weights are random, so it says random words of its vocabulary; but which ones is a function of the picture.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

SIDE, NUM_QUERY_TOKENS = 32, 4  # pixels of the pictures that it sees; tokens that a picture becomes
STD = 0.5  # of the weights: with smaller ones differences of pictures hardly reach the words
WORDS = ("a", "photo", "of", "the", "red", "green", "blue", "toy", "apple", "hydrant", "on", "wooden", "table", "grass")
PAD, START, END = "<pad>", "<s>", "</s>"


def write_tiny_blip(folder: Path, *, seed: int = 0) -> Path:
    """Model and processor as `save_pretrained` leaves them; returns the folder."""
    tokens = {token: number for number, token in enumerate((PAD, START, END, *WORDS))}
    words = Tokenizer(WordLevel(tokens, unk_token=PAD))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, bos_token=START, eos_token=END)
    processor = Blip2Processor(
        BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}), tokenizer, num_query_tokens=NUM_QUERY_TOKENS
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Blip2ForConditionalGeneration(_config(processor.tokenizer))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=STD)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _config(tokenizer: PreTrainedTokenizerFast) -> Blip2Config:
    layers = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Blip2Config(
        vision_config=Blip2VisionConfig(**layers, intermediate_size=32, image_size=SIDE, patch_size=8),
        qformer_config=Blip2QFormerConfig(**layers, intermediate_size=32, vocab_size=8, encoder_hidden_size=16),
        text_config=OPTConfig(
            **layers,
            ffn_dim=32,
            word_embed_proj_dim=16,
            max_position_embeddings=64,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,  # or it would say one word again and again
        ),
        num_query_tokens=NUM_QUERY_TOKENS,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
