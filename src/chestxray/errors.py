"""Everything that can go wrong, as one tree.

    ChestXrayError
    ├── UsageError                exit 2: the request itself makes no sense
    │   ├── RecipeInvalid
    │   ├── OutOfRange            also a ValueError
    │   ├── SettingsInvalid
    │   ├── MissingExtra
    │   ├── OutputExists
    │   ├── FilmTypeInvalid       also a TypeError
    │   └── FilmValueInvalid      also a ValueError
    ├── DataError                 exit 1: the request is fine, the data is not
    │   ├── SourceInvalid
    │   ├── ManifestInvalid
    │   ├── PackInvalid
    │   ├── RunInvalid
    │   ├── BundleInvalid
    │   │   └── SignatureInvalid
    │   ├── Leakage
    │   ├── DegenerateLabels
    │   └── TrainingDiverged
    ├── CloudError                exit 1: AWS refused, failed, or cannot be reached
    │   ├── CredentialsMissing    exit 2
    │   ├── CredentialsExpired
    │   ├── CloudRefused
    │   ├── CloudThrottled
    │   ├── CloudMissing
    │   ├── CloudForeign
    │   ├── QuotaReached
    │   ├── CloudUnreachable
    │   └── JobFailed
    ├── PeerError                 exit 1: another DICOM node refused, failed, or cannot be reached
    ├── OutputUnwritable          exit 1: the disk is full, or the folder read-only
    ├── TrainingInterrupted       exit 128 + signal: 143 after SIGTERM, 130 after Ctrl-C
    └── FilmError                 exit 1: one film, not the whole job
        ├── UnsupportedFormat     HTTP 415
        ├── FilmTooLarge          HTTP 413
        └── UnreadableFilm        HTTP 422
            └── TruncatedFilm

Each message names the file, the fact and the remedy. Exceptions of other libraries are translated
where they arise, so whoever calls this package catches ``ChestXrayError`` and nothing else.
"""

from __future__ import annotations


class ChestXrayError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_status = 1


class UsageError(ChestXrayError):
    """The request itself makes no sense: an option, a recipe, a missing extra."""

    exit_status = 2


class RecipeInvalid(UsageError):
    """A recipe names an unknown key or holds a value out of range."""


class OutOfRange(UsageError, ValueError):
    """A setting or a field holds a value that it cannot have."""


class SettingsInvalid(UsageError):
    """The settings of a DICOM node name an unknown key or hold a value that makes no sense."""


class MissingExtra(UsageError):
    """An optional dependency is not installed; the message says which extra brings it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f'{what} needs an extra. Install it with: pip install "chestxray[{extra}]"')


class OutputExists(UsageError):
    """The output is there already and is not ours to overwrite."""


class FilmTypeInvalid(UsageError, TypeError):
    """What was given in place of a film is none: another type, shape or kind of number."""


class FilmValueInvalid(UsageError, ValueError):
    """The pixels that were given lie out of range."""


class DataError(ChestXrayError):
    """The request is fine, the data is not."""


class SourceInvalid(DataError):
    """A source holds no films, or films without labels where labels are needed."""


class ManifestInvalid(DataError):
    """A manifest cannot be read, or a row of it holds nonsense."""


class PackInvalid(DataError):
    """A pack is incomplete, damaged or of another version."""


class RunInvalid(DataError):
    """A training run is unfinished, damaged or of another version."""


class BundleInvalid(DataError):
    """A bundle is incomplete, damaged or of another version."""


class SignatureInvalid(BundleInvalid):
    """A bundle is not signed, not by this key, or was changed since."""


class Leakage(DataError):
    """A patient or a film stands on two splits."""


class DegenerateLabels(DataError):
    """A statistic needs both classes and only one occurs."""


class TrainingDiverged(DataError):
    """The loss is no longer finite."""


class CloudError(ChestXrayError):
    """AWS refused or failed; the message says what was under way and what the service answered."""


class CredentialsMissing(CloudError):
    """No credentials, or none that AWS knows; or no region."""

    exit_status = 2


class CredentialsExpired(CloudError):
    """The credentials were good once."""


class CloudRefused(CloudError):
    """The credentials are good and may not do this."""


class CloudThrottled(CloudError):
    """Too many requests, also after all the retries."""


class CloudMissing(CloudError):
    """What was asked for does not exist in this account and region."""


class CloudForeign(CloudError):
    """Something of the name that is needed exists and is not of this deployment."""


class QuotaReached(CloudError):
    """The account may have no more of it."""


class CloudUnreachable(CloudError):
    """Nothing answered at the service's address."""


class JobFailed(CloudError):
    """What AWS was to do for us (a job, an endpoint, a build) ended badly; the message says why."""


class PeerError(ChestXrayError):
    """Another DICOM node refused, failed, or cannot be reached; the message says which, and what it answered."""


class OutputUnwritable(ChestXrayError):
    """What was computed cannot be kept: the disk is full, the folder read-only or gone."""


class TrainingInterrupted(ChestXrayError):
    """Training was asked to stop, and wrote a checkpoint first."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal  # as a shell reports a process that the signal ended


class FilmError(ChestXrayError):
    """One film cannot be classified. ``http_status`` is what the service answers."""

    http_status = 422


class UnsupportedFormat(FilmError):
    """The bytes are of no format that this package reads."""

    http_status = 415


class FilmTooLarge(FilmError):
    """More bytes or pixels than the limits allow; found before anything is decoded."""

    http_status = 413


class UnreadableFilm(FilmError):
    """The format is known and the content is damaged."""


class TruncatedFilm(UnreadableFilm):
    """The file ends before its picture does."""
