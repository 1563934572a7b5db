-- KEYS: shelf. ARGV: the most bytes. Answers the digests that went.
return make_room(tonumber(ARGV[1]))
