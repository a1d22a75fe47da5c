"""Networks trained without some of the films, to be measured on those: patients in folds, or films taken alike.

Where only films count that both classes were taken alike, one validation split is too small; five folds have them all.
And a network that never saw a kind of acquisition shows what another hospital would see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from chestxray.data.audit import FEWEST, AcquisitionGroup, Audit
from chestxray.data.overlap import LeftOut, group_measure
from chestxray.data.pack import write_pack
from chestxray.data.shortcuts import folds_of
from chestxray.errors import OutOfRange, SourceInvalid
from chestxray.metrics.calibration import calibrated
from chestxray.metrics.scores import ScoreTable
from chestxray.progress import SILENT, Reporter
from chestxray.schema import Film, Label, Split
from chestxray.training.config import Recipe
from chestxray.training.networks import spec_for
from chestxray.training.run import Keeping, train_run
from chestxray.training.run_folder import VALIDATION, ValidationTable

Mask = npt.NDArray[np.bool_]

FEWEST_FOLDS: Final = 2
MOST_FOLDS: Final = 20
PACK: Final = "pack"  # of the fold at hand; the pixels of the one before are taken from it


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Trains a network without some films and scores these, as often as asked; killed, the same calls go on.

    Attributes:
        films: rows of a cleaned manifest.
        found: the audit of the same films; what it left out is neither trained on nor scored.
        runs: the folder of the training runs.
        recipe: how to train.
        device: where.
        workers: processes that open films.
        reporter: told about progress.
    """

    films: Sequence[Film]
    found: Audit
    runs: Path
    recipe: Recipe
    device: str = "auto"
    workers: int | None = None
    reporter: Reporter = SILENT

    def by_patient(self, folds: int) -> ScoreTable:
        """Score every film by a network that saw no film of its patient.

        Args:
            folds: how many networks, 2 to 20.

        Returns: the audited films, in the audit's order.
        Raises: OutOfRange; SourceInvalid, where a class has too few patients; what the stages raise.
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
        """Leave the largest groups of films taken alike out of training, one at a time, and measure them.

        A fifth of the other patients is held out besides, for a group that holds one class alone.

        Args:
            groups: how many, the largest first.
        """
        self._require_patients()
        others = folds_of(self.found.labels, self.found.patient_of) == 0
        measured = []
        for group in self._largest()[:groups]:
            inside = self.found.group_of[group.kind] == group.number
            of_group = np.isin(self.found.patient_of, self.found.patient_of[inside])
            scores = self._held_out(of_group | others, f"without-group-{group.number}")
            measure = group_measure(self.found, group, np.flatnonzero(of_group | others), scores)
            if measure is not None:
                measured.append(LeftOut(group.number, f"{group.kind}: {group.title}", measure))
        return tuple(measured)

    def _largest(self) -> list[AcquisitionGroup]:
        """Groups that leave enough patients of both classes to train on, the largest first."""
        found, labels, patients = [], self.found.labels, self.found.patient_of
        for group in self.found.groups:
            inside = self.found.group_of[group.kind] == group.number
            left = ~np.isin(patients, patients[inside])
            if all(len(np.unique(patients[left & of])) >= 2 * FEWEST for of in (labels, ~labels)):
                found.append(group)
        return sorted(found, key=lambda group: -group.films)

    def _require_patients(self) -> None:
        for label, of_class in ((Label.NORMAL, ~self.found.labels), (Label.PNEUMONIA, self.found.labels)):
            patients = len(np.unique(self.found.patient_of[of_class]))
            if patients < 2 * FEWEST:
                raise SourceInvalid(
                    f"there are {label.value} films of {patients} patients; to train without some of them and to "
                    f"measure these, {2 * FEWEST} are needed"
                )

    def _held_out(self, held_out: Mask, name: str) -> npt.NDArray[np.float64]:
        """Logits of the films held out; NaN for the others."""
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
                keeping=Keeping(replace=True),
                on_progress=move,
                log=self.reporter.log,
            )
        table = ValidationTable.read(self.runs / name / VALIDATION, summary.info.files[VALIDATION])
        logit_of = dict(zip(table.paths, table.logits.tolist(), strict=True))
        return np.array([logit_of.get(path, np.nan) for path in self.found.paths])
