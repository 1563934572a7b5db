"""Models as data: the rows of `models.yaml`, checked and frozen.

Here is which rows are valid. How they apply to a request is `request.validation`, how they apply to
money is `billing.pricing`. Reading the file is `configuration.files`. No model is named in code.
"""

from gateway.catalog.billing import (
    AssumedPrice,
    Billing,
    ImageBilling,
    TokenBilling,
    TokenFormula,
    TokenPrices,
)
from gateway.catalog.models import ECHOED_PARAMETERS, Catalog, Model, SimulatorSpec
from gateway.catalog.parameters import (
    BooleanSpec,
    ChoiceSpec,
    IntegerSpec,
    Only,
    ParameterSpec,
    SizeSpec,
    TextSpec,
)
from gateway.catalog.parse import parse_catalog
from gateway.catalog.rows import SIZE, CatalogError
from gateway.catalog.rules import Rule, RuleCondition, RuleError

__all__ = [
    "ECHOED_PARAMETERS",
    "SIZE",
    "AssumedPrice",
    "Billing",
    "BooleanSpec",
    "Catalog",
    "CatalogError",
    "ChoiceSpec",
    "ImageBilling",
    "IntegerSpec",
    "Model",
    "Only",
    "ParameterSpec",
    "Rule",
    "RuleCondition",
    "RuleError",
    "SimulatorSpec",
    "SizeSpec",
    "TextSpec",
    "TokenBilling",
    "TokenFormula",
    "TokenPrices",
    "parse_catalog",
]
