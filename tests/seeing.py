"""Tiny models that are run on inputs of their own, images, sound or two texts, and a batch for each."""

from __future__ import annotations

import tiny
import torch
import transformers as hf
from tiny import STD

_WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def clip():
    """A causal reader of text of 4 heads and an encoder of images of 2, side by side."""
    text = _WIDTHS | {"vocab_size": tiny.VOCAB, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
    vision = _WIDTHS | {"num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    return _sharp(tiny.build(hf.CLIPModel, config))


def whisper():
    """An encoder of sound and a decoder, with cross attention between them."""
    config = hf.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=20, max_target_positions=40, num_mel_bins=8,
        vocab_size=tiny.VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, init_std=STD,
        begin_suppress_tokens=None,
    )  # fmt: skip
    return tiny.build(hf.WhisperForConditionalGeneration, config)


def bart():
    """An encoder and a decoder of text."""
    config = hf.BartConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=tiny.CONTEXT, init_std=STD,
        decoder_start_token_id=2, forced_eos_token_id=None,
        **{name: value for name, value in tiny.common().items() if name != "initializer_range"},
    )  # fmt: skip
    return tiny.build(hf.BartForConditionalGeneration, config)


def wav2vec2():
    """An encoder of sound, with a head on top of it."""
    config = hf.Wav2Vec2Config(
        **_WIDTHS, vocab_size=30, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, conv_dim=(16,) * 7,
        initializer_range=STD,
    )  # fmt: skip
    return tiny.build(hf.Wav2Vec2ForCTC, config)


def batch(name, count=2, seed=0):
    """A batch of so many examples for the model of that name."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(count, *shape, generator=generator)

    made = {
        "vit": {"pixel_values": draw(3, 16, 16)},
        "clip": {"input_ids": tiny.tokens(count, 20, seed), "pixel_values": draw(3, 16, 16)},
        "whisper": {"input_features": draw(8, 40), "decoder_input_ids": tiny.tokens(count, 12, seed)},
        "bart": {"input_ids": tiny.tokens(count, 16, seed), "decoder_input_ids": tiny.tokens(count, 16, seed + 1)},
        "wav2vec2": {"input_values": draw(4000)},
    }
    return made[name]


FACTORIES = {"vit": tiny.vit, "clip": clip, "whisper": whisper, "bart": bart, "wav2vec2": wav2vec2}


def _sharp(model):
    """Scores that vary: CLIP draws its weights by rules of its own."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and ("q_proj" in name or "k_proj" in name):
                parameter.mul_(STD / parameter.std())
    return model
