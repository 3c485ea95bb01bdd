"""The settings of a run. Owns flags, YAML, recipes and validation."""

from mtloop.config.checks import AUTO
from mtloop.config.inputs import DataConfig, ModelConfig, split_revision
from mtloop.config.parse import config_from, parse_config
from mtloop.config.resolution import differences, resolve, resolved_lines
from mtloop.config.surroundings import HardwareConfig, HubConfig, OutputConfig
from mtloop.config.training import MICRO_BATCH_TOKENS, BatchConfig, EvaluationConfig, OptimizerConfig
from mtloop.config.tuning import TuningConfig
from mtloop.config.whole import DEFAULTS, Config, changed, check_complete, flat, is_from_scratch
from mtloop.config.yaml_file import recipe_names, to_yaml

__all__ = [
    "AUTO",
    "DEFAULTS",
    "MICRO_BATCH_TOKENS",
    "BatchConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "HardwareConfig",
    "HubConfig",
    "ModelConfig",
    "OptimizerConfig",
    "OutputConfig",
    "TuningConfig",
    "changed",
    "check_complete",
    "config_from",
    "differences",
    "flat",
    "is_from_scratch",
    "parse_config",
    "recipe_names",
    "resolve",
    "resolved_lines",
    "split_revision",
    "to_yaml",
]
