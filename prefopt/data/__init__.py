"""The data: public formats → examples → audited tokens → micro-batches.

`prepare_dataset` does the whole way to tokens; the other names are its stations.
"""

from prefopt.data.audit import Audit
from prefopt.data.collate import collate
from prefopt.data.convert import convert
from prefopt.data.dataset import TokenizedDataset, check_rows, prepare_dataset
from prefopt.data.encode import Encoder
from prefopt.data.examples import DemonstrationExample, LabelledExample, PairExample, PromptExample, RankedExample
from prefopt.data.formats import to_examples
from prefopt.data.read import load_rows
from prefopt.data.sampler import StepSampler
from prefopt.data.settings import DataSettings
from prefopt.data.template import render_prompt
from prefopt.data.tokenize import TokenizedExample

__all__ = [
    "Audit",
    "DataSettings",
    "DemonstrationExample",
    "Encoder",
    "LabelledExample",
    "PairExample",
    "PromptExample",
    "RankedExample",
    "StepSampler",
    "TokenizedDataset",
    "TokenizedExample",
    "check_rows",
    "collate",
    "convert",
    "load_rows",
    "prepare_dataset",
    "render_prompt",
    "to_examples",
]
