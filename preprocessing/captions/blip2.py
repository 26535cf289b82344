"""BLIP-2 (Li et al. 2023): pictures to captions.

Decoding is greedy: the likeliest next word each time. So a picture's caption is a function of the model and the picture
alone, with no seed, and neither of the pictures beside it: all of a batch start from the same tokens, so nothing is
padded, and one that has ended waits for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor
from transformers.utils import logging as transformers_logging

from infra.errors import UserError

_REMEDY = "name a folder or a hub id of a BLIP-2 with safetensors weights with --captions.source"
_LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


@dataclass(frozen=True, eq=False)
class Captioner:
    """A BLIP-2 that says what pictures show."""

    model: Blip2ForConditionalGeneration
    processor: Blip2Processor
    max_new_tokens: int

    @staticmethod
    def from_pretrained(
        source: str, *, revision: str | None = None, max_new_tokens: int, device: str = "cpu"
    ) -> Captioner:
        """The model in a folder that transformers wrote, or with that id on the hub; in bfloat16 on a GPU and float32
        on the CPU. Only safetensors weights are read.

        Raises:
            UserError: there is none, it is of another kind, or it cannot be read.
        """
        if Path(source).is_dir():
            transformers_logging.disable_progress_bar()  # downloads from the hub keep theirs
        check_source(source, revision)
        try:
            # One implementation of resizing on every machine: torchvision's, where it is there, gives other pixels.
            processor = Blip2Processor.from_pretrained(source, revision=revision, backend="pil")
            model, loading = Blip2ForConditionalGeneration.from_pretrained(
                source,
                revision=revision,
                use_safetensors=True,
                dtype=torch.float32 if device == "cpu" else torch.bfloat16,
                output_loading_info=True,
            )
            if loading["missing_keys"]:  # transformers would leave them random
                raise ValueError(f"its weights lack {sorted(loading['missing_keys'])[0]}")
        except _LOADING_ERRORS as error:
            raise _unreadable(source, error) from error
        return Captioner(model.to(device).eval(), processor, max_new_tokens)

    @torch.inference_mode()
    def captions(self, images: Sequence[np.ndarray]) -> list[str]:
        """One caption of each RGB picture [H, W, 3] uint8; "" of one that the model has no word for."""
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        tokens = self.model.generate(
            pixel_values=pixels.to(self.model.device, self.model.dtype),
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.max_new_tokens,
        )
        return [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]


def check_source(source: str, revision: str | None = None) -> None:
    """Read the model's config alone, to tell models of other kinds: transformers would take of them what fits.

    Raises:
        UserError: there is no model, or it is of another kind.
    """
    try:
        if Path(source).is_absolute() and not Path(source).is_dir():  # transformers would take it for a bad hub id
            raise ValueError("no such folder")
        values, _ = Blip2Config.get_config_dict(source, revision=revision)
        if values.get("model_type") != Blip2Config.model_type:
            raise ValueError(f"its model_type is {values.get('model_type')!r}, not {Blip2Config.model_type!r}")
        if values.get("image_token_index") is None:
            raise ValueError("its config has no image_token_index, as those for transformers before version 4.46")
    except _LOADING_ERRORS as error:
        raise _unreadable(source, error) from error


def _unreadable(source: str, error: Exception) -> UserError:
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    return UserError(f"captions: cannot read BLIP-2 model {source} ({reason}); {_REMEDY}")
