"""The program inside a training job: from films in the job's channels to a bundle in its model folder.

Started by the SageMaker training toolkit as ``train.py`` (``aws.source``), once or several times by torchrun.
Folders come from the toolkit's SM_* variables, the recipe's fields from the job's hyperparameters.

Source: Amazon SageMaker developer guide, "How Amazon SageMaker AI provides training information";
sagemaker-training-toolkit, ENVIRONMENT_VARIABLES.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chestxray.errors import ChestXrayError, JobFailed, MissingExtra, TrainingInterrupted, UsageError
from chestxray.files import write_atomically
from chestxray.schema import Film, Split
from chestxray.training.config import RECIPE_TOML

if TYPE_CHECKING:
    from chestxray.training.config import Recipe
    from chestxray.training.train_state import EpochRecord

ENTRY: Final = "train.py"
BASE: Final = "/opt/ml"
CHANNELS: Final = {"training": Split.TRAIN, "validation": Split.VAL, "test": Split.TEST}
LONGEST_REASON: Final = 1024  # characters of the failure file that SageMaker passes on

# Fields of an epoch by the name of their metric in CloudWatch.
CLOUDWATCH_METRICS: Final[Mapping[str, str]] = {
    "train:loss": "training_loss",
    "validation:loss": "validation_loss",
    "validation:auroc": "auroc",
    "validation:auroc-under-shifts": "stress_auroc",
    "validation:auroc-exchanged": "exchange_auroc",
    "validation:sensitivity": "sensitivity",
    "validation:specificity": "specificity",
    "films-per-second": "films_per_second",
}


def metric_definitions() -> list[dict[str, str]]:
    """Return the definitions by which CloudWatch reads the lines of ``epoch_line``."""
    return [{"Name": name, "Regex": rf"\b{field}=([0-9.eE+-]+);"} for name, field in CLOUDWATCH_METRICS.items()]


def epoch_line(record: EpochRecord) -> str:
    """Format an epoch as one line for people and for CloudWatch."""
    figures = " ".join(f"{field}={getattr(record, field):.6g};" for field in CLOUDWATCH_METRICS.values())
    return f"epoch {record.epoch} of {record.epochs}: {figures}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and end with status 0, or write the reason of the failure where SageMaker reads it."""
    given = _parser(os.environ).parse_args(arguments)
    try:
        train_in_job(given)
    except TrainingInterrupted as error:  # a spot instance is reclaimed: the job resumes from its checkpoint
        _log(str(error))
        sys.exit(error.exit_status)
    except (ChestXrayError, OSError) as error:
        _fail(given.output, error)
        sys.exit(error.exit_status if isinstance(error, ChestXrayError) else 1)
    except BaseException as error:
        _fail(given.output, error)
        raise


