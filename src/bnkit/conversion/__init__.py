"""Networks from one framework to another: inference equal, training judged, nothing dropped."""

from bnkit.conversion.call import convert as convert
from bnkit.conversion.keras_models import from_keras as from_keras
from bnkit.conversion.keras_models import to_keras as to_keras
from bnkit.conversion.plan import ConversionPlan as ConversionPlan
from bnkit.conversion.transfer import Transfer as Transfer
from bnkit.conversion.worlds import WORLDS as WORLDS
from bnkit.conversion.worlds import World as World
from bnkit.conversion.worlds import world as world
