"""From labelled films, or a table of scores, to a report; and how many films a bundle refuses.

bundle + films -> scores -> assessment -> report       scores.csv -> assessment -> report
bundle + films -> kinds of refusal, each with its count and its 95% interval; no labels are needed
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from chestxray.data.clean import clean
from chestxray.data.dedup import TRAINING_FILMS, TrainingFilms, refuse_training_films
from chestxray.data.labels import about_patients
from chestxray.data.pack import labels_of
from chestxray.data.sources import name_of, read_film
from chestxray.data.split import read_allowance, refuse_leakage
from chestxray.errors import BundleInvalid, SourceInvalid, UsageError
from chestxray.evaluation import model_card
from chestxray.evaluation.assessment import (
    HALF,
    Assessment,
    CohortStep,
    GateCurve,
    Provenance,
    RefusedFilm,
    assess,
    counting_refusals,
)
from chestxray.evaluation.report import write_report
from chestxray.evaluation.robustness import predict_under_stress
from chestxray.files import sha256_of_file
from chestxray.inference.batch import ScoredFilm, score_films, write_scored_films
from chestxray.inference.bundle import Bundle, folder_of, shipped_bundles
from chestxray.inference.heatmap import over_film
from chestxray.inference.ood import REFUSED_ABOVE, Gatekeeper
from chestxray.inference.predictor import Predictor
from chestxray.metrics.calibration import calibrated
from chestxray.metrics.comparison import ORIGINAL, Published, Rival
from chestxray.metrics.decision import ConformalRule, conformal_rule
from chestxray.metrics.intervals import wilson_interval
from chestxray.metrics.scores import KEY_COLUMNS, ScoreFile, ScoreTable, read_score_file
from chestxray.progress import ProgressCallback, Reporter, no_progress
from chestxray.schema import BundleInfo, Film, OperatingPoint, Split, Verdict

AGAINST_ORIGINAL: Final = "original"
CONFORMAL_ERROR: Final = 0.1  # of each class, if no other is asked for
_PICTURE_SIDE: Final = 480  # pixels of a film in a report: 24 films stay below a megabyte
_PICTURE_QUALITY: Final = 80

_LEAKAGE_STATEMENT: Final = "No patient and no identical film is in two splits. This was checked before the evaluation."
_LEAKAGE_NONE: Final = (
    "None of these films, and no copy of one at another size, is among those that the model learnt from."
)
_THRESHOLDS_UNKNOWN: Final = "Whether its thresholds were chosen on some of them is not known: a bundle does not say."
_LEAKAGE_UNKNOWN: Final = "The source names no splits, so whether the model was trained on these films was not checked."


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """What to evaluate on, and what to add to the figures.

    Attributes:
        split: "train", "val" or "test"; by default "test" if the source has one, else every film.
        against: another model: a bundle, a table of scores, or "original" for the published counts.
        threshold: from which a table of scores means pneumonia; None takes one half.
        conformal: the error rate of the conformal sets; None takes CONFORMAL_ERROR if they can be fitted.
        command: what the user typed, for the report.
        workers: number of processes that read films.
        stress: evaluate the films under every shift and every exchange as well.
    """

    split: str | None = None
    against: str | None = None
    threshold: float | None = None
    conformal: float | None = None
    command: str = ""
    workers: int | None = None
    stress: bool = False


# --------------------------------------------------------------------------- a bundle on films


def evaluate_bundle(
    bundle: Path, films: Sequence[Film], source: Path, out: Path, reporter: Reporter, settings: EvaluationSettings
) -> Assessment:
    """Evaluate a bundle on labelled films and write the report.

    Args:
        bundle: the folder of a bundle.
        films: films; those that are not cleaned yet are cleaned.
        source: the source of the films, for the report.
        out: the report's folder, written completely or not at all.

    Raises:
        Leakage: the films' splits share a patient or a film, or the bundle was trained on some of those to evaluate.
        SourceInvalid: no labelled film is left to evaluate on, or none that the other model evaluated as well.
        UsageError: the settings contradict each other.
    """
    predictor = Predictor.load(bundle)
    against = _compared_model(settings)
    rule = _conformal_rule(bundle, predictor.info, settings.conformal)
    allowed = read_allowance(source)
    examined, split = examined_films(films, allowed, settings, reporter)
    usable = [film for film in examined if film.is_accepted and film.label]
    chosen = [film for film in usable if split is None or film.split == split]
    learnt = training_films_of(Bundle.open(bundle))
    if not allowed:
        refuse_training_films(learnt, chosen, predictor.info.name)
    with reporter.progress("Evaluating") as move:
        scored = tuple(score_films(predictor, chosen, on_progress=move, workers=settings.workers))
    table = score_table(scored, source)
    rival = _rival(against, chosen, source, split, reporter, settings)
    info = predictor.info
    assessment = assess(table, info.operating_points, info.default_operating_point, rival=rival, conformal=rule)
    if settings.stress:
        evaluated = [row.film for row in scored if row.prediction.gate.accepted]
        with reporter.progress("Evaluating under shifts and exchanges") as move:
            stress, relied = predict_under_stress(predictor, evaluated, move, settings.workers)
        assessment = dataclasses.replace(assessment, stress=stress, reliance=relied)
    assessment = counting_refusals(assessment, refusals(examined, scored, split))
    if split and (nowhere := [film.path for film in refused_by_cleaning(examined) if not film.split]):
        reporter.log(f"refused by cleaning and on no split, so counted nowhere: {len(nowhere):,}, such as {nowhere[0]}")
    provenance = dataclasses.replace(
        _provenance(source, settings),
        title=f"{info.name} on {source.name}",
        bundle=info.name,
        model_sha256=info.model_sha256,
        split=split or "all films",
        evaluated_on=names_that_overlap(source, split),
        cohort=cohort(examined, usable, scored),
        leakage=_leakage(split, allowed, info.leakage_allowed, is_known=bool(learnt.sha256)),
        gate=_gate(bundle),
    )
    by_path = {film.path: film for film in chosen}
    errors = [*assessment.missed, *assessment.false_alarms]
    pictures = {error.path: explained(predictor, by_path[error.path]) for error in errors}
    write_report(
        assessment, out, provenance, pictures, beside=lambda made: write_scored_films(scored, made / "scores.csv")
    )
    return assessment


def training_films_of(bundle: Bundle) -> TrainingFilms:
    """Return the films on which a bundle was trained; none if the bundle does not state them. Raises: BundleInvalid."""
    if TRAINING_FILMS not in bundle.info.files:
        return TrainingFilms((), ())
    try:
        return TrainingFilms.from_json(bundle.read(TRAINING_FILMS).decode())
    except (ValueError, KeyError, TypeError) as error:
        raise BundleInvalid(f"{bundle.folder / TRAINING_FILMS}: not a list of training films ({error!r})") from error


_OF_THE_SET: Final = frozenset({Verdict.DUPLICATE, Verdict.NEAR_DUPLICATE, Verdict.CONFLICTING})


def refusals(examined: Sequence[Film], scored: Sequence[ScoredFilm], split: str | None) -> tuple[RefusedFilm, ...]:
    """Return labelled films of the split without a prediction, refused by cleaning first, then by the gate.

    Args:
        examined: films with their verdicts; those of other splits, or of none, are left out where a split is given.
        scored: the films that were evaluated.
        split: the split that was evaluated; None if all films were.
    """
    unclean = [
        RefusedFilm(film.path, film.label, film.reason or film.verdict)
        for film in refused_by_cleaning(examined)
        if split in {None, film.split}
    ]
    gated = [
        RefusedFilm(row.film.path, row.film.label, row.prediction.gate.reason)
        for row in scored
        if row.prediction.probability is None
    ]
    return (*unclean, *gated)


def refused_by_cleaning(examined: Sequence[Film]) -> list[Film]:
    """Return labelled films that cleaning rejected, except copies and films with two labels: no model refused them."""
    return [film for film in examined if film.label and not film.is_accepted and film.verdict not in _OF_THE_SET]


def name_of_films(source: Path, split: str | None) -> str:
    """Return the name of films on which thresholds are chosen."""
    return f"{source.name} ({split})" if split else source.name


def names_that_overlap(source: Path, split: str | None) -> tuple[str, ...]:
    """Return names of overlapping sets of films, so that a report can tell on which films thresholds were chosen."""
    splits = (split,) if split else tuple(Split)
    return (name_of_films(source, None), *(name_of_films(source, one) for one in splits))


def explained(predictor: Predictor, film: Film) -> bytes:
    """Return a film with its heat map over it, as a small JPEG for the report."""
    data = read_film(film)
    answer = predictor.predict(data, name_of(film), heatmap=True)
    blended = over_film(data, name_of(film), base64.b64decode(answer.heatmap or ""))
    out = io.BytesIO()
    with Image.open(io.BytesIO(blended), formats=["PNG"]) as picture:
        picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
        picture.convert("RGB").save(out, "JPEG", quality=_PICTURE_QUALITY)
    return out.getvalue()


def score_table(scored: Sequence[ScoredFilm], source: Path) -> ScoreTable:
    """Return the evaluated films as a table of labels and probabilities. Raises: SourceInvalid, if there is none."""
    evaluated = [row for row in scored if row.prediction.probability is not None]
    if not evaluated:
        why = f" ({scored[0].film.path}: {scored[0].prediction.gate.reason})" if scored else ""
        raise SourceInvalid(f"{source}: no accepted, labelled film is left to evaluate on{why}")
    films = [row.film for row in evaluated]
    return ScoreTable(
        paths=tuple(film.path for film in films),
        labels=labels_of(films),
        probabilities=np.array([row.prediction.probability for row in evaluated], dtype=np.float64),
        patients=tuple(film.patient_id for film in films),
        columns=_subgroups(films),
    )


def _subgroups(films: Sequence[Film]) -> dict[str, tuple[str, ...]]:
    """Return the cause, and further columns of the source whose names have no other meaning in a score table."""
    rows = [{"cause": film.cause, **dict(film.extra)} for film in films]
    names = dict.fromkeys(name for row in rows for name, value in row.items() if value and name not in KEY_COLUMNS)
    return {name: tuple(row.get(name, "") for row in rows) for name in names}


def cohort(examined: Sequence[Film], usable: Sequence[Film], scored: Sequence[ScoredFilm]) -> tuple[CohortStep, ...]:
    """Return the steps from the films collected to the films scored, with the reason of each exclusion."""
    refused = Counter(film.verdict for film in examined if not film.is_accepted)
    unlabelled = sum(film.is_accepted for film in examined) - len(usable)
    gated = sum(not row.prediction.gate.accepted for row in scored)
    removed = [
        (verdict.replace("_", " "), count, "found by cleaning") for verdict, count in sorted(refused.items())
    ] + [
        ("without a label", unlabelled, "nothing to compare with"),
        ("on other splits", len(usable) - len(scored), "kept for training and validation"),
        ("refused", gated, "by the gate, when evaluated"),
    ]
    return _flow("films in the source", len(examined), removed, len(scored) - gated)


def _gate(bundle: Path) -> GateCurve | None:
    """Return what the report shows of the bundle's gate. Raises: BundleInvalid."""
    gatekeeper = Gatekeeper.of(Bundle.open(bundle))
    detector = gatekeeper.detector
    if detector is None:
        return None
    return GateCurve(
        words=gatekeeper.in_words(),
        limits=detector.curve_limits,
        limit=REFUSED_ABOVE,
        refused=detector.curve,
        counts={kind: share.of for kind, share in detector.refused.items()},
        refused_here={kind: share.refused for kind, share in detector.refused.items()},
    )


