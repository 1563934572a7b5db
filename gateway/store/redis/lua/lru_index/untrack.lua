-- KEYS: those of the LRU index. ARGV: the digests.
for _, digest in ipairs(ARGV) do
  untrack(digest)
end
return 0
