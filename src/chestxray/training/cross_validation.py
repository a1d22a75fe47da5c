"""Networks trained without some films and measured on those: patients in folds, or groups of similar acquisition.

Where only similarly acquired films of both classes count, one validation split is too small; five folds cover all
films. And a network that never saw a kind of acquisition shows how a model performs at another hospital.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from chestxray.arrays import BoolArray, Float64Array
from chestxray.data.audit import MIN_PATIENTS, AcquisitionGroup, Audit, LeftOut, group_measure
from chestxray.data.pack import write_pack
from chestxray.data.shortcuts import folds_of
from chestxray.errors import OutOfRange, SourceInvalid
from chestxray.metrics.calibration import calibrated
from chestxray.metrics.scores import ScoreTable
from chestxray.progress import SILENT, Reporter
from chestxray.schema import Film, Label, Split
from chestxray.training.config import Recipe
from chestxray.training.networks import spec_for
from chestxray.training.run import RunOptions, train_run
from chestxray.training.run_folder import VALIDATION, ValidationTable

FEWEST_FOLDS: Final = 2
MOST_FOLDS: Final = 20
PACK: Final = "pack"  # the pack of the current fold; it reuses the pixels of the previous fold


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Trains a network without some films and scores these, as often as asked; after a kill the same calls resume.

    Attributes:
        films: rows of a cleaned manifest.
        found: the audit of the same films; films that it left out are neither trained on nor scored.
        runs: the folder of the training runs.
        recipe: how to train.
        device: where to train.
        workers: number of processes that open films.
        reporter: shows the progress.
    """

    films: Sequence[Film]
    found: Audit
    runs: Path
    recipe: Recipe
    device: str = "auto"
    workers: int | None = None
    reporter: Reporter = SILENT

    def by_patient(self, folds: int) -> ScoreTable:
        """Score every film by a network that was trained on no film of its patient.

        Args:
            folds: number of networks, 2 to 20.

        Returns: the audited films, in the audit's order.
        Raises: OutOfRange; SourceInvalid, if a class has too few patients; and the errors of the stages.
        """
        if not FEWEST_FOLDS <= folds <= MOST_FOLDS:
            raise OutOfRange(f"{folds} folds: give {FEWEST_FOLDS} to {MOST_FOLDS}")
        self._require_patients()
        fold = folds_of(self.found.labels, self.found.patient_of, folds)
        scores = np.empty(len(fold))
        for number in range(folds):
            held_out = fold == number
            scores[held_out] = self._held_out(held_out, f"fold-{number + 1}-of-{folds}")[held_out]
        named = {film.path: film.patient_id for film in self.films}
        return ScoreTable(
            paths=self.found.paths,
            labels=self.found.labels.astype(np.int8),
            probabilities=calibrated(scores),
            patients=tuple(named[path] for path in self.found.paths),
        )

    def by_group(self, groups: int) -> tuple[LeftOut, ...]:
        """Train without each of the largest groups of similar acquisition, one at a time, and measure the group.

        A fifth of the other patients is held out as well, because a group may hold one class only.

        Args:
            groups: number of groups, the largest first.
        """
        self._require_patients()
        others = folds_of(self.found.labels, self.found.patient_of) == 0
        measured = []
        for group in self._largest()[:groups]:
            held_out = self._patients_of(group) | others
            scores = self._held_out(held_out, f"without-group-{group.number}")
            measure = group_measure(self.found, group, np.flatnonzero(held_out), scores)
            if measure is not None:
                measured.append(LeftOut(group.number, f"{group.kind}: {group.title}", measure))
        return tuple(measured)

    def _largest(self) -> list[AcquisitionGroup]:
        """Return the groups that leave enough patients of both classes to train on, the largest first."""
        found, labels, patients = [], self.found.labels, self.found.patient_of
        for group in self.found.groups:
            left = ~self._patients_of(group)
            if all(len(np.unique(patients[left & of])) >= 2 * MIN_PATIENTS for of in (labels, ~labels)):
                found.append(group)
        return sorted(found, key=lambda group: -group.films)

    def _patients_of(self, group: AcquisitionGroup) -> BoolArray:
        """Return all films of the patients in a group: none of them may be trained on without it."""
        inside = self.found.group_of[group.kind] == group.number
        return np.isin(self.found.patient_of, self.found.patient_of[inside])

    def _require_patients(self) -> None:
        for label, of_class in ((Label.NORMAL, ~self.found.labels), (Label.PNEUMONIA, self.found.labels)):
            patients = len(np.unique(self.found.patient_of[of_class]))
            if patients < 2 * MIN_PATIENTS:
                raise SourceInvalid(
                    f"there are {label.value} films of {patients} patients; to train without some of them and to "
                    f"measure these, {2 * MIN_PATIENTS} are needed"
                )

    def _held_out(self, held_out: BoolArray, name: str) -> Float64Array:
        """Train without some films and return their logits; NaN for the other films."""
        split_of = {
            path: (Split.VAL if out else Split.TRAIN).value
            for path, out in zip(self.found.paths, held_out.tolist(), strict=True)
        }
        films = [dataclasses.replace(film, split=split_of[film.path]) for film in self.films if film.path in split_of]
        with self.reporter.progress(f"Packing {name}") as move:
            write_pack(films, self.runs / PACK, size=spec_for(self.recipe).size, on_progress=move, workers=self.workers)
        with self.reporter.progress(f"Training {name}") as move:
            summary = train_run(
                self.runs / PACK,
                self.runs / name,
                self.recipe,
                device=self.device,
                options=RunOptions(replace=True),
                on_progress=move,
                log=self.reporter.log,
            )
        table = ValidationTable.read(self.runs / name / VALIDATION, summary.info.files[VALIDATION])
        logit_of = dict(zip(table.paths, table.logits.tolist(), strict=True))
        return np.array([logit_of.get(path, np.nan) for path in self.found.paths])