def _leakage(split: str | None, *allowed: str, is_known: bool) -> str:
    """Describe how patients and films were kept in one split; ``allowed`` holds reasons for allowed leakage.

    ``is_known``: whether the bundle states the films on which it was trained, so that they were compared.
    """
    if reasons := sorted({reason for reason in allowed if reason}):
        return f"The splits share patients or films. This was allowed, with the reason: {'; '.join(reasons)}"
    if is_known:
        return f"{_LEAKAGE_NONE} {_LEAKAGE_STATEMENT if split else _THRESHOLDS_UNKNOWN}"
    return _LEAKAGE_STATEMENT if split else _LEAKAGE_UNKNOWN


def _flow(first: str, count: int, removed: Sequence[tuple[str, int, str]], scored: int) -> tuple[CohortStep, ...]:
    steps = [CohortStep(step, films, reason, removed=True) for step, films, reason in removed if films]
    return (CohortStep(first, count), *steps, CohortStep("scored", scored))


def examined_films(
    films: Sequence[Film], allowed: str, settings: EvaluationSettings, reporter: Reporter
) -> tuple[Sequence[Film], str | None]:
    """Return the films with their verdicts, and the split to evaluate on."""
    refuse_leakage(films, allowed=allowed)
    split = settings.split
    if split is None and any(film.split == Split.TEST for film in films):
        split = Split.TEST.value
    if not all(film.verdict for film in films):
        with reporter.progress("Cleaning") as move:  # logs by itself where patients are unknown
            return clean(films, move, settings.workers, log=reporter.log), split
    for line in about_patients([film for film in films if film.label and settings.split in {None, film.split}]):
        reporter.log(line)
    return films, split


