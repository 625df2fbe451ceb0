"""Tiny random models of many architectures: seeded, in eval mode, float32, a vocabulary of 128 and scores that vary.

``TINY[name]()`` builds one. The weights are drawn with a standard deviation of 0.3, some ten times the usual one, so
that attention is far from uniform and a wrong score shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

VOCAB = 128
CONTEXT = 64
STD = 0.3
IMAGE = 100
"""The token that stands for a part of an image, where pixels are given; four make one image."""


def gpt2():
    return build(hf.GPT2LMHeadModel, hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, **common()))


def gpt_bigcode():
    """Multi-query: 4 query heads share one KV head, q, k and v in one fused matrix."""
    config = hf.GPTBigCodeConfig(n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, multi_query=True, **common())
    return build(hf.GPTBigCodeForCausalLM, config)


def llama(**options):
    """Grouped: 4 query heads on 2 KV heads."""
    return build(hf.LlamaForCausalLM, hf.LlamaConfig(**decoder() | options))


def qwen3():
    """Query and key norms, and a head dimension that is not hidden size / heads."""
    return build(hf.Qwen3ForCausalLM, hf.Qwen3Config(head_dim=16, **decoder()))


def pythia():
    """GPT-NeoX: per-head interleaved q, k, v; a quarter of the head dimension is rotary."""
    config = hf.GPTNeoXConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CONTEXT, rotary_pct=0.25, **common(),
    )  # fmt: skip
    return build(hf.GPTNeoXForCausalLM, config)


def opt():
    """Scales the query itself and passes scaling 1."""
    config = hf.OPTConfig(
        hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CONTEXT, init_std=STD, **common(),
    )  # fmt: skip
    return build(hf.OPTForCausalLM, config)


def gemma3():
    """Text only: sliding (window 8), full, sliding, full."""
    return build(hf.Gemma3ForCausalLM, _gemma3_text())


def gpt_oss():
    """Learned sinks; sliding (window 8), then full; a router picks experts."""
    config = hf.GptOssConfig(head_dim=8, sliding_window=8, num_local_experts=4, num_experts_per_tok=2, **decoder())
    config._experts_implementation = "eager"  # the others have no float64
    return sunk(build(hf.GptOssForCausalLM, config))


def granite_swa():
    """Learned sinks, by the log of the sum of exponentials; full, then sliding (window 8)."""
    config = hf.GraniteSWAConfig(
        sliding_window=8, layer_types=["full_attention", "sliding_attention"], attention_multiplier=0.4, **decoder()
    )
    return sunk(build(hf.GraniteSWAForCausalLM, config))


def gemma2():
    """Capped scores, well below the largest of them; sliding (window 8), then full."""
    config = hf.Gemma2Config(
        head_dim=8, query_pre_attn_scalar=12, sliding_window=8, attn_logit_softcapping=2.0, **decoder()
    )
    return build(hf.Gemma2ForCausalLM, config)


def sunk(model):
    """Learned sinks as large as scores are, so that what forgets them shows."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.copy_(2 * torch.randn(parameter.shape, generator=generator) + 1)
    return model


def minimax():
    """Lightning attention beside softmax attention, and a cache class of its own."""
    config = hf.MiniMaxConfig(
        head_dim=8, layer_types=["linear_attention", "full_attention"], num_local_experts=2, num_experts_per_tok=1,
        block_size=4, **decoder(),
    )  # fmt: skip
    return build(hf.MiniMaxForCausalLM, config)


def phi3():
    """Grouped, with q, k and v concatenated in one matrix."""
    return build(hf.Phi3ForCausalLM, hf.Phi3Config(**decoder()))


def bert():
    """Encoder: bidirectional."""
    config = hf.BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CONTEXT, **common(),
    )  # fmt: skip
    return build(hf.BertModel, config)


def modernbert():
    """Encoder with local layers (8 tokens to either side) between global ones."""
    config = hf.ModernBertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, local_attention=16,
        global_attn_every_n_layers=2, max_position_embeddings=CONTEXT, cls_token_id=1, sep_token_id=2, **common(),
    )  # fmt: skip
    return build(hf.ModernBertModel, config)


def vit():
    """Encoder of images; no tokens at all."""
    config = hf.ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8,
        initializer_range=STD,
    )  # fmt: skip
    return build(hf.ViTModel, config)


