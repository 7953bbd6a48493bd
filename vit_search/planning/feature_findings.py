"""Lint findings about trainings that run frozen parts of the model again in each epoch, though their output could be kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from vit_search.config import features, tuning
from vit_search.config.search_file import SearchSpec
from vit_search.config.training_config import TrainingConfig
from vit_search.config.tuning import Tuning
from vit_search.planning.lint_draws import LintDraw, LintFinding
from vit_search.text import in_words


def frozen_parts_run_again(spec: SearchSpec, valid: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """Augmentation because of which frozen parts run in each epoch. See config/features.py."""
    could = [draw for draw in valid if draw.values["pretrained"] and draw.values["feature_views"] and _enough_is_frozen(draw)]
    why = [features.obstacles(_training_of(draw)) for draw in could]
    again = [names for names in why if names]
    if not again:
        return
    ways = in_words(sorted({str(draw.values["tune"]) for draw, names in zip(could, why, strict=True) if names}))
    of = "" if len(again) == len(could) else f"in {len(again) / len(could):.0%} of the proposals "
    names = in_words(list(Counter(name for each in again for name in each)))
    fact = f"{of}with {ways}, frozen parts run in each epoch, because the images change ({names})"
    mends = []
    if any(name in features.MIXES for each in again for name in each):
        mends.append("search what mixes or erases only when: \"tune == 'full'\"")
    if any(name in features.MOVES for each in again for name in each):
        mends.append("write feature_views: 4 to keep the output for 4 versions of each image")
    yield LintFinding("hint", "training.tune", f"{fact}; {', and '.join(mends)}.")


def _enough_is_frozen(draw: LintDraw) -> bool:
    return Tuning.of(draw.values).frozen_parts(draw.values["depth"]) > 1


def _training_of(draw: LintDraw) -> TrainingConfig:
    """As much of it as decides what is kept."""
    return TrainingConfig(**{name: draw.values[name] for name in (*tuning.FIELDS, *features.FIELDS)})
