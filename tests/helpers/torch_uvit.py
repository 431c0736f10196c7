"""A U-ViT in PyTorch, written for the tests from the published description (Bao et al., 2023) and
with the official checkpoints' names. It shares no code and no design with ours: plain loops, NCHW,
one convolution for patches, `scaled_dot_product_attention`."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, width, heads, qkv_bias=False):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads, skip, qkv_bias=False):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, qkv_bias)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        if skip:
            self.skip_linear = nn.Linear(2 * width, width)

    def forward(self, x, skip=None):
        if skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=2))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch, channels, width):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class UViT(nn.Module):
    def __init__(
        self,
        size,
        patch,
        channels,
        width,
        depth,
        heads,
        rows=0,
        context=0,
        conv=True,
        time_mlp=False,
        qkv_bias=False,
    ):
        super().__init__()
        self.patch, self.channels, self.width = patch, channels, width
        self.patch_embed = PatchEmbed(patch, channels, width)
        if time_mlp:
            self.time_embed = nn.Sequential(
                nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
            )
        if rows:
            self.label_emb = nn.Embedding(rows, width)
        if context:
            self.context_embed = nn.Linear(context, width)
        self.extras = 1 + bool(rows) + (77 if context else 0)
        patches = (size // patch) ** 2
        self.pos_embed = nn.Parameter(torch.randn(1, self.extras + patches, width) * 0.02)
        self.in_blocks = nn.ModuleList(
            [Block(width, heads, False, qkv_bias) for _ in range(depth // 2)]
        )
        self.mid_block = Block(width, heads, False, qkv_bias)
        self.out_blocks = nn.ModuleList(
            [Block(width, heads, True, qkv_bias) for _ in range(depth // 2)]
        )
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, patch * patch * channels)
        if conv:
            self.final_layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, t, y=None, context=None):
        size = x.shape[-1]
        half = self.width // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half) / half)
        angles = t[:, None] * frequencies
        time = torch.cat([angles.cos(), angles.sin()], dim=1)
        if hasattr(self, "time_embed"):
            time = self.time_embed(time)
        tokens = [time[:, None]]
        if y is not None:
            tokens.insert(0, self.label_emb(y)[:, None])
        if context is not None:
            tokens.append(self.context_embed(context))
        x = torch.cat([*tokens, self.patch_embed(x)], dim=1) + self.pos_embed
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        x = self.decoder_pred(self.norm(x))[:, self.extras :]
        side, p = size // self.patch, self.patch
        x = x.view(-1, side, side, p, p, self.channels).permute(0, 5, 1, 3, 2, 4)
        x = x.reshape(-1, self.channels, size, size)
        return self.final_layer(x) if hasattr(self, "final_layer") else x