def _provenance(source: Path, settings: EvaluationSettings) -> Provenance:
    return Provenance(
        title="",
        bundle="",
        model_sha256="",
        split="",
        source=str(source),
        source_sha256=sha256_of_file(source) if source.is_file() else "",
        command=settings.command,
        versions={name: metadata.version(name) for name in ("chestxray", "numpy", "onnxruntime", "pillow")}
        | {"python": platform.python_version()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


# --------------------------------------------------------------------------- a table of scores


def evaluate_table(scores: Path, out: Path, settings: EvaluationSettings) -> Assessment:
    """Evaluate any model by its table of scores and write the report.

    Args:
        scores: ``path,label,score`` and, if present, ``patient_id``, ``split``, ``reason`` and further columns.
            Rows without a label or a score are counted in the report, not evaluated.
        out: the report's folder, written completely or not at all.

    Raises:
        Leakage: the file names splits, and they share a patient or a film.
        SourceInvalid: the file cannot be read, or nothing in it can be evaluated.
        UsageError: the settings contradict each other.
    """
    against = _compared_model(settings)
    if isinstance(against, Bundle):
        raise UsageError(
            f"{settings.against}: a bundle evaluates films, and --scores gives none. Give BUNDLE and SOURCE, or score "
            'the films with "chestxray batch" and compare the two tables'
        )
    file = read_score_file(scores, settings.split)
    refuse_leakage(
        [Film(path, split=split, patient_id=patient, sha256=sha) for path, split, patient, sha in file.splits]
    )
    rival = _rival(against, (), scores, file.split or None, None, settings)
    assessment = assess(file.table, [_given(settings.threshold)], rival=rival)
    provenance = dataclasses.replace(
        _provenance(scores, settings),
        title=f"Scores of {scores.name}",
        bundle="not known: evaluated by its scores alone",
        split=file.split or "all films",
        cohort=_cohort_of_scores(file),
        leakage=_LEAKAGE_STATEMENT if len({row[1] for row in file.splits}) > 1 else _LEAKAGE_UNKNOWN,
    )
    write_report(assessment, out, provenance)
    return assessment


def _given(threshold: float | None) -> OperatingPoint:
    return HALF if threshold is None else dataclasses.replace(HALF, name="given", threshold=threshold)


def _cohort_of_scores(file: ScoreFile) -> tuple[CohortStep, ...]:
    reasons = [reason for reason, _ in Counter(file.reasons).most_common(3) if reason]
    removed = [
        ("without a label", file.without_label, "nothing to compare with"),
        ("on other splits", file.on_other_splits, "kept for training and validation"),
        ("not scored", file.without_score, "; ".join(reasons) or "the file has no score for them, and no reason"),
    ]
    return _flow("rows in the file", file.rows, removed, len(file.table))


# --------------------------------------------------------------------------- another model


def _compared_model(settings: EvaluationSettings) -> Bundle | Path | Published | None:
    """Return the model to compare with, after a check that it exists. Raises: UsageError, BundleInvalid."""
    if settings.against is None:
        return None
    if settings.against == AGAINST_ORIGINAL:
        return ORIGINAL
    path = Path(settings.against)
    if path.is_file():
        return path
    if path.is_dir() or settings.against in shipped_bundles():
        return Bundle.open(folder_of(settings.against))
    raise UsageError(f"{path}: does not exist. Compare with a bundle, a table of scores, or {AGAINST_ORIGINAL!r}")


def _rival(
    other: Bundle | Path | Published | None,
    films: Sequence[Film],
    source: Path,
    split: str | None,
    reporter: Reporter | None,
    settings: EvaluationSettings,
) -> Rival | Published | None:
    if other is None or isinstance(other, Published):
        return other
    if isinstance(other, Bundle) and reporter is not None:
        predictor = Predictor(other)
        with reporter.progress("Evaluating with the other") as move:
            scored = tuple(score_films(predictor, films, on_progress=move, workers=settings.workers))
        point = predictor.info.operating_point()
        return Rival(
            f"{predictor.info.name} ({other.folder})", score_table(scored, source), point.threshold, point.name
        )
    path = other.folder if isinstance(other, Bundle) else other
    point = _given(settings.threshold)
    table = read_score_file(path, split, split_is_optional=True).table
    return Rival(str(path), table, point.threshold, point.name)


# --------------------------------------------------------------------------- conformal sets


def _conformal_rule(bundle: Path, info: BundleInfo, error: float | None) -> ConformalRule | None:
    """Fit the rule on the logits in the bundle. Raises: UsageError, if it was asked for and the bundle has none."""
    metrics = metrics_of(bundle, info)
    stored = metrics.get(model_card.LOGITS)
    if not stored:
        if error is None:
            return None
        raise UsageError(f"{bundle}: holds no validation scores, so no conformal sets. Export the run again")
    logits = np.concatenate([stored["normal"], stored["pneumonia"]])
    labels = np.repeat([0, 1], [len(stored["normal"]), len(stored["pneumonia"])])
    error = CONFORMAL_ERROR if error is None else error
    return conformal_rule(labels, calibrated(logits, info.temperature, info.bias), error, metrics["split"])


def metrics_of(bundle: Path, info: BundleInfo) -> dict[str, Any]:
    """Return ``metrics.json`` of a bundle; empty if it has none. Raises: BundleInvalid, if the file is changed."""
    path = bundle / model_card.METRICS_JSON
    if model_card.METRICS_JSON not in info.files:
        return {}
    if sha256_of_file(path) != info.files[model_card.METRICS_JSON]:
        raise BundleInvalid(f"{path}: was changed or damaged. Copy the whole folder again")
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return metrics


UNREADABLE_FILM: Final = "cannot be read as a film"

# The beginning of a reason, or a part of it, and the kind that it belongs to; the first match decides.
_KINDS: Final = (
    (r"it looks like a chest film (turned|that is upside down)", "a film that was turned"),
    (r"it looks like the negative|its grey levels are those of a negative", "a negative"),
    (r"it looks like (.+?), which this model was not trained on", r"\1"),
    (r"it does not look like a frontal chest film", "unlike the training films"),
    (r"its file gives an age", "another age, by its file"),
    (r"its file states no age", "no age in its file"),
    (r"its file names the modality", "another modality, by its file"),
    (r"its file names the body part", "another body part, by its file"),
    (r"its file names |its rows and columns run", "another view, by its file"),
    (r"its grey levels are almost uniform", "almost uniform"),
    (r"its grey levels", "grey levels cut off or too few"),
    (r"[\d.]+% of its pixels are coloured", "coloured"),
    (r"\d+ x \d+ pixels; each side", "too small"),
    (r"\d+ x \d+ pixels; a chest film", "too long and narrow"),
)


def kind_of_refusal(reason: str) -> str:
    """Return the kind of refusal that a reason belongs to; a reason of no gate rule means "unreadable"."""
    for pattern, kind in _KINDS:
        if found := re.match(pattern, reason):
            return found.expand(kind)
    return UNREADABLE_FILM


@dataclass(frozen=True, slots=True)
class RefusedKind:
    """One kind of refusal.

    Attributes:
        kind: in words.
        films: number of films refused for this reason.
        share: proportion of all films, 0 to 1, with the ends of its 95% interval (Wilson).
        example: the first film, and the whole reason.
    """

    kind: str
    films: int
    share: float
    low: float
    high: float
    example: str
    reason: str


@dataclass(frozen=True, slots=True)
class RefusalCheck:
    """The films of a source that a bundle refuses.

    Attributes:
        model: the bundle's name.
        films: number of films checked.
        refused: all films without a prediction, as one kind; its example is empty if there is none.
        kinds: the most frequent first.
        by_label: the same as ``refused`` for each label in the source.
    """

    model: str
    films: int
    refused: RefusedKind
    kinds: tuple[RefusedKind, ...]
    by_label: tuple[RefusedKind, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the check as plain data."""
        return dataclasses.asdict(self)


def check_refusals(
    predictor: Predictor,
    films: Sequence[Film],
    *,
    on_progress: ProgressCallback = no_progress,
    workers: int | None = None,
) -> RefusalCheck:
    """Classify films and count what is refused.

    Args:
        predictor: the loaded bundle.
        films: any, labelled or not; at least one.
        on_progress: called with (done, total).
        workers: number of processes that read films; by default one for each core.

    Raises: SourceInvalid, if there is no film; BundleInvalid.
    """
    if not films:
        raise SourceInvalid("there is no film to be refused or answered")
    return count_refusals(predictor.info.name, score_films(predictor, films, on_progress=on_progress, workers=workers))


def count_refusals(model: str, scored: Iterable[ScoredFilm]) -> RefusalCheck:
    """Count refusals by kind and by label."""
    films, labels, counts, of_label = 0, Counter[str](), Counter[str](), Counter[str]()
    examples: dict[str, tuple[str, str]] = {}
    for row in scored:
        films += 1
        labels[row.film.label] += 1
        gate = row.prediction.gate
        if gate.accepted:
            continue
        kind = kind_of_refusal(gate.reason)
        counts[kind] += 1
        of_label[row.film.label] += 1
        examples.setdefault(kind, (row.film.path, gate.reason))

    def row_of(kind: str, refused: int, of: int, example: tuple[str, str] = ("", "")) -> RefusedKind:
        interval = wilson_interval(refused, of)
        return RefusedKind(kind, refused, refused / of, interval.low, interval.high, *example)

    return RefusalCheck(
        model,
        films,
        row_of("all refused", counts.total(), films, next(iter(examples.values()), ("", ""))),
        tuple(row_of(kind, count, films, examples[kind]) for kind, count in counts.most_common()),
        tuple(row_of(label, of_label[label], of) for label, of in sorted(labels.items()) if label),
    )
