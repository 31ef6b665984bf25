"""A recipe to its stages, in the order in which they build on each other.

    passages -> teacher -> data -> curate -> students -> assemble -> calibrate -> evaluate -> pack

Knows nothing of what a stage does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edge_sdk.config import Settings
from edge_sdk.errors import OfflineError

from .bundle_stages import bundle_stages
from .data_stages import data_stages
from .evaluation_stage import evaluation_stage
from .recipe import Recipe
from .stages import Stage
from .student_stages import student_stages
from .teacher_stages import teacher_stages


def stages_of(recipe: Recipe, settings: Settings, *, ledger: Path | None = None) -> list[Stage]:
    """All stages of a recipe. `settings` say where models are, `ledger` is a store to take learned answers from.

    Raises `ConfigError`, `ModelError` for a model that is not on this machine, and `OfflineError` for a teacher
    elsewhere where no socket may be opened.
    """
    if recipe.teacher is not None and recipe.teacher.remote is not None and settings.offline:
        raise OfflineError(
            f"the teacher is at {recipe.teacher.remote}, and EDGE_OFFLINE is set", hint="name a local model"
        )
    stages = teacher_stages(recipe, settings)
    stages += data_stages(recipe, settings, [stage.name for stage in stages], ledger=ledger)
    students = student_stages(recipe, settings)
    names = [stage.name for stage in (*stages, *students)]
    evaluation = evaluation_stage(recipe, settings, names)
    if recipe.bundle is None:
        return [*stages, *students, evaluation]
    assemble, calibrate, pack = bundle_stages(recipe, settings, [*names, evaluation.name])
    if recipe.data.documents:  # whose passages a question is looked for in
        calibrate = replace(calibrate, after=("passages", *calibrate.after))
    return [*stages, *students, assemble, calibrate, evaluation, pack]
