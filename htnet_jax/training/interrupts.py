"""STUB."""
from htnet_jax.training.stopping import Stopped as Stopped
from htnet_jax.training.stopping import StopRequest

StopRequest.number = property(lambda self: self._number or 0)
