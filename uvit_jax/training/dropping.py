"""Conditions in training: some are dropped, and references get random slots.

The data bring an example's subjects in any order, subject s as `ref_{s}_{v}` and `@s` in its
caption. Slots are assigned in the train step, because references and captions have to change
together, and because a slot beyond those of the data (a third subject) is trained nowhere else.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax import described_names
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.errors import UvitError
from uvit_jax.tokens.layout import PRESENT, SUBJECT_SLOTS, VIEW_SLOTS, Layout

if TYPE_CHECKING:
    from uvit_jax.training.run_config import TrainConfig

Conditions = dict[str, jax.Array]
SlotWords = Mapping[str, tuple[int, ...]]
"""By text segment, the token ids of `@1`, `@2`, … (see `slot_words`)."""


def drop_conditions(
    key: jax.Array,
    layout: Layout,
    conditions: Conditions,
    config: TrainConfig,
    features_null: np.ndarray | None,
    words: SlotWords,
) -> Conditions:
    """A batch's conditions with some replaced by their null values, and slots permuted.

    Args:
      config: its `drop` of conditions, `drop_references`, `drop_jointly`, `drop_each_reference` and
        `permute_slots`.
      features_null: see `Layout.null`.
    """
    conditions = dict(conditions)
    if not conditions:
        return conditions
    B = next(iter(conditions.values())).shape[0]

    def drop(name: str, dropped_B: jax.Array) -> None:
        value = conditions[name]
        dropped = dropped_B.reshape(-1, *[1] * (value.ndim - 1))
        conditions[name] = jnp.where(dropped, layout.null(name, 1, features_null), value)

    for i, (name, share) in enumerate(sorted(config.drop.items())):
        if layout.by_name[name].role == "noisy":  # see objective.corrupt
            continue
        drop(name, jax.random.bernoulli(jax.random.fold_in(key, i), share, (B,)))
    if config.drop_jointly:
        joint_key = jax.random.fold_in(key, zlib.crc32(b"drop_jointly"))
        lost_B = jax.random.bernoulli(joint_key, config.drop_jointly, (B,))
        for segment in layout.conditions:
            if segment.role == "condition":
                drop(segment.name, lost_B)
        if PRESENT in conditions:
            conditions[PRESENT] = conditions[PRESENT].astype(bool) & ~lost_B[:, None, None]
    key = jax.random.fold_in(key, len(config.drop))
    if not layout.references:
        return rename(key, layout, conditions, words) if config.permute_slots else conditions
    drop_key, slot_key = jax.random.split(key)
    if PRESENT in conditions:
        conditions[PRESENT] = drop_references(
            drop_key,
            conditions[PRESENT],
            share=config.drop_references,
            share_each=config.drop_each_reference,
        )
    return permute(slot_key, layout, conditions, words) if config.permute_slots else conditions


def drop_references(
    key: jax.Array, present_BSV: jax.Array, *, share: float, share_each: float
) -> jax.Array:
    """The references that remain, bool (B, S, V): an example loses all of them with probability
    `share`, and each of them independently with `share_each`."""
    all_key, each_key = jax.random.split(key)
    lost_B11 = jax.random.bernoulli(all_key, share, (present_BSV.shape[0], 1, 1))
    lost_BSV = jax.random.bernoulli(each_key, share_each, present_BSV.shape)
    return present_BSV.astype(bool) & ~lost_B11 & ~lost_BSV


def permute(key: jax.Array, layout: Layout, conditions: Conditions, words: SlotWords) -> Conditions:
    """The conditions with each example's subjects and views in random slots of the model.

    Subject s gets slot π(s), with π a permutation of all `max_subjects` slots, and the word `@s` of
    its caption becomes `@π(s)`, so that the two still correspond. Where the conditions have slots,
    those say which subject and view a reference is of, instead of its segment's.
    """
    subject_key, view_key = jax.random.split(key)
    B = conditions[layout.references[0].name].shape[0]
    slots_BS = permutations(subject_key, B, layout.max_subjects)
    S, V = layout.num_subjects, layout.num_views
    subjects_BS = jnp.broadcast_to(conditions.get(SUBJECT_SLOTS, jnp.arange(S)), (B, S))
    changed = {SUBJECT_SLOTS: jnp.take_along_axis(slots_BS, subjects_BS, axis=1)}
    if layout.max_views:
        views_BSV = jnp.broadcast_to(conditions.get(VIEW_SLOTS, jnp.arange(V)), (B, S, V))
        orders_BM = permutations(view_key, B, layout.max_views)
        slots_BN = jnp.take_along_axis(orders_BM, views_BSV.reshape(B, S * V), axis=1)
        changed[VIEW_SLOTS] = slots_BN.reshape(B, S, V)
    return renamed(slots_BS, conditions, words) | changed


def rename(key: jax.Array, layout: Layout, conditions: Conditions, words: SlotWords) -> Conditions:
    """The conditions of a model without references, with the captions' names permuted as `permute`
    does, so that every name is trained and any can be given to a new subject."""
    if not words:
        return conditions
    B = next(iter(conditions.values())).shape[0]
    return renamed(permutations(key, B, layout.max_subjects), conditions, words)


def permutations(key: jax.Array, rows: int, count: int) -> jax.Array:
    """A permutation of 0 … count - 1 in each row, int32 (rows, count)."""
    return jnp.argsort(jax.random.uniform(key, (rows, count)), axis=1).astype(jnp.int32)


def renamed(slots_BS: jax.Array, conditions: Conditions, words: SlotWords) -> Conditions:
    """The conditions with `@s` replaced by `@slots[s]` in every caption."""
    changed = {}
    for name, ids in words.items():
        ids_S, text_BT = jnp.asarray(ids), conditions[name]
        renamed_BT = text_BT
        for s, word in enumerate(ids):
            renamed_BT = jnp.where(text_BT == word, ids_S[slots_BS[:, s, None]], renamed_BT)
        # Described names keep their description.
        old_BT = (text_BT - described_names.FIRST) % described_names.NAMES
        new_BT = jnp.take_along_axis(slots_BS, jnp.minimum(old_BT, len(ids) - 1), axis=1)
        described_BT = text_BT >= described_names.FIRST
        renamed_BT = jnp.where(described_BT, text_BT - old_BT + new_BT, renamed_BT)
        changed[name] = renamed_BT.astype(text_BT.dtype)
    return conditions | changed


def slot_words(layout: Layout, tokenizer: Tokenizer | None) -> dict[str, tuple[int, ...]]:
    """By text segment, the ids of `@1`, `@2`, … up to the model's `max_subjects`.

    Empty if there are no subject slots, or captions never name a subject.

    Raises:
      UvitError: if a tokenizer has some of the words but not all, or captions are a frozen
        encoder's features, in which no name can be replaced.
    """
    if not layout.max_subjects:
        return {}
    for segment in layout.conditions:
        if segment.kind == "features" and segment.role == "condition":
            raise UvitError(
                f"segment {segment.name!r} has features of captions, in which subjects cannot be "
                "renamed when slots are permuted; set config.train.permute_slots=False"
            )
    words = [f"@{s + 1}" for s in range(layout.max_subjects)]
    texts = [s.name for s in layout.inputs if s.kind == "text"]
    if tokenizer is None or not texts:
        return {}
    known = {
        word: tokenizer.vocab_size - len(tokenizer.words) + i
        for i, word in enumerate(tokenizer.words)
    }
    missing = [word for word in words if word not in known]
    if len(missing) == len(words):
        return {}
    if missing:
        raise UvitError(
            f"captions name subjects, but the tokenizer lacks the word {missing[0]!r} of the "
            f"model's max_subjects={layout.max_subjects}; add it, or lower max_subjects"
        )
    return dict.fromkeys(texts, tuple(known[word] for word in words))
