"""Access to AWS: region, credentials, clients, the names of a deployment's resources, errors, and waiting for jobs.

Errors of AWS are translated into this package's errors.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from chestxray import __version__
from chestxray.data.sources import ATTEMPTS
from chestxray.errors import (
    CloudError,
    CloudForeign,
    CloudMissing,
    CloudRefused,
    CloudThrottled,
    CloudUnreachable,
    CredentialsExpired,
    CredentialsMissing,
    JobFailed,
    MissingExtra,
    QuotaReached,
    UsageError,
)
from chestxray.progress import Log

Response = TypeVar("Response")

DEFAULT_DEPLOYMENT: Final = "chestxray"
DEPLOYMENT_TAG: Final = "chestxray:deployment"
VERSION_TAG: Final = "chestxray:version"

_DEPLOYMENT: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
CALLER: Final = "caller"
_ROLE: Final = re.compile(r"arn:aws:iam::\d{12}:role/[\w+=,.@/-]+")
_POLICY: Final = re.compile(r"arn:aws:iam::(\d{12}|aws):policy/[\w+=,.@/-]+")
_KEY: Final = re.compile(r"arn:aws:kms:[a-z0-9-]+:\d{12}:(key|alias)/[\w/-]+")
_SUBNET: Final = re.compile(r"subnet-[0-9a-f]+")
_GROUP: Final = re.compile(r"sg-[0-9a-f]+")
_ACCOUNT: Final = re.compile(r"\d{12}")
# reserved beginnings of buckets' names; "default" is a group of schedules
RESERVED: Final = ("amzn-s3-demo-", "sthree-")
LONGEST: Final = (
    24  # characters: a bucket's name holds 63, of which account and region take up to 30 and words the rest
)


@dataclass(frozen=True, slots=True)
class Names:
    """Names of one deployment's resources in an account and region.

    Raises: UsageError: AWS would refuse the deployment's name for some of them.
    """

    deployment: str
    account: str
    region: str

    def __post_init__(self) -> None:
        if self.deployment == "default" or self.deployment.startswith(RESERVED):
            raise UsageError(f"--deployment {self.deployment}: AWS keeps that name to itself. Choose another word")
        if not _DEPLOYMENT.fullmatch(self.deployment) or len(self.deployment) > LONGEST:
            raise UsageError(
                f"--deployment {self.deployment}: use at most {LONGEST} lower-case letters, digits and single hyphens, "
                "with a letter first"
            )

    @property
    def bucket(self) -> str:
        """The deployment's own bucket: archives, bundles, function code, outputs of jobs.

        Films are in the user's bucket.
        """
        return f"{self.deployment}-{self.account}-{self.region}"

    @property
    def endpoint(self) -> str:
        """Name of the endpoint; names of its parts begin with the same word."""
        return self.deployment

    @property
    def website_stack(self) -> str:
        """Name of the website's CloudFormation stack."""
        return f"{self.deployment}-website"

    @property
    def build_stack(self) -> str:
        """Name of the CloudFormation stack that builds the container's image."""
        return f"{self.deployment}-build"

    def role(self, purpose: str) -> str:
        """Return an IAM role's name; roles belong to the whole account, so the name contains the region."""
        return f"{self.deployment}-{purpose}-{self.region}"

    def stamped(self, kind: str, content: str) -> str:
        """Return the name of a job or model: the same for the same content."""
        return f"{self.deployment}-{kind}-{short_hash(content.encode())}"

    def owns(self, tags: Mapping[str, str] | Iterable[Mapping[str, str]]) -> bool:
        """Check whether tags, in the form of any service, belong to this deployment."""
        found = tags if isinstance(tags, Mapping) else {f"{_of(tag, 'key')}": f"{_of(tag, 'value')}" for tag in tags}
        return found.get(DEPLOYMENT_TAG) == self.deployment

    def refuse_foreign(self, what: str, name: str, tags: Mapping[str, str] | Iterable[Mapping[str, str]]) -> None:
        """Check that a resource belongs to this deployment. Raises: CloudForeign."""
        if not self.owns(tags):
            raise CloudForeign(
                f"the {what} {name} exists already without the tag {DEPLOYMENT_TAG}={self.deployment}: it is somebody "
                "else's and stays as it is. Choose another --deployment"
            )

    @property
    def tags(self) -> dict[str, str]:
        """Tags that every resource carries."""
        return {DEPLOYMENT_TAG: self.deployment, VERSION_TAG: __version__}

    @property
    def tag_list(self) -> list[dict[str, str]]:
        """Tags in the form of most services."""
        return [{"Key": key, "Value": value} for key, value in self.tags.items()]


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules of an account for everything that is created in it; empty if it has none.

    Attributes:
        role: ARN of a role of the account's own that jobs, endpoints and schedules run as, or "caller": the role
            of the caller, for instance of a notebook; then no role is created.
        boundary: ARN of the policy that limits the created roles (permissions boundary).
        kms_key: ARN of the key that encrypts volumes, outputs and our bucket.
        subnets, security_groups: of the network (VPC) that jobs and endpoints on instances run in.
        owners: accounts of buckets that belong to other accounts, by bucket.

    Raises: UsageError.
    """

    role: str = ""
    boundary: str = ""
    kms_key: str = ""
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    owners: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for option, given, kind, example in (
            ("--role", (self.role,) if self.role != CALLER else (), _ROLE, "arn:aws:iam::123456789012:role/sagemaker"),
            ("--permissions-boundary", (self.boundary,), _POLICY, "arn:aws:iam::123456789012:policy/boundary"),
            ("--kms-key", (self.kms_key,), _KEY, "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-..."),
            ("--subnet", self.subnets, _SUBNET, "subnet-0a1b2c3d"),
            ("--security-group", self.security_groups, _GROUP, "sg-0a1b2c3d"),
            ("--bucket-owner", self.owners.values(), _ACCOUNT, "hospital=123456789012"),
        ):
            for one in filter(None, given):
                if not kind.fullmatch(one):
                    raise UsageError(f"{option} {one}: write it as {example}")
        if bool(self.subnets) != bool(self.security_groups):
            raise UsageError("a network is given by --subnet and --security-group together. Give both, or neither")
        if self.role and self.boundary:
            raise UsageError(
                "--role is a role of your own, so no role is made that --permissions-boundary could bound. Give one"
            )

    @property
    def network(self) -> dict[str, dict[str, list[str]]]:
        """Network in the form of SageMaker's requests: "VpcConfig", or nothing."""
        if not self.subnets:
            return {}
        return {"VpcConfig": {"Subnets": [*self.subnets], "SecurityGroupIds": [*self.security_groups]}}

    @property
    def stamp(self) -> tuple[str, ...]:
        """The rules that make another job or model of the same order; empty if there are none."""
        return tuple(filter(None, (self.role, self.kms_key, *self.subnets, *self.security_groups)))


