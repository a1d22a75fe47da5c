"""The door to AWS: region, profile and credentials found once, clients made alike, names derived from one word.

Refusals are translated into this package's errors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from chestxray.errors import (
    CloudError,
    CloudForeign,
    CloudMissing,
    CloudRefused,
    CloudThrottled,
    CloudUnreachable,
    CredentialsExpired,
    CredentialsMissing,
    MissingExtra,
    QuotaReached,
    UsageError,
)
from chestxray.version import __version__

DEFAULT: Final = "chestxray"
DEPLOYMENT_TAG: Final = "chestxray:deployment"
VERSION_TAG: Final = "chestxray:version"

_DEPLOYMENT: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_ROLE: Final = re.compile(r"arn:aws:iam::\d{12}:role/[\w+=,.@/-]+")
_POLICY: Final = re.compile(r"arn:aws:iam::(\d{12}|aws):policy/[\w+=,.@/-]+")
_KEY: Final = re.compile(r"arn:aws:kms:[a-z0-9-]+:\d{12}:(key|alias)/[\w/-]+")
_SUBNET: Final = re.compile(r"subnet-[0-9a-f]+")
_GROUP: Final = re.compile(r"sg-[0-9a-f]+")
_ACCOUNT: Final = re.compile(r"\d{12}")
RESERVED: Final = ("amzn-s3-demo-", "sthree-")  # of buckets; "default" is a group of schedules
LONGEST: Final = (
    24  # characters: a bucket's name holds 63, of which account and region take up to 30 and words the rest
)


@dataclass(frozen=True, slots=True)
class Names:
    """Names of one deployment's resources in an account and region.

    Raises: UsageError: AWS would not take the deployment's name for some of them.
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
        """Our own bucket: source archives, bundles, function code, outputs of jobs. The films' bucket is the user's."""
        return f"{self.deployment}-{self.account}-{self.region}"

    @property
    def endpoint(self) -> str:
        """The endpoint; what belongs to it begins with the same word."""
        return self.deployment

    @property
    def website_stack(self) -> str:
        """The CloudFormation stack of the website."""
        return f"{self.deployment}-website"

    @property
    def build_stack(self) -> str:
        """The CloudFormation stack that builds the container's image."""
        return f"{self.deployment}-build"

    def role(self, purpose: str) -> str:
        """An IAM role's name; roles are the account's, so the region is a part of it."""
        return f"{self.deployment}-{purpose}-{self.region}"

    def stamped(self, stamp: str) -> str:
        """A name that is used once (a job, a model), ``stamp`` being a time or a hash."""
        return f"{self.deployment}-{stamp}"

    def owns(self, tags: Mapping[str, str] | Iterable[Mapping[str, str]]) -> bool:
        """Whether tags, as any service gives them, say that something is of this deployment."""
        found = tags if isinstance(tags, Mapping) else {f"{_of(tag, 'key')}": f"{_of(tag, 'value')}" for tag in tags}
        return found.get(DEPLOYMENT_TAG) == self.deployment

    def refuse_foreign(self, what: str, name: str, tags: Mapping[str, str] | Iterable[Mapping[str, str]]) -> None:
        """Raises: CloudForeign: the thing of that name is not this deployment's."""
        if not self.owns(tags):
            raise CloudForeign(
                f"the {what} {name} exists already without the tag {DEPLOYMENT_TAG}={self.deployment}: it is somebody "
                "else's and stays as it is. Choose another --deployment"
            )

    @property
    def tags(self) -> dict[str, str]:
        """What every resource carries."""
        return {DEPLOYMENT_TAG: self.deployment, VERSION_TAG: __version__}

    @property
    def tag_list(self) -> list[dict[str, str]]:
        """The tags as most services take them."""
        return [{"Key": key, "Value": value} for key, value in self.tags.items()]


@dataclass(frozen=True, slots=True)
class Rules:
    """What an account asks of all that is made in it; empty where it asks nothing.

    Attributes:
        role: ARN of a role of the account's own that jobs, endpoints and schedules run as; none is made then.
        boundary: ARN of the policy that bounds the roles that are made.
        kms_key: ARN of the key that volumes, outputs and our bucket are encrypted with.
        subnets, security_groups: of the network (VPC) that jobs and endpoints on instances run in.
        owners: the accounts of buckets that are not this account's, by bucket.

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
            ("--role", (self.role,), _ROLE, "arn:aws:iam::123456789012:role/sagemaker"),
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
            raise UsageError("--role is a role of your own, so no role is made that --permissions-boundary could bound")

    @property
    def network(self) -> dict[str, dict[str, list[str]]]:
        """As SageMaker's requests take it: "VpcConfig", or nothing."""
        if not self.subnets:
            return {}
        return {"VpcConfig": {"Subnets": [*self.subnets], "SecurityGroupIds": [*self.security_groups]}}

    @property
    def stamp(self) -> tuple[str, ...]:
        """What of it makes another job or model of the same order; empty where there is nothing."""
        return tuple(filter(None, (self.role, self.kms_key, *self.subnets, *self.security_groups)))


