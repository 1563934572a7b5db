"""Constructs what only a serving worker needs, each module one area. `assembly` sets their order.

What commands need too is in `wiring/`. Only `services` does I/O: it reads the admin token's file.
"""
