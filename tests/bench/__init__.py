"""The gateway's speed beside that of other servers: `make bench`, `make performance`.

Machines are noisy, so a rate counts only as a ratio inside one run, beside a server of that run:
the upstream itself, nginx in the gateway's place, and a bare aiohttp handler. Processor time of a
request is steadier. The client is wrk with one thread and keep-alive.

`cells` has the requests and their servers, `goals` the floors and targets, `results` what a run has
measured; none of the three does I/O. `servers` runs the servers, `load` runs wrk, `run` has the
parts of a run, `table` prints it, and `performance` writes `docs/performance.md`. `make test`
measures nothing. `sizing` is another command, `make scale`.
"""
