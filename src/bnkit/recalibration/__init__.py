"""Population statistics for trained models: exact, and with a way back."""

from bnkit.recalibration.call import recalibrate as recalibrate
from bnkit.recalibration.call import recalibrate_ as recalibrate_
from bnkit.recalibration.result import LayerChange as LayerChange
from bnkit.recalibration.result import Recalibration as Recalibration