AWS_ENDPOINT_VARIABLE: Final = "AWS_ENDPOINT_URL"  # read by boto3, which reads AWS_ENDPOINT_URL_<SERVICE> first
REGION_VARIABLES: Final = ("AWS_REGION", "AWS_DEFAULT_REGION")
PARTITION: Final = "aws"  # the partition for which names, policies and addresses are written
CONNECTIONS: Final = 32  # connections kept open by a client: the upper limit of the parallel upload

# The errors of AWS's services, by meaning.
_WORDS: Final[Mapping[type[CloudError], str]] = {
    CloudRefused: "AccessDenied AccessDeniedException UnauthorizedOperation AuthorizationError 403",
    CloudThrottled: "Throttling ThrottlingException ThrottledException TooManyRequestsException TooManyRequests "
    "RequestLimitExceeded RequestThrottled RequestThrottledException BandwidthLimitExceeded "
    "ProvisionedThroughputExceededException SlowDown ServiceUnavailable PriorRequestNotComplete 429 503",
    CloudMissing: "ResourceNotFound ResourceNotFoundException NotFoundException NoSuchBucket NoSuchKey NoSuchEntity "
    "NoSuchEntityException RepositoryNotFoundException ImageNotFoundException NoSuchDistribution 404",
    CredentialsExpired: "ExpiredToken ExpiredTokenException RequestExpired TokenRefreshRequired",
    CredentialsMissing: "InvalidClientTokenId UnrecognizedClientException InvalidAccessKeyId SignatureDoesNotMatch "
    "AuthFailure InvalidSignatureException",
    QuotaReached: "ResourceLimitExceeded LimitExceededException LimitExceeded ServiceQuotaExceededException",
}
_KINDS: Final = {word: kind for kind, words in _WORDS.items() for word in words.split()}
_REMEDIES: Final[Mapping[type[CloudError], str]] = {
    CloudRefused: "Ask whoever administers the account for that permission",
    CloudThrottled: "Wait a minute and repeat the command; it resumes where it stopped",
    CloudMissing: 'Compare the name and the --region; "chestxray aws status" lists what there is',
    CredentialsExpired: 'Sign in again ("aws sso login", or new keys) and repeat the command',
    CredentialsMissing: "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to valid keys, or give --profile",
    QuotaReached: "Ask for more under Service Quotas in the AWS console, or choose another --instance",
    CloudUnreachable: f"Check the network, the --region, and {AWS_ENDPOINT_VARIABLE} if it is set",
}


