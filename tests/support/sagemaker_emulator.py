"""A small SageMaker on loopback: its protocol, its checks, its states; the work is done by the real things.

Every request is checked twice: by botocore's own validator, and against the lengths, ranges, patterns and words of
its service model, which botocore leaves to the service. Names, images, roles and data have to exist (in moto).
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import boto3
import botocore.session
from botocore.exceptions import ClientError
from botocore.model import Shape
from botocore.validate import ParamValidator

import live_moto
from sagemaker_work import (
    LOGS,
    Container,
    Log,
    TrainingRun,
    Within,
    final_metrics,
    program,
    put_archive,
    transform,
    unpacked,
)
from stand_in import StandIn, serving

REGION: Final = "us-east-1"
MODEL: Final = botocore.session.get_session().get_service_model("sagemaker")
MAX_BODY: Final = {"serverless": 4 * 2**20, "instances": 25 * 2**20}  # of InvokeEndpoint
JSON: Final = ("Content-Type", "application/x-amz-json-1.1")
INVOKE_S: Final = 60
TRANSFORM_PAYLOADS_MB: Final = 100  # MaxConcurrentTransforms * MaxPayloadInMB may not exceed it


class Refused(Exception):
    def __init__(self, message: str, code: str = "ValidationException", status: int = 400) -> None:
        super().__init__(message)
        self.code, self.status = code, status


def violations(shape: Shape, value: Any, path: str = "") -> Iterator[str]:
    """What the service model forbids and botocore's validator does not look at."""
    metadata = shape.metadata
    size = len(value) if isinstance(value, str | list | dict) else value
    if shape.type_name in {"string", "list", "map", "integer", "long", "float"}:
        if "max" in metadata and size > metadata["max"]:
            yield f"{path}: more than {metadata['max']}"
        if "min" in metadata and size < metadata["min"]:
            yield f"{path}: less than {metadata['min']}"
    if isinstance(value, str):
        if "pattern" in metadata and not re.fullmatch(metadata["pattern"].replace(r"\p{L}\p{Z}\p{N}", r"\w\s"), value):
            yield f"{path}: {value!r} does not match {metadata['pattern']}"
        if metadata.get("enum") and value not in metadata["enum"]:
            yield f"{path}: {value!r} is none of {metadata['enum']}"
    children: dict[str, Callable[[], Iterator[tuple[Shape, Any, str]]]] = {
        "structure": lambda: ((shape.members[name], item, name) for name, item in value.items()),
        "list": lambda: ((shape.member, item, str(number)) for number, item in enumerate(value)),
        "map": lambda: (
            pair for name, item in value.items() for pair in ((shape.key, name, name), (shape.value, item, name))
        ),
    }
    for inner, item, name in children.get(shape.type_name, lambda: iter(()))():
        yield from violations(inner, item, f"{path}.{name}")