def gemma3_vlm():
    """The Gemma 3 above behind images, whose tokens see one another both ways: ``token_type_ids`` 1."""
    config = hf.Gemma3Config(
        text_config=_gemma3_text(), vision_config=_vision(), mm_tokens_per_image=4, image_token_index=IMAGE
    )
    return build(hf.Gemma3ForConditionalGeneration, config)


def llava():
    """A Llama behind images, whose tokens are like those of text."""
    text = hf.LlamaConfig(**decoder())
    config = hf.LlavaConfig(
        text_config=text, vision_config=_vision(), vision_feature_layer=-1, image_token_index=IMAGE,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    return build(hf.LlavaForConditionalGeneration, config)


def paligemma():
    """Says that it attends in both directions, and is causal as soon as there is padding."""
    text = hf.GemmaConfig(head_dim=16, **decoder())
    config = hf.PaliGemmaConfig(text_config=text, vision_config=_vision(), projection_dim=32)
    return build(hf.PaliGemmaForConditionalGeneration, config)


def llama4():
    """Chunks of 8 tokens, full, chunks, full; no rotary embedding in the full layers."""
    config = hf.Llama4TextConfig(
        head_dim=8, layer_types=["chunked_attention", "full_attention"] * 2, attention_chunk_size=8,
        no_rope_layers=[1, 0, 1, 0], intermediate_size_mlp=64, num_local_experts=2, moe_layers=[],
        **{**decoder(), "num_hidden_layers": 4},
    )  # fmt: skip
    return build(hf.Llama4ForCausalLM, config)


def gemma3n():
    """Four layers of their own, and two behind them that read the keys of the last two: sliding (window 8), full, …"""
    config = hf.Gemma3nTextConfig(
        head_dim=8, num_kv_shared_layers=2, layer_types=["sliding_attention", "full_attention"] * 3,
        sliding_window=8, hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB, laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 6, **{**decoder(), "num_hidden_layers": 6},
    )  # fmt: skip
    return build(hf.Gemma3nForCausalLM, config)


def gemma4():
    """Sliding layers of 4 heads on 2 KV heads of dimension 8, full ones on 1 of dimension 16 whose values are keys."""
    config = hf.Gemma4TextConfig(
        head_dim=8, global_head_dim=16, num_global_key_value_heads=1, attention_k_eq_v=True, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=0, hidden_size_per_layer_input=0,
        **{**decoder(), "num_hidden_layers": 4},
    )  # fmt: skip
    return build(hf.Gemma4ForCausalLM, config)


def albert():
    """Encoder whose three layers are one, called three times."""
    config = hf.AlbertConfig(
        embedding_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=CONTEXT, **common(),
    )  # fmt: skip
    return build(hf.AlbertModel, config)


TINY: dict[str, Callable[[], hf.PreTrainedModel]] = {
    factory.__name__: factory
    for factory in (gpt2, gpt_bigcode, llama, qwen3, pythia, opt, gemma3, phi3, bert, modernbert)
}
"""What most tests are run with; the others have tests of what is theirs."""

WITH_TERMS: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "gpt_oss": gpt_oss,
    "granite_swa": granite_swa,
    "gemma2": gemma2,
}
"""Those with learned sinks or capped scores."""


def build(model_class, config, seed: int = 0) -> hf.PreTrainedModel:
    """Make a model of random weights, biases included, in eval mode; the global generator is not disturbed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).eval()
        # Biases and norm offsets start at zero, which would hide a bias that was split wrongly.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(0.0, STD)
    return model


def tokenizer(pattern, pieces):
    """A tokenizer whose tokens are ``pieces``, each a match of ``pattern``; ids below 4 are special."""
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", *pieces]
    backend = Tokenizer(WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.decoder = decoders.Fuse()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def beginning_with(tokenizer, token):
    """A copy of the tokenizer that puts a special token in front of a text."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.convert_tokens_to_ids(token))]
    )
    return tokenizer


def saved(model, tokenizer, path):
    """Write a model and its tokenizer into a folder, and return the folder."""
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tokens(batch: int = 1, length: int = 24, seed: int = 0) -> torch.Tensor:
    """Random token ids ``[batch, length]`` above the special ones."""
    return torch.randint(8, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def common():
    return {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": STD}


def _gemma3_text():
    return hf.Gemma3TextConfig(
        head_dim=16, query_pre_attn_scalar=24, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2, **{**decoder(), "num_hidden_layers": 4},
    )  # fmt: skip


def _vision():
    return hf.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )


def decoder():
    return {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, **common(),
    }  # fmt: skip
