"""The functions behind ``import chestxray`` that put a stage together from paths and names.

The command line calls the same ones; other public functions are the stages' own. What a function needs is imported
where it is called, so that nothing heavy is loaded before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from chestxray.training.record import EpochRecord
    from chestxray.training.run_folder import RunSummary


Place = Path | str


# --------------------------------------------------------------------------- training


def pack(
    films: Iterable[Film],
    out: Place,
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
        out: folder to write, whole or not at all.
        size: (height, width) in pixels; that of ``alexnet5`` where None.
        resize: how films of another shape get there.
        on_progress: called with (films done, films in all).
        workers: processes; by default one a core.
        engine: who decodes: "local", processes of this machine, or "ray" (extra ray).
        leakage_allowed: why splits that leak are to be packed all the same; kept in the description.

    Raises: as ``data.pack.write_pack``.
    """
    from chestxray.data.pack import DEFAULT_SIZE, write_pack

    return write_pack(
        films,
        out,
        size=size or DEFAULT_SIZE,
        resize=resize,
        on_progress=on_progress,
        workers=workers,
        engine=engine,
        leakage_allowed=leakage_allowed,
    )


def recipe(given: Recipe | Place = "default", **changes: Any) -> Recipe:
    """Give a recipe of this package by its name, or read one from a TOML file, with changes.

    Args:
        given: a name, a TOML file, or a recipe.
        changes: fields to replace, as ``epochs=3``.

    Raises: RecipeInvalid, naming the nearest field or the recipes that there are.
    """
    from chestxray.training.config import recipe_of

    return recipe_of(given, **changes)


def train(
    pack: Place,
    out: Place,
    recipe: Recipe | Place = "default",
    *,
    teachers: Sequence[Place] = (),
    device: str = "auto",
    checkpoints: Place | None = None,
    restart: bool = False,
    trackers: Sequence[str] = (),
    compiled: bool = False,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_progress: ProgressCallback = no_progress,
    log: Callable[[str], None] | None = None,
) -> RunSummary:
    """Train a network on a pack; killed at any moment, the same call goes on where it stood.

    Args:
        pack: the folder of a pack.
        out: the folder for weights, metrics and learning curves.
        recipe: how to train: a recipe, the name of one of this package, or a TOML file.
        teachers: finished runs on the same pack that it learns from, where the recipe has ``distillation``.
        device: "auto", "cpu" or "cuda".
        checkpoints: their folder; by default one in ``out``.
        restart: train from the beginning, whatever stands in ``out``.
        trackers: "tensorboard" or "mlflow", told about each epoch too.
        compiled: let torch compile the network first, where it can.
        on_epoch: called with the figures of each epoch.
        on_progress: called with (films done, films in all).
        log: told in a line what it will cost, and what is gone on with.

    Of several processes under torchrun, only the first calls back.

    Raises: RecipeInvalid, MissingExtra, and what ``training.run.train_run`` raises.
    """
    from chestxray.progress import no_log
    from chestxray.training.config import recipe_of
    from chestxray.training.distributed import is_main_process
    from chestxray.training.run import Keeping, no_report, train_run

    if not is_main_process():
        on_epoch, on_progress, log = None, no_progress, None
    return train_run(
        Path(pack),
        Path(out),
        recipe_of(recipe),
        teachers=[Path(run) for run in teachers],
        device=device,
        keeping=Keeping(Path(checkpoints) if checkpoints else None, restart=restart, trackers=tuple(trackers)),
        compiled=compiled,
        on_epoch=on_epoch or no_report,
        on_progress=on_progress,
        log=log or no_log,
    )


def blend(
    runs: Sequence[Place],
    pack_folder: Place,
    out: Place,
    *,
    device: str = "auto",
    on_progress: ProgressCallback = no_progress,
    log: Log = no_log,
) -> RunSummary:
    """Average the best weights of finished runs, and write the result as a run of its own, ready for export.

    Args:
        runs: at least two, of one recipe but for the seed, on the pack.
        pack_folder: the pack.
        out: the new run's folder; an earlier run there is replaced.
        device: "auto", "cpu" or "cuda".
        on_progress: called with (films done, films in all).
        log: called with a line about each step.

    Raises: as ``training.blend.blend_runs``.
    """
    from chestxray.training.blend import blend_runs

    return blend_runs(runs, pack_folder, out, device=device, on_progress=on_progress, log=log)


def export(
    runs: Place | Sequence[Place],
    out: Place,
    name: str = "pneumonia",
    *,
    compact: bool = False,
    refuse: Sequence[str] = (),
    pack: Place | None = None,
    notes: Sequence[str] = (),
) -> BundleInfo:
    """Turn a training run into a bundle, or several runs on one pack into a bundle that answers with their mean.

    Args:
        runs: the folder of a finished run, or several.
        out: the bundle's folder.
        name: what predictions call the model.
        compact: weights in 16 bits, and no second copy of them to train on with.
        refuse: sources of pictures that the bundle must not answer, each a place or ``WORDS=PLACE``.
        pack: that the runs were trained on; needed with ``refuse``.
        notes: what was measured elsewhere, in sentences, for the model card.

    Raises: as ``training.export.export_run``.
    """
    from chestxray.training.export import export_run

    first, *others = [Path(run) for run in ([runs] if isinstance(runs, Path | str) else runs)]
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


