"""Inputs of a model's own, where token ids alone are not what it runs on: pixels, sound, patches, series, and so on.

A table says how each argument of ``forward`` is made, from what the config says of sizes; another what single model
types want otherwise. Every tensor has the examples along its first dimension, or what is cut from them, in order.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .inputs import flattened, token_ids

TOKENS = 24
_FRAMES, _SAMPLES, _VIDEO_FRAMES, _GRID = 200, 9_600, 8, 4


@dataclass(frozen=True)
class Sizes:
    """How many examples are asked for, and what the config of a model says of their sizes, parts and all."""

    batch: int
    fields: Mapping[str, Any]

    def number(self, default: int, *names: str) -> int:
        """The first of these fields that holds a number, or several of them."""
        values = (re.search(r"\d+", str(self.fields[name])) for name in names if name in self.fields)
        return next((int(found.group()) for found in values if found), default)

    def random(self, *shape: int) -> Tensor:
        """Random numbers for every example, the same each time."""
        return torch.randn(self.batch, *shape, generator=torch.Generator().manual_seed(5))

    def whole(self, value: int, *shape: int) -> Tensor:
        """The same whole number everywhere: a mask of ones, say."""
        return torch.full((self.batch, *shape), value)

    @property
    def channels(self) -> int:
        return self.number(3, "num_channels", "in_channels", "in_chans")

    @property
    def bands(self) -> int:
        return self.number(80, "num_mel_bins", "feature_size", "input_feat_per_channel")

    @property
    def patch(self) -> int:
        """Numbers of a patch, of all channels and the frames that are one in it."""
        frames = self.number(1, "temporal_patch_size", "patch_temporal")
        return self.channels * frames * self.number(14, "patch_size") ** 2


Make = Callable[[Sizes], Tensor]


def _random(*lengths: int | str | tuple[str, int]) -> Make:
    """Make random numbers ``[batch, *lengths]``; a length may be a field, with a default."""

    def make(sizes: Sizes) -> Tensor:
        named = [(length, 64) if isinstance(length, str) else length for length in lengths]
        return sizes.random(*(sizes.number(of[1], of[0]) if isinstance(of, tuple) else of for of in named))

    return make


def _ones(*shape: int) -> Make:
    return lambda sizes: sizes.whole(1, *shape)


def _rows(*row: int) -> Make:
    """Make the same whole numbers for every example."""
    return lambda sizes: torch.tensor([row] * sizes.batch)


def _ids(sizes: Sizes) -> Tensor:
    return token_ids(TOKENS, sizes.batch)


def _behind_images(tokens: int, placeholder: int = 250) -> Make:
    """Make token ids whose first ones stand for what is seen."""
    return lambda sizes: torch.cat([sizes.whole(placeholder, tokens), _ids(sizes)], 1)


def _images(*before: int, side: int = 64) -> Make:
    """Make images of the size that the config says, perhaps several for an example: ``[batch, *before, C, S, S]``."""

    def make(sizes: Sizes) -> Tensor:
        pixels = sizes.number(side, "image_size")
        return sizes.random(*before, sizes.channels, pixels, pixels)

    return make


def _video(sizes: Sizes) -> Tensor:
    frames = sizes.number(_VIDEO_FRAMES, "num_frames", "frames_per_clip")
    return sizes.random(frames, sizes.channels, *[sizes.number(64, "image_size", "crop_size")] * 2)


def _patches(sizes: Sizes) -> Tensor:
    """Of all images one after the other: ``[images * 16, channels * patch]``."""
    return sizes.random(_GRID**2, sizes.patch).flatten(0, 1)


def _small_images(sizes: Sizes) -> Tensor:
    """The same, each patch as an image of its own."""
    side = sizes.number(14, "patch_size")
    return sizes.random(_GRID**2, sizes.channels, side, side).flatten(0, 1)


def _strip(sizes: Sizes) -> Tensor:
    """The patches of all images side by side in one: ``[1, C, patch, images * 16 * patch]``."""
    side = sizes.number(14, "patch_size")
    return sizes.random(sizes.channels, side, _GRID**2 * side).movedim(0, 2).flatten(2, 3)[None]


def _patches_of_each(sizes: Sizes) -> Tensor:
    return sizes.random(_GRID**2, sizes.patch)


def _sound(sizes: Sizes) -> Tensor:
    """What is heard in every frame; models with a table of positions, such as Whisper, fill it, bands first."""
    positions = sizes.fields.get("max_source_positions")
    return sizes.random(sizes.bands, 2 * positions) if positions else sizes.random(_FRAMES, sizes.bands)


def _bands_first(sizes: Sizes) -> Tensor:
    return sizes.random(sizes.bands, _FRAMES)


def _frames_first(sizes: Sizes) -> Tensor:
    return sizes.random(_FRAMES, sizes.bands)


_ALWAYS: dict[str, Make] = {
    "input_ids": _ids,
    "decoder_input_ids": lambda sizes: _ids(sizes)[:, :12],
    "pixel_values": _images(),
    "input_values": _random(_SAMPLES),
    "input_features": _sound,
    "bbox": lambda sizes: sizes.whole(9, TOKENS, 4),
}
"""Arguments that are given to whatever takes them."""

_WHERE_REQUIRED: dict[str, Make] = {
    "pixel_values_videos": _video,
    "hidden_states": _patches,
    "inputs_embeds": _random(TOKENS, "hidden_size"),
    "query_embeds": _random(TOKENS, "hidden_size"),
    "encoder_hidden_states": _random(TOKENS, "encoder_hidden_size"),
    "noise_embeds": _random(TOKENS, "hidden_size"),
    "latents": _random("hidden_size", 16),
    "grid_thw": _rows(1, _GRID, _GRID),
    "image_grid_thw": _rows(1, _GRID, _GRID),
    "merge_sizes": lambda sizes: sizes.whole(1),
    "input_features_mask": _ones(_FRAMES),
    "qformer_input_ids": _ids,
    "past_values": _random(("context_length", 32), ("num_input_channels", 1)),
    "past_values_padding": lambda sizes: sizes.whole(0, sizes.number(32, "context_length")),
    "freq": lambda sizes: sizes.whole(0, 1),
    "state": _random("max_state_dim"),
    "audio_mel": _random(_FRAMES, "input_feat_size"),
    "audio_mel_mask": lambda sizes: sizes.whole(0, _FRAMES).bool(),
}
"""Arguments that are given where the model does not run without."""

_FILM = {"pixel_values": _video}
_PAIR = {"pixel_values": _images(2)}
_PATCHES = {"pixel_values": _patches}
_STRIP = {"pixel_values": _strip, "target_sizes": _rows(_GRID, _GRID)}
_EACH = {"pixel_values": _patches_of_each}
_SHAPED = _EACH | {"pixel_attention_mask": _ones(_GRID**2), "spatial_shapes": _rows(_GRID, _GRID)}
_MONO = {"input_values": _random(1, _SAMPLES)}
_BANDS = {"input_features": _random(_FRAMES, ("feature_projection_input_dim", 160))}
_TEXT: dict[str, Make | None] = {"pixel_values": None, "input_features": None}
_SHORT = {"input_ids": lambda sizes: token_ids(16, sizes.batch)}
_SERIES = {"past_values": _random("context_length")}
_PAST_AND_FUTURE = {
    "past_values": _random(39),
    "past_time_features": _random(39, 0),
    "past_observed_mask": _ones(39),
    "future_values": _random(8),
    "future_time_features": _random(8, 0),
}

SPECIAL_CASES: Mapping[str, Mapping[str, Make | None]] = {
    "audio-spectrogram-transformer": {"input_values": _random(("max_length", 1024), ("num_mel_bins", 128))},
    "audioflamingo3_encoder": {
        "input_features_mask": lambda sizes: sizes.whole(1, 2 * sizes.fields["max_source_positions"])
    },
    "autoformer": _PAST_AND_FUTURE,
    "blip-2": {"input_ids": _behind_images(4)},
    "blip_2_qformer": {"encoder_hidden_states": _random(TOKENS, "encoder_hidden_size")},
    "chameleon": _TEXT,
    "clap": {
        "input_features": _random(1, 1001, ("num_mel_bins", 64)),
        "is_longer": lambda sizes: sizes.whole(0, 1).bool(),
    },
    "cosmos3_edge_vision": _PATCHES,
    "deepseek_ocr2": _TEXT,
    "depth_pro": {"pixel_values": _random(3, 256, 256)},
    "dac": _MONO,
    "decision_transformer": {
        "states": _random(TOKENS, "state_dim"),
        "actions": _random(TOKENS, "act_dim"),
        "rewards": _random(TOKENS, 1),
        "returns_to_go": _random(TOKENS, 1),
        "timesteps": lambda sizes: torch.arange(TOKENS).expand(sizes.batch, -1),
        "attention_mask": _ones(TOKENS),
    },
    "dia": {"decoder_input_ids": lambda sizes: sizes.whole(20, 12, 9)},
    "efficientloftr": _PAIR,
    "encodec": _MONO,
    "florence2": _TEXT,
    "fun_asr_nano_encoder": {"input_features": lambda sizes: sizes.random(_FRAMES, 7 * sizes.bands)},
    "gemma4_audio": {"input_features": _random(_FRAMES, 128)},
    "gemma4_vision": _EACH
    | {
        "pixel_position_ids": lambda sizes: torch.cartesian_prod(*[torch.arange(_GRID)] * 2).expand(sizes.batch, -1, -1)
    },
    "glm5_next": _TEXT,
    "glmasr_encoder": {"input_features": _bands_first},
    "granite_speech5_ctc": {"input_features": _random(_FRAMES, 320)},
    "granite_speech5_encoder": {"input_features": _random(_FRAMES, 320)},
    "granite4_vision": _TEXT,
    "hunyuan_vl": _TEXT,
    "hunyuan_vl_vision": _PATCHES,
    "idefics": {"pixel_values": _images(1), "image_attention_mask": _ones(TOKENS, 1)},
    "informer": _PAST_AND_FUTURE,
    "inkling2": _TEXT,
    "inkling2_vision": {"pixel_values": lambda sizes: sizes.random(_GRID**2, 40, 40, 3).flatten(0, 1)},
    "inkling_mm_model": _TEXT,
    "instructblip": {"input_ids": _behind_images(4)},
    "instructblipvideo": {"pixel_values": _video, "input_ids": _behind_images(4 * _VIDEO_FRAMES)},
    "kimi_k25_vision": {"pixel_values": _small_images},
    "kosmos-2": {"image_embeds_position_mask": lambda sizes: (torch.arange(TOKENS) < 4).long().expand(sizes.batch, -1)},
    "kyutai_speech_to_text": {"input_ids": lambda sizes: sizes.whole(20, TOKENS, 33)},
    "lfm3_vl_vision": _PATCHES,
    "lightglue": _PAIR,
    "mimi": _MONO,
    "mimi_encoder": _MONO,
    "minicpm_ocr_vision": _STRIP,
    "minicpmv4_7_vision": _STRIP,
    "mistral_large4": _TEXT,
    "muse_glimmer_assistant": {
        "context_hidden_states": lambda sizes: sizes.random(
            TOKENS, len(sizes.fields["target_layer_ids"]) * sizes.fields["hidden_size"]
        )
    },
    "muse_glimmer_vision": _PATCHES,
    "muse_spark_vision": _PATCHES,
    "musicgen_decoder": {"input_ids": lambda sizes: token_ids(TOKENS, 4 * sizes.batch)},
    "musicgen_melody_decoder": {"input_ids": lambda sizes: token_ids(TOKENS, 4 * sizes.batch)},
    "neomme": _TEXT,
    "neucodec": _MONO | _BANDS,
    "owlv2": _SHORT,
    "owlvit": _SHORT,
    "paligemma": _TEXT,
    "pe_audio": _MONO,
    "pe_audio_encoder": _MONO,
    "pi0": {
        "attention_mask": _ones(TOKENS),
        "pixel_values": _images(1),
        "pixel_attention_mask": lambda sizes: sizes.whole(1, 1).bool(),
    },
    "pixtral": {"pixel_values": lambda sizes: _images()(sizes)[:1]},  # several would be one sequence, cut by its mask
    "pocket_tts_audio_tokenizer": _MONO,
    "pocket_tts_audio_tokenizer_encoder": _MONO,
    "qwen2_5_omni_thinker": _TEXT | {"attention_mask": _ones(TOKENS)},
    "qwen3_asr_encoder": {"input_features": _bands_first},
    "qwen3_omni_moe_thinker": _TEXT | {"attention_mask": _ones(TOKENS)},
    "rf_detr": {"pixel_values": _random(3, 280, 280)},
    "sam2_hiera_det_model": {"pixel_values": _random(3, 256, 256)},
    "sam2_vision_model": {"pixel_values": _random(3, 256, 256)},
    "seamless_m4t": _BANDS | {"input_ids": None},
    "seamless_m4t_v2": _BANDS | {"input_ids": None},
    "siglip2": _SHAPED,
    "siglip2_vision_model": _SHAPED,
    "speech_to_text": {"input_features": _frames_first},
    "step3p7": _TEXT,
    "t5gemma2": _TEXT,
    "t5gemma2_encoder": _TEXT,
    "time_series_transformer": _PAST_AND_FUTURE,
    "timesfm": _SERIES,
    "timesfm2_5": _SERIES,
    "vibevoice_acoustic_tokenizer_decoder": {"hidden_states": _random("hidden_size", 3)},
    "vibevoice_acoustic_tokenizer_encoder": {"hidden_states": _random(1, _SAMPLES)},
    "video_llama_3_vision": _PATCHES,
    "videomae": _FILM,
    "videoprism_vision_model": {"pixel_values_videos": _video},
    "vivit": _FILM,
    "voxtral_realtime": {"input_features": lambda sizes: sizes.random(sizes.bands, 8 * TOKENS)},
    "voxtral_realtime_encoder": {"input_features": _bands_first},
    "wav2vec2-bert": _BANDS,
    "xclip": _FILM,
    "xcodec": _MONO,
    "xcodec2": _MONO | {"input_features": _random(_SAMPLES // 320, 160)},
}
"""What is given to a type beside the above or in its place; None means that an argument is left out."""


def own_inputs(model: Any, batch: int = 2) -> dict[str, Tensor]:
    """What the model's forward takes, for so many examples."""
    accepted = inspect.signature(model.forward).parameters
    required = {name for name, parameter in accepted.items() if parameter.default is inspect.Parameter.empty}
    makers: dict[str, Make | None] = {name: make for name, make in _ALWAYS.items() if name in accepted}
    makers |= {name: make for name, make in _WHERE_REQUIRED.items() if name in required}
    makers |= SPECIAL_CASES.get(model.config.model_type, {})
    sizes = Sizes(batch, flattened(model.config))
    return {name: make(sizes) for name, make in makers.items() if make is not None}
