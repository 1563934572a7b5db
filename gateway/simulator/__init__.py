"""A simulated upstream: a faithful stand-in for the paid images API.

It is independent of the gateway: it imports nothing but the ground floor, so that its checks can
show that the gateway forwards a wrong body. Its models are those of the catalog that it is given.
"""

from gateway.simulator.server import (
    Simulator,
    SimulatorSettings,
    create_simulator,
    open_simulator,
)

__all__ = ["Simulator", "SimulatorSettings", "create_simulator", "open_simulator"]