ENDPOINT_VARIABLE: Final = "AWS_ENDPOINT_URL"  # boto3 reads it, and AWS_ENDPOINT_URL_<SERVICE> before it
REGION_VARIABLES: Final = ("AWS_REGION", "AWS_DEFAULT_REGION")
PARTITION: Final = "aws"  # the one that names, policies and addresses are written for
ATTEMPTS: Final = 6  # the first try and five more, farther and farther apart
CONNECTIONS: Final = 32  # kept open a client: the parallel upload's upper end

# What AWS's many services call the same thing.
_WORDS: Final[Mapping[type[CloudError], str]] = {
    CloudRefused: "AccessDenied AccessDeniedException UnauthorizedOperation AuthorizationError 403",
    CloudThrottled: "Throttling ThrottlingException ThrottledException TooManyRequestsException TooManyRequests "
    "RequestLimitExceeded RequestThrottled RequestThrottledException BandwidthLimitExceeded "
    "ProvisionedThroughputExceededException SlowDown ServiceUnavailable PriorRequestNotComplete 429 503",
    CloudMissing: "ResourceNotFound ResourceNotFoundException NotFoundException NoSuchBucket NoSuchKey NoSuchEntity "
    "NoSuchEntityException RepositoryNotFoundException NoSuchDistribution 404",
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
    CloudUnreachable: f"Check the network, the --region, and {ENDPOINT_VARIABLE} if it is set",
}


def _of(tag: Mapping[str, str], word: str) -> str:
    """The part of a tag; services write "Key", "key" and "TagKey"."""
    return next((value for name, value in tag.items() if name.lower().removeprefix("tag") == word), "")


@dataclass(frozen=True)
class Cloud:
    """An account in a region, reached with one set of credentials.

    Attributes:
        region: as AWS names it, for instance ``eu-central-1``.
        account: twelve digits.
        caller: ARN of whoever asks.
    """

    region: str
    account: str
    _session: Any = field(repr=False)
    _clients: dict[str, Any] = field(default_factory=dict, repr=False)
    rules: Rules = field(default_factory=Rules)
    caller: str = ""

    def client(self, service: str) -> Any:
        """boto3's client of a service; one each, kept."""
        if service not in self._clients:
            client = self._clients[service] = self._session.client(service, config=_config())
            if service == "s3":
                client.meta.events.register("before-parameter-build.s3", self._state_owner)
        return self._clients[service]

    def _state_owner(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        """Names of buckets can be guessed: S3 refuses what goes to a bucket that somebody else made first."""
        if "Bucket" in params and "ExpectedBucketOwner" in model.input_shape.members:
            params.setdefault("ExpectedBucketOwner", self.rules.owners.get(params["Bucket"], self.account))

    def names(self, deployment: str) -> Names:
        """What a deployment's resources are called in this account and region. Raises: UsageError."""
        return Names(deployment, self.account, self.region)

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()


def connect(region: str | None = None, profile: str | None = None, rules: Rules | None = None) -> Cloud:
    """Find region and credentials as the AWS tools do, and ask whose they are.

    Args:
        region: by default AWS_REGION, AWS_DEFAULT_REGION, or the profile's.
        profile: of ``~/.aws/config``; by default AWS_PROFILE, or none.
        rules: what the account asks of all that is made.

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
    return Cloud(session.region_name, found["Account"], session, rules=rules or Rules(), caller=found["Arn"])


def check_partition(session: Any) -> None:
    """Raises: UsageError: the region is of a partition (China, GovCloud, ...) for which this was not made."""
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
    """Translate what boto3 raises inside the block; ``doing`` says what was under way ("creating the endpoint x").

    Raises: CloudError.
    """
    try:
        from botocore import exceptions as boto
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
    except boto.BotoCoreError as error:
        raise CloudError(f"{doing}: {error}") from error


def _translated(error: Any, doing: str) -> CloudError:
    code, message = error_code(error), error.response["Error"].get("Message", "").rstrip(". ")
    cls = _KINDS.get(code, CloudError)
    remedy = f". {_REMEDIES[cls]}" if cls in _REMEDIES else ""
    return cls(f"{doing}: {error.operation_name} was answered with {code} ({message}){remedy}")


def error_code(error: Any) -> str:
    """What the service called a botocore ClientError."""
    return str(error.response.get("Error", {}).get("Code", ""))


def is_missing(error: Any) -> bool:
    """Whether a botocore ClientError says that the thing does not exist, in any of the services' ways."""
    code, message = error_code(error), str(error.response.get("Error", {}).get("Message", ""))
    if _KINDS.get(code) is CloudMissing:
        return True  # SageMaker and CloudFormation say "ValidationError" for almost everything
    return code in {"ValidationException", "ValidationError"} and (
        "does not exist" in message or "Could not find" in message or "not found" in message.lower()
    )
