"""The functions behind ``import chestxray`` that put a stage together from paths and names.

The command line calls the same functions; other public functions are those of the stages. Each function imports what it
needs when it is called, so that no heavy library is loaded before it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestxray.arguments import arguments_checked
from chestxray.errors import SourceInvalid, UsageError
from chestxray.inference.bundle import DEFAULT, folder_of
from chestxray.progress import SILENT, Log, ProgressCallback, Reporter, no_log, no_progress
from chestxray.schema import Resize

if TYPE_CHECKING:
    from chestxray.data.collect import CollectSettings
    from chestxray.diagnosis import Diagnosis
    from chestxray.evaluation.assessment import Assessment
    from chestxray.evaluation.calibrate import Recalibrated
    from chestxray.inference.batch import BatchResult
    from chestxray.inference.bundle import Bundle
    from chestxray.inference.predictor import Predictor
    from chestxray.schema import BundleInfo, Film, PackInfo, Prediction
    from chestxray.training.config import Recipe
    from chestxray.training.run_folder import RunSummary
    from chestxray.training.train_state import EpochRecord


StrPath = Path | str


# --------------------------------------------------------------------------- training


@arguments_checked
def pack(
    films: Iterable[Film],
    out: StrPath,
    *,
    size: tuple[int, int] | None = None,
    resize: Resize | str = Resize.SQUEEZE,
    on_progress: ProgressCallback = no_progress,
    workers: int | None = None,
    engine: str = "local",
    leakage_allowed: str = "",
) -> PackInfo:
    """Decode every accepted film that has a split, once, and compute the training films' mean and deviation.

    Args:
        films: rows of a split manifest.
        out: folder to write, completely or not at all.
        size: (height, width) in pixels; None takes that of ``alexnet5``.
        resize: how films of another shape are resized.
        on_progress: called with (films done, films in all).
        workers: number of processes; by default one for each core.
        engine: where films are decoded: "local", in processes of this machine, or "ray" (extra ray).
        leakage_allowed: reason to pack splits that leak; kept in the description.

    Raises: as ``data.pack.write_pack``.
    """
    from chestxray.data.pack import DEFAULT_SIZE, write_pack

    return write_pack(
        films,
        out,
        size=DEFAULT_SIZE if size is None else size,
        resize=resize,
        on_progress=on_progress,
        workers=workers,
        engine=engine,
        leakage_allowed=leakage_allowed,
    )


@arguments_checked
def recipe(given: Recipe | StrPath = "default", **changes: Any) -> Recipe:
    """Return a recipe of this package by its name, or read one from a TOML file, with changes.

    Args:
        given: a name, a TOML file, or a recipe.
        changes: fields to replace, as ``epochs=3``.

    Raises: RecipeInvalid, which names the nearest field or the existing recipes.
    """
    from chestxray.training.config import recipe_of

    return recipe_of(given, **changes)


@arguments_checked
def train(
    pack: StrPath,
    out: StrPath,
    recipe: Recipe | StrPath = "default",
    *,
    teachers: Sequence[StrPath] = (),
    device: str = "auto",
    checkpoints: StrPath | None = None,
    restart: bool = False,
    trackers: Sequence[str] = (),
    compiled: bool = False,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_progress: ProgressCallback = no_progress,
    log: Callable[[str], None] | None = None,
) -> RunSummary:
    """Train a network on a pack; after a kill the same call resumes.

    Args:
        pack: the folder of a pack.
        out: the folder for weights, metrics and learning curves.
        recipe: how to train: a recipe, the name of one of this package, or a TOML file.
        teachers: finished runs on the same pack from which the network learns, if the recipe has ``distillation``.
        device: "auto", "cpu" or "cuda".
        checkpoints: folder of the checkpoints; by default one in ``out``.
        restart: train from the beginning, and replace the run in ``out``.
        trackers: "tensorboard" or "mlflow", to log each epoch there too.
        compiled: let torch compile the network first, if possible.
        on_epoch: called with the figures of each epoch.
        on_progress: called with (films done, films in all).
        log: called with a line about the expected cost, and about a resumed checkpoint.

    Of several processes under torchrun, only the first one calls these functions.

    Raises: RecipeInvalid, MissingExtra, and the errors of ``training.run.train_run``.
    """
    from chestxray.progress import no_log
    from chestxray.training.config import recipe_of
    from chestxray.training.distributed import is_main_process
    from chestxray.training.run import RunOptions, no_report, train_run

    if not is_main_process():
        on_epoch, on_progress, log = None, no_progress, None
    return train_run(
        Path(pack),
        Path(out),
        recipe_of(recipe),
        teachers=[Path(run) for run in teachers],
        device=device,
        options=RunOptions(Path(checkpoints) if checkpoints else None, restart=restart, trackers=tuple(trackers)),
        compiled=compiled,
        on_epoch=on_epoch or no_report,
        on_progress=on_progress,
        log=log or no_log,
    )


@arguments_checked
def blend(
    runs: Sequence[StrPath],
    pack_folder: StrPath,
    out: StrPath,
    *,
    device: str = "auto",
    on_progress: ProgressCallback = no_progress,
    log: Log = no_log,
) -> RunSummary:
    """Average the best weights of finished runs, and write the result as a new run, ready for export.

    Args:
        runs: at least two, of one recipe except for the seed, on the pack.
        pack_folder: the pack.
        out: the new run's folder; an earlier run there is replaced.
        device: "auto", "cpu" or "cuda".
        on_progress: called with (films done, films in all).
        log: called with a line about each step.

    Raises: as ``training.ensemble.blend_runs``.
    """
    from chestxray.training.ensemble import blend_runs

    return blend_runs(runs, pack_folder, out, device=device, on_progress=on_progress, log=log)


@arguments_checked
def export(
    runs: StrPath | Sequence[StrPath],
    out: StrPath,
    name: str = "pneumonia",
    *,
    compact: bool = False,
    refuse: Sequence[str] = (),
    pack: StrPath | None = None,
    notes: Sequence[str] = (),
) -> BundleInfo:
    """Export a training run as a bundle, or several runs on one pack as a bundle with their mean log-odds.

    Args:
        runs: the folder of a finished run, or several.
        out: the bundle's folder.
        name: the model's name in predictions.
        compact: weights in 16 bits, without the second copy for further training.
        refuse: sources of pictures that the bundle must refuse, each a place or ``WORDS=PLACE``.
        pack: the pack on which the runs were trained; needed with ``refuse``.
        notes: results that were measured elsewhere, in sentences, for the model card.

    Raises: as ``training.export.export_run``.
    """
    from chestxray.training.export import export_run

    folders = [Path(run) for run in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    if not folders:
        raise UsageError("nothing to export: give the folder of a finished run, or several")
    first, *others = folders
    return export_run(
        first,
        Path(out),
        name,
        beside=others,
        compact=compact,
        refuse=refuse,
        pack=Path(pack) if pack else None,
        notes=notes,
    )


# --------------------------------------------------------------------------- evaluation


@arguments_checked
def evaluate(
    bundle: StrPath,
    source: StrPath,
    out: StrPath,
    *,
    split: str | None = None,
    against: StrPath | None = None,
    threshold: float | None = None,
    conformal: float | None = None,
    stress: bool = False,
    workers: int | None = None,
    command: str = "",
    reporter: Reporter = SILENT,
    settings: CollectSettings | None = None,
) -> Assessment:
    """Evaluate a bundle on labelled films, each figure with count and 95% interval, and write the report.

    Args:
        bundle: a folder, or the name of a bundle that comes with this package.
        source: a manifest, or a folder of labelled films.
        out: the folder for the report.
        split: the split to evaluate on; by default "test" if the source has one, else every film.
        against: compare on the same films with a bundle or a table of scores, or with "original", the published counts.
        threshold: from which a table of scores in ``against`` means pneumonia; None takes one half.
        conformal: the error rate of the conformal sets; by default 0.1 if the bundle holds validation scores.
        stress: evaluate the films under seventeen shifts as well.
        workers: number of processes that read films; by default one for each core.
        command: the user's command, for the report.
        reporter: shows the progress.
        settings: how to read a source that is no manifest, as for ``collect``.

    Raises: as ``evaluation.evaluate.evaluate_bundle``; SourceInvalid, ManifestInvalid.
    """
    from chestxray.data.collect import CollectSettings, films_of
    from chestxray.evaluation.evaluate import EvaluationSettings, evaluate_bundle
    from chestxray.evaluation.report import require_report_extra

    require_report_extra()
    if threshold is not None and (against is None or not Path(against).is_file()):
        raise UsageError("--threshold is for a table of scores; a bundle brings its operating points")
    other = None if against is None else str(against)
    films = films_of(source, settings=settings or CollectSettings(), log=reporter.log)
    wanted = EvaluationSettings(split, other, threshold, conformal, command, workers, stress)
    return evaluate_bundle(folder_of(bundle), films, Path(source), Path(out), reporter, wanted)


@arguments_checked
def evaluate_scores(
    scores: StrPath,
    out: StrPath,
    *,
    split: str | None = None,
    against: StrPath | None = None,
    threshold: float | None = None,
    command: str = "",
) -> Assessment:
    """Evaluate any model by its table of scores (path, label, score, patient_id), and write the report.

    Args:
        scores: the table, from ``batch`` or from another program.
        out: the folder for the report.
        split: the split to evaluate on; by default "test" if the table has one, else every row.
        against: another table of scores of the same films, or "original", the published counts.
        threshold: from which a score means pneumonia; None takes one half.
        command: the user's command, for the report.

    Raises: as ``evaluation.evaluate.evaluate_table``.
    """
    from chestxray.evaluation.evaluate import EvaluationSettings, evaluate_table
    from chestxray.evaluation.report import require_report_extra

    require_report_extra()
    other = None if against is None else str(against)
    return evaluate_table(Path(scores), Path(out), EvaluationSettings(split, other, threshold, command=command))


@arguments_checked
def calibrate(
    bundle: StrPath,
    source: StrPath,
    out: StrPath,
    *,
    split: str | None = None,
    workers: int | None = None,
    reporter: Reporter = SILENT,
    settings: CollectSettings | None = None,
) -> Recalibrated:
    """Fit calibration and operating points again on local films; graph and weights stay the same.

    Args:
        bundle: a folder, or the name of a bundle that comes with this package.
        source: a manifest, or a source with labelled films of both classes.
        out: the new bundle's folder.
        split: the split of a manifest to use; by default every film.
        workers: number of processes that read films; by default one for each core.
        reporter: shows the progress.
        settings: how to read a source that is no manifest, as for ``collect``.

    Raises: as ``evaluation.calibrate.calibrate_bundle``; SourceInvalid, ManifestInvalid.
    """
    from chestxray.data.collect import CollectSettings, films_of
    from chestxray.evaluation.calibrate import calibrate_bundle
    from chestxray.evaluation.evaluate import EvaluationSettings

    films = films_of(source, settings=settings or CollectSettings(), log=reporter.log)
    how = EvaluationSettings(split=split, workers=workers)
    return calibrate_bundle(folder_of(bundle), films, Path(source), Path(out), reporter, how)


@arguments_checked
def sign(bundle: StrPath, private_key: StrPath, password: str | None = None) -> Path:
    """Sign every file of a bundle, as it is now, and return the signature's file.

    Args:
        bundle: its folder.
        private_key: an elliptic-curve key in PEM.
        password: password of the private key; None if it has none.

    Raises: BundleInvalid, SignatureInvalid; UsageError, if the key is invalid; OSError.
    """
    from chestxray.inference.bundle import sign_bundle

    return sign_bundle(folder_of(bundle), Path(private_key), password)


@arguments_checked
def verify(bundle: StrPath, public_key: StrPath) -> BundleInfo:
    """Check that the holder of a key signed a bundle, and that no file was changed, added or lost since.

    Args:
        bundle: its folder.
        public_key: the key whose holder must have signed, in PEM.

    Returns: the signed description of the bundle.
    Raises: SignatureInvalid, BundleInvalid; UsageError, if the key is invalid.
    """
    from chestxray.inference.bundle import open_signed

    return open_signed(folder_of(bundle), Path(public_key)).info


# --------------------------------------------------------------------------- prediction


@arguments_checked
def load(
    bundle: StrPath = DEFAULT,
    threads: int | None = None,
    *,
    verify_key: StrPath | None = None,
    require_age: bool = False,
) -> Predictor:
    """Return a model, ready to use: ``load()("film.jpeg").probability``.

    Args:
        bundle: the folder that "chestxray export" or "chestxray run" wrote, or the name of a bundle that comes with
            this package: "pneumonia".
        threads: number of threads of one forward pass; by default one a core, at most four.
        verify_key: public key that must verify the bundle's signature; by default the key that the environment variable
            CHESTXRAY_VERIFY_KEY names, and without either any bundle is loaded.
        require_age: refuse films whose file states no age; otherwise they are answered with the note "age not stated".

    Raises: BundleInvalid, SignatureInvalid.
    """
    from chestxray.inference.predictor import Predictor

    return Predictor(_opened(bundle, verify_key), threads, require_age=require_age)


def _opened(bundle: StrPath, verify_key: StrPath | None) -> Bundle:
    from chestxray.inference.bundle import open_bundle

    return open_bundle(folder_of(bundle), Path(verify_key) if verify_key else None)


@arguments_checked
def predict(
    film: Any,
    bundle: StrPath = DEFAULT,
    *,
    operating_point: str | None = None,
    heatmap: bool = False,
    verify_key: StrPath | None = None,
    require_age: bool = False,
) -> Prediction:
    """Classify one film. For several, ``load`` the bundle once and call it.

    Args:
        film: a path, bytes, an open file, a NumPy array or torch tensor (uint8, uint16, or float in 0 to 1; H x W,
            H x W x 3 or 1 x H x W), a PIL image or a pydicom data set.
        bundle: a folder, or the name of a bundle that comes with this package.
        operating_point: name of one of the bundle's operating points; None takes the default.
        heatmap: whether to draw a heat map of the evidence.
        verify_key, require_age: as for ``load``.

    Raises: FilmError, if the film cannot be opened or read; BundleInvalid, SignatureInvalid.
    """
    predictor = load(bundle, verify_key=verify_key, require_age=require_age)
    answer: Prediction = predictor(film, operating_point=operating_point, heatmap=heatmap)
    return answer


@arguments_checked
def batch(
    source: StrPath,
    out: StrPath,
    bundle: StrPath = DEFAULT,
    *,
    operating_point: str | None = None,
    engine: str = "local",
    on_progress: ProgressCallback = no_progress,
    workers: int | None = None,
    verify_key: StrPath | None = None,
    require_age: bool = False,
    settings: CollectSettings | None = None,
) -> BatchResult:
    """Classify every film of a source and write one row a film; after a kill the same call resumes.

    Args:
        source: a manifest, or whatever ``collect`` takes; labels are not needed.
        out: the table: .csv, .jsonl or .parquet (extra parquet).
        bundle: a folder, or the name of a bundle that comes with this package.
        operating_point: name of one of the bundle's operating points; None takes the default.
        engine: where films are classified: "local", in processes of this machine, or "ray" (extra ray).
        on_progress: called with (films done, films in all).
        workers: number of processes; by default one for each core.
        verify_key, require_age: as for ``load``.
        settings: how to read a source that is no manifest, as for ``collect``.

    Raises:
        SourceInvalid: there is no film, or none of them could be classified; then the table has the reason for each
            film.
        UsageError: no such engine; and the errors of ``inference.batch.run_batch``.
    """
    from chestxray.data.collect import CollectSettings, films_of
    from chestxray.data.parallel import engine_of
    from chestxray.inference.batch import REFUSED, predict_groups, predict_groups_on_ray, run_batch

    predict = engine_of(engine, {"local": predict_groups, "ray": predict_groups_on_ray})
    result = run_batch(
        _opened(bundle, verify_key),
        films_of(source, labels_needed=False, settings=settings or CollectSettings()),
        Path(out),
        operating_point=operating_point,
        engine=predict,
        on_progress=on_progress,
        workers=workers,
        require_age=require_age,
    )
    if set(result.calls) == {REFUSED}:
        raise SourceInvalid(f"{source}: none of its films could be classified; {out} says why, film by film")
    return result


# --------------------------------------------------------------------------- around them


@arguments_checked
def key(name: str) -> tuple[str, str]:
    """Make a key for a caller of the service, and the entry by which the service recognises the key.

    Args:
        name: name of the key's holder: 1 to 40 letters, digits, dots, dashes and underscores.

    Returns: the key, which is stored nowhere, and the line for the service's key file.
    Raises: UsageError.
    """
    from chestxray.serving.security import new_key

    return new_key(name)


@arguments_checked
def doctor(bundle: StrPath = DEFAULT) -> Diagnosis:
    """Report what is installed, what is missing, and which devices would be used.

    Args:
        bundle: a folder, or the name of a bundle that comes with this package.
    """
    from chestxray.diagnosis import diagnose

    return diagnose(bundle)
