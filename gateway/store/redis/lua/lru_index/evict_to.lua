-- KEYS: those of the LRU index. ARGV: the bound in bytes. Returns the evicted digests.
return evict_to(tonumber(ARGV[1]))
