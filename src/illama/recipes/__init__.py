"""Recipes: typed, checked descriptions of training runs, one YAML file per published or measured run."""

from illama.recipes.batches import BatchPlan, plan_batches
from illama.recipes.load import (
    Change,
    edit_data,
    list_recipes,
    load_recipe,
    overridden_keys,
    override,
    parse_recipe,
    recipe_diff,
)
from illama.recipes.schema import (
    AugmentConfig,
    DataConfig,
    DropPathConfig,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
    SoftnessConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig",
    "BatchPlan",
    "Change",
    "DataConfig",
    "DropPathConfig",
    "OptimizerConfig",
    "Recipe",
    "ScheduleConfig",
    "SoftnessConfig",
    "TrainConfig",
    "edit_data",
    "list_recipes",
    "load_recipe",
    "overridden_keys",
    "override",
    "parse_recipe",
    "plan_batches",
    "recipe_diff",
]
