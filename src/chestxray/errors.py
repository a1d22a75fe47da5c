"""All deliberate errors of this package, as one tree.

    ChestXrayError
    ├── UsageError                exit 2: the request itself makes no sense
    │   ├── RecipeInvalid
    │   ├── OutOfRange            also a ValueError
    │   ├── SettingsInvalid
    │   ├── MissingExtra
    │   ├── OutputExists
    │   ├── FilmTypeInvalid       also a TypeError
    │   └── FilmValueInvalid      also a ValueError
    ├── DataError                 exit 1: the request is valid, the data is not
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
        ├── FilmUnopened          also an OSError
        └── UnreadableFilm        HTTP 422
            └── TruncatedFilm

Each message names the file, the fact and the remedy. Exceptions of other libraries are translated
where they arise, so a caller of this package has to catch only ``ChestXrayError``.
"""

from __future__ import annotations


class ChestXrayError(Exception):
    """Base of every deliberate error of this package."""

    exit_status = 1


class UsageError(ChestXrayError):
    """The request itself is invalid: an option, a recipe, a missing extra."""

    exit_status = 2


class RecipeInvalid(UsageError):
    """A recipe names an unknown key or holds a value out of range."""


class OutOfRange(UsageError, ValueError):
    """A setting or a field holds a value that it cannot have."""


class SettingsInvalid(UsageError):
    """The settings of a DICOM node name an unknown key or hold an invalid value."""


class MissingExtra(UsageError):
    """An optional dependency is not installed; the message names the extra that installs it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f'{what} needs an extra. Install it with: pip install "chestxray[{extra}]"')


class OutputExists(UsageError):
    """The output exists already and is not an earlier output of the same kind."""


class FilmTypeInvalid(UsageError, TypeError):
    """An argument is no film: it has another type, shape or kind of number."""


class FilmValueInvalid(UsageError, ValueError):
    """The pixels of an argument are out of range."""


class DataError(ChestXrayError):
    """The request is valid, the data is not."""


class SourceInvalid(DataError):
    """A source holds no films, or films without labels where labels are needed."""


class ManifestInvalid(DataError):
    """A manifest cannot be read, or one of its rows is invalid."""


class PackInvalid(DataError):
    """A pack is incomplete, damaged or of another version."""


class RunInvalid(DataError):
    """A training run is unfinished, damaged or of another version."""


class BundleInvalid(DataError):
    """A bundle is incomplete, damaged or of another version."""


class SignatureInvalid(BundleInvalid):
    """A bundle is not signed, is not signed with this key, or has changed since."""


class Leakage(DataError):
    """A patient or a film is in two splits."""


class DegenerateLabels(DataError):
    """A statistic needs both classes, and only one occurs."""


class TrainingDiverged(DataError):
    """The loss is no longer finite."""


class CloudError(ChestXrayError):
    """AWS refused or failed; the message names the step and the answer of the service."""


class CredentialsMissing(CloudError):
    """There are no credentials, or AWS does not know them; or the region is missing."""

    exit_status = 2


class CredentialsExpired(CloudError):
    """The credentials have expired."""


class CloudRefused(CloudError):
    """The credentials are valid, but do not permit the action."""


class CloudThrottled(CloudError):
    """There were too many requests, even after all retries."""


class CloudMissing(CloudError):
    """A requested resource does not exist in this account and region."""


class CloudForeign(CloudError):
    """A resource with a needed name exists and belongs to no or another deployment."""


class QuotaReached(CloudError):
    """A quota of the account is used up."""


class CloudUnreachable(CloudError):
    """Nothing answered at the service's address."""


class JobFailed(CloudError):
    """A job, an endpoint or a build in AWS failed; the message gives the reason."""


class PeerError(ChestXrayError):
    """Another DICOM node refused, failed, or cannot be reached; the message names the node and its answer."""


class OutputUnwritable(ChestXrayError):
    """A result cannot be written: the disk is full, the folder is read-only or gone."""


class TrainingInterrupted(ChestXrayError):
    """Training was asked to stop, and has written a checkpoint."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal  # as a shell reports a process that the signal ended


class FilmError(ChestXrayError):
    """One film cannot be classified. ``http_status`` is the status of the service's answer."""

    http_status = 422


class UnsupportedFormat(FilmError):
    """The bytes are in no format that this package reads."""

    http_status = 415


class FilmTooLarge(FilmError):
    """The film has more bytes or pixels than the limits allow; found before decoding."""

    http_status = 413


class FilmUnopened(FilmError, OSError):
    """The file of a film is missing, is no file, or may not be read."""


class UnreadableFilm(FilmError):
    """The format is known, but the content is damaged."""


class TruncatedFilm(UnreadableFilm):
    """The file ends before its picture does."""


def reason_of(error: Exception) -> str:
    """Return what an error says, for use within a sentence: without the number and the file that the system adds."""
    return str(getattr(error, "strerror", None) or error)
