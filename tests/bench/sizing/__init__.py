"""What the gateway needs for a number of images a minute: `make scale`.

`measuring` measures one worker and one Redis. `arithmetic` derives the processors, memory, network
and money of larger deployments from these figures. `page` writes the tables of `docs/scale.md`.
The figures are stored in `measured.json`, and a test compares the page with them.
"""
