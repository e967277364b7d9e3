"""The reference model: Qwen3's architecture, written for training on flat batches of tokens.

Parameter names are those of Hugging Face's ``Qwen3ForCausalLM``, so a state dict is a checkpoint. Everything
but attention works on ``[tokens, ...]`` whatever the rows' length, so that compiled graphs serve all lengths.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.rows import FACT, ROLES


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the model, in Qwen3's terms.

    Attributes
    ----------
    layers, hidden, intermediate
        Depth and widths of residual stream and MLP.
    query_heads, kv_heads, head
        Attention heads and their size; the queries of `query_heads / kv_heads` heads share keys and values.
    vocabulary
        Tokens; the output projection is the transposed embedding.
    rope_base
        Base of the rotary angles. At 1e9 nearly half of a head's dimensions turn by less than a radian in 64K
        tokens, so that keys can be matched by content at any distance.
    """

    layers: int = 6
    hidden: int = 384
    intermediate: int = 1024
    query_heads: int = 8
    kv_heads: int = 2
    head: int = 64
    vocabulary: int = 4096
    rope_base: float = 1e9
    norm_epsilon: float = 1e-6

    def config(self, max_position: int, document_token: int) -> dict[str, Any]:
        """Contents of the checkpoint's ``config.json``."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": document_token,
            "eos_token_id": document_token,
            "head_dim": self.head,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": max_position,
            "num_attention_heads": self.query_heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": self.norm_epsilon,
            "rope_theta": self.rope_base,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_sliding_window": False,
            "vocab_size": self.vocabulary,
        }


class _Norm(nn.Module):
    def __init__(self, size: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), gain))


class _Attention(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.q_proj = nn.Linear(shape.hidden, shape.query_heads * shape.head, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head, bias=False)
        self.o_proj = nn.Linear(shape.query_heads * shape.head, shape.hidden, bias=False)
        self.q_norm = _Norm(shape.head, gain=1.5)
        self.k_norm = _Norm(shape.head, gain=1.5)


class _Mlp(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)


class _Layer(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.input_layernorm = _Norm(shape.hidden)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = _Norm(shape.hidden)
        self.mlp = _Mlp(shape)


class _Decoder(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = _Norm(shape.hidden)


def _rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + epsilon)
    return (y * gain).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate dimension i with dimension i + head / 2; x is ``[tokens, heads, head]``."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def _queries_keys_values(
    x: Tensor,
    gain: Tensor,
    projection: Tensor,
    query_gain: Tensor,
    key_gain: Tensor,
    cos: Tensor,
    sin: Tensor,
    sizes: tuple[int, int, int],
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    query_heads, kv_heads, head = sizes
    heads = functional.linear(_rms_norm(x, gain, epsilon), projection.to(x.dtype)).unflatten(-1, (-1, head))
    query, key, value = heads.split([query_heads, kv_heads, kv_heads], dim=1)
    query = _rotate(_rms_norm(query, query_gain, epsilon), cos, sin)
    key = _rotate(_rms_norm(key, key_gain, epsilon), cos, sin)
    return query, key, value.contiguous()


def _output_and_mlp(
    x: Tensor, attended: Tensor, output: Tensor, gain: Tensor, gate_up: Tensor, down: Tensor, epsilon: float
) -> Tensor:
    x = x + functional.linear(attended, output.to(x.dtype))
    gate, up = functional.linear(_rms_norm(x, gain, epsilon), gate_up.to(x.dtype)).chunk(2, dim=-1)
    return x + functional.linear(functional.silu(gate) * up, down.to(x.dtype))


def _losses(
    x: Tensor, gain: Tensor, embedding: Tensor, targets: Tensor, roles: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    logits = functional.linear(_rms_norm(x, gain, epsilon), embedding.to(x.dtype)).float()
    loss = functional.cross_entropy(logits, targets, reduction="none")
    correct = logits.argmax(-1) == targets
    of_role = (roles[:, None] == torch.arange(ROLES, device=roles.device)).float()
    measured = torch.stack([loss, torch.ones_like(loss), correct.float()], dim=1)
    return (of_role[:, :, None] * measured[:, None]).sum(0), correct


class ReferenceModel(nn.Module):
    """The model; its `losses` is what training and evaluation call.

    Parameters
    ----------
    shape
        Sizes.
    dtype
        Type of activations; parameters are kept in float32.
    compiled
        Whether to compile the parts outside attention (worth its half minute on a GPU only).
    """

    def __init__(self, shape: ModelShape, dtype: torch.dtype, compiled: bool) -> None:
        super().__init__()
        self.shape = shape
        self.dtype = dtype
        self.model = _Decoder(shape)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * shape.layers) ** 0.5 if residual else 0.02)

        def part(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(function, dynamic=False) if compiled else function

        self._fixed_shapes = compiled
        self._queries_keys_values = part(_queries_keys_values)
        self._output_and_mlp = part(_output_and_mlp)
        self._losses = part(_losses)

    def losses(
        self, tokens: Tensor, positions: Tensor, targets: Tensor, roles: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses of rows of equal length, apart by the targets' roles.

        Parameters
        ----------
        tokens, positions, targets
            int64 ``[rows, length]``.
        roles
            uint8 ``[rows, length]``, of the targets; see `rows`.

        Returns
        -------
        by_role : Tensor
            Sum of the cross-entropies (nats), targets, and targets that are the most likely token, float32
            ``[ROLES, 3]``.
        correct : Tensor
            Whether the most likely token is the target, bool ``[rows, length]``; False where the role is `FACT`.
        """
        shape, rows = self.shape, tokens.shape[0]
        sizes = (shape.query_heads, shape.kv_heads, shape.head)
        cos, sin = self._angles(positions.flatten())
        x = self.model.embed_tokens(tokens.flatten()).to(self.dtype)
        for layer in cast(Iterator[_Layer], iter(self.model.layers)):
            attention, mlp = layer.self_attn, layer.mlp
            projection = torch.cat(
                [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
            )
            heads = self._queries_keys_values(
                x,
                layer.input_layernorm.weight,
                projection,
                attention.q_norm.weight,
                attention.k_norm.weight,
                cos,
                sin,
                sizes,
                shape.norm_epsilon,
            )
            query, key, value = (part.unflatten(0, (rows, -1)).transpose(1, 2) for part in heads)
            attended = functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            )
            x = self._output_and_mlp(
                x,
                attended.transpose(1, 2).flatten(2).flatten(0, 1),
                attention.o_proj.weight,
                layer.post_attention_layernorm.weight,
                torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
                mlp.down_proj.weight,
                shape.norm_epsilon,
            )
        wanted = roles.flatten() != FACT
        kept = slice(None) if self._fixed_shapes else wanted
        by_role, right = self._losses(
            x[kept],
            self.model.norm.weight,
            self.model.embed_tokens.weight,
            targets.flatten()[kept],
            roles.flatten()[kept],
            shape.norm_epsilon,
        )
        correct = torch.zeros_like(wanted)
        correct[kept] = right
        return by_role, (correct & wanted).view_as(tokens)

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary angles, float32 ``[tokens, 1, head / 2]``."""
        exponents = torch.arange(0, self.shape.head, 2, device=positions.device) / self.shape.head
        angles = positions[:, None, None].float() * self.shape.rope_base**-exponents
        return angles.cos(), angles.sin()
