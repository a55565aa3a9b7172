"""Tiny models of many architectures with random weights, shared by tests. Nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

HIDDEN, LAYERS, HEADS, VOCAB, PAD = 32, 3, 4, 100, 1

_BERT = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3}
_T5 = {"d_model": HIDDEN, "num_layers": LAYERS, "num_heads": HEADS, "d_kv": 8, "d_ff": 64, "decoder_start_token_id": 2}
_BART = {
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_LED = {name: value for name, value in _BART.items() if name not in ("max_position_embeddings", "forced_eos_token_id")}
_GPT2 = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64, "bos_token_id": 2, "eos_token_id": 3}

# Test id -> model class, configuration class, settings. The settings name only what keeps the model small.
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", _BERT),
    "roberta": ("RobertaModel", "RobertaConfig", _BERT),
    "xlm-roberta": ("XLMRobertaModel", "XLMRobertaConfig", _BERT),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 64, "max_position_embeddings": 64},
    ),
    "mpnet": ("MPNetModel", "MPNetConfig", _BERT),
    "albert": ("AlbertModel", "AlbertConfig", {**_BERT, "embedding_size": 16, "hidden_dropout_prob": 0.1}),
    "albert-2-groups": (
        "AlbertModel",
        "AlbertConfig",
        {**_BERT, "embedding_size": 16, "num_hidden_groups": 2, "num_hidden_layers": 4},
    ),
    "deberta-v2": (
        "DebertaV2Model",
        "DebertaV2Config",
        {**_BERT, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
    ),
    "deberta-v2-conv": ("DebertaV2Model", "DebertaV2Config", {**_BERT, "conv_kernel_size": 3, "conv_act": "gelu"}),
    "electra": ("ElectraModel", "ElectraConfig", {**_BERT, "embedding_size": 16}),
    "modernbert": (
        "ModernBertModel",
        "ModernBertConfig",
        {**_BERT, "global_attn_every_n_layers": 2, "local_attention": 8, "embedding_dropout": 0.1},
    ),
    "nomic-bert": ("NomicBertModel", "NomicBertConfig", _BERT),
    "camembert": ("CamembertModel", "CamembertConfig", _BERT),
    "roberta-prelayernorm": ("RobertaPreLayerNormModel", "RobertaPreLayerNormConfig", _BERT),
    "squeezebert": ("SqueezeBertModel", "SqueezeBertConfig", {**_BERT, "embedding_size": HIDDEN}),
    "xlm": (
        "XLMModel",
        "XLMConfig",
        {"emb_dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "max_position_embeddings": 64, "pad_index": PAD},
    ),
    "xlnet": ("XLNetModel", "XLNetConfig", {"d_model": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "d_inner": 64}),
    "t5-encoder": ("T5EncoderModel", "T5Config", _T5),
    "mt5-encoder": ("MT5EncoderModel", "MT5Config", _T5),
    "t5": ("T5Model", "T5Config", _T5),
    "bart": ("BartModel", "BartConfig", _BART),
    "gpt2": ("GPT2Model", "GPT2Config", _GPT2),
    "gpt-neo": (
        "GPTNeoModel",
        "GPTNeoConfig",
        {
            "hidden_size": HIDDEN,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "attention_types": [[["global", "local", "global"], 1]],
            "max_position_embeddings": 64,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
    ),
    "gptj": ("GPTJModel", "GPTJConfig", {**_GPT2, "rotary_dim": 4}),
    "gpt-neox": ("GPTNeoXModel", "GPTNeoXConfig", {**_BERT, "bos_token_id": 2, "eos_token_id": 3}),
    "llama": ("LlamaModel", "LlamaConfig", _LLAMA),
    "qwen2": ("Qwen2Model", "Qwen2Config", _LLAMA),
    "qwen3": ("Qwen3Model", "Qwen3Config", _LLAMA),
    "mistral": ("MistralModel", "MistralConfig", _LLAMA),
    "mixtral": ("MixtralModel", "MixtralConfig", {**_LLAMA, "num_local_experts": 2}),
    "gemma": ("GemmaModel", "GemmaConfig", _LLAMA),
    "gemma2": ("Gemma2Model", "Gemma2Config", _LLAMA),
    "gemma3": ("Gemma3TextModel", "Gemma3TextConfig", _LLAMA),
    "phi": ("PhiModel", "PhiConfig", {**_LLAMA, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3Model", "Phi3Config", {**_LLAMA, "pad_token_id": PAD}),
    "opt": (
        "OPTModel",
        "OPTConfig",
        {
            "hidden_size": HIDDEN,
            "word_embed_proj_dim": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "ffn_dim": 64,
            "max_position_embeddings": 64,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
    ),
    "bloom": ("BloomModel", "BloomConfig", {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS}),
    "falcon": (
        "FalconModel",
        "FalconConfig",
        {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS},
    ),
    "olmo2": ("Olmo2Model", "Olmo2Config", _LLAMA),
    "stablelm": ("StableLmModel", "StableLmConfig", _LLAMA),
    "eurobert": ("EuroBertModel", "EuroBertConfig", _LLAMA),
    "longformer": ("LongformerModel", "LongformerConfig", {**_BERT, "attention_window": 16}),
    "led": ("LEDModel", "LEDConfig", {**_LED, "attention_window": 16}),
    "mamba": (
        "MambaModel",
        "MambaConfig",
        {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "state_size": 4},
    ),
}


def tiny_model(architecture: str, *, seed: int = 0, model_class: str | None = None, **settings: Any) -> nn.Module:
    """One of `ARCHITECTURES` in eval mode, with weights large enough that dropping a step would show."""
    class_name, config_name, base = ARCHITECTURES[architecture]
    config = getattr(transformers, config_name)(vocab_size=VOCAB, **{"pad_token_id": PAD, **base, **settings})
    torch.manual_seed(seed)
    model: nn.Module = getattr(transformers, model_class or class_name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Norm weights of ones and biases of zeros would hide a norm or a projection taken twice or not at all.
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_batch(padding: str = "right", *, sentences: int = 5, tokens: int = 7, seed: int = 1) -> dict[str, Tensor]:
    """Random token ids (B, T) of differing lengths, the first full, padded on the right or the left."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCAB, (sentences, tokens), generator=generator)
    lengths = torch.tensor([tokens - row % (tokens - 1) for row in range(sentences)])[:, None]
    position = torch.arange(tokens)[None, :]
    mask = position < lengths if padding == "right" else position >= tokens - lengths
    return {"input_ids": torch.where(mask, ids, PAD), "attention_mask": mask.to(torch.int64)}


class ToyModel(nn.Module):
    """Three linear blocks with the interface of a Hugging Face model; subclasses change one step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(100, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def start(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden

    def after_block(self, index: int, hidden: Tensor) -> Tensor:
        return hidden

    def entry(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False
    ) -> dict[str, Any]:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.start(self.embeddings(input_ids), mask)
        states = [self.entry(hidden, mask)]
        for index, block in enumerate(self.blocks):
            hidden = self.after_block(index, block(hidden))
            states.append(self.entry(hidden, mask))
        output: dict[str, Any] = {"last_hidden_state": states[-1]}
        return output | {"hidden_states": tuple(states)} if output_hidden_states else output
