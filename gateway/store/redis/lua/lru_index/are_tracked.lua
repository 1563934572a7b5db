-- KEYS: those of the LRU index. ARGV: the digests. Returns 1 or 0 for each.
local found = {}
for i, digest in ipairs(ARGV) do
  found[i] = expiry_of(digest) > now and 1 or 0
end
return found
