"""The gateway's speed compared with its baselines: `make bench`.

Machines are noisy, so a figure counts only as a ratio inside one run, against a baseline of that
run: the upstream itself, nginx in the gateway's place, and a bare aiohttp handler that makes one
round trip to Redis or to upstream. The client is wrk with one thread and keep-alive.

`cells` defines the measurements and their floors, `servers` runs the servers, `load` runs wrk, and
`table` prints the results. `make test` measures nothing. `sizing` is another command, `make scale`.
"""
