"""How a container of SageMaker's kind is started: ``docker run IMAGE serve``, with everything else by convention.

Source: Amazon SageMaker developer guide, "How Amazon SageMaker AI runs your inference image": the model lies in
/opt/ml/model, port 8080 answers. Multi-container endpoints name another port in SAGEMAKER_BIND_TO_PORT; batch
transform jobs set SAGEMAKER_BATCH.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from chestxray.errors import UsageError
from chestxray.serving.server import ServeOptions

MODEL: Final = Path("/opt/ml/model")
_PORT: Final = "8080"
_HIGHEST_PORT: Final = 65535
_TRUE: Final = frozenset({"1", "true", "yes"})


def container_options(environment: Mapping[str, str]) -> ServeOptions:
    """What a container listens to, by its environment. Raises: UsageError.

    It listens to the network that its platform gives it, and the platform decides who reaches that; keys count
    here as well, where there are any.
    """
    port = environment.get("SAGEMAKER_BIND_TO_PORT") or _PORT
    if not (port.isdecimal() and 0 < int(port) <= _HIGHEST_PORT):
        raise UsageError(f"SAGEMAKER_BIND_TO_PORT is {port!r}; give a port, 1 to {_HIGHEST_PORT}")
    transform = environment.get("SAGEMAKER_BATCH", "").lower() in _TRUE
    return ServeOptions("0.0.0.0", int(port), platform=True, transform=transform)  # noqa: S104 - its own network
