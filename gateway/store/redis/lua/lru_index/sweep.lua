-- KEYS: shelf. ARGV: how many at most. Answers how many were past their time.
return forget_ended(tonumber(ARGV[1]))
