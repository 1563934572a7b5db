"""The store, and the rooms on it that workers and commands share: what opens and wires each.

A command starts as fast as its imports, so nothing here may import what serves requests.
"""
