"""Chest X-rays in, calibrated pneumonia probabilities out. Research software, not a medical device.

Every command of the command line is a function here, by the same name (except those of ``chestxray aws``):

    films = chestxray.split(chestxray.clean(chestxray.collect("films")))
    chestxray.pack(films, "pack")
    chestxray.train("pack", "training", chestxray.recipe("default", epochs=3))
    chestxray.export("training", "bundle")
    print(chestxray.predict("film.jpeg", "bundle").probability)

Films are values, tuples of ``Film``; files on disk are given by their paths. Every deliberate error is a
``ChestXrayError``; ``chestxray.errors`` shows the tree. ``__init__.pyi`` lists the names; each is imported when it is
used first.
"""

import os

import lazy_loader

__version__ = "0.1.0"  # pyproject.toml reads it here

# Some libraries underneath report to their makers unless told not to before they are imported; this is read first by
# every server, worker process and notebook. Who wants the reports sets the variable, which then stays.
for _name, _value in (
    ("ORT_DISABLE_TELEMETRY", "1"),
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
):
    os.environ.setdefault(_name, _value)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
