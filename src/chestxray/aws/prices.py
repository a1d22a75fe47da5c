"""List prices, so that a verb can say what it will cost before it does. US dollars, one region, without tax."""

from __future__ import annotations

from typing import Final

AS_OF: Final = "2025-06"
REGION: Final = "us-east-1"  # whose prices these are, wherever the deployment is
NOTICE: Final = (
    f"Prices are about those of the public list of {AS_OF} in {REGION}, in US dollars, without tax and free tiers. "
    "Your region, your contract and today's list may differ."
)
UNKNOWN: Final = "price not known here"

# Dollars an hour of one instance; hosting, training and batch transform cost the same.
INSTANCES: Final = {
    "ml.t2.medium": 0.056,
    "ml.m5.large": 0.115,
    "ml.m5.xlarge": 0.23,
    "ml.m5.2xlarge": 0.461,
    "ml.m5.4xlarge": 0.922,
    "ml.c5.large": 0.102,
    "ml.c5.xlarge": 0.204,
    "ml.c5.2xlarge": 0.408,
    "ml.c5.4xlarge": 0.816,
    "ml.g4dn.xlarge": 0.736,
    "ml.g4dn.2xlarge": 0.94,
    "ml.g5.xlarge": 1.408,
    "ml.g5.2xlarge": 1.515,
    "ml.p3.2xlarge": 3.825,
}

SERVERLESS_GB_SECOND: Final = 0.00002  # dollars, of a serverless endpoint, while it computes
LAMBDA_GB_SECOND: Final = 0.0000166667
LAMBDA_REQUEST: Final = 0.20 / 1e6
HTTP_API_REQUEST: Final = 1.00 / 1e6
CLOUDFRONT_REQUEST: Final = 0.01 / 1e4  # HTTPS
CLOUDFRONT_GB: Final = 0.085
S3_GB_MONTH: Final = 0.023
S3_PUT: Final = 0.005 / 1e3
S3_GET: Final = 0.0004 / 1e3
ECR_GB_MONTH: Final = 0.10
CODEBUILD_MINUTE: Final = 0.005  # general1.small
LOGS_GB: Final = 0.50
HOURS_A_MONTH: Final = 730


def instance_hours(instance: str, count: int = 1) -> float | None:
    """Dollars an hour of so many instances; None for a type that is not in the table, which AWS may well offer."""
    price = INSTANCES.get(instance)
    return None if price is None else price * count


def dollars(amount: float | None) -> str:
    """For people: two digits that say something, whatever the size."""
    if amount is None:
        return "unknown"
    if amount == 0:
        return "$0"
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.2g}" if amount >= 1e-4 else f"${amount:.1e}"  # noqa: PLR2004
