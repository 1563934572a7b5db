"""How fast the gateway is, beside what it could be at best: `make bench`.

Machines are noisy, so a figure counts only as a ratio inside one run, against something that ran
beside it: the upstream asked directly, nginx in the gateway's place, and a bare aiohttp handler
that does nothing but one trip to Redis, or to upstream. wrk asks, one thread, keep-alive.

`cells` says what is measured and what has to be reached, `servers` runs everybody, `load` asks,
`table` prints. Nothing here is a test: `make test` does not run it.
"""
