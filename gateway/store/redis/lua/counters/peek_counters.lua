-- KEYS: books. ARGV: the consumptions, all of amount 0. Returns the states.
return states(read_consumptions(ARGV, 1))