def evaluate(
    bundle: Place,
    source: Place,
    out: Place,
    *,
    split: str | None = None,
    against: Place | None = None,
    threshold: float | None = None,
    conformal: float | None = None,
    stress: bool = False,
    workers: int | None = None,
    command: str = "",
    reporter: Reporter = SILENT,
    settings: CollectSettings | None = None,
) -> Assessment:
    """Measure a bundle on labelled films, each figure with its count and its 95% interval, and write the report.

    Args:
        bundle: a folder, or the name of a bundle that comes with this package.
        source: a manifest, or a folder of labelled films.
        out: the folder for the report.
        split: the split to evaluate on; by default "test" where the source has one, else every film.
        against: compare on the same films with a bundle or a table of scores, or with "original", the published counts.
        threshold: from which a table of scores in ``against`` calls pneumonia; one half where None.
        conformal: the error rate of the conformal sets; by default 0.1 where the bundle holds validation scores.
        stress: evaluate the films under sixteen shifts as well.
        workers: processes that read films; by default one a core.
        command: what the user did, for the report.
        reporter: told about progress.
        settings: how a source that is no manifest is read, as ``collect`` takes it.

    Raises: as ``evaluation.evaluate.evaluate_bundle``; SourceInvalid, ManifestInvalid.
    """
    from chestxray.data.collect import CollectSettings, films_of
    from chestxray.data.patients import about_patients
    from chestxray.evaluation.evaluate import EvaluationSettings, evaluate_bundle
    from chestxray.evaluation.report import require_report_extra

    require_report_extra()
    if threshold is not None and (against is None or not Path(against).is_file()):
        raise UsageError("--threshold is for a table of scores; a bundle brings its operating points")
    other = None if against is None else str(against)
    films = films_of(source, settings=settings or CollectSettings(), log=reporter.log)
    for line in about_patients([film for film in films if film.label and split in {None, film.split}]):
        reporter.log(line)
    wanted = EvaluationSettings(split, other, threshold, conformal, command, workers, stress)
    return evaluate_bundle(folder_of(bundle), films, Path(source), Path(out), reporter, wanted)


def evaluate_scores(
    scores: Place,
    out: Place,
    *,
    split: str | None = None,
    against: Place | None = None,
    threshold: float | None = None,
    command: str = "",
) -> Assessment:
    """Measure any model by its table of scores (path, label, score, patient_id), and write the report.

    Args:
        scores: the table, as ``batch`` writes it or as anybody else does.
        out: the folder for the report.
        split: the split to evaluate on; by default "test" where the table has one, else every row.
        against: another table of scores of the same films, or "original", the published counts.
        threshold: from which the table calls pneumonia; one half where None.
        command: what the user did, for the report.

    Raises: as ``evaluation.evaluate.evaluate_table``.
    """
    from chestxray.evaluation.evaluate import EvaluationSettings, evaluate_table
    from chestxray.evaluation.report import require_report_extra

    require_report_extra()
    other = None if against is None else str(against)
    return evaluate_table(Path(scores), Path(out), EvaluationSettings(split, other, threshold, command=command))


def calibrate(
    bundle: Place,
    source: Place,
    out: Place,
    *,
    split: str | None = None,
    workers: int | None = None,
    reporter: Reporter = SILENT,
) -> Recalibrated:
    """Fit a bundle's calibration and operating points anew on local films; graph and weights stay as they are.

    Args:
        bundle: a folder, or the name of a bundle that comes with this package.
        source: a manifest, or a folder of labelled films of both classes.
        out: the new bundle's folder.
        split: the split of a manifest to use; by default every film.
        workers: processes that read films; by default one a core.
        reporter: told about progress.

    Raises: as ``evaluation.calibrate.calibrate_bundle``; SourceInvalid, ManifestInvalid.
    """
    from chestxray.data.collect import films_of
    from chestxray.evaluation.calibrate import calibrate_bundle
    from chestxray.evaluation.evaluate import EvaluationSettings

    settings = EvaluationSettings(split=split, workers=workers)
    return calibrate_bundle(folder_of(bundle), films_of(source), Path(source), Path(out), reporter, settings)


def sign(bundle: Place, private_key: Place, password: str | None = None) -> Path:
    """Sign every file of a bundle, as it is now, and give the signature's file.

    Args:
        bundle: its folder.
        private_key: an elliptic-curve key in PEM.
        password: of the private key; None where it has none.

    Raises: BundleInvalid, SignatureInvalid; UsageError, where the key is none; OSError.
    """
    from chestxray.inference.signature import sign_bundle

    return sign_bundle(folder_of(bundle), Path(private_key), password)


def verify(bundle: Place, public_key: Place) -> BundleInfo:
    """Check that the holder of a key signed a bundle, and that no file was changed, added or lost since.

    Args:
        bundle: its folder.
        public_key: the key whose holder must have signed, in PEM.

    Returns: the description of the bundle, as it was signed.
    Raises: SignatureInvalid, BundleInvalid; UsageError, where the key is none.
    """
    from chestxray.inference.signature import open_signed

    return open_signed(folder_of(bundle), Path(public_key)).info


