"""What we are measured against: a nanoGPT-style GPT in PyTorch, as quick as PyTorch makes it on a CPU or a GPU.

Scaled-dot-product attention in one call, fused AdamW over all parameters, clipping by global norm, the head
tied to the token embedding, no dropout. The model takes our weights (a linear layer there stores its weight
transposed), so that both sides start from the same numbers and must reach the same losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Causal self-attention of all heads; with a cache it takes one token at a time."""

    def __init__(self, width: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, T, C) -> queries, keys, values, each (B, H, T, D)."""
        B, T, C = x.shape
        return tuple(
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2)
        )

    def join(self, mixed: torch.Tensor) -> torch.Tensor:
        """(B, H, T, D) -> (B, T, C), through the output projection."""
        B, H, T, D = mixed.shape
        return self.c_proj(mixed.transpose(1, 2).reshape(B, T, H * D))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.heads(x)
        return self.join(F.scaled_dot_product_attention(q, k, v, is_causal=True))


class MLP(nn.Module):
    """Two linear layers with tanh-GELU between, GPT-2's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """Pre-LayerNorm transformer block."""

    def __init__(self, width: int, n_head: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, n_head)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TorchGPT(nn.Module):
    """GPT-2's architecture; `load` puts our weights in."""

    def __init__(self, vocab_size: int, n_positions: int, n_embd: int, n_layer: int, n_head: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(n_positions, n_embd)
        self.h = nn.ModuleList(Block(n_embd, n_head) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd)

    def load(self, weights: Mapping[str, np.ndarray]) -> TorchGPT:
        """Copy weights with Hugging Face GPT-2 names (linear ones stored (in, out)) into the module."""
        state = {}
        for name, array in weights.items():
            tensor = torch.from_numpy(np.ascontiguousarray(array))
            inner = name.removeprefix("transformer.")
            linear = inner.endswith(".weight") and ".c_" in inner
            state[inner] = tensor.T.contiguous() if linear else tensor
        self.load_state_dict(state)
        return self

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, T) integers -> (B, T, C)."""
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.h:
            x = block(x)
        return self.ln_f(x)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the targets."""
        logits = F.linear(self.hidden(ids), self.wte.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


class TorchTrainer:
    """One training step: forward, backward, clip to global norm 1, fused AdamW with decay on matrices only.

    Parameters
    ----------
    sizes : mapping
        `vocab_size`, `n_positions`, `n_embd`, `n_layer`, `n_head`.
    weights : dict of str to array
        Initial weights, our names.
    compiled : bool
        Through ``torch.compile``.
    lr, betas, weight_decay : as in `torch.optim.AdamW`
    device : str
        ``"cpu"`` or ``"cuda"``.
    precision : {"float32", "tf32", "bfloat16"}
        Of the matrix products; bfloat16 through autocast.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        weights: Mapping[str, np.ndarray],
        compiled: bool = False,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.1,
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        self.device = device
        self.precision = precision
        self.model = TorchGPT(**sizes).load(weights).to(device)
        decayed = [p for p in self.model.parameters() if p.dim() >= 2]
        others = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
        self.loss = torch.compile(self.model) if compiled else self.model

    def step(self, ids: np.ndarray, targets: np.ndarray, lr: float | None = None) -> float:
        """One step on a batch (B, T); the loss before it."""
        if lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
        with self.products():
            with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"):
                loss = self.loss(*self.put(ids, targets))
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    @torch.no_grad()
    def evaluate(self, ids: np.ndarray, targets: np.ndarray) -> float:
        """Mean loss over a batch (B, T)."""
        return self.model(*self.put(ids, targets)).item()

    def put(self, *arrays: np.ndarray) -> list[torch.Tensor]:
        """Arrays of the host on the device."""
        return [torch.from_numpy(array).to(self.device) for array in arrays]

    @contextmanager
    def products(self) -> Iterator[None]:
        """Matrix products of float32 arrays at this trainer's precision, a setting of the whole process."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


class TorchDecoder:
    """Greedy decoding at batch 1 with a preallocated key/value cache: the bare loop, just arithmetic."""

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, np.ndarray]) -> None:
        self.model = TorchGPT(**sizes).load(weights).eval()
        self.n_positions = sizes["n_positions"]

    @torch.inference_mode()
    def generate(self, prompt: list[int], n_new: int) -> list[int]:
        """The prompt in one pass, then one pass a token."""
        model = self.model
        H = model.h[0].attn.n_head
        D = model.wte.weight.shape[1] // H
        caches = [(torch.empty(1, H, self.n_positions, D), torch.empty(1, H, self.n_positions, D)) for _ in model.h]
        ids = list(prompt)
        fresh = torch.tensor([ids])
        start = 0
        while True:
            stop = start + fresh.shape[1]
            x = model.wte(fresh) + model.wpe.weight[start:stop]
            for block, (keys, values) in zip(model.h, caches, strict=True):
                q, k, v = block.attn.heads(block.ln_1(x))
                keys[:, :, start:stop] = k
                values[:, :, start:stop] = v
                mixed = F.scaled_dot_product_attention(
                    q, keys[:, :, :stop], values[:, :, :stop], is_causal=start == 0 and stop > 1
                )
                x = x + block.attn.join(mixed)
                x = x + block.mlp(block.ln_2(x))
            token = F.linear(model.ln_f(x[:, -1]), model.wte.weight).argmax(-1)
            ids.append(int(token))
            if len(ids) - len(prompt) == n_new:
                return ids
            start = stop
            fresh = token[:, None]


def transformers_model(sizes: Mapping[str, int], weights: Mapping[str, np.ndarray]) -> Any:
    """Hugging Face's `GPT2LMHeadModel` with our weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(**sizes, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = GPT2LMHeadModel(config).eval()
    state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or [name for name in missing if name != "lm_head.weight"]:
        raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model


def nanogpt_schedule(step: int, steps: int, lr: float = 1e-3, min_lr: float = 1e-4, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine down to `min_lr`; `step` counts from 0, as nanoGPT's loop does."""
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    share = min(1.0, (step - warmup) / (steps - warmup))
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * share)) * (lr - min_lr)
