"""Models as data: the rows of `models.yaml`, checked and frozen.

Here is which rows are valid. How they apply to a request is `request.validation`, how they apply to
money is `billing.pricing`. Reading the file is `configuration.files`. No model is named in code.
"""

from gateway.catalog.billing import (
    AssumedPrice,
    Billing,
    ImageBilling,
    TextPrices,
    TokenBilling,
    TokenFormula,
    TokenPrices,
)
from gateway.catalog.dialects import BUILT_IN_DIALECTS, DialectRow
from gateway.catalog.models import ECHOED_PARAMETERS, Catalog, Model, SimulatorSpec, TextModels
from gateway.catalog.parameters import (
    BooleanSpec,
    ChoiceSpec,
    DecimalSpec,
    FrameSheet,
    IntegerSpec,
    ObjectSpec,
    Only,
    ParameterSpec,
    SheetLayout,
    SizeSpec,
    TextSpec,
    canonical_number,
)
from gateway.catalog.parse import parse_catalog
from gateway.catalog.rows import SIZE, CatalogError
from gateway.catalog.rules import Rule, RuleCondition, RuleError

__all__ = [
    "BUILT_IN_DIALECTS",
    "ECHOED_PARAMETERS",
    "SIZE",
    "AssumedPrice",
    "Billing",
    "BooleanSpec",
    "Catalog",
    "CatalogError",
    "ChoiceSpec",
    "DecimalSpec",
    "DialectRow",
    "FrameSheet",
    "ImageBilling",
    "IntegerSpec",
    "Model",
    "ObjectSpec",
    "Only",
    "ParameterSpec",
    "Rule",
    "RuleCondition",
    "RuleError",
    "SheetLayout",
    "SimulatorSpec",
    "SizeSpec",
    "TextModels",
    "TextPrices",
    "TextSpec",
    "TokenBilling",
    "TokenFormula",
    "TokenPrices",
    "canonical_number",
    "parse_catalog",
]
