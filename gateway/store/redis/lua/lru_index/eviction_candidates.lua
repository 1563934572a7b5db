-- KEYS: those of the LRU index. ARGV: how many bytes, how many of the oldest digests to skip.
-- Returns digest, bytes, …
local digests, sizes = eviction_candidates(tonumber(ARGV[1]), tonumber(ARGV[2]))
local found = {}
for i, digest in ipairs(digests) do
  table.insert(found, digest)
  table.insert(found, sizes[i])
end
return found