def short_hash(content: bytes) -> str:
    """Return a hash for names: the first 12 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:12]


def _of(tag: Mapping[str, str], word: str) -> str:
    """Return a part of a tag; services write "Key", "key" and "TagKey"."""
    return next((value for name, value in tag.items() if name.lower().removeprefix("tag") == word), "")


@dataclass(frozen=True)
class Cloud:
    """An account in a region, reached with one set of credentials.

    Attributes:
        region: its name in AWS, such as ``eu-central-1``.
        account: twelve digits.
        caller: ARN of the caller.
    """

    region: str
    account: str
    _session: Any = field(repr=False)
    _clients: dict[str, Any] = field(default_factory=dict, repr=False)
    rules: Rules = field(default_factory=Rules)
    caller: str = ""

    def client(self, service: str) -> Any:
        """Return boto3's client of a service; each client is created once."""
        if service not in self._clients:
            client = self._clients[service] = self._session.client(service, config=_config())
            if service == "s3":
                client.meta.events.register("before-parameter-build.s3", self._state_owner)
        return self._clients[service]

    def _state_owner(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        """State the expected owner of a bucket, so that S3 refuses a bucket of the same name in another account."""
        if "Bucket" in params and "ExpectedBucketOwner" in model.input_shape.members:
            params.setdefault("ExpectedBucketOwner", self.owner_of(params["Bucket"]))

    def owner_of(self, bucket: str) -> str:
        """Return the account that a bucket has to belong to."""
        return self.rules.owners.get(bucket, self.account)

    def names(self, deployment: str) -> Names:
        """Return the names of a deployment's resources in this account and region. Raises: UsageError."""
        return Names(deployment, self.account, self.region)

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()


def connect(region: str | None = None, profile: str | None = None, rules: Rules | None = None) -> Cloud:
    """Find region and credentials as the AWS tools do, and ask AWS for their account.

    Args:
        region: by default AWS_REGION, AWS_DEFAULT_REGION, or the profile's.
        profile: of ``~/.aws/config``; by default AWS_PROFILE, or none.
        rules: rules of the account for everything that is created.

    Raises: CloudError, MissingExtra.
    """
    try:
        import boto3
    except ImportError as error:
        raise MissingExtra("This verb", "aws") from error
    with cloud_errors("asking whose credentials these are"):
        wanted = region or next(filter(None, map(os.environ.get, REGION_VARIABLES)), None)
        session = boto3.Session(profile_name=profile, region_name=wanted)
        if session.region_name is None:
            raise CredentialsMissing("no AWS region is set. Give --region, or set AWS_REGION")
        check_partition(session)
        if session.get_credentials() is None:
            raise CredentialsMissing(
                "no AWS credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give --profile "
                '("aws configure" or "aws sso login" makes one)'
            )
        caller = session.client("sts", config=_config())
        found = caller.get_caller_identity()
        caller.close()
    rules = rules or Rules()
    if rules.role == CALLER:
        rules = replace(rules, role=role_of(found["Arn"]))
    return Cloud(session.region_name, found["Account"], session, rules=rules, caller=found["Arn"])


def principal_of(caller: str) -> str:
    """Return the user or role behind the caller that STS names; "" for an account's root user."""
    if assumed := re.fullmatch(r"arn:aws:sts::(\d{12}):assumed-role/([^/]+)/.+", caller):
        path = "service-role/" if assumed[2].startswith("AmazonSageMaker-ExecutionRole") else ""  # as the console makes
        return f"arn:aws:iam::{assumed[1]}:role/{path}{assumed[2]}"
    return "" if caller.endswith(":root") else caller


def role_of(caller: str) -> str:
    """Return the role behind a caller, such as a notebook of SageMaker Studio. Raises: UsageError, without a role."""
    found = principal_of(caller)
    if not _ROLE.fullmatch(found):
        raise UsageError(f"--role {CALLER}: {caller} is no role, which a notebook in SageMaker has. Give a role's ARN")
    return found


def check_partition(session: Any) -> None:
    """Check that there is such a region, in the supported partition (not China, GovCloud, ...). Raises: UsageError."""
    from botocore.exceptions import UnknownRegionError

    try:
        partition = session.get_partition_for_region(session.region_name)
    except UnknownRegionError:
        raise UsageError(f"--region {session.region_name}: AWS has no such region. One is eu-central-1") from None
    if partition != PARTITION:
        raise UsageError(
            f"--region {session.region_name}: belongs to {partition}, whose accounts, addresses and services differ "
            f"(no CloudFront or no serverless endpoints as here). Only regions of {PARTITION} are supported"
        )
    known = session.get_available_regions("sagemaker", partition)
    if session.region_name not in known:  # a pattern gives the partition, and misspelt regions match it as well
        (near,) = difflib.get_close_matches(session.region_name, known, n=1, cutoff=0.0)
        raise UsageError(
            f"--region {session.region_name}: this boto3 knows no SageMaker there. Is {near} meant? If the "
            "region is new, update boto3"
        )


def _config() -> Any:
    from botocore.config import Config

    return Config(
        connect_timeout=10,  # seconds
        read_timeout=60,
        retries={"mode": "adaptive", "total_max_attempts": ATTEMPTS},
        max_pool_connections=CONNECTIONS,
        user_agent_extra=f"chestxray/{__version__}",
    )


@contextmanager
def cloud_errors(doing: str) -> Iterator[None]:
    """Translate boto3's errors inside the block; ``doing`` names the step ("creating the endpoint x").

    Raises: CloudError.
    """
    try:
        from boto3.exceptions import Boto3Error, RetriesExceededError
        from botocore import exceptions as boto
        from botocore.parsers import ResponseParserError
    except ImportError as error:
        raise MissingExtra("This verb", "aws") from error
    try:
        yield
    except boto.ClientError as error:
        raise _translated(error, doing) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound) as error:
        raise CredentialsMissing(f"{error}. {_REMEDIES[CredentialsMissing]}") from error
    except (boto.TokenRetrievalError, boto.SSOError, boto.CredentialRetrievalError) as error:
        raise CredentialsExpired(f"{error}. {_REMEDIES[CredentialsExpired]}") from error
    except (boto.HTTPClientError, boto.EndpointConnectionError) as error:
        raise CloudUnreachable(f"{doing}: {error}. {_REMEDIES[CloudUnreachable]}") from error
    except ResponseParserError as error:
        what = "what answered is not AWS: a proxy, perhaps, or another server"
        raise CloudUnreachable(f"{doing}: {what}. {_REMEDIES[CloudUnreachable]}") from error
    except RetriesExceededError as error:  # of downloads in parts, whose errors have a family of their own
        raise CloudUnreachable(f"{doing}: {error.last_exception}. {_REMEDIES[CloudUnreachable]}") from error
    except (boto.BotoCoreError, Boto3Error) as error:
        raise CloudError(f"{doing}: {error}") from error


