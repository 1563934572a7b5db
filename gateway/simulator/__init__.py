"""A simulated upstream: a faithful stand-in for the paid service (CONTRACT §10).

It stands apart from the gateway and shares only the ground floor with it, so that one can prove
something about the other.
"""

from gateway.simulator.server import (
    Simulator,
    SimulatorSettings,
    create_simulator,
    open_simulator,
)

__all__ = ["Simulator", "SimulatorSettings", "create_simulator", "open_simulator"]
