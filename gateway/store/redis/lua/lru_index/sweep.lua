-- KEYS: those of the LRU index. ARGV: the limit. Returns how many digests had expired.
return untrack_expired(tonumber(ARGV[1]))
