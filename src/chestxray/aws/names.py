"""What everything is called: names and tags derived from one word, so that all of it is found again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from chestxray.errors import UsageError
from chestxray.version import __version__

DEFAULT: Final = "chestxray"
DEPLOYMENT_TAG: Final = "chestxray:deployment"
VERSION_TAG: Final = "chestxray:version"

_DEPLOYMENT: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
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

    @property
    def tags(self) -> dict[str, str]:
        """What every resource carries."""
        return {DEPLOYMENT_TAG: self.deployment, VERSION_TAG: __version__}

    @property
    def tag_list(self) -> list[dict[str, str]]:
        """The tags as most services take them."""
        return [{"Key": key, "Value": value} for key, value in self.tags.items()]