def _translated(error: Any, doing: str) -> CloudError:
    code, message = error_code(error), error.response["Error"].get("Message", "").rstrip(". ")
    cls = _KINDS.get(code, CloudError)
    remedy = f". {_REMEDIES[cls]}" if cls in _REMEDIES else ""
    return cls(f"{doing}: {error.operation_name} was answered with {code} ({message}){remedy}")


def error_code(error: Any) -> str:
    """Return the error code of a botocore ClientError."""
    return str(error.response.get("Error", {}).get("Code", ""))


def is_missing(error: Any) -> bool:
    """Check whether a botocore ClientError means that the resource does not exist, in any service's words."""
    code, message = error_code(error), str(error.response.get("Error", {}).get("Message", ""))
    if _KINDS.get(code) is CloudMissing:
        return True  # SageMaker and CloudFormation answer "ValidationError" for almost every error
    return code in {"ValidationException", "ValidationError"} and (
        "does not exist" in message or "Could not find" in message or "not found" in message.lower()
    )


def unless_missing(ask: Callable[..., Response], **given: Any) -> Response | None:
    """Return AWS's answer; None if what the question names does not exist.

    Args:
        ask: method of a client, called with ``given``.

    Raises: botocore's other errors.
    """
    from botocore.exceptions import ClientError

    try:
        return ask(**given)
    except ClientError as error:
        if is_missing(error):
            return None
        raise


JOB_ENDS: Final = ("Completed", "Failed", "Stopped")
POLL_S: Final = 5.0  # seconds between two requests
MOST_JOBS: Final = 50  # of one name; the names of failed jobs stay taken


