"""What opens the store and wires what workers and commands share on it.

A command starts as fast as its imports, so nothing here may import what serves requests.
"""