def train_in_job(given: argparse.Namespace) -> None:
    """Run all stages from the channels to the bundle.

    Raises: MissingExtra, if the image cannot train; stages' errors.
    """
    try:
        from chestxray.training.config import recipe_of
        from chestxray.training.distributed import is_main_process
        from chestxray.training.export import export_run
        from chestxray.training.run import RunOptions, train_run
    except ModuleNotFoundError as error:
        raise MissingExtra(f"Training ({error.name} is not in this image)", "train") from error

    recipe = recipe_of(
        given.recipe,
        epochs=given.epochs,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        seed=given.seed,
    )
    check_gpu(os.environ)
    # the network through which the job's instances reach each other
    if interface := os.environ.get("SM_NETWORK_INTERFACE_NAME"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    channels = {name: Path(folder) for name in CHANNELS if (folder := getattr(given, name))}
    given.work.mkdir(parents=True, exist_ok=True)
    with _locked(given.work / "lock"):  # the first of several processes on this machine packs the films
        if not (given.work / "pack" / "pack.json").is_file():
            _pack(channels, given, recipe)
    is_main = is_main_process()
    train_run(
        given.work / "pack",
        given.work / "training",
        recipe,
        options=RunOptions(given.checkpoints, every=given.checkpoint_every),
        on_epoch=(lambda record: _log(epoch_line(record))) if is_main else (lambda _: None),
        log=_log if is_main else (lambda _: None),
    )
    if is_main:
        export_run(given.work / "training", given.work / "bundle", given.name)
        for path in sorted((given.work / "bundle").iterdir()):
            write_atomically(given.model / path.name, path.read_bytes())
        _log(f"the bundle is in {given.model}")


def check_gpu(environment: Mapping[str, str]) -> None:
    """Refuse an instance whose GPU PyTorch cannot use: training would run on its processors at the GPU's price.

    Args:
        environment: with the toolkit's SM_NUM_GPUS, the number of GPUs of the instance.

    Raises: JobFailed.
    """
    from chestxray.training.train_state import device_of

    count = int(environment.get("SM_NUM_GPUS") or len(list(Path("/dev").glob("nvidia[0-9]*"))))
    if count and device_of("auto").type == "cpu":
        raise JobFailed(
            f"this instance has {count} GPUs and PyTorch can use none of them: its driver or its age does not fit the "
            "image. Choose a newer --instance (ml.g4dn, ml.g5, ml.g6), or one without a GPU (ml.m5.2xlarge)"
        )


def job_arguments(base: Path) -> list[str]:
    """Return a job's hyperparameters as command line arguments, for an image without the toolkit.

    Args:
        base: ``/opt/ml``; each value may be JSON, as the SageMaker Python SDK writes them.
    """
    path = base / "input" / "config" / "hyperparameters.json"
    given: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    return [
        word
        for name, value in given.items()
        if not name.startswith("sagemaker_")
        for word in (f"--{name}", f"{_plain(value)}")
    ]


def _plain(value: str) -> object:
    try:
        return json.loads(value)
    except ValueError:
        return value


def films_in_channels(channels: Mapping[str, Path]) -> tuple[Film, ...]:
    """Return the films, each in its channel's split; with one channel only, films keep their own splits.

    Raises: SourceInvalid, UsageError.
    """
    from chestxray.data.collect import collect

    if "training" not in channels:
        raise UsageError(f"the job has no channel training; it has {', '.join(channels) or 'none'}")
    if len(channels) == 1:
        return collect(channels["training"])
    return tuple(
        dataclasses.replace(film, split=CHANNELS[name].value)
        for name, folder in channels.items()
        for film in collect(folder)
    )


def _pack(channels: Mapping[str, Path], given: argparse.Namespace, recipe: Recipe) -> None:
    from chestxray.data.clean import clean
    from chestxray.data.pack import write_pack
    from chestxray.data.split import SplitSettings, split
    from chestxray.training.networks import spec_for

    films = clean(films_in_channels(channels), workers=given.workers)
    _log(f"{len(films)} films; {sum(film.is_accepted for film in films)} accepted")
    films = split(films, SplitSettings(test=0.0, seed=given.split_seed))  # test films are elsewhere, or in a channel
    height, width = map(int, given.size.split("x")) if given.size else spec_for(recipe).size
    write_pack(films, given.work / "pack", size=(height, width), workers=given.workers)


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """Return the parser; folders default to the toolkit's variables, and else to SageMaker's paths."""
    base = Path(environment.get("SM_INPUT_DIR", f"{BASE}/input")).parent
    parser = argparse.ArgumentParser("train.py", description="Train on a SageMaker job's channels.")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int)
    recipe = RECIPE_TOML if Path(RECIPE_TOML).is_file() else "default"
    parser.add_argument("--recipe", default=recipe, help="a TOML file, or a recipe of the package by name")
    parser.add_argument("--size", help="height and width in pixels, as 160x160; by default the network's")
    parser.add_argument("--split-seed", type=int, default=0)
    parser.add_argument("--name", default="pneumonia", help="what predictions call this model")
    parser.add_argument("--workers", type=int, help="processes that read films")
    parser.add_argument("--checkpoint-every", type=float, default=60.0, help="seconds")
    parser.add_argument("--checkpoints", type=Path, default=base / "checkpoints")
    parser.add_argument("--work", type=Path, default=base / "work")
    parser.add_argument("--model", type=Path, default=Path(environment.get("SM_MODEL_DIR", f"{BASE}/model")))
    parser.add_argument("--output", type=Path, default=Path(environment.get("SM_OUTPUT_DIR", f"{BASE}/output")))
    for channel in CHANNELS:
        folder = base / "input" / "data" / channel
        default = environment.get(f"SM_CHANNEL_{channel.upper()}") or (str(folder) if folder.is_dir() else None)
        parser.add_argument(f"--{channel}", default=default)
    return parser


def _log(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()  # so that CloudWatch shows the line while the job runs


def _fail(output: Path, error: BaseException) -> None:
    """Write the reason of a failed job; only the first process to fail writes it."""
    reason = f"{type(error).__name__}: {error}"
    _log(reason)
    output.mkdir(parents=True, exist_ok=True)
    if not (output / "failure").exists():
        write_atomically(output / "failure", reason[:LONGEST_REASON].encode())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main()