def states(describe: Callable[[], Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the description of a resource again and again, without end. Raises: botocore's errors."""
    while True:
        yield describe()
        time.sleep(POLL_S)


def last_state(
    describe: Callable[[], Mapping[str, Any]],
    state: Callable[[Mapping[str, Any]], str],
    is_last: Callable[[Mapping[str, Any]], bool],
    log_state: Callable[[str], None],
    meanwhile: Callable[[], None] = lambda: None,
) -> Mapping[str, Any]:
    """Wait for the last state of a resource, and log each new one once. Returns: the description of the last.

    Args:
        meanwhile: called after each description.

    Raises: errors of ``describe``.
    """
    last = ""
    for found in states(describe):
        now = state(found)
        if now != last:
            log_state(now)
            last = now
        meanwhile()
        if is_last(found):
            return found
    raise AssertionError("states() has no end")


def follow_job(
    cloud: Cloud, name: str, describe: Callable[[], Mapping[str, Any]], status_key: str, group: str, log: Log
) -> Mapping[str, Any]:
    """Wait for the end of a job, and log its states and its lines. Returns: its description.

    Args:
        describe: asks for the job's description.
        status_key: where that has the status.
        group: the log group that holds the job's lines.

    Raises: JobFailed: it failed or was stopped; CloudError.
    """
    tail = LogTail(cloud.client("logs"), group, f"{name}/", log)
    with cloud_errors(f"waiting for the job {name}"):
        found = last_state(
            describe,
            lambda found: str(found.get("SecondaryStatus", found[status_key])),
            lambda found: found[status_key] in JOB_ENDS,
            lambda state: log(f"{name}: {state}"),
            tail.show,
        )
    if found[status_key] != "Completed":
        where = f"Its lines are in the log {group}, streams {name}/..."
        raise JobFailed(f"{name}: {str(found[status_key]).lower()}: {reason_in(found)}. {where}")
    return found


def reason_in(found: Mapping[str, Any]) -> str:
    """Return why something failed, in AWS's words, without a full stop."""
    return str(found.get("FailureReason") or "").strip().rstrip(".") or "AWS gives no reason"


def next_name(
    describe: Callable[[str], Mapping[str, Any] | None],
    stem: str,
    status_key: str,
    has_result: Callable[[Mapping[str, Any]], bool],
) -> tuple[str, str]:
    """Return the running or finished job of a stem and its status, else a free name and "".

    The names of jobs that failed, were stopped, or whose result was deleted meanwhile are free again only once their
    records are deleted, so the next job gets a number.

    Raises: errors of ``describe`` and ``has_result``.
    """
    for number in range(1, MOST_JOBS):
        name = stem if number == 1 else f"{stem}-{number}"
        described = describe(name)
        if described is None:
            return name, ""
        status = str(described[status_key])
        if status not in {"Failed", "Stopped"} and (status != "Completed" or has_result(described)):
            return name, status
    raise JobFailed(
        f"{stem}: {MOST_JOBS - 1} jobs of this order failed, were stopped or lost their results. Mend what their logs "
        "say; with any option changed it is another order, with another name"
    )


class LogTail:
    """Lines of a job, from all its log streams, that have not been shown yet."""

    def __init__(self, client: Any, group: str, prefix: str, log: Log) -> None:
        self._client = client
        self._group = group
        self._prefix = prefix
        self._log = log
        self._tokens: dict[str, str] = {}
        self._is_closed = False

    def show(self) -> None:
        """Show new lines. A log that may not be read is mentioned once, and does not end the waiting.

        Raises: CloudError.
        """
        if self._is_closed:
            return
        try:
            self._show()
        except (CloudThrottled, CloudUnreachable):
            pass  # lines that cannot be read now are shown the next time
        except CloudRefused as error:
            self._log(f"{error}. Its lines are not shown meanwhile")
            self._is_closed = True

    def _show(self) -> None:
        named = {"logGroupName": self._group, "logStreamNamePrefix": self._prefix}
        with cloud_errors(f"reading the log {self._group}"):
            found = unless_missing(self._client.describe_log_streams, **named)
            for stream in found["logStreams"] if found else ():  # there is no log until a line is written
                self._show_stream(stream["logStreamName"])

    def _show_stream(self, stream: str) -> None:
        while True:
            token = self._tokens.get(stream)
            given = {"nextToken": token} if token else {}
            page = self._client.get_log_events(
                logGroupName=self._group, logStreamName=stream, startFromHead=True, **given
            )
            for event in page["events"]:
                self._log(event["message"])
            self._tokens[stream] = page["nextForwardToken"]
            if page["nextForwardToken"] == token:  # the same token again means that this was the last page
                return
