"""Accounts to test in: SageMaker is the emulator; S3, IAM, logs, ECR, scheduler and CloudFormation are a stand-in's."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import boto3
import botocore.session
import pytest
from botocore.validate import ParamValidator

import live_ministack
import live_moto
import sagemaker_emulator
from chestxray.data import sources
from sagemaker_emulator import SageMaker

IMAGE: Final = f"{live_moto.ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/chestxray:made"
UNIVERSAL: Final = "arn:aws:scheduler:::aws-sdk:sagemaker:"


@contextmanager
def account(folder: Path) -> Iterator[SageMaker]:
    """One before moto. Environment variables lead all of boto3, here and in processes, to both servers."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        live_moto.running() as moto,
        sagemaker_emulator.running(folder) as (service, address),
        led_to(moto, address, service),
    ):
        yield service


@contextmanager
def account_with_functions(folder: Path) -> Iterator[tuple[SageMaker, str]]:
    """One before ministack, whose functions reach the emulator's endpoints; gives the service and the address."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        sagemaker_emulator.running(folder) as (service, address),
        live_ministack.running(folder / "ministack.log", AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=address) as aws,
        led_to(aws, address, service),
    ):
        yield service, aws


@contextmanager
def led_to(aws: str, sagemaker: str, service: SageMaker) -> Iterator[None]:
    """Where boto3 finds AWS, and SageMaker, whose work ends before that does."""
    places = {"AWS_ENDPOINT_URL": aws, "S3_ENDPOINT_URL": aws}
    places |= dict.fromkeys(("AWS_ENDPOINT_URL_SAGEMAKER", "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"), sagemaker)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**live_moto.CREDENTIALS, **places}.items():
            patch.setenv(name, value)
        sources.client.cache_clear()
        try:
            yield
        finally:
            service.close()


def put_image(tag: str, repository: str = "chestxray", *, ours: bool = True) -> None:
    """What a build of ours would leave in the registry, or somebody else."""
    client = boto3.client("ecr")
    tags = [{"Key": "chestxray:deployment", "Value": "chestxray"}] if ours else []
    with contextlib.suppress(client.exceptions.RepositoryAlreadyExistsException):
        client.create_repository(repositoryName=repository, tags=tags)
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = {"schemaVersion": 2, "mediaType": kind, "config": {"digest": "sha256:" + "0" * 64, "size": 1}}
    client.put_image(repositoryName=repository, imageManifest=json.dumps(manifest | {"layers": []}), imageTag=tag)


def schedules() -> list[dict[str, Any]]:
    client = boto3.client("scheduler")
    found = client.list_schedules()["Schedules"]
    return [client.get_schedule(Name=item["Name"], GroupName=item["GroupName"]) for item in found]


def let_time_pass(until: datetime) -> list[str]:
    """Fire the schedules that are due, earliest first, as EventBridge Scheduler does. Returns: their operations."""
    model = botocore.session.get_session().get_service_model("sagemaker")
    done = []
    for schedule in sorted(schedules(), key=lambda item: str(item["ScheduleExpression"])):
        when = datetime.fromisoformat(f"{schedule['ScheduleExpression'][len('at(') : -1]}+00:00")
        if when > until:
            continue
        word = schedule["Target"]["Arn"].removeprefix(UNIVERSAL)
        operation, request = word[0].upper() + word[1:], json.loads(schedule["Target"]["Input"])
        report = ParamValidator().validate(request, model.operation_model(operation).input_shape)
        assert not report.has_errors(), report.generate_report()
        client = boto3.client("sagemaker")
        getattr(client, botocore.xform_name(operation))(**request)
        if schedule.get("ActionAfterCompletion") == "DELETE":
            boto3.client("scheduler").delete_schedule(Name=schedule["Name"], GroupName=schedule["GroupName"])
        done.append(operation)
    return done
