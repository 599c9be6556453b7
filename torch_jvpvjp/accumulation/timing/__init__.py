"""The objective `time`: a roofline of the device, calibrated once, and how well it predicts."""

from .calibrate import calibrate
from .current import calibrate_device, device_model
from .curve import Curve
from .defaults import default_model
from .model import DeviceModel
from .objective import Time, time_objective
from .store import cache_folder
from .verify import Verification, VerifiedStep, verification_table, verify_plan

__all__ = [
    "Curve",
    "DeviceModel",
    "Time",
    "Verification",
    "VerifiedStep",
    "cache_folder",
    "calibrate",
    "calibrate_device",
    "default_model",
    "device_model",
    "time_objective",
    "verification_table",
    "verify_plan",
]
