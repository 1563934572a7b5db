-- KEYS: those of the LRU index. ARGV: how many bytes. Returns digests.
return eviction_candidates(tonumber(ARGV[1]))
