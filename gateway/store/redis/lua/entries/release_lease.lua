-- KEYS: entry, leases. ARGV: flight.
release_leases(read_leases(), ARGV[1])
return 0
