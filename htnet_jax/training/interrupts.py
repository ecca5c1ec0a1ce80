from htnet_jax.training.stopping import StopRequest

StopRequest.number = property(lambda self: self._number or 0)
