# The public API in the order of the pipeline. Type checkers read it, and so does ``__init__.py``, which imports
# each name on its first use.

# films
from .synthetic.films import write_synthetic_films as write_synthetic_films
from .data.collect import collect as collect
from .data.clean import clean as clean, describe as describe, quarantine as quarantine
from .data.report import write_data_report as write_data_report
from .data.split import split as split
from .data.audit import audit as audit
from .data.report import write_audit as write_audit
from .schema import read_manifest as read_manifest, write_manifest as write_manifest

# training
from .api import pack as pack, recipe as recipe, train as train, blend as blend, export as export

# evaluation and prediction
from .api import evaluate as evaluate, evaluate_scores as evaluate_scores, calibrate as calibrate
from .api import sign as sign, verify as verify, load as load, predict as predict, batch as batch

# serving, and everything at once
from .serving.server import serve as serve
from .serving.server import serve_in_background as serve_in_background
from .api import key as key
from .pipeline import run as run
from .api import doctor as doctor

# plots
from .plots import plot_films as plot_films, plot_distribution as plot_distribution, plot_scaling as plot_scaling
from .plots import plot_network as plot_network, plot_prediction as plot_prediction

# what they take and give
from .schema import Film as Film, PackInfo as PackInfo, BundleInfo as BundleInfo, Prediction as Prediction
from .data.pack import Pack as Pack
from .inference.predictor import Predictor as Predictor
from .data.audit import Audit as Audit
from .evaluation.assessment import Assessment as Assessment
from .serving.server import BackgroundService as BackgroundService
from .synthetic.films import SyntheticSettings as SyntheticSettings
from .data.split import SplitSettings as SplitSettings
from .training.config import Recipe as Recipe
from .pipeline import RunSettings as RunSettings
from .serving.server import ServeOptions as ServeOptions
from .errors import ChestXrayError as ChestXrayError

__version__: str
