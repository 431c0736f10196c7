"""A segment: one entry of the token sequence, as static configuration.

Time, a class label, a caption, a reference picture, the picture to be made: each is a `Segment`.
What a modality means for arrays is in `modalities.py`; how segments stand together, and what may
see what, is in `layout.py`.
"""

import dataclasses

ROLES = ("noisy", "clean", "condition")
ENTRIES = ("token", "adaln", "cross")
POSITIONS = ("learned", "sincos2d", "rotary", "none")
PATCH_EMBEDS = ("linear", "conv_stack")
FINAL_CONVS = ("after", "before", "none")
PATCH_INITS = ("torch", "xavier")
AXES = ("segment", "frame", "row", "column")
OFFSETS = ("none", "diagonal")
MODULATED_AT = ("target", "zero")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment of a layout. Fields that its modality does not use keep their defaults.

    Attributes:
      name: its key in `inputs`, `times` and `outputs`.
      modality: a name in `modalities.MODALITIES`: time, label, text, features, image.
      role: `noisy` (has its own timestep and an output head), `clean` (data at t = 0: references,
        given frames) or `condition`.
      enter: `token` (stands in the sequence), `adaln` (summed into the modulation vector) or
        `cross` (attended to from outside the sequence).
      shape: of one example: image (H, W, C); features (N, F); text (T,); label and time ().
      patch_size: side of an image patch, in pixels.
      patch_embed: `linear` (one matrix), or `conv_stack`: 3×3 convolutions of stride 2, then 1×1
        (Xiao et al. 2021, "Early convolutions help transformers see better").
      patch_init: of the patches' matrix, `torch` (a convolution's default; U-ViT) or `xavier`.
      num_classes: size of a label's vocabulary, without the null class.
      init_std: of the table of a label.
      null: whether a label has a null class (index num_classes), for classifier-free guidance.
      vocab_size: number of token ids of a text; id 0 is padding and the null text.
      encoder_depth: for a text, blocks of a small transformer of its own, trained along, through
        which the ids go before they enter; 0 enters their vectors as they are.
      encoder_heads: of that transformer.
      pooled: a text enters as one vector, the mean over its tokens without padding: what adaLN can
        take.
      of: for a time segment, the key in `times` that it shows to the network.
      time: for a noisy segment, its key in `times`; empty means its own name. Two noisy segments
        with one key share one timestep.
      sinusoid_size: for a time segment, size of the sinusoid; 0 means the model's width.
      mlp_ratio: for a time segment, 0 leaves the sinusoid raw (U-ViT); r > 0 sends it through
        Linear(r·D), SiLU, Linear(D).
      final_conv: for a noisy image, where a 3×3 convolution stands: `after` the linear projection
        to pixels (U-ViT), `before` it (on tokens), or `none`.
      learned_range: for a noisy image, the output has twice the channels; the second half says
        where the variance lies in its range (Nichol & Dhariwal 2021, eq. 15; DiT).
      positions: `learned` (one vector a token), `sincos2d` (fixed, images only), `rotary` (queries
        and keys are turned by row and column, images only) or `none`.
      like: the segment whose embedding and positions this one reuses (references of one kind).
      type: a learned vector is added to all segments of one type; empty means none.
      subject: subject slot, -1 for none; a learned vector a slot is added.
      view: view slot, -1 for none; a learned vector a view is added.
      optional: for a reference (clean, with a subject slot), an example may lack it, and the input
        `refs_present` says so.
      offset: with rotary positions, `diagonal` puts a reference behind the target and all slots
        before its own, along rows and columns alike (UNO, Wu et al. 2025).
      modulated_at: where the backbone modulates by adaLN, `target` is by everything that enters so;
        `zero` is by time 0 alone, as befits data without noise (OminiControl, Tan et al. 2024).
      sees: the segments that these tokens may attend to, besides themselves; empty means all.
    """

    name: str = ""
    modality: str
    role: str = "condition"
    enter: str = "token"
    shape: tuple[int, ...] = ()
    patch_size: int = 1
    patch_embed: str = "linear"
    patch_init: str = "torch"
    num_classes: int = 0
    init_std: float = 1.0
    null: bool = True
    vocab_size: int = 0
    encoder_depth: int = 0
    encoder_heads: int = 4
    pooled: bool = False
    of: str = ""
    time: str = ""
    sinusoid_size: int = 0
    mlp_ratio: float = 0.0
    final_conv: str = "after"
    learned_range: bool = False
    positions: str = "learned"
    like: str = ""
    type: str = ""
    subject: int = -1
    view: int = -1
    optional: bool = False
    offset: str = "none"
    modulated_at: str = "target"
    sees: tuple[str, ...] = ()

    @property
    def time_key(self) -> str:
        """The key in `times` of this noisy segment."""
        return self.time or self.name

    @property
    def is_reference(self) -> bool:
        """Whether it shows a subject: clean tokens in a subject slot."""
        return self.role == "clean" and self.enter == "token" and self.subject >= 0

    def may_see(self, other: "Segment") -> bool:
        """Whether its tokens may attend to those of `other`."""
        return not self.sees or other.name in self.sees or other.name == self.name