# --------------------------------------------------------------------------- prediction


def load(
    bundle: Place = DEFAULT,
    threads: int | None = None,
    *,
    verify_key: Place | None = None,
    require_age: bool = False,
) -> Predictor:
    """A model, ready to use: ``load()("film.jpeg").probability``.

    Args:
        bundle: the folder that "chestxray export" or "chestxray run" wrote, or the name of a bundle that comes with
            this package: "pneumonia".
        threads: of one forward pass; by default one a core, at most four.
        verify_key: the public key whose holder must have signed the bundle; by default the one that the environment
            variable CHESTXRAY_VERIFY_KEY names, and without that any bundle is loaded.
        require_age: refuse films whose file states no age; else they are answered with the note "age not stated".

    Raises: BundleInvalid, SignatureInvalid.
    """
    from chestxray.inference.predictor import Predictor

    return Predictor(_opened(bundle, verify_key), threads, require_age=require_age)


def _opened(bundle: Place, verify_key: Place | None) -> Bundle:
    from chestxray.inference.signature import open_bundle

    return open_bundle(folder_of(bundle), Path(verify_key) if verify_key else None)


def predict(
    film: Any,
    bundle: Place = DEFAULT,
    *,
    operating_point: str | None = None,
    heatmap: bool = False,
    verify_key: Place | None = None,
    require_age: bool = False,
) -> Prediction:
    """Classify one film. For several, ``load`` the bundle once and call it.

    Args:
        film: a path, bytes, an open file, a NumPy array or torch tensor (uint8, uint16, or float in 0 to 1; H x W,
            H x W x 3 or 1 x H x W), a PIL image or a pydicom data set.
        bundle: a folder, or the name of a bundle that comes with this package.
        operating_point: name of one of the bundle's; the bundle's default where None.
        heatmap: whether to draw where the evidence lies.
        verify_key, require_age: as for ``load``.

    Raises: OSError; FilmError, where the film cannot be read; BundleInvalid, SignatureInvalid.
    """
    predictor = load(bundle, verify_key=verify_key, require_age=require_age)
    answer: Prediction = predictor(film, operating_point=operating_point, heatmap=heatmap)
    return answer


def batch(
    source: Place,
    out: Place,
    bundle: Place = DEFAULT,
    *,
    operating_point: str | None = None,
    engine: str = "local",
    on_progress: ProgressCallback = no_progress,
    workers: int | None = None,
    verify_key: Place | None = None,
    require_age: bool = False,
    settings: CollectSettings | None = None,
) -> BatchResult:
    """Classify every film of a source and write one row a film; killed, the same call goes on where it stood.

    Args:
        source: a manifest, or whatever ``collect`` takes; labels are not needed.
        out: the table: .csv, .jsonl or .parquet (extra parquet).
        bundle: a folder, or the name of a bundle that comes with this package.
        operating_point: name of one of the bundle's; the bundle's default where None.
        engine: who classifies: "local", processes of this machine, or "ray" (extra ray).
        on_progress: called with (films done, films in all).
        workers: processes; by default one a core.
        verify_key, require_age: as for ``load``.
        settings: how a source that is no manifest is read, as ``collect`` takes it.

    Raises:
        SourceInvalid: there is no film, or none of them could be classified; then the table says why, film by film.
        UsageError: no such engine; and what ``inference.batch.run_batch`` raises.
    """
    from chestxray.data.collect import CollectSettings, films_of
    from chestxray.inference.batch import REFUSED, predict_groups, run_batch
    from chestxray.inference.ray import predict_groups_on_ray

    engines = {"local": predict_groups, "ray": predict_groups_on_ray}
    if engine not in engines:
        raise UsageError(f"there is no engine {engine!r}; there are {', '.join(engines)}")
    result = run_batch(
        _opened(bundle, verify_key),
        films_of(source, labels_needed=False, settings=settings or CollectSettings()),
        Path(out),
        operating_point=operating_point,
        engine=engines[engine],
        on_progress=on_progress,
        workers=workers,
        require_age=require_age,
    )
    if set(result.calls) == {REFUSED}:
        raise SourceInvalid(f"{source}: none of its films could be classified; {out} says why, film by film")
    return result


# --------------------------------------------------------------------------- around them


def key(name: str) -> tuple[str, str]:
    """Make a key for a caller of the service, and the entry by which the service knows it.

    Args:
        name: whose key it is: 1 to 40 letters, digits, dots, dashes and underscores.

    Returns: the key, which is stored nowhere, and the line for the service's key file.
    Raises: UsageError.
    """
    from chestxray.serving.security import new_key

    return new_key(name)


def doctor(bundle: Place = DEFAULT) -> Diagnosis:
    """Report what is installed, what is missing, and which devices would be used.

    Args:
        bundle: a folder, or the name of a bundle that comes with this package.
    """
    from chestxray.diagnosis import diagnose

    return diagnose(bundle)
