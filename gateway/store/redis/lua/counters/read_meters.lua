-- KEYS: books. ARGV: the takes, all of amount 0. Answers the states.
return states(read_takes(ARGV, 1))
