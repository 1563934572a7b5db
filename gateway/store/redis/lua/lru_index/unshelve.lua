-- KEYS: shelf. ARGV: the digests.
for _, digest in ipairs(ARGV) do
  take_off(digest)
end
return 0