class SageMaker:
    """The service.

    Attributes:
        faults: by operation, what it answers (code, message) before it does its work; one each time.
        runs_containers: whether jobs and endpoints run what they are made of; without, endpoints are in service and
            training jobs over at once, and films are classified in this process.
        requests: (operation, request), as they came.
        updates: statuses in which updates of endpoints end that do not come up; one each time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self.runs_containers = True
        self.updates: list[str] = []
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.things: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)  # by kind and name
        self._runs: dict[str, TrainingRun] = {}
        self._containers: dict[str, Container | Within] = {}
        self._threads: list[threading.Thread] = []
        self._taken_away: set[str] = set()

    def last(self, operation: str) -> dict[str, Any]:
        """The newest request for that operation."""
        return next(request for name, request in reversed(self.requests) if name == operation)

    # ----- the door

    def answer(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append((operation, request))
        if operation not in MODEL.operation_names:
            raise Refused(f"no operation {operation}", "UnknownOperationException")
        shape = MODEL.operation_model(operation).input_shape
        report = ParamValidator().validate(request, shape)
        if report.has_errors():
            raise Refused(report.generate_report())
        if wrong := list(violations(shape, request)):
            raise Refused("; ".join(wrong))
        if self.faults[operation]:
            code, message = self.faults[operation].pop(0)
            raise Refused(message, code)
        verb, _, kind = re.sub(r"(?<!^)(?=[A-Z])", " ", operation).partition(" ")
        method = getattr(self, f"{verb.lower()}_{kind.replace(' ', '_').lower()}", None)
        if method is None:
            raise Refused(f"the emulator has no {operation}", "NotImplemented")
        return method(request) or {}

    def close(self) -> None:
        for run in self._runs.values():
            run.end()
        for thread in self._threads:
            thread.join(60)
        for container in self._containers.values():
            container.close()

    # ----- what all kinds of things have

    def _add(self, kind: str, name: str, request: dict[str, Any], **state: Any) -> dict[str, Any]:
        if name in self.things[kind]:
            raise Refused(f"Cannot create already existing {kind} {name}")
        word = re.sub(r"(?<!^)(?=[A-Z])", "-", kind).lower()
        now = time.time()
        thing = {**request, **state, "CreationTime": now, "LastModifiedTime": now}
        thing[f"{kind}Arn"] = f"arn:aws:sagemaker:{REGION}:{live_moto.ACCOUNT}:{word}/{name}"
        self.things[kind][name] = thing
        return {f"{kind}Arn": thing[f"{kind}Arn"]}

    def _get(self, kind: str, name: str) -> dict[str, Any]:
        if name not in self.things[kind]:
            raise Refused(f'Could not find {kind} "{name}".')
        return self.things[kind][name]

    def _described(self, kind: str, name: str) -> dict[str, Any]:
        known = MODEL.operation_model(f"Describe{kind}").output_shape.members
        return {key: value for key, value in self._get(kind, name).items() if key in known}

    def _listed(self, kind: str, plural: str, request: dict[str, Any]) -> dict[str, Any]:
        word = request.get("NameContains", "")
        status = request.get("StatusEquals")
        found = [thing for name, thing in self.things[kind].items() if word in name]
        found = [thing for thing in found if status is None or thing[f"{kind}Status"] == status]
        keys = (f"{kind}Name", f"{kind}Arn", f"{kind}Status", "CreationTime", "LastModifiedTime")
        return {plural: [{key: thing[key] for key in keys if key in thing} for thing in found]}

    def list_tags(self, request: dict[str, Any]) -> dict[str, Any]:
        for things in self.things.values():
            for thing in things.values():
                if request["ResourceArn"] in thing.values():
                    return {"Tags": thing.get("Tags", [])}
        raise Refused("no such resource")

    def _check_role(self, arn: str) -> None:
        try:
            found = boto3.client("iam").get_role(RoleName=arn.partition("/")[2])["Role"]
        except ClientError:
            raise Refused(f"Could not assume role {arn}. Please ensure that the role exists") from None
        trusted = json.dumps(found["AssumeRolePolicyDocument"])
        if "sagemaker.amazonaws.com" not in trusted:
            raise Refused(f"Could not assume role {arn}: it does not trust sagemaker.amazonaws.com")

    def _check_pull(self, role: str, image: str) -> None:
        """Whether one of the role's own policies names the image's repository."""
        iam, name = boto3.client("iam"), role.partition("/")[2]
        registry, _, repository = image.partition("/")
        wanted = f"arn:aws:ecr:{REGION}:{registry[:12]}:repository/{re.split('[:@]', repository)[0]}"
        for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
            document = iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
            if wanted in json.dumps(document) and "ecr:BatchGetImage" in json.dumps(document):
                return
        raise Refused(f"Access denied to repository: {wanted}. Please check its repository policy and the role {role}")

    def _work(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    # ----- training jobs

    def create_training_job(self, request: dict[str, Any]) -> dict[str, Any]:
        image = request["AlgorithmSpecification"]["TrainingImage"]
        ours = image.startswith(f"{live_moto.ACCOUNT}.")
        if not ours and not re.fullmatch(
            rf"763104351884\.dkr\.ecr\.{REGION}\.amazonaws\.com/pytorch:2\.13-\w+-amzn2023-sagemaker", image
        ):
            raise Refused(f"no image {image}", "ValidationException")
        stopping = request["StoppingCondition"]
        spot = request.get("EnableManagedSpotTraining", False)
        if spot and stopping.get("MaxWaitTimeInSeconds", 0) < stopping["MaxRuntimeInSeconds"]:
            raise Refused("MaxWaitTimeInSeconds must be at least MaxRuntimeInSeconds")
        if not spot and "MaxWaitTimeInSeconds" in stopping:
            raise Refused("MaxWaitTimeInSeconds is for spot training")
        self._check_role(request["RoleArn"])
        self._check_pull(request["RoleArn"], image)
        name = request["TrainingJobName"]
        answer = self._add("TrainingJob", name, request, TrainingJobStatus="InProgress", SecondaryStatus="Starting")
        self._work(self._train, name)
        return answer

    def _train(self, name: str) -> None:
        job = self.things["TrainingJob"][name]
        if not self.runs_containers:
            address = f"{job['OutputDataConfig']['S3OutputPath']}/{name}/output/model.tar.gz"
            put_archive(self.folder / "nothing", address)
            job |= {"ModelArtifacts": {"S3ModelArtifacts": address}, "SecondaryStatus": "Completed"}
            job["TrainingJobStatus"] = "Completed"
            return
        log = Log(LOGS["training"], f"{name}/algo-1-{round(time.time())}")
        for attempt in range(1, 10):
            run = self._runs[name] = TrainingRun(job, self.folder / "jobs" / name / str(attempt))
            try:
                job["SecondaryStatus"] = "Downloading"
                run.prepare()
                job["SecondaryStatus"] = "Training"
                status = run.run(log)
            except (ValueError, ClientError) as error:
                job |= {"FailureReason": str(error), "SecondaryStatus": "Failed", "TrainingJobStatus": "Failed"}
                return
            run.keep_checkpoints()
            if name not in self._taken_away:
                break
            self._taken_away.discard(name)
            job["SecondaryStatus"] = "Interrupted"
        if job["TrainingJobStatus"] == "Stopping":
            job |= {"SecondaryStatus": "Stopped", "TrainingJobStatus": "Stopped"}
        elif status:
            reason = f"AlgorithmError: {run.failure}, exit code: {status}"
            job |= {"FailureReason": reason, "SecondaryStatus": "Failed", "TrainingJobStatus": "Failed"}
        else:
            job["SecondaryStatus"] = "Uploading"
            address = f"{job['OutputDataConfig']['S3OutputPath']}/{name}/output/model.tar.gz"
            put_archive(run.tree / "model", address)
            metrics = final_metrics(job["AlgorithmSpecification"]["MetricDefinitions"], log.lines)
            artifacts = {"ModelArtifacts": {"S3ModelArtifacts": address}, "FinalMetricDataList": metrics}
            job |= artifacts | {"SecondaryStatus": "Completed", "BillableTimeInSeconds": 60}
            job["TrainingJobStatus"] = "Completed"

    def take_the_instance_away(self, name: str) -> None:
        """A spot interruption, once the running training has kept a checkpoint."""
        kept = self._runs[name].tree / "checkpoints"
        while not list(kept.glob("*.json")):
            assert self._runs[name].process is None or self._runs[name].process.poll() is None
            time.sleep(0.05)
        self._taken_away.add(name)
        self._runs[name].end()

    def describe_training_job(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["TrainingJobName"] not in self.things["TrainingJob"]:
            raise Refused("Requested resource not found.")
        return {"ModelArtifacts": {"S3ModelArtifacts": ""}} | self._described("TrainingJob", request["TrainingJobName"])

    def list_training_jobs(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._listed("TrainingJob", "TrainingJobSummaries", request)

    def stop_training_job(self, request: dict[str, Any]) -> None:
        job = self._get("TrainingJob", request["TrainingJobName"])
        if job["TrainingJobStatus"] != "InProgress":
            raise Refused("The request was rejected because the training job is in status " + job["TrainingJobStatus"])
        job["TrainingJobStatus"] = "Stopping"
        if run := self._runs.get(request["TrainingJobName"]):
            self._work(run.end)

    def delete_training_job(self, request: dict[str, Any]) -> None:
        job = self._get("TrainingJob", request["TrainingJobName"])
        if job["TrainingJobStatus"] not in {"Completed", "Failed", "Stopped"}:
            raise Refused("Only jobs that have ended can be deleted", "ResourceInUse")
        del self.things["TrainingJob"][request["TrainingJobName"]]

    # ----- models, configurations, endpoints

    def create_model(self, request: dict[str, Any]) -> dict[str, Any]:
        self._check_role(request["ExecutionRoleArn"])
        container = request["PrimaryContainer"]
        self._check_pull(request["ExecutionRoleArn"], container["Image"])
        repository, _, tag = container["Image"].partition("/")[2].partition(":")
        try:
            boto3.client("ecr").describe_images(repositoryName=repository, imageIds=[{"imageTag": tag}])
        except ClientError as error:
            raise Refused(f"Requested image {container['Image']} not found ({error})") from None
        bucket, _, key = container["ModelDataUrl"].removeprefix("s3://").partition("/")
        try:
            boto3.client("s3").head_object(Bucket=bucket, Key=key)
        except ClientError:
            raise Refused(f"Could not find model data at {container['ModelDataUrl']}.") from None
        return self._add("Model", request["ModelName"], request)

    def describe_model(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._described("Model", request["ModelName"])

    def list_models(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._listed("Model", "Models", request)

    def delete_model(self, request: dict[str, Any]) -> None:
        self._get("Model", request["ModelName"])
        del self.things["Model"][request["ModelName"]]

    def create_endpoint_config(self, request: dict[str, Any]) -> dict[str, Any]:
        for variant in request["ProductionVariants"]:
            self._get("Model", variant["ModelName"])
            if ("ServerlessConfig" in variant) == ("InstanceType" in variant):
                raise Refused("give either a ServerlessConfig or an InstanceType")
        return self._add("EndpointConfig", request["EndpointConfigName"], request)

    def describe_endpoint_config(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._described("EndpointConfig", request["EndpointConfigName"])

    def list_endpoint_configs(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._listed("EndpointConfig", "EndpointConfigs", request)

    def delete_endpoint_config(self, request: dict[str, Any]) -> None:
        self._get("EndpointConfig", request["EndpointConfigName"])
        del self.things["EndpointConfig"][request["EndpointConfigName"]]

    def create_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        self._get("EndpointConfig", request["EndpointConfigName"])
        answer = self._add("Endpoint", request["EndpointName"], request, EndpointStatus="Creating")
        self._work(self._host, request["EndpointName"])
        return answer

    def add_endpoint(self, request: dict[str, Any]) -> None:
        """One that is in service without a container, as another team's might be."""
        self._add("Endpoint", request["EndpointName"], request, EndpointStatus="InService")

    def update_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        endpoint = self._get("Endpoint", request["EndpointName"])
        self._get("EndpointConfig", request["EndpointConfigName"])
        if endpoint["EndpointStatus"] != "InService":
            raise Refused(f"Cannot update in-progress endpoint {endpoint['EndpointArn']}.")
        configs = (endpoint["EndpointConfigName"], request["EndpointConfigName"])
        variants = [self.things["EndpointConfig"][name]["ProductionVariants"][0] for name in configs]
        if len({"ServerlessConfig" in variant for variant in variants}) > 1:
            raise Refused("an endpoint does not change between serverless and instances")
        if self.updates:  # one that does not come up: the endpoint goes back to what it was, or fails to
            status = self.updates.pop(0)
            endpoint |= {"EndpointStatus": status, "FailureReason": "did not pass the ping health check."}
            return {"EndpointArn": endpoint["EndpointArn"]}
        endpoint |= {"EndpointConfigName": request["EndpointConfigName"], "EndpointStatus": "Updating"}
        self._work(self._host, request["EndpointName"])
        return {"EndpointArn": endpoint["EndpointArn"]}

    def _host(self, name: str) -> None:
        endpoint = self.things["Endpoint"][name]
        if not self.runs_containers:
            endpoint["EndpointStatus"] = "InService"
            return
        config = self.things["EndpointConfig"][endpoint["EndpointConfigName"]]
        container = self._container(config["ProductionVariants"][0]["ModelName"], {})
        earlier = self._containers.pop(name, None)
        if container.becomes_ready():
            self._containers[name] = container
            endpoint["EndpointStatus"] = "InService"
        else:
            container.close()
            why = "The primary container for production variant AllTraffic did not pass the ping health check."
            endpoint |= {"EndpointStatus": "Failed", "FailureReason": why}
        if earlier:
            earlier.close()

    def _container(self, model: str, environment: dict[str, str]) -> Container | Within:
        container = self._get("Model", model)["PrimaryContainer"]
        folder = self.folder / "containers" / f"{model}-{time.monotonic_ns()}"
        unpacked(container["ModelDataUrl"], folder / "model")
        if not self.runs_containers:
            return Within(folder / "model", is_transform="SAGEMAKER_BATCH" in environment)
        code = program(folder / "program")
        return Container(folder / "model", code, folder / "log", {**container.get("Environment", {}), **environment})

    def describe_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._described("Endpoint", request["EndpointName"])

    def list_endpoints(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._listed("Endpoint", "Endpoints", request)

    def delete_endpoint(self, request: dict[str, Any]) -> None:
        endpoint = self._get("Endpoint", request["EndpointName"])
        if endpoint["EndpointStatus"] in {"Creating", "Updating", "Deleting"}:
            raise Refused(f"Cannot update in-progress endpoint {endpoint['EndpointArn']}.")
        endpoint["EndpointStatus"] = "Deleting"

        def delete() -> None:
            if container := self._containers.pop(request["EndpointName"], None):
                container.close()
            del self.things["Endpoint"][request["EndpointName"]]

        self._work(delete)

    def invoke(self, name: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, str]:
        """InvokeEndpoint."""
        endpoint = self._get("Endpoint", name)
        if endpoint["EndpointStatus"] != "InService":
            raise Refused(f"Endpoint {name} of account {live_moto.ACCOUNT} not found.")
        variant = self.things["EndpointConfig"][endpoint["EndpointConfigName"]]["ProductionVariants"][0]
        limit = MAX_BODY["serverless" if "ServerlessConfig" in variant else "instances"]
        if len(body) > limit:
            raise Refused(f"Request size {len(body)} exceeds {limit}", "ValidationError", 413)
        handed_on = ("content-type", "accept", "x-amzn-sagemaker-custom-attributes")
        given = {key: value for key, value in headers.items() if key.lower() in handed_on}
        status, answer, kind = self._containers[name].call(body, given, INVOKE_S)
        if status != 200:
            raise Refused(f"Received error ({status}) from primary with message {answer!r}", "ModelError", 424)
        return status, answer, kind

    # ----- the registry of models

    def create_model_package_group(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._add("ModelPackageGroup", request["ModelPackageGroupName"], request)

    def list_model_package_groups(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._listed("ModelPackageGroup", "ModelPackageGroupSummaryList", request)

    def create_model_package(self, request: dict[str, Any]) -> dict[str, Any]:
        group = self._get("ModelPackageGroup", request["ModelPackageGroupName"])["ModelPackageGroupName"]
        versions = [name for name in self.things["ModelPackage"] if name.startswith(f"{group}/")]
        return self._add("ModelPackage", f"{group}/{len(versions) + 1}", request)

    # ----- transform jobs

    def create_transform_job(self, request: dict[str, Any]) -> dict[str, Any]:
        self._get("Model", request["ModelName"])
        if request.get("MaxConcurrentTransforms", 1) * request.get("MaxPayloadInMB", 6) > TRANSFORM_PAYLOADS_MB:
            raise Refused("MaxConcurrentTransforms * MaxPayloadInMB exceeds 100")
        name = request["TransformJobName"]
        answer = self._add("TransformJob", name, request, TransformJobStatus="InProgress")
        self._work(self._transform, name)
        return answer

    def _transform(self, name: str) -> None:
        job = self.things["TransformJob"][name]
        container = self._container(job["ModelName"], {"SAGEMAKER_BATCH": "true"})
        try:
            container.must_become_ready()
            transform(job, container, lambda: job["TransformJobStatus"] == "Stopping")
        except (ValueError, ClientError) as error:
            job |= {"TransformJobStatus": "Failed", "FailureReason": str(error)}
            return
        except BaseException:  # of the test itself: nobody waits for it for ever
            job |= {"TransformJobStatus": "Failed", "FailureReason": "InternalServerError"}
            raise
        finally:
            container.close()
        job["TransformJobStatus"] = "Stopped" if job["TransformJobStatus"] == "Stopping" else "Completed"

    def describe_transform_job(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._described("TransformJob", request["TransformJobName"])

    def list_transform_jobs(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._listed("TransformJob", "TransformJobSummaries", request)

    def stop_transform_job(self, request: dict[str, Any]) -> None:
        self._get("TransformJob", request["TransformJobName"])["TransformJobStatus"] = "Stopping"


def _handler(service: SageMaker) -> type[StandIn]:
    class Emulator(StandIn):
        def do_POST(self) -> None:
            body = self.body()
            try:
                if match := re.fullmatch(r"/endpoints/([^/]+)/invocations", self.path):
                    status, data, kind = service.invoke(match[1], body, dict(self.headers))
                    self.reply(status, data, [("Content-Type", kind)])
                    return
                operation = self.headers.get("X-Amz-Target", "").removeprefix("SageMaker.")
                answer = service.answer(operation, json.loads(body or b"{}"))
                self.reply(200, json.dumps(answer).encode(), [JSON])
            except Refused as refused:
                document = {"__type": refused.code, "message": str(refused), "Message": str(refused)}
                headers = [JSON, ("x-amzn-ErrorType", refused.code)]
                self.reply(refused.status, json.dumps(document).encode(), headers)

    return Emulator


@contextmanager
def running(folder: Path) -> Iterator[tuple[SageMaker, str]]:
    """Serve until the block ends; gives the service and its address."""
    service = SageMaker(folder)
    with serving(_handler(service)) as address:
        try:
            yield service, address
        finally:
            service.close()
