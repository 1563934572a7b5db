-- KEYS: shelf. ARGV: how many bytes. Answers digests.
return least_used(tonumber(ARGV[1]))
