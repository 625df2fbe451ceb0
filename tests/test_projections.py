"""Split weights are checked by computing with them: from a module's hidden states to the q, k, v it attends with."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers as hf

from taylorder.analysis.projections import head_slices, projection_weights
from taylorder.models.attention import recording

_GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1, "hidden_size": 32}
_EQUAL = {"num_attention_heads": 4, "num_hidden_layers": 1, "hidden_size": 32}
_REST = {"vocab_size": tiny.VOCAB, "initializer_range": tiny.STD, "pad_token_id": 0, "max_position_embeddings": 64}


def gpt_bigcode_multi_head():
    config = hf.GPTBigCodeConfig(n_embd=32, n_layer=1, n_head=4, n_positions=64, multi_query=False, vocab_size=128)
    return tiny.build(hf.GPTBigCodeForCausalLM, config)


def persimmon():
    config = hf.PersimmonConfig(intermediate_size=64, qk_layernorm=False, **_EQUAL, **_REST)
    return tiny.build(hf.PersimmonForCausalLM, config)


def dbrx():
    attention = {"kv_n_heads": 2, "clip_qkv": 1e4, "rope_theta": 1e4}
    experts = {"ffn_hidden_size": 32, "moe_num_experts": 2, "moe_top_k": 1}
    config = hf.DbrxConfig(
        d_model=32, n_heads=4, n_layers=1, max_seq_len=64, vocab_size=128, attn_config=attention, ffn_config=experts
    )
    return tiny.build(hf.DbrxForCausalLM, config)


def qwen3_next():
    """A query projection that holds an output gate as well."""
    config = hf.Qwen3NextConfig(
        intermediate_size=64, head_dim=16, layer_types=["full_attention"], num_experts=0, mlp_only_layers=[0],
        decoder_sparse_step=1, partial_rotary_factor=0.25, **_GROUPED, **_REST,
    )  # fmt: skip
    return tiny.build(hf.Qwen3NextForCausalLM, config)


def distilbert():
    config = hf.DistilBertConfig(dim=32, n_layers=1, n_heads=4, hidden_dim=64, **_REST)
    return tiny.build(hf.DistilBertModel, config)


def roberta():
    return tiny.build(
        hf.RobertaModel, hf.RobertaConfig(intermediate_size=64, **_EQUAL, **(_REST | {"pad_token_id": 1}))
    )


MODELS = tiny.TINY | {
    factory.__name__: factory
    for factory in (gpt_bigcode_multi_head, persimmon, dbrx, qwen3_next, distilbert, roberta, tiny.vit)
}
# A rotation stands between projection and scores: these are compared at position 0, where it is the identity.
ROTARY = {"llama", "qwen3", "pythia", "gemma3", "phi3", "modernbert", "persimmon", "dbrx", "qwen3_next"}


@pytest.fixture(params=MODELS)
def case(request):
    """(model, whether it is rotary, [(call, hidden states in, attention output projected)]), biases zero."""
    model = MODELS[request.param]()
    calls, inputs, projected = [], {}, {}
    # The hidden states a module projects, and what leaves the output projection, whoever owns it.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and "norm" not in name.lower() and "ln_" not in name:
                parameter.zero_()
    modules = [name for name, _ in model.named_modules()]

    def note_input(name):
        def hook(module, args, kwargs):
            inputs[name] = args[0] if args else kwargs.get("hidden_states")

        return hook

    def note_output(name):
        def hook(module, args, output):
            projected[name] = output[0] if isinstance(output, tuple) else output

        return hook

    for name in modules:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(note_input(name), with_kwargs=True)
        module.register_forward_hook(note_output(name))
    data = {"pixel_values": torch.randn(2, 3, 16, 16)} if request.param == "vit" else {"input_ids": tiny.tokens(2)}
    with torch.no_grad(), recording(model, calls.append):
        model(**data)
    found = []
    for call in calls:
        sibling = call.name.removesuffix("self") + "output.dense"
        output = projected[sibling if sibling in modules else call.name]
        found.append((call, inputs[call.name], output))
    return model, request.param in ROTARY, found


def heads_of(hidden, weight, dim):
    """``[B, T, in]`` and ``[n d, in]`` to ``[B, n, T, d]``."""
    return (hidden @ weight.T).unflatten(-1, (-1, dim)).transpose(1, 2)


def test_values_are_the_hidden_states_times_the_weight(case):
    model, _, found = case
    assert found
    for call, hidden, _ in found:
        weight = projection_weights(model, call.name)["v"]
        torch.testing.assert_close(heads_of(hidden, weight, call.v.shape[-1]), call.v)


def test_queries_and_keys_are_the_hidden_states_times_the_weights(case):
    model, rotary, found = case
    for call, hidden, _ in found:
        weights = projection_weights(model, call.name)
        positions = slice(0, 1 if rotary else None)
        for projection, actual in (("q", call.q), ("k", call.k)):
            expected = heads_of(hidden, weights[projection], call.q.shape[-1])
            if (norm := getattr(call.module, f"{projection}_norm", None)) is not None:
                expected = norm(expected)
            if isinstance(model, hf.OPTForCausalLM) and projection == "q":
                expected = expected * call.q.shape[-1] ** -0.5
            torch.testing.assert_close(actual[:, :, positions], expected[:, :, positions])


def test_the_output_projection_takes_the_heads_side_by_side(case):
    """Attention recomputed from the call, times o, is what the module (or its sibling) put out."""
    model, _, found = case
    for call, hidden, output in found:
        groups = call.q.shape[1] // call.k.shape[1]
        k, v = (tensor.repeat_interleave(groups, dim=1) for tensor in (call.k, call.v))
        T = call.q.shape[2]
        seen = torch.ones(T, T, dtype=torch.bool).tril() if call.is_causal else torch.ones(T, T, dtype=torch.bool)
        scores = (call.scaling * call.q @ k.mT).masked_fill(~(seen if call.mask is None else call.mask), -torch.inf)
        attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        if type(call.module).__name__ == "Qwen3NextAttention":
            gate = call.module.q_proj(hidden).unflatten(-1, (-1, 2, call.q.shape[-1]))[..., 1, :].flatten(2)
            attended = attended * gate.sigmoid()
        weight = projection_weights(model, call.name)["o"]
        torch.testing.assert_close(attended @ weight.T, output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "phi3", "bert", "modernbert", "gpt_bigcode"])
def test_separate_and_contiguous_weights_are_views(name):
    model = MODELS[name]()
    module = next(call_name for call_name, _ in model.named_modules() if call_name.endswith(("attn", "self")))
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    weights = projection_weights(model, module)
    assert set(weights) == {"q", "k", "v", "o"}
    for weight in weights.values():
        assert weight.untyped_storage().data_ptr() in storages
        assert weight.ndim == 2
        assert not weight.requires_grad


def test_grouped_shapes():
    weights = projection_weights(tiny.qwen3(), "model.layers.1.self_attn")
    shapes = {projection: tuple(weight.shape) for projection, weight in weights.items()}
    assert shapes == {"q": (64, 32), "k": (32, 32), "v": (32, 32), "o": (32, 64)}


@pytest.mark.parametrize("query_rank", [None, 16])
def test_latent_attention_has_the_matrices_behind_its_latents(query_rank):
    config = hf.DeepseekV3Config(
        intermediate_size=64, moe_intermediate_size=16, kv_lora_rank=8, q_lora_rank=query_rank, qk_rope_head_dim=4,
        qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=1, n_routed_experts=2, n_group=1, topk_group=1,
        num_experts_per_tok=1, **(_GROUPED | {"num_key_value_heads": 4}), **_REST,
    )  # fmt: skip
    model = tiny.build(hf.DeepseekV3ForCausalLM, config)
    weights = projection_weights(model, "model.layers.0.self_attn")
    queries = {"q": (48, 32)} if query_rank is None else {"q_b": (48, 16)}
    assert {projection: tuple(weight.shape) for projection, weight in weights.items()} == {
        **queries, "o": (32, 32), "k_b": (32, 8), "v_b": (32, 8),
    }  # fmt: skip
    # What they make of the latents is what enters the softmax: rotary dimensions aside, which turn.
    attention, entering, calls = model.model.layers[0].self_attn, {}, []
    for name in ("q_b_proj", "kv_b_proj"):
        if (child := getattr(attention, name, None)) is not None:
            child.register_forward_hook(lambda _, args, __, name=name: entering.__setitem__(name, args[0]))
    with recording(model, calls.append), torch.no_grad():
        model(tiny.tokens(2, 12))

    def made(projection, child):
        return (entering[child].flatten(0, -2) @ weights[projection].T).view(2, 12, 4, -1).transpose(1, 2)

    torch.testing.assert_close(made("k_b", "kv_b_proj"), calls[0].k[..., :8])
    torch.testing.assert_close(made("v_b", "kv_b_proj"), calls[0].v)
    if query_rank is not None:
        torch.testing.assert_close(made("q_b", "q_b_proj")[..., :8], calls[0].q[..., :8])
    assert [part.shape for _, part in head_slices(weights["k_b"], "k_b", 4, 4)] == [(8, 8)] * 4


def test_a_fused_matrix_of_unknown_layout_is_absent():
    """Grouped heads under a name whose rows interleave per head: no guess is made."""
    model = tiny.pythia()
    attention = model.get_submodule("gpt_neox.layers.0.attention")
    attention.query_key_value = torch.nn.Linear(64, 64 + 2 * 32)
    assert set(projection_weights(model, "gpt_neox.layers.0.attention")) == {"o"}


def test_an_unknown_module_is_an_error():
    with pytest.raises(AttributeError):
        projection_weights(tiny.llama(), "model.layers.7.self_attn")


def test_head_slices_put_together_are_the_projection():
    model = tiny.llama()
    for projection, weight in projection_weights(model, "model.layers.0.self_attn").items():
        slices = list(head_slices(weight, projection, 4, 2))
        assert [head for head, _ in slices] == list(range(2 if projection in "kv" else 4))
        whole = torch.cat([part for _, part in slices], dim=1 if projection == "o" else 0)
        assert torch.equal(whole, weight)
        assert all(part.ndim == 2 and part.shape[1 if projection == "o" else 0] == 8 for _, part in slices)


def test_a_head_slice_makes_that_head_alone():
    model = tiny.llama()
    calls, hidden = [], []
    attention = model.get_submodule("model.layers.0.self_attn")
    attention.register_forward_pre_hook(
        lambda module, args, kwargs: hidden.append(kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad(), recording(model, calls.append):
        model(tiny.tokens())
    weights = projection_weights(model, "model.layers.0.self_attn")
    for head, part in head_slices(weights["v"], "v", 4, 2):
        torch.testing.assert_close(hidden[0] @ part.T, calls[0].v[:, head])


def test_slices_that_do_not_divide_are_an_error():
    with pytest.raises(ValueError, match="does not divide into 3 heads"):
        list(head_slices(torch.zeros(8, 8), "q", 3, 1))


@pytest.mark.builtin
def test_every_projection_of_the_builtin_is_found(builtin):
    for layer in range(30):
        weights = projection_weights(builtin.model, f"model.layers.{layer}.self_attn")
        shapes = {projection: tuple(weight.shape) for projection, weight in weights.items()}
        assert shapes == {"q": (576, 576), "k": (192, 576), "v": (192, 576), "o": (576, 576)}
