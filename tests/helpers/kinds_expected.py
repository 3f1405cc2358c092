"""Which kinds common architectures have, written by hand from reading the models and not from any output.

How to read a model: follow each set of units from what writes it to what reads it.

- A *stream* that norms read behind which everything is linear turns: freely behind an RMS norm (``orthogonal``), around
  the mean behind a layer norm (``orthogonal_mean``).  Anything pointwise on it, a norm whose gain goes on into the
  stream (post-LN, a norm of the embeddings, norms behind the branches), or a depthwise convolution leaves its order.
  Behind RMS norms units still have a ``sign``.  A head that is the embedding's table keeps the last gain where it is.
- *Queries and keys* meet in a product: any invertible map (``linear``); with rotary positions a complex factor for each
  pair (``plane``), and linear maps of what is not turned if positions turn a part; norms with gains of their own leave
  neither.  *Values* are averaged and read by the output projection: ``linear``.
- *Hidden* units have what the activation allows: ``scale`` (ReLU), ``sign`` (tanh), nothing (GELU, SiLU, ReLU6); the
  linear side of a gate has any ``number`` but 0.  Batch norms pin what goes into them, their affine part counts.

Where the inference finds less than the reading, ``found`` says what: a test that fails there has good news.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: ``tensor[dimension]`` and the kinds beyond permutation that act along it, joined by "+"; "permutation" if none does.
Axis = tuple[str, str]


@dataclass(frozen=True)
class Expected:
    """What is expected of one architecture.

    Args:
        stream: Of the residual stream.
        queries: Of queries and keys.
        values: Of values.
        hidden: Of the hidden units.
        more: Of other axes.
        untied: Of the stream if the head were not tied; empty if that would change nothing.
        found: Where the inference finds less than there is, what it finds, by axis ("untied" for that).
        why: What decides.
    """

    stream: Axis | None = None
    queries: Axis | None = None
    values: Axis | None = None
    hidden: Axis | None = None
    more: tuple[Axis, ...] = ()
    untied: str = ""
    found: Mapping[str, str] = field(default_factory=dict)
    why: str = ""

    @property
    def axes(self) -> dict[str, str]:
        """All axes."""
        named = (self.stream, self.queries, self.values, self.hidden)
        return dict([*(axis for axis in named if axis), *self.more])


MEAN = "orthogonal_mean"
_BERT = "bert.encoder.layer.0."
_ALBERT = "albert.encoder.albert_layer_groups.0.albert_layers.0."
_LAYER = "model.layers.0."
_EMBED = "model.embed_tokens.weight[1]"
_QUERY, _VALUE = (
    f"{_LAYER}self_attn.q_proj.weight[0]",
    f"{_LAYER}self_attn.v_proj.weight[0]",
)
_UP = f"{_LAYER}mlp.up_proj.weight[0]"
_GATE = (f"{_LAYER}mlp.gate_proj.weight[0]", "permutation")


def _llama(
    stream: str,
    queries: str = "plane",
    *,
    untied: str = "",
    found: Mapping[str, str] | None = None,
    why: str,
) -> Expected:
    """Models with the names and the gated units of Llama."""
    return Expected(
        stream=(_EMBED, stream),
        queries=(_QUERY, queries),
        values=(_VALUE, "linear"),
        hidden=(_UP, "number"),
        more=(_GATE,),
        untied=untied,
        found=found or {},
        why=why,
    )


EXPECTED: dict[str, Expected] = {
    # ---- perceptrons, convolutions, recurrent networks
    "hand/MLP": Expected(
        hidden=("a.weight[0]", "scale"),
        more=(("c.weight[1]", "scale"),),
        why="ReLU",
    ),
    "hand/BNCNN": Expected(
        hidden=("f.1.weight[0]", "scale"),
        more=(("f.0.weight[0]", "permutation"), ("h.1.weight[0]", "scale")),
        why="ReLU; ε of the batch norm pins the convolution before it",
    ),
    "hand/LSTMNet": Expected(
        stream=("e.weight[1]", "linear"),
        hidden=("l.weight_hh_l0[1]", "permutation"),
        why="the embedding is read by a linear map; gates are pointwise",
    ),
    "hand/GLUs": Expected(
        stream=("d.weight[0]", "linear"),
        hidden=("u.weight[0]", "number"),
        more=(("g.weight[0]", "permutation"),),
        why="the linear sides of gates; a linear layer behind a linear one",
    ),
    "hand/MLPMixer": Expected(
        stream=("e.weight[0]", "permutation"),
        hidden=("t.0.weight[0]", "permutation"),
        why="mixing of tokens is pointwise in the channels",
    ),
    "hand/EinsumAttention": Expected(
        stream=("i.weight[0]", "linear"),
        queries=("q[2]", "linear"),
        values=("v[2]", "linear"),
        why="no norm: all that reads the stream is linear",
    ),
    "hand/FullTransformer": Expected(
        stream=("e.weight[1]", "permutation"),
        values=("t.encoder.layers.0.self_attn.out_proj.weight[1]", "linear"),
        hidden=("t.encoder.layers.0.linear1.weight[0]", "scale"),
        why="post-LN; ReLU; packed projection",
    ),
    "tv/resnet50": Expected(
        stream=("layer1.0.bn3.weight[0]", "scale"),
        hidden=("layer1.0.bn1.weight[0]", "scale"),
        more=(
            ("bn1.weight[0]", "scale"),
            ("layer1.0.conv1.weight[0]", "permutation"),
            ("fc.weight[1]", "scale"),
        ),
        why="ReLU also on the stream",
    ),
    "tv/densenet121": Expected(
        hidden=("features.denseblock1.denselayer1.norm2.weight[0]", "scale"),
        more=(
            (
                "features.denseblock1.denselayer1.conv1.weight[0]",
                "permutation",
            ),
        ),
        why="every concatenation goes into batch norms",
    ),
    "tv/mobilenet_v2": Expected(
        stream=("features.2.conv.3.weight[0]", "number"),
        hidden=("features.2.conv.0.1.weight[0]", "permutation"),
        why="ReLU6 in the blocks, nothing on the stream",
    ),
    # ---- encoders
    "hf/bert": Expected(
        stream=("bert.embeddings.word_embeddings.weight[1]", "permutation"),
        queries=(f"{_BERT}attention.self.query.weight[0]", "linear"),
        values=(f"{_BERT}attention.self.value.weight[0]", "linear"),
        hidden=(f"{_BERT}intermediate.dense.weight[0]", "permutation"),
        more=(("bert.pooler.dense.weight[0]", "sign"),),
        why="post-LN; GELU; tanh in the pooler",
    ),
    "hf/electra": Expected(
        stream=("electra.embeddings_project.weight[0]", "permutation"),
        queries=(
            "electra.encoder.layer.0.attention.self.query.weight[0]",
            "linear",
        ),
        values=(
            "electra.encoder.layer.0.attention.self.value.weight[0]",
            "linear",
        ),
        hidden=(
            "electra.encoder.layer.0.intermediate.dense.weight[0]",
            "permutation",
        ),
        more=(("electra.embeddings.word_embeddings.weight[1]", MEAN),),
        why="post-LN; the embeddings' norm is read by a projection alone",
    ),
    "hf/albert": Expected(
        stream=(
            "albert.encoder.embedding_hidden_mapping_in.weight[0]",
            "permutation",
        ),
        queries=(f"{_ALBERT}attention.query.weight[0]", "linear"),
        values=(f"{_ALBERT}attention.value.weight[0]", "linear"),
        hidden=(f"{_ALBERT}ffn.weight[0]", "permutation"),
        more=(
            ("albert.embeddings.word_embeddings.weight[1]", MEAN),
            ("albert.pooler.weight[0]", "sign"),
        ),
        why="as ELECTRA; all layers share their weights; tanh in the pooler",
    ),
    "hf/vit": Expected(
        stream=("vit.embeddings.position_embeddings[2]", MEAN),
        queries=("vit.layers.0.attention.q_proj.weight[0]", "linear"),
        values=("vit.layers.0.attention.v_proj.weight[0]", "linear"),
        hidden=("vit.layers.0.mlp.fc1.weight[0]", "permutation"),
        more=(("vit.embeddings.patch_embeddings.projection.weight[0]", MEAN),),
        why="pre-LN; GELU",
    ),
    "hf/ast": Expected(
        stream=(
            "audio_spectrogram_transformer.embeddings.cls_token[2]",
            "permutation",
        ),
        queries=(
            "audio_spectrogram_transformer.layers.0.attention.q_proj.weight[0]",
            "linear",
        ),
        values=(
            "audio_spectrogram_transformer.layers.0.attention.v_proj.weight[0]",
            "linear",
        ),
        why="pre-LN, but the last norm goes into the norm of the classifier",
    ),
    "hf/clip": Expected(
        stream=("text_model.embeddings.token_embedding.weight[1]", MEAN),
        queries=(
            "text_model.encoder.layers.0.self_attn.q_proj.weight[0]",
            "linear",
        ),
        values=(
            "vision_model.encoder.layers.0.self_attn.v_proj.weight[0]",
            "linear",
        ),
        hidden=(
            "text_model.encoder.layers.0.mlp.fc1.weight[0]",
            "permutation",
        ),
        more=(("vision_model.embeddings.class_embedding[0]", "permutation"),),
        why="pre-LN; the stream of images begins with a norm",
    ),
    # ---- encoders and decoders
    "hf/bart": Expected(
        stream=("model.shared.weight[1]", "permutation"),
        queries=(
            "model.encoder.layers.0.self_attn.q_proj.weight[0]",
            "linear",
        ),
        values=(
            "model.decoder.layers.0.encoder_attn.v_proj.weight[0]",
            "linear",
        ),
        hidden=("model.encoder.layers.0.fc1.weight[0]", "permutation"),
        why="post-LN",
    ),
    "hf/t5_gated": Expected(
        stream=("shared.weight[1]", "sign"),
        untied="orthogonal",
        queries=(
            "encoder.block.0.layer.0.SelfAttention.q.weight[0]",
            "linear",
        ),
        values=(
            "decoder.block.0.layer.1.EncDecAttention.v.weight[0]",
            "linear",
        ),
        hidden=(
            "decoder.block.0.layer.2.DenseReluDense.wi_1.weight[0]",
            "number",
        ),
        why="RMS norms, tied head; positions are added to scores; both streams begin with one table",
    ),
    "hf/whisper": Expected(
        stream=("model.decoder.embed_tokens.weight[1]", "permutation"),
        queries=(
            "model.decoder.layers.0.self_attn.q_proj.weight[0]",
            "linear",
        ),
        values=(
            "model.decoder.layers.0.encoder_attn.v_proj.weight[0]",
            "linear",
        ),
        hidden=("model.encoder.conv1.weight[0]", "permutation"),
        more=(("model.encoder.conv2.weight[0]", "permutation"),),
        untied=MEAN,
        why="GELU before the encoder's stream; the decoder's head is tied",
    ),
    # ---- language models
    "hf/gpt_neox": Expected(
        stream=("gpt_neox.embed_in.weight[1]", MEAN),
        queries=(
            "gpt_neox.layers.0.attention.query_key_value.weight[0]",
            "linear+plane",
        ),
        values=("gpt_neox.layers.0.attention.dense.weight[1]", "linear"),
        hidden=(
            "gpt_neox.layers.0.mlp.dense_h_to_4h.weight[0]",
            "permutation",
        ),
        why="pre-LN; a quarter of each head is rotary; packed projection",
    ),
    "hf/opt": Expected(
        stream=("model.decoder.embed_positions.weight[1]", MEAN),
        queries=(
            "model.decoder.layers.0.self_attn.q_proj.weight[0]",
            "linear",
        ),
        values=(
            "model.decoder.layers.0.self_attn.v_proj.weight[0]",
            "linear",
        ),
        hidden=("model.decoder.layers.0.fc1.weight[0]", "scale"),
        more=(("model.decoder.embed_tokens.weight[1]", "linear"),),
        why="pre-LN; ReLU; linear maps between table and stream, so that a tied head is no obstacle",
    ),
    "hf/bloom": Expected(
        stream=("transformer.word_embeddings.weight[1]", "permutation"),
        queries=(
            "transformer.h.0.self_attention.query_key_value.weight[0]",
            "linear",
        ),
        values=("transformer.h.0.self_attention.dense.weight[1]", "linear"),
        hidden=("transformer.h.0.mlp.dense_h_to_4h.weight[0]", "permutation"),
        why="a norm of the embeddings begins the stream",
    ),
    "hf/falcon": Expected(
        stream=("transformer.word_embeddings.weight[1]", "permutation"),
        queries=(
            "transformer.h.0.self_attention.query_key_value.weight[0]",
            "linear+plane",
        ),
        values=("transformer.h.0.self_attention.dense.weight[1]", "linear"),
        hidden=("transformer.h.0.mlp.dense_h_to_4h.weight[0]", "permutation"),
        untied=MEAN,
        found={
            "transformer.h.0.self_attention.query_key_value.weight[0]": "linear"
        },
        why="tied head; rotary, one key head, packed projection",
    ),
    "hf/llama": _llama("orthogonal", why="RMS norms, rotary, gated units"),
    "hf/llama_mqa_tied": _llama(
        "sign", untied="orthogonal", why="as Llama, tied head"
    ),
    "hf/mistral": _llama("orthogonal", why="as Llama, grouped queries"),
    "hf/qwen2": _llama("orthogonal", why="as Llama, biases of q, k and v"),
    "hf/qwen3": _llama(
        "orthogonal",
        "sign",
        found={_QUERY: "permutation"},
        why="as Llama; norms of q and k leave the sign of a whole head",
    ),
    "hf/olmo2": _llama(
        "sign",
        "sign",
        why="norms behind the branches; the gains of the norms of q and k take a sign back",
    ),
    "hf/gemma": _llama(
        "sign",
        untied="orthogonal",
        why="as Llama, tied head; the gain of a norm is 1 + w",
    ),
    "hf/gemma2": _llama("sign", why="norms behind the branches, too"),
    "hf/mixtral": Expected(
        stream=(_EMBED, "orthogonal"),
        queries=(_QUERY, "plane"),
        values=(_VALUE, "linear"),
        hidden=(f"{_LAYER}mlp.experts.down_proj[2]", "number"),
        found={f"{_LAYER}mlp.experts.down_proj[2]": "permutation"},
        why="as Llama; router and experts read a norm",
    ),
    "hf/phi": Expected(
        stream=(_EMBED, MEAN),
        queries=(_QUERY, "linear+plane"),
        values=(_VALUE, "linear"),
        hidden=(f"{_LAYER}mlp.fc1.weight[0]", "permutation"),
        found={_QUERY: "linear"},
        why="pre-LN; half of each head is rotary",
    ),
    "hf/phi3": Expected(
        stream=(_EMBED, "orthogonal"),
        queries=(f"{_LAYER}self_attn.qkv_proj.weight[0]", "linear+plane"),
        values=(f"{_LAYER}self_attn.o_proj.weight[1]", "linear"),
        hidden=(f"{_LAYER}mlp.gate_up_proj.weight[0]", "number"),
        found={
            f"{_LAYER}self_attn.qkv_proj.weight[0]": "linear",
            f"{_LAYER}mlp.gate_up_proj.weight[0]": "permutation",
        },
        why="as Llama, packed projections",
    ),
    "hf/mamba": Expected(
        stream=("backbone.embeddings.weight[1]", "sign"),
        hidden=("backbone.layers.0.mixer.in_proj.weight[0]", "permutation"),
        more=(
            ("backbone.layers.0.mixer.dt_proj.weight[1]", "linear"),
            ("backbone.layers.0.mixer.x_proj.weight[0]", "linear+number"),
        ),
        untied="orthogonal",
        found={"backbone.layers.0.mixer.x_proj.weight[0]": "linear"},
        why="RMS norms, tied head; a linear map before the step size; any number per state",
    ),
}
